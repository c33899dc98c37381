"""Score a run on a split: probes, images, mixing, doses and baselines, side by side.

`score` reads top to bottom as the evaluation: predict, correct by baselines, probe, tabulate.

Example
-------
>>> evaluation = score(run, "Dataset/7LungCancerDataset", "Test", progress=True)
>>> evaluation.scores.groupby("measure")["accuracy"].max()
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import find_layout, is_simulated
from cytomad_lib.evaluation import biology, dose_response, image_tables, mixing, probes
from cytomad_lib.evaluation.baselines import (
    Baseline,
    baseline_features,
    field_methods,
    null_control,
    trains_on,
)
from cytomad_lib.evaluation.biophysics import measure_images
from cytomad_lib.evaluation.image_probe import image_batch_accuracy
from cytomad_lib.evaluation.methods import phase_measures
from cytomad_lib.evaluation.results import (
    BASELINE,
    IMAGE_MEASURE,
    METHOD_NAMES,
    ORDER,
    Evaluation,
    if_possible,
)
from cytomad_lib.prediction import predict
from cytomad_lib.training.recipes import classifier_scores
from cytomad_lib.training.stages import say


def score(run, data, split, seed=0, progress=False, image_probe=True, baselines=True, methods=()):
    """Score every trained stage of a run on a split.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split, seed, progress, image_probe, baselines, methods
        As in `evaluate.evaluate`.

    Returns
    -------
    Evaluation
        Without figures. What these cells do not allow to score is in its `left_out`.

    Raises
    ------
    CytomadError
        As `evaluate.evaluate`.
    """
    cells, layout, root = _cells_to_score(run, data, split)
    left_out = probes.left_out(cells.labels)
    predictions = {}
    for stage in run.stages():
        announce(progress, f"Predicting the {split} split with the generator: {stage}")
        predictions[stage] = predict(run.generator(stage), cells, progress)
    features = {METHOD_NAMES[stage]: made.features for stage, made in predictions.items()}
    images = {METHOD_NAMES[stage]: made.images for stage, made in predictions.items()}
    references = image_tables.named_references(cells, layout)

    tables = {name: measure_images(s, cells) for name, s in (images | references).items()}
    measured = _measured_features(tables, layout)
    # References are scored by their measures, too; by their pixels if the target is no phase.
    ceilings = {name: measured.get(name, stack) for name, stack in references.items()}
    methods = [*(field_methods(with_images=True) if baselines else ()), *methods]
    given = run, data, cells, predictions["pretraining"], methods
    found, control = _run_methods(*given, seed, progress, left_out)
    if baselines:
        found = [_of_images(name, measured[name]) for name in images if name in measured] + found
    corrected = {b.shown_name: b.features for b in found if b.features is not None}
    settings = cells.labels, seed, progress, left_out, image_probe
    results, scores = _probe(features, ceilings, corrected, images | references, *settings)
    settings = cells.labels, seed, progress, left_out
    kept = _biology(features | ceilings | corrected, measured, *settings)
    compared = image_tables.comparable_measures(layout, left_out)
    kinds = dict(zip(image_tables.references(cells), references, strict=True))
    # Only the drug dataset says which class is untreated.
    dosed = {} if layout.described else features | ceilings
    mixed = _mix(features | corrected, cells.labels, seed, left_out)
    dose_order, dose_distance = _order_doses(dosed, cells.labels, seed, left_out)
    return Evaluation(
        split=split,
        seed=seed,
        dataset=root.name,
        simulated=is_simulated(root),
        cells=cells,
        predictions=predictions,
        references=references,
        measures=tables,
        results=results,
        scores=scores,
        images=image_tables.image_table(images | references, cells, layout.target.unit),
        cell_measures=image_tables.cell_measure_errors(tables, kinds, compared),
        mixing=mixed,
        biology=pd.concat([kept, _dose_shares(dose_order)]),
        baselines=_notes_table(found, control),
        dose_order=dose_order,
        dose_distance=dose_distance,
        left_out=left_out,
        dry_mass=image_tables.optics_text(layout) if "dry_mass_pg" in compared else "",
        classifier_scores=_scores_of_classifiers(run, cells, left_out),
    )


def _scores_of_classifiers(run, cells, left_out):
    """Return what the published recipe's own classifiers answer; None if there are none."""
    if "published" not in run.stages():
        return None
    ask = partial(classifier_scores, run, cells)  # a copy of a run has no checkpoint to ask
    return if_possible(left_out, "the recipe's own classifiers", ask, None)


