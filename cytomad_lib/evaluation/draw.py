"""The figures of an evaluation, drawn and saved."""

from functools import partial

import numpy as np

from cytomad_lib import plots
from cytomad_lib.evaluation import biophysics
from cytomad_lib.evaluation.embedding import umap_coordinates
from cytomad_lib.evaluation.probes import MEASURES
from cytomad_lib.evaluation.results import BASELINE, METHOD_NAMES, if_possible
from cytomad_lib.runs import IMAGES, LAST


def draw(evaluation, run, layout, folder):
    """Draw and save all figures of an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
        Figures that its cells do not allow are added to its `left_out`, maps to its `maps`.
    run : Run
        Its losses are drawn.
    layout : Layout
    folder : Path

    Returns
    -------
    list of Path
    """
    paths = save_loss_figures(run, folder)
    for figures in (
        _cells(evaluation, layout),
        _scores(evaluation),
        _confusions(evaluation),
        _maps(evaluation),
        _encodings(evaluation, layout),
        _doses(evaluation),
    ):
        # One after the other, so that only one is in memory.
        paths += [plots.save_figure(figure, folder / f"{name}.png") for name, figure in figures]
    return paths


def save_loss_figures(run, folder):
    """Plot the losses of each trained stage of a run into a folder; return the paths."""
    titles = {stage: METHOD_NAMES[stage] for stage in run.stages()}
    if "conditional" in titles:  # it is trained in two parts
        name = titles.pop("conditional")
        titles |= {IMAGES: f"{name}: images", "conditional": f"{name}: features"}
    paths = []
    for stage, title in titles.items():
        figure = plots.loss_curves(
            run.history(stage),
            # Where the last epoch is kept, the epoch of the lowest loss has no meaning.
            best_by=None if stage in LAST else "val_loss",
            title=f"Losses, {title}",
        )
        paths.append(plots.save_figure(figure, folder / f"losses_{stage.replace('/', '_')}.png"))
    return paths


def baseline_bars(scores):
    """Draw the accuracies of the baselines and stages; None where no baseline was scored.

    Parameters
    ----------
    scores : DataFrame
        As `Evaluation.scores`, also of several seeds.
    """
    rows = scores[scores["measure"].isin(MEASURES)]
    if not (rows["kind"] == BASELINE).any():
        return None
    oracles = [name for name in scores["method"].unique() if name.endswith("(oracle)")]
    return plots.score_rows(rows[rows["kind"] != "reference"], faded=oracles)


# --- each yields (name of the file, figure) --------------------------------------------------


def _cells(evaluation, layout):
    """Draw a cell of each class by every method, beside the measured image."""
    cells = evaluation.cells
    shown = one_cell_of_each_class(cells.labels)
    some = cells.labels.iloc[shown]
    names = zip(some["class_name"], some["batch"], strict=True)
    inputs = {
        layout.contrasts[kind].name: cells.brightfield[..., number]
        for number, kind in enumerate(layout.inputs)
    }
    images = evaluation.stage_images
    references = evaluation.references
    target = layout.target
    yield (
        "cells",
        plots.image_grid(
            {name: stack[shown] for name, stack in (inputs | images | references).items()},
            cells.pixel_size_um,
            cell_labels=[f"{name}, {batch}" for name, batch in names],
            brightfield=tuple(inputs),
            error_of=(list(images)[-1], list(references)[-1]),
            quantity=f"{target.name} ({target.unit})" if target.unit else target.name,
        ),
    )


def one_cell_of_each_class(labels):
    """Return a row per class, each from another batch where possible."""
    rows, batches = [], set()
    for _, own in labels.groupby("class_name", observed=True):
        fresh = own[~own["batch"].isin(batches)]
        row = (fresh if len(fresh) else own).index[0]
        rows.append(row)
        batches.add(labels["batch"][row])
    return np.array(rows)


def _scores(evaluation):
    if len(evaluation.main_scores):
        yield "scores", plots.score_bars(evaluation.main_scores)
    figure = baseline_bars(evaluation.scores)
    if figure is not None:
        yield "baselines", figure


def _confusions(evaluation):
    for name in evaluation.features:
        results = evaluation.results[name]
        if results:
            yield (
                _file("confusion", name),
                plots.confusion_matrices(
                    {f"{result.measure}\n({name})": result.confusion for result in results}
                ),
            )


def _maps(evaluation):
    for name, values in evaluation.features.items():
        place = partial(umap_coordinates, values, evaluation.seed)
        coordinates = if_possible(evaluation.left_out, "map", place, None)
        if coordinates is not None:
            evaluation.maps[name] = coordinates
            title = f"Bottleneck features, {name}"
            labels = evaluation.cells.labels
            yield _file("umap", name), plots.embedding(coordinates, labels, title=title)


def _encodings(evaluation, layout):
    """Draw which property of the cell each feature follows."""
    if layout.target.unit != "rad":
        return
    # From the truth where it is known: the measured phase carries the batch's scale, so a feature
    # that encodes the batch alone would correlate with the dry mass.
    measures = evaluation.measures[list(evaluation.references)[-1]]
    for name, values in evaluation.features.items():
        # ReLU features that are zero for every cell follow nothing; they would fill half the map.
        alive = np.flatnonzero(np.ptp(values, axis=0) > 0)
        correlate = partial(biophysics.correlate_features, values[:, alive], measures)
        correlations = if_possible(evaluation.left_out, "encoding", correlate, None)
        if correlations is not None:
            title = (
                f"What the features encode, {name}\n"
                f"({len(alive)} of {values.shape[1]} features; the others never vary)"
            )
            correlations = correlations.set_axis(alive, axis=0)
            yield _file("encoding", name), plots.correlation_map(correlations, title=title)


def _doses(evaluation):
    """Draw how far each dose is from untreated cells, a figure per method."""
    if len(evaluation.dose_distance):
        for name, own in evaluation.dose_distance.groupby("method", sort=False):
            figure = plots.dose_response(own, title=f"Dose response, {name}")
            yield _file("doses", name), figure


def _file(kind, method):
    return f"{kind}_{method.replace(' ', '_')}"
