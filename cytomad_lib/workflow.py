"""Whole jobs, from files to scored and plotted results: what the command line runs.

* `simulate`: write a simulated dataset.
* `train`: pretraining and batch removal by one or both recipes, into one run folder.
* `predict_split`: images and features of a split, as files; `predict_by_file`: by an old `.h5`.
* `evaluate`: scores on a split, figures and a report; see `cytomad_lib.evaluation`.
* `demo`: all of it on the demonstration dataset.

Example
-------
>>> run = train("Dataset/7LungCancerDataset", "results/run", PRESETS["demo"], seed=0, verbose=1)
>>> evaluation = evaluate(run, "Dataset/7LungCancerDataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from pathlib import Path

from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LAYOUTS, find_layout
from cytomad_lib.evaluation import (
    METHOD_NAMES,
    announce,
    check_same_layout,
    evaluate,
    save_loss_figures,
)
from cytomad_lib.models.devices import find_devices
from cytomad_lib.models.legacy import load_legacy_generator
from cytomad_lib.models.networks import DEMO
from cytomad_lib.prediction import predict, write_prediction
from cytomad_lib.runs import RECIPES, Run, check_devices, check_enough_cells, check_recipes
from cytomad_lib.simulation.write import DEMO_DATASET, DEMO_DRUG_DATASET, simulate_dataset

# Training cells per group: enough for minutes; the others wait for `train`.
DEMO_CELLS = {"lung": 36, "drug": 20}
DEMO_DATASETS = {"lung": DEMO_DATASET, "drug": DEMO_DRUG_DATASET}


def find_data(data):
    """Return where a dataset is: "lung" and "drug" mean the demonstration datasets.

    Parameters
    ----------
    data : path
        A folder is taken as it is, also if it is called so.

    Returns
    -------
    Path

    Raises
    ------
    CytomadError
        If a demonstration dataset is asked for that is not beside the library.
    """
    if str(data) not in LAYOUTS or Path(data).exists():
        return Path(data)
    folder = _beside_library(str(data))
    if not folder.is_dir():
        raise CytomadError(
            f"There is no folder {data}, and no demonstration dataset {folder}. Expected one of "
            f"them; write the latter with `simulate --demo --out {folder.parent}`."
        )
    return folder


def demo_dataset(out, name="lung"):
    """Find a demonstration dataset beside the library, or simulate it below `out`.

    Parameters
    ----------
    out : path
    name : {"lung", "drug"}

    Returns
    -------
    Path
        The dataset's own folder.

    Raises
    ------
    CytomadError
        If there is no such dataset.
    """
    settings, beside = find_demo(name), _beside_library(name)
    if beside.is_dir():
        return beside
    made = Path(out) / "Dataset" / beside.name
    if not made.is_dir():
        simulate_dataset(made.parent, **settings)
    return made


def find_demo(name):
    """Return the arguments of `simulate_dataset` that give a demonstration dataset.

    Raises
    ------
    CytomadError
        If there is no such dataset.
    """
    if name not in DEMO_DATASETS:
        raise CytomadError(
            f"There is no dataset {name!r}. Expected one of {', '.join(DEMO_DATASETS)}."
        )
    return DEMO_DATASETS[name]


def _beside_library(name):
    return Path(__file__).parents[1] / "Dataset" / LAYOUTS[name].root_folder


def train(
    data,
    out,
    preset=DEMO,
    seed=0,
    cells_per_group=None,
    verbose=0,
    recipes=("published",),
    batches=None,
    from_disk=False,
    devices=1,
):
    """Train a generator and remove batches from it, or take up where an earlier call stopped.

    Parameters
    ----------
    data : path
        A dataset's folder, or the one above it.
    out : path
        The run's folder.
    preset : Preset
        With the learning rates of this dataset, see `Preset.for_dataset`.
    seed : int
    cells_per_group : int, optional
        Use the first so many training cells of each group; all by default.
    verbose : int
        0 is silent, 1 shows progress bars, 2 prints a line per epoch.
    recipes : sequence of {"published", "conditional"}
        Of batch removal; each begins with the same pretrained generator.
    batches : sequence of str, optional
        Train with the cells of these batches only; files of others are not opened.
    from_disk : bool
        Read the cells while training, instead of loading them before: for datasets larger than
        memory. They come in another order; see `models.feeding.StreamedMinibatches`. Classifiers
        of the published recipe then need room on the disk for the generated images.
    devices : int
        How many devices of this machine share each minibatch; see `models.devices`, also for
        several machines. The published recipe only.

    Returns
    -------
    Run

    Raises
    ------
    CytomadError
        If a recipe is unknown, takes more cells in one step than there are, or cannot be shared by
        the devices, or cells cannot be read from disk a few at a time. Nothing is trained then.
    """
    check_recipes(recipes)
    devices = find_devices(devices)
    for recipe in recipes:
        check_devices(recipe, devices)
    verbose = verbose if devices.writes else 0
    layout, _ = find_layout(data)
    preset = preset.for_dataset(layout.name)
    wanted = {"image_size": preset.image_size, "batches": batches}
    if from_disk:
        cells = CellFiles(data, "Train", cells_per_group, **wanted)
        valid = CellFiles(data, "Valid", **wanted)
        for files in (cells, valid):
            files.check_streams()
    else:
        wanted["progress"] = verbose == 1
        cells = load_cells(data, "Train", cells_per_group, **wanted)
        valid = load_cells(data, "Valid", **wanted)
    for recipe in recipes:
        check_enough_cells(recipe, preset, len(cells))
    devices.check_minibatch(preset.batch_size, f"The preset {preset.name}")
    if not devices.writes:
        devices.wait()  # for the first machine, which begins the run's folder
    run = Run.create(out, preset, cells, layout, seed, devices)
    if devices.writes:
        devices.wait()
    announce(verbose, "Interrupt when you like: the same command goes on after the last epoch.")
    conversion = f"{' and '.join(layout.images['input'])} to {layout.images['target']}"
    announce(verbose, f"Pretraining on {len(cells)} cells: {conversion}")
    run.pretrain(cells, valid, verbose)
    if "published" in recipes:
        announce(verbose, "Classifiers of batch and class, for the published recipe")
        run.fit_classifiers(cells, valid, verbose)
    for recipe in recipes:
        announce(verbose, f"Batch removal, {METHOD_NAMES[recipe]}")
        run.remove_batches(cells, valid, verbose, recipe)
    if devices.writes:
        save_loss_figures(run, run.folder / "figures")
    return run


def predict_split(run, data, split, stage, out, progress=False, mode="running"):
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
    mode : {"running", "batch", "published"}
        What batch normalisation and dropout do; see `cytomad_lib.prediction`.

    Returns
    -------
    Prediction
    """
    check_same_layout(run, data)
    return _predict_into(out, run.generator(stage), stage, data, split, progress, mode)


