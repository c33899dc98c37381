"""Whole jobs, from files to scored and plotted results: what the command line runs.

* `simulate`: write a simulated dataset.
* `train`: pretraining, classifiers, batch removal, into one run folder.
* `predict_split`: images and features of a split, as files.
* `evaluate`: scores on a split, by probes that the generator never met, and figures.
* `demo`: all of it on the demonstration dataset.

Example
-------
>>> run = train("Dataset", "results/run", PRESETS["demo"], seed=0, verbose=1)
>>> evaluation = evaluate(run, "Dataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib.analysis import biophysics, image_quality, probes
from cytomad_lib.analysis.embedding import umap_coordinates
from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_table
from cytomad_lib.data.layouts import find_layout
from cytomad_lib.models.networks import DEMO
from cytomad_lib.prediction import predict, write_prediction
from cytomad_lib.runs import Run
from cytomad_lib.simulation.write import DEMO_DATASET, simulate_dataset
from cytomad_lib.views import plots

METHOD_NAMES = {"pretraining": "pretrained", "published": "published recipe"}
MEASURED, TRUTH = "measured QPI", "truth"
DEMO_CELLS = 36  # training cells per group: enough for minutes; the others wait for `train`


def demo_dataset(out):
    """Find the demonstration dataset beside the library, or simulate it below `out`.

    Returns
    -------
    Path
        Folder that holds `7LungCancerDataset/`.
    """
    beside = Path(__file__).parents[1] / "Dataset"
    if (beside / "7LungCancerDataset").is_dir():
        return beside
    made = Path(out) / "Dataset"
    if not (made / "7LungCancerDataset").is_dir():
        simulate_dataset(made, **DEMO_DATASET)
    return made


def train(data, out, preset=DEMO, seed=0, cells_per_group=None, verbose=0):
    """Train all stages of the published recipe, or take up where an earlier call stopped.

    Parameters
    ----------
    data : path
        A dataset's folder, or the one above it.
    out : path
        The run's folder.
    preset : Preset
    seed : int
    cells_per_group : int, optional
        Use the first so many training cells of each group; all by default.
    verbose : int
        0 is silent, 1 shows progress bars, 2 prints a line per epoch.

    Returns
    -------
    Run
    """
    layout, _ = find_layout(data)
    size = preset.image_size
    cells = load_cells(data, "Train", cells_per_group, size, progress=verbose == 1)
    valid = load_cells(data, "Valid", None, size, progress=verbose == 1)
    run = Run.create(out, preset, cells, layout.name, seed)
    _announce(verbose, "Interrupt when you like: the same command goes on after the last epoch.")
    _announce(verbose, f"Pretraining on {len(cells)} cells: brightfield to phase")
    run.pretrain(cells, valid, verbose)
    _announce(verbose, "Classifiers of batch and class")
    run.fit_classifiers(cells, valid, verbose)
    _announce(verbose, "Batch removal, published recipe")
    run.remove_batches(cells, valid, verbose)
    save_loss_figures(run)
    return run


def save_loss_figures(run):
    """Plot the losses of each trained stage into the run's `figures/`; return the paths."""
    paths = []
    for stage in run.stages():
        figure = plots.loss_curves(run.history(stage), title=f"Losses, {METHOD_NAMES[stage]}")
        paths.append(plots.save_figure(figure, run.folder / "figures" / f"losses_{stage}.png"))
    return paths


def predict_split(run, data, split, stage, out, progress=False):
    """Predict a split and write images and features; see `prediction.write_prediction`.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
    stage : {"pretraining", "published"}
        Whose generator.
    out : path
        Folder for the files.
    progress : bool

    Returns
    -------
    Prediction
    """
    _check_same_layout(run, data)
    generator = run.generator(stage)
    cells = CellFiles(data, split, image_size=run.preset.image_size)
    prediction = predict(generator, cells, progress)
    write_prediction(prediction, out, stage)
    return prediction