def announce(verbose, text):
    """Print a line about what comes next, after an empty one."""
    say(verbose, f"\n{text}")


# --- the cells -------------------------------------------------------------------------------


def check_same_layout(run, data):
    """Refuse a dataset of another kind than the run was trained on.

    A described dataset must show the same images. Its lists may have become longer, at their ends:
    a new day can be predicted, while the codes of the others, and the first batch, stay.
    """
    layout, root = find_layout(data)
    if layout.name != run.settings["dataset"]:
        raise CytomadError(
            f"{root} is a {layout.name} dataset, the run in {run.folder} was trained on "
            f"{run.settings['dataset']}. Give a dataset of the same kind."
        )
    images = run.settings.get("images", layout.images)
    if images != layout.images or run.channels != len(layout.inputs):
        raise CytomadError(
            f"{root} has the images {layout.images}, the run in {run.folder} was trained on "
            f"{images}. Give a dataset of the same images, in the same order."
        )
    for what in ("batches", "classes"):
        known, found = getattr(run, what), getattr(layout, what)
        if found[: len(known)] != known:
            raise CytomadError(
                f"{root} has the {what} {', '.join(found)}, the run in {run.folder} was trained on "
                f"{', '.join(known)}. Expected these first, in the same order; new ones come after."
            )


def load_with_truth_if_there(data, split, image_size):
    """Load a split, with the batch-free truth if the dataset has it."""
    files = CellFiles(data, split, image_size=image_size)
    if files.has_truth:
        files = CellFiles(data, split, image_size=image_size, with_truth=True)
    return files.read(np.arange(len(files)))


def _cells_to_score(run, data, split):
    check_same_layout(run, data)
    if not run.stages():
        raise CytomadError(f"{run.folder} has no trained stage. Train it first.")
    layout, root = find_layout(data)
    cells = load_with_truth_if_there(data, split, run.preset.image_size)
    if cells.qpi is None:
        raise CytomadError(
            f"The {split} split of {root} has no measured {layout.target.name}, with which "
            "evaluate compares the predictions. Add its files, or use predict, which needs none."
        )
    return cells, layout, root


def training_cells(run, data):
    """Find the cells that a run was trained on, as files; None if this dataset lacks them."""
    counts = run.settings["training_cells"]
    wanted = {
        "image_size": run.preset.image_size,
        "batches": sorted({name.split("/")[0] for name in counts}),
    }
    try:
        files = CellFiles(data, "Train", **wanted)
        if run.was_trained_on(files.labels):
            return files
        # The run took the first cells of each group. A class in several doses has several groups
        # per batch.
        groups = files.labels.drop(columns="cell").drop_duplicates()
        per_name = groups.groupby(["batch", "class_name"], observed=True).size()
        first = per_name.index[0]
        per_group = counts.get("/".join(first), 0) // per_name[first]
        files = CellFiles(data, "Train", per_group or None, **wanted)
    except CytomadError:  # no Train split here, or another one
        return None
    return files if run.was_trained_on(files.labels) else None


# --- methods beside the generator's own features ---------------------------------------------


def reference_features(cells, layout):
    """Return {name: features} of the measured target and, if it is known, of the truth.

    Biophysical measures of the phase; where the target is no phase, the pixels.
    """
    references = image_tables.named_references(cells, layout)
    tables = {name: measure_images(stack, cells) for name, stack in references.items()}
    return references | _measured_features(tables, layout)


