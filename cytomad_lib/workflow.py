"""Whole jobs, from files to scored and plotted results: what the command line runs.

* `simulate`: write a simulated dataset.
* `train`: pretraining and batch removal by one or both recipes, into one run folder.
* `predict_split`: images and features of a split, as files.
* `evaluate`: scores on a split, figures and a report; see `cytomad_lib.evaluation`.
* `demo`: all of it on the demonstration dataset.

Example
-------
>>> run = train("Dataset", "results/run", PRESETS["demo"], seed=0, verbose=1)
>>> evaluation = evaluate(run, "Dataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from pathlib import Path

from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.layouts import find_layout
from cytomad_lib.evaluation import (
    METHOD_NAMES,
    announce,
    check_same_layout,
    evaluate,
    save_loss_figures,
)
from cytomad_lib.models.networks import DEMO
from cytomad_lib.prediction import predict, write_prediction
from cytomad_lib.runs import RECIPES, Run, check_enough_cells, check_recipes
from cytomad_lib.simulation.write import DEMO_DATASET, simulate_dataset

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


def train(
    data,
    out,
    preset=DEMO,
    seed=0,
    cells_per_group=None,
    verbose=0,
    recipes=("published",),
    batches=None,
):
    """Train a generator and remove batches from it, or take up where an earlier call stopped.

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
    recipes : sequence of {"published", "conditional"}
        Of batch removal; each begins with the same pretrained generator.
    batches : sequence of str, optional
        Train with the cells of these batches only; files of others are not opened.

    Returns
    -------
    Run

    Raises
    ------
    CytomadError
        If a recipe is unknown, or takes more cells in one step than there are. Nothing is trained
        then.
    """
    check_recipes(recipes)
    layout, _ = find_layout(data)
    size, bar = preset.image_size, verbose == 1
    cells = load_cells(data, "Train", cells_per_group, size, batches, progress=bar)
    valid = load_cells(data, "Valid", None, size, batches, progress=bar)
    for recipe in recipes:
        check_enough_cells(recipe, preset, len(cells))
    run = Run.create(out, preset, cells, layout.name, seed)
    announce(verbose, "Interrupt when you like: the same command goes on after the last epoch.")
    announce(verbose, f"Pretraining on {len(cells)} cells: brightfield to phase")
    run.pretrain(cells, valid, verbose)
    if "published" in recipes:
        announce(verbose, "Classifiers of batch and class, for the published recipe")
        run.fit_classifiers(cells, valid, verbose)
    for recipe in recipes:
        announce(verbose, f"Batch removal, {METHOD_NAMES[recipe]}")
        run.remove_batches(cells, valid, verbose, recipe)
    save_loss_figures(run)
    return run


def predict_split(run, data, split, stage, out, progress=False):
    """Predict a split and write images and features; see `prediction.write_prediction`.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
    stage : {"pretraining", "published", "conditional"}
        Whose generator.
    out : path
        Folder for the files.
    progress : bool

    Returns
    -------
    Prediction
    """
    check_same_layout(run, data)
    generator = run.generator(stage)
    cells = CellFiles(data, split, image_size=run.preset.image_size)
    prediction = predict(generator, cells, progress)
    write_prediction(prediction, out, stage)
    return prediction


def demo(out, data=None, preset=DEMO, seed=0, verbose=0):
    """Train both recipes on the demonstration dataset, predict and evaluate its Test split.

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
    run = train(data, out, preset, seed, cells_per_group, verbose, RECIPES)
    # The image probe trains networks of its own, and each peer is probed: too long for a demo.
    evaluation = evaluate(run, data, "Test", out, seed, verbose > 0, image_probe=False, peers=False)
    for stage, prediction in evaluation.predictions.items():
        write_prediction(prediction, Path(out) / "TestData" / stage, stage, overwrite=True)
    return evaluation