@dataclass(eq=False)
class Evaluation:
    """Scores of a run on one split, and where its figures are.

    Parameters
    ----------
    split : str
    seed : int
        Of the probes.
    scores : DataFrame
        One row per method and measure; see `probes.score_table`.
    images : DataFrame
        One row per method: image quality against measured phase and, if known, the truth.
    own_verdict : Series or None
        Share of cells that the published recipe's own classifiers call "first batch".
    first_batch : float
        Share of cells that are of the first batch.
    predictions : dict of Prediction
        Of each stage.
    figures : list of Path
    """

    split: str
    seed: int
    scores: pd.DataFrame
    images: pd.DataFrame
    own_verdict: pd.Series | None
    first_batch: float
    predictions: dict
    figures: list

    def summary(self):
        """Return the scores as text: measures in rows, methods in columns, chance beside them."""
        table = self.scores.pivot(index="measure", columns="method", values="accuracy")
        first = self.scores.drop_duplicates("measure").set_index("measure")
        null = self.scores.groupby("measure")["null_95"].max()
        methods = list(dict.fromkeys(self.scores["method"]))
        table = table.loc[first.index, methods]
        table.insert(0, "chance", first["chance"])
        table.insert(1, "null 95 %", null)
        bits = self.scores[self.scores["bits"].notna()].set_index("method")["bits"]
        table.loc["batch within class, in bits"] = {"chance": 0.0} | bits.to_dict()
        n = int(self.scores["n_cells"].iloc[0])
        return "\n".join(
            [
                f"Accuracy of independent probes on {n} cells of the {self.split} split "
                f"(strongest of {', '.join(probes.PROBES)}; probe seed {self.seed})",
                "Batch should be at chance, class high.",
                _as_text(table),
                "",
                "Images (mean over cells)",
                _as_text(self.images),
                *self._verdict_text(),
            ]
        )

    def _verdict_text(self):
        if self.own_verdict is None:
            return []
        least, most = 100 * self.own_verdict.min(), 100 * self.own_verdict.max()
        return [
            "",
            f"The published recipe's own batch classifiers call {least:.1f} to {most:.1f} % of "
            f"these cells 'first batch' ({100 * self.first_batch:.1f} % are).",
            "So far they are fooled; whether the batch is gone, the probes above say.",
        ]


def evaluate(run, data, split, out, seed=0, progress=False):
    """Score every trained stage of a run on a split, and draw the figures.

    Beside the stages, the measured phase images and (for simulated cells) the batch-free truth
    are probed, pixel by pixel: how much batch and class there is to be found.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
        Only Test was used for nothing else.
    out : path
        Folder that gets `scores.csv`, `image_scores.csv` and `figures/`.
    seed : int
        Of the probes.
    progress : bool
        Print what is being done.

    Returns
    -------
    Evaluation
    """
    _check_same_layout(run, data)
    stages = run.stages()
    if not stages:
        raise CytomadError(f"{run.folder} has no trained stage. Train it first.")
    cells = _load_with_truth_if_there(data, split, run.preset.image_size)
    predictions = {}
    for stage in stages:
        _announce(progress, f"Predicting the {split} split with the generator: {stage}")
        predictions[stage] = predict(run.generator(stage), cells, progress)

    references = {MEASURED: cells.qpi}
    if cells.truth is not None:
        references[TRUTH] = cells.truth
    features = {METHOD_NAMES[stage]: made.features for stage, made in predictions.items()}
    images = {METHOD_NAMES[stage]: made.images for stage, made in predictions.items()}
    pixels = {f"{name} (pixels)": stack for name, stack in references.items()}
    _announce(progress, "Probing in the background: " + ", ".join(features | pixels))
    probing = probes.score_side_by_side(features | pixels, cells.labels, seed)
    quality = pd.DataFrame({name: _image_row(stack, cells) for name, stack in images.items()}).T
    _announce(progress, "Placing the features on a map")
    maps = {name: umap_coordinates(values, seed) for name, values in features.items()}
    results = dict(
        tqdm(probing, "probing", len(features | pixels), disable=not progress, unit="method")
    )
    scores = probes.results_table(results)

    _announce(progress, "Drawing figures")
    out = Path(out)
    figures = _draw(out / "figures", cells, images, references, maps, results, scores)
    figures += _draw_encoding(out / "figures", cells, features)
    write_table(scores, out / "scores.csv", index=False)
    write_table(quality, out / "image_scores.csv", index_label="method")
    return Evaluation(
        split=split,
        seed=seed,
        scores=scores,
        images=quality,
        own_verdict=run.own_verdict(cells) if "published" in stages else None,
        first_batch=float(np.mean(cells.batch_codes == 0)),
        predictions=predictions,
        figures=[*save_loss_figures(run), *figures],
    )