def _measured_features(tables, layout):
    """Return {name: measures of the cells as features}; empty if the target is no phase."""
    if layout.target.unit != "rad":
        return {}
    return {name: phase_measures.as_features(table) for name, table in tables.items()}


def _of_images(name, measures):
    note = "biophysical measures of the predicted images"
    return Baseline(f"{name}: measures of its images", measures, "nothing", (), note)


def _run_methods(run, data, cells, prediction, methods, seed, progress, left_out):
    """Return the baselines, and the null control of those that use batches."""
    if not methods:
        return [], None
    announce(progress, "Running the baselines on the pretrained features and the images")
    train = training_cells(run, data)
    given, images = (prediction.features, prediction.labels), None
    if train is not None:
        known = predict(run.generator("pretraining"), train, progress)
        given += known.features, known.labels
        if any({"brightfield", "qpi"} & set(trains_on(method)) for method in methods):
            images = train.read(np.arange(len(train)))
    options = {"test_images": cells, "train_images": images, "methods": methods}
    correct = partial(baseline_features, *given, seed=seed, **options)
    found = if_possible(left_out, "baselines", correct, {})
    found.pop("untouched", None)  # that is the pretrained stage itself
    announce(progress and found, "Testing the baselines on random halves, which hold no batch")
    test = partial(null_control, *given, seed=seed, methods=methods)
    control = if_possible(left_out, "null control of the baselines", test, None) if found else None
    return list(found.values()), control


def _notes_table(baselines, control):
    """Return `Evaluation.baselines`."""
    columns = ["baseline", "available", "needs", "trained_on", "note"]
    rows = [
        (b.shown_name, b.features is not None, b.needs, ", ".join(b.trains_on), b.note)
        for b in baselines
    ]
    table = pd.DataFrame(rows, columns=columns).astype({"available": bool})
    empty = pd.DataFrame(columns=["null_control", "null_95"], dtype=float)
    control = (empty if control is None else control).reindex([b.name for b in baselines])
    table.insert(4, "null_control", control["null_control"].to_numpy())
    table.insert(5, "null_control_95", control["null_95"].to_numpy())
    return table


# --- biology ---------------------------------------------------------------------------------


def _biology(methods, measured, labels, seed, progress, left_out):
    """Score how much of the cell each method keeps; empty where the target is no phase."""
    empty = pd.DataFrame(columns=["method", "measure", "value", "chance"])
    if not measured:
        return empty
    announce(progress, "Measuring how much of the cell's biophysics the features keep")
    if image_tables.TRUTH in measured:
        target = pd.DataFrame(measured[image_tables.TRUTH])
    else:
        (name,) = (name for name in measured if name.startswith("measured"))
        target = biology.standardise_groups(pd.DataFrame(measured[name]), labels)

    def table():
        with_bar = tqdm(methods.items(), "biology", disable=not progress, unit="method")
        return pd.concat(
            biology.score_biology(values, target, labels, seed).assign(method=name)
            for name, values in with_bar
        )[["method", "measure", "value", "chance"]]

    return if_possible(left_out, biology.BIOLOGY, table, empty)


# --- probes ----------------------------------------------------------------------------------


def _probe(features, ceilings, corrected, images, labels, seed, progress, left_out, image_probe):
    """Probe features of stages, references and baselines, and images.

    Returns
    -------
    dict
        Method to its list of `ProbeResult`.
    DataFrame
        All of them, see `Evaluation.scores`.
    """
    probed = features | ceilings
    announce(progress, "Probing in the background: " + ", ".join(probed))
    probing = probes.score_side_by_side(probed, labels, seed)
    by_cnn = {}
    if image_probe:
        train = partial(_probe_by_cnn, images, labels, seed, progress)
        by_cnn = if_possible(left_out, IMAGE_MEASURE, train, {})
    results = dict(tqdm(probing, "probing", len(probed), disable=not progress, unit="method"))
    pretrained = results[METHOD_NAMES["pretraining"]]
    of_images = {  # The first measure is the batch within class.
        name: _stronger(cnn, images[name], pretrained[0], labels, seed)
        for name, cnn in by_cnn.items()
    }
    announce(progress and corrected, "Probing the baselines: " + ", ".join(corrected))
    results |= _probe_baselines(corrected, pretrained, labels, seed)
    kinds = dict.fromkeys(features, "stage") | dict.fromkeys(ceilings, "reference")
    return results, _score_table(results, of_images, kinds)