def predict_by_file(model, data, split, out, progress=False, mode="running"):
    """Predict a split with a generator of the published programs, from its `.h5` file.

    Parameters
    ----------
    model : path
        Such as `model_000100.h5` or `CytoMADmodel_000300.h5`; see `models.legacy`.
    data, split, out, progress, mode
        As in `predict_split`. Images are resized to what the generator takes.

    Returns
    -------
    Prediction
    """
    generator = load_legacy_generator(model)
    return _predict_into(out, generator, Path(model).stem, data, split, progress, mode)


def _predict_into(out, generator, name, data, split, progress, mode):
    cells = CellFiles(data, split, image_size=generator.input_shape[1])
    if cells.channels != generator.input_shape[-1]:
        raise CytomadError(
            f"{cells.root} has {cells.channels} input images per cell, the generator takes "
            f"{generator.input_shape[-1]}. Give a dataset with as many."
        )
    prediction = predict(generator, cells, progress, mode)
    # The published files for what went in have no place for several channels.
    write_prediction(prediction, out, name, cells=cells if cells.channels == 1 else None)
    return prediction


def demo(out, data=None, preset=DEMO, seed=0, verbose=0, dataset="lung"):
    """Train both recipes on a demonstration dataset, predict and evaluate its Test split.

    Parameters
    ----------
    out : path
        Folder for everything: the run, `TestData/`, scores and figures. An interrupted demo goes
        on where it stopped when called again.
    data : path, optional
        Another dataset, of which all training cells are used. By default a demonstration
        dataset, of which `DEMO_CELLS` per group are.
    preset : Preset
    seed : int
    verbose : int
        As in `train`.
    dataset : {"lung", "drug"}
        Which demonstration dataset.

    Returns
    -------
    Evaluation
    """
    cells_per_group = DEMO_CELLS.get(dataset) if data is None else None
    data = demo_dataset(out, dataset) if data is None else data
    run = train(data, out, preset, seed, cells_per_group, verbose, RECIPES)
    # The image probe trains networks of its own, and each peer is probed: too long for a demo.
    evaluation = evaluate(run, data, "Test", out, seed, verbose > 0, image_probe=False, peers=False)
    for stage, prediction in evaluation.predictions.items():
        write_prediction(prediction, Path(out) / "TestData" / stage, stage, overwrite=True)
    return evaluation