def demo(out, data=None, preset=DEMO, seed=0, verbose=0):
    """Train on the demonstration dataset, predict and evaluate its Test split.

    Parameters
    ----------
    out : path
        Folder for everything: the run, `TestData/`, scores and figures. An interrupted demo goes
        on where it stopped when called again.
    data : path, optional
        Another dataset, of which all training cells are used. By default the demonstration
        dataset, of which `DEMO_CELLS` per group are.
    preset : Preset
    seed : int
    verbose : int
        As in `train`.

    Returns
    -------
    Evaluation
    """
    cells_per_group = DEMO_CELLS if data is None else None
    data = demo_dataset(out) if data is None else data
    run = train(data, out, preset, seed, cells_per_group, verbose)
    evaluation = evaluate(run, data, "Test", out, seed, progress=verbose > 0)
    for stage, prediction in evaluation.predictions.items():
        write_prediction(prediction, Path(out) / "TestData" / stage, stage, overwrite=True)
    return evaluation


def _draw(folder, cells, images, references, maps, results, scores):
    """Draw and save the figures of an evaluation; return their paths."""
    shown = _one_cell_of_each_class(cells.labels)
    some = cells.labels.iloc[shown]
    columns = {"Brightfield": cells.brightfield} | images | references
    last = TRUTH if TRUTH in references else MEASURED
    figures = {
        "cells.png": plots.image_grid(
            {name: stack[shown] for name, stack in columns.items()},
            cells.pixel_size_um,
            row_labels=[
                f"{name}, {batch}"
                for name, batch in zip(some["class_name"], some["batch"], strict=True)
            ],
            error_of=(list(images)[-1], last),
        ),
        "scores.png": plots.score_bars(scores),
    }
    for name, coordinates in maps.items():
        slug = name.replace(" ", "_")
        figures[f"umap_{slug}.png"] = plots.embedding(
            coordinates, cells.labels, title=f"Bottleneck features, {name}"
        )
        figures[f"confusion_{slug}.png"] = plots.confusion_matrices(
            {f"{result.measure}\n({name})": result.confusion for result in results[name]}
        )
    return [plots.save_figure(figure, folder / name) for name, figure in figures.items()]


def _draw_encoding(folder, cells, features):
    """Draw which property of the cell each feature follows; return the paths."""
    # From the truth where it is known: the measured phase carries the batch's scale, and a feature
    # that knows nothing but the batch would seem to know the dry mass.
    phase = cells.qpi if cells.truth is None else cells.truth
    measures = biophysics.measure_cells(phase, cells.pixel_size_um)
    paths = []
    for name, values in features.items():
        # ReLU features that are zero for every cell follow nothing; they would fill half the map.
        alive = np.flatnonzero(np.ptp(values, axis=0) > 0)
        figure = plots.correlation_map(
            biophysics.correlate_features(values[:, alive], measures).set_axis(alive, axis=0),
            title=f"What the features encode, {name}\n"
            f"({len(alive)} of {values.shape[1]} features; the others never vary)",
        )
        paths.append(plots.save_figure(figure, folder / f"encoding_{name.replace(' ', '_')}.png"))
    return paths


def _one_cell_of_each_class(labels):
    """Return a row per class, each from another batch where that can be."""
    rows, batches = [], set()
    for _, own in labels.groupby("class_name", observed=True):
        fresh = own[~own["batch"].isin(batches)]
        row = (fresh if len(fresh) else own).index[0]
        rows.append(row)
        batches.add(labels["batch"][row])
    return np.array(rows)


def _image_row(images, cells):
    """Return the mean scores of one method's images."""
    row = {}
    references = {"measured": cells.qpi}
    if cells.truth is not None:
        references["truth"] = cells.truth
    for name, reference in references.items():
        means = image_quality.image_scores(images, reference).mean()
        row[f"r, {name}"] = means["pearson_r"]
        row[f"MAE, {name} (rad)"] = means["mae_rad"]
        row[f"SSIM, {name}"] = means["ssim"]
    if cells.truth is not None:
        fine = image_quality.structure_r(images, cells.truth, pixel_size_um=cells.pixel_size_um)
        row["structure r, truth"] = np.nanmean(fine)
    return row


def _load_with_truth_if_there(data, split, image_size):
    layout, root = find_layout(data)
    truths = [root / group.file(split, "QPI_TRUE") for group in layout.groups]
    with_truth = any(path.exists() for path in truths)
    return load_cells(data, split, image_size=image_size, with_truth=with_truth)


def _check_same_layout(run, data):
    layout, root = find_layout(data)
    if layout.name != run.settings["dataset"]:
        raise CytomadError(
            f"{root} is a {layout.name} dataset, the run in {run.folder} was trained on "
            f"{run.settings['dataset']}. Give a dataset of the same kind."
        )


def _as_text(table):
    return table.to_string(float_format="{:.3f}".format, na_rep="-", index_names=False)


def _announce(verbose, text):
    if verbose:
        print(f"\n{text}", flush=True)