def _probe_by_cnn(images, labels, seed, progress):
    """Return {method: ProbeResult} of a new CNN for each method."""
    results = {}
    for name, stack in images.items():
        announce(progress, f"Training a CNN to tell the batches of the images apart: {name}")
        results[name] = image_batch_accuracy(stack, labels, seed, progress=progress)
    return results


def _stronger(cnn, images, null, labels, seed):
    """Return the stronger of the CNN and the probes on the pixels.

    A faint pattern that is always at the same pixels is plain to the probes and not to the CNN.
    The probes take their null from the result `null`.
    """
    pixels = probes.within_class_batch_accuracy(images, labels, seed, n_permutations=0)
    stronger = max(cnn, _with_null_of(null, pixels), key=lambda result: result.accuracy)
    return replace(stronger, measure=cnn.measure, per_probe=pixels.per_probe | cnn.per_probe)


def _with_null_of(other, result):
    return replace(result, null_mean=other.null_mean, null_95=other.null_95)


def _probe_baselines(corrected, pretrained, labels, seed):
    """Return {name: list of ProbeResult} of the baselines.

    Nine tenths of the probes' time go into the null, which depends on the labels and hardly on the
    features. Cells and folds are the same, so the null is that of the pretrained features.
    """
    if not corrected:
        return {}
    found = dict(probes.score_side_by_side(corrected, labels, seed, n_permutations=0))
    return {
        name: [_with_null_of(*pair) for pair in zip(pretrained, own, strict=True)]
        for name, own in found.items()
    }


def _score_table(results, of_images, kinds):
    """Put the results into one table: those of images below the batch of the features."""
    merged = {
        name: sorted(
            [*own, *filter(None, [of_images.get(name)])],
            key=lambda result: ORDER.index(result.measure),
        )
        for name, own in results.items()
    }
    table = probes.results_table(merged)
    table.insert(1, "kind", table["method"].map(kinds).fillna(BASELINE))
    if "cnn" in table:  # beside the other probes
        table.insert(table.columns.get_loc("mlp") + 1, "cnn", table.pop("cnn"))
    return table


# --- mixing and doses ------------------------------------------------------------------------


def _mix(features, labels, seed, left_out):
    empty = pd.DataFrame(columns=["method", *mixing.SCORES])
    mix = partial(mixing.mixing_table, features, labels, shuffled=True, seed=seed)
    return if_possible(left_out, "mixing", mix, empty)


def _order_doses(methods, labels, seed, left_out):
    """Return order and distance of the doses by every method; empty where there are none."""
    if "dose" not in labels or not methods:
        return pd.DataFrame(), pd.DataFrame()

    def tables():
        return [
            pd.concat({name: find(values, labels, seed=seed) for name, values in methods.items()})
            .rename_axis(["method", None])
            .reset_index("method")
            for find in (dose_response.dose_order, dose_response.dose_distances)
        ]

    return if_possible(left_out, "doses", tables, (pd.DataFrame(), pd.DataFrame()))


def _dose_shares(order):
    """Return how well each method orders the doses, as a share of the truth's measures (M5)."""
    rows = order[order["batch"] == "all"] if len(order) else order
    rho = rows.groupby("method", sort=False)["rho_groups"].mean() if len(rows) else {}
    if image_tables.TRUTH not in rho:
        return pd.DataFrame()
    shares = (rho / rho[image_tables.TRUTH]).rename("value").reset_index()
    return shares.assign(measure=biology.DOSE_ORDER, chance=0.0)
