"""Whole jobs, from files to scored and plotted results: what the command line runs.

* `simulate`: write a simulated dataset.
* `train`: pretraining and batch removal by one or both recipes, into one run folder.
* `predict_split`: images and features of a split, as files; `predict_by_file`: by an old `.h5`.
* `export`: a generator for other programs.
* `evaluate`: scores on a split, figures and a report; see `evaluation.evaluate`.
* `demo`: all of it on the demonstration dataset.

Example
-------
>>> run = train("Dataset/7LungCancerDataset", "results/run", PRESETS["demo"], seed=0, verbose=1)
>>> evaluation = evaluate(run, "Dataset/7LungCancerDataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from functools import partial
from pathlib import Path

from cytomad_lib.bioimageio import LICENCE, write_bioimageio
from cytomad_lib.conditional.targets import in_stray_group
from cytomad_lib.config import DEMO
from cytomad_lib.data.cells import CellFiles, check_trainable, load_cells
from cytomad_lib.data.check import CONFOUNDED, is_confounded, value_warnings
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LAYOUTS, find_layout, refuse_inside
from cytomad_lib.devices import find_devices
from cytomad_lib.evaluation.draw import save_loss_figures
from cytomad_lib.evaluation.evaluate import evaluate
from cytomad_lib.evaluation.exchange import writers
from cytomad_lib.evaluation.results import METHOD_NAMES
from cytomad_lib.evaluation.score import announce, check_same_layout
from cytomad_lib.export import ExportError, write_onnx
from cytomad_lib.legacy import load_legacy_generator
from cytomad_lib.locks import check_free
from cytomad_lib.packages import find_package
from cytomad_lib.prediction import predict, write_prediction
from cytomad_lib.runs import RECIPES, Run, check_seed
from cytomad_lib.simulation.write import (
    DEMO_DATASET,
    DEMO_DRUG_DATASET,
    is_unfinished,
    simulate_dataset,
)
from cytomad_lib.tensorboard_log import TensorBoardLog
from cytomad_lib.training.recipes import (
    check_devices,
    check_enough_cells,
    check_recipes,
    fit_classifiers,
    pretrain,
    remove_batches,
)

EXPORTS = ("onnx", "bioimageio")
# Training cells per group, so that the demo takes minutes.
DEMO_CELLS = {"lung": 36, "drug": 20}
DEMO_DATASETS = {"lung": DEMO_DATASET, "drug": DEMO_DRUG_DATASET}


def find_data(data, out=None):
    """Return the folder of a dataset, and refuse one that is incomplete.

    The names "lung" and "drug" mean the demonstration datasets.

    Parameters
    ----------
    data : path
        A folder, or one of these two names. A folder of that name takes precedence.
    out : path, optional
        The folder for results, which must not be inside the dataset.

    Returns
    -------
    Path

    Raises
    ------
    CytomadError
        If a demonstration dataset is not beside the library, the simulation of the dataset was
        interrupted, or `out` is inside it.
    """
    folder = Path(data)
    if str(data) in LAYOUTS and not folder.exists():
        folder = _beside_library(str(data))
        if not folder.is_dir():
            raise CytomadError(
                f"There is no folder {data}, and this copy of the kit has no demonstration "
                f"datasets. Run `simulate --demo --layout {data} --out Dataset`, then give "
                f"Dataset/{folder.name}. Or run `demo`, which does both."
            )
    for root in (folder, *(folder / layout.root_folder for layout in LAYOUTS.values())):
        if is_unfinished(root):
            raise CytomadError(
                f"The simulation of {root} was interrupted: some of its groups are missing. "
                "Run the same `simulate` command again to write them."
            )
    if out is not None:
        refuse_inside(out, find_layout(folder)[1])
    return folder


def demo_dataset(out, name="lung", verbose=0):
    """Find a demonstration dataset beside the library, or simulate it below `out`.

    The simulated cells equal those in the repository. An interrupted simulation is resumed.

    Parameters
    ----------
    out : path
    name : {"lung", "drug"}
    verbose : int
        0 is silent; otherwise a line says that cells are simulated, and progress is shown.

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
    if beside.is_dir() and not is_unfinished(beside):
        return beside
    made = Path(out) / "Dataset" / beside.name
    if is_unfinished(made) or not any(made.rglob("*.mat")):
        announce(
            verbose,
            f"There is no Dataset/{beside.name} beside the library, as in a clone of the kit. The "
            f"same cells are simulated into {made} (some 15 s).",
        )
        simulate_dataset(made.parent, **settings, progress=verbose == 1)
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
    log=None,
):
    """Train a generator and remove batches from it, or resume an earlier call.

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
        Of batch removal; each begins with the same pretrained generator. Without any, only the
        pretraining runs, for which cells of one batch or one class are enough.
    batches : sequence of str, optional
        Train with the cells of these batches only; files of others are not opened.
    from_disk : bool
        Read the cells during training, instead of loading them before: for datasets larger than
        memory. Their order differs; see `StreamedMinibatches`. The classifiers of the published
        recipe then need disk space for the generated images.
    devices : int
        Number of devices of this machine that share each minibatch; the published recipe only.
        For several machines see `devices`.
    log : {"tensorboard"}, optional
        Also write the losses for TensorBoard into the run's folder; see `tensorboard_log`.

    Returns
    -------
    Run

    Raises
    ------
    CytomadError
        If a recipe or log is unknown, a recipe needs more cells in one step than there are or
        cannot use several devices, if cells cannot be read from disk a few at a time, or if another
        training uses the folder. Nothing is trained then.
    """
    check_recipes(recipes)
    check_seed(seed)
    _check_log(log)
    check_free(out)  # before cells are loaded, which may take a while
    data = find_data(data, out)
    devices = find_devices(devices)
    for recipe in recipes:
        check_devices(recipe, devices)
    verbose = verbose if devices.writes else 0
    layout, _ = find_layout(data)
    preset = preset.for_dataset(layout.name)
    wanted = {"image_size": preset.image_size, "batches": batches}
    load = CellFiles if from_disk else partial(load_cells, progress=verbose == 1)
    cells, valid = load(data, "Train", cells_per_group, **wanted), load(data, "Valid", **wanted)
    for files in (cells, valid) if from_disk else ():
        files.check_streams()
    for recipe in recipes:
        check_trainable(cells.labels)
        check_enough_cells(recipe, preset, len(cells))
    devices.check_minibatch(preset.batch_size, f"The preset {preset.name}")
    if not devices.writes:
        devices.wait()  # for the first machine, which begins the run's folder
    run = Run.create(out, preset, cells, layout, seed, devices)
    if devices.writes:
        devices.wait()
    for text in [*value_warnings(cells, layout), *_design_warnings(cells, recipes)]:
        announce(verbose, f"Note: {text}")
    conversion = f"{' and '.join(layout.images['input'])} to {layout.images['target']}"
    with run.held():
        logs = [TensorBoardLog(run)] if log and devices.writes else []
        _train_stages(run, cells, valid, verbose, recipes, conversion, logs)
        for one in logs:
            one.close()
    return run


def _design_warnings(cells, recipes):
    """Return a sentence for each thing in batches and classes that limits a batch removal."""
    texts = [CONFOUNDED] if recipes and is_confounded(cells.labels) else []
    n_stray = in_stray_group(cells.batch_codes, cells.class_codes).sum()
    if "conditional" in recipes and n_stray:
        texts.append(
            f"{n_stray} training cells are in groups with less than a fifth of the cells of others "
            "of their batch and class. The conditional recipe does not align such groups. Are "
            "their labels right?"
        )
    return texts


def _check_log(log):
    if log not in (None, "tensorboard"):
        raise CytomadError(f"There is no log {log!r}. Expected 'tensorboard', or none.")
    if log:
        find_package(log, "log")  # before cells are loaded


def _train_stages(run, cells, valid, verbose, recipes, conversion, logs):
    announce(verbose, "You can interrupt: the same command resumes after the last whole epoch.")
    announce(verbose, f"Pretraining on {len(cells)} cells: {conversion}")
    pretrain(run, cells, valid, verbose, logs)
    if "published" in recipes:
        announce(verbose, "Classifiers of batch and class, for the published recipe")
        fit_classifiers(run, cells, valid, verbose)
    for recipe in recipes:
        announce(verbose, f"Batch removal, {METHOD_NAMES[recipe]}")
        remove_batches(run, cells, valid, verbose, recipe, logs)
    if run.devices.writes:
        save_loss_figures(run, run.folder / "figures")


def predict_split(run, data, split, stage, out, progress=False, mode="running"):
    """Predict a split and write images and features.

    See `prediction.write_prediction` and `evaluation.exchange`.

    Measured targets are not needed. Existing ones are written beside the predictions.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
    stage : {"pretraining", "published", "conditional"}, optional
        Whose generator; by default that of `run.last_stage()`.
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
    cells = _cells_to_predict(data, out, split, run.preset.image_size)
    stage = stage or run.last_stage()
    return _predict_into(out, run.generator(stage), stage, cells, progress, mode)


def predict_by_file(model, data, split, out, progress=False, mode="running"):
    """Predict a split with a generator of the published programs, from its `.h5` file.

    Parameters
    ----------
    model : path
        Such as `model_000100.h5` or `CytoMADmodel_000300.h5`; see `legacy`.
    data, split, out, progress, mode
        As in `predict_split`. Images are resized to what the generator takes.

    Returns
    -------
    Prediction
    """
    generator = load_legacy_generator(model)
    cells = _cells_to_predict(data, out, split, generator.input_shape[1])
    return _predict_into(out, generator, Path(model).stem, cells, progress, mode)


def _cells_to_predict(data, out, split, image_size):
    data = find_data(data, out)
    return CellFiles(data, split, image_size=image_size, with_target=False)


def _predict_into(out, generator, name, cells, progress, mode):
    if cells.channels != generator.input_shape[-1]:
        raise CytomadError(
            f"{cells.root} has {cells.channels} input images per cell, the generator takes "
            f"{generator.input_shape[-1]}. Give a dataset with as many."
        )
    prediction = predict(generator, cells, progress, mode)
    # The published files of the inputs have no place for several channels.
    inputs = cells if cells.channels == 1 else None
    also = writers(f"CytoMAD_test_{name}", cells.layout, cells.pixel_size_um)
    write_prediction(prediction, out, name, cells=inputs, also=also)
    return prediction


def export(model, out, kind="onnx", stage=None, data=None, authors=(), licence=LICENCE):
    """Write a generator for other programs; see `export` and `bioimageio`.

    Parameters
    ----------
    model : path
        The folder of a run, or an `.h5` file of the published programs.
    out : path
        The file.
    kind : {"onnx", "bioimageio"}
        Whether the model alone is written, or a package with cells to test it.
    stage : {"pretraining", "published", "conditional"}, optional
        Of a run; by default that of `run.last_stage()`.
    data : path, optional
        The dataset whose first Test cells go into a package.
    authors, licence
        Of a package; see `bioimageio.write_bioimageio`.

    Returns
    -------
    Path

    Raises
    ------
    ExportError
        If the kind is unknown, or a package is to be written of an `.h5` file or without `data`.
    """
    model = Path(model)
    if kind not in EXPORTS:
        raise ExportError(f"There is no format {kind!r}. Expected one of {', '.join(EXPORTS)}.")
    if kind == "onnx":
        source = load_legacy_generator(model) if model.is_file() else Run.open(model)
        return write_onnx(source, out, stage)
    run = Run.open(model)
    if data is None:
        raise ExportError(
            "A package needs cells to test the model with. Expected a dataset of the kind that "
            "the model was trained on; give it with --data."
        )
    check_same_layout(run, data)
    cells = _cells_to_predict(data, out, "Test", run.preset.image_size)
    return write_bioimageio(run, out, cells, authors, stage, licence)


def demo(out, data=None, preset=DEMO, seed=0, verbose=0, dataset="lung"):
    """Train both recipes on a demonstration dataset, predict and evaluate its Test split.

    Parameters
    ----------
    out : path
        Folder for everything: the run, `TestData/`, scores and figures. An interrupted demo
        resumes when called again.
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
    data = demo_dataset(out, dataset, verbose) if data is None else data
    run = train(data, out, preset, seed, cells_per_group, verbose, RECIPES)
    # The image probe trains networks, and each baseline is probed: too long for a demo.
    quick = {"image_probe": False, "baselines": False}
    evaluation = evaluate(run, data, "Test", out, seed, verbose > 0, **quick)
    for stage, prediction in evaluation.predictions.items():
        write_prediction(prediction, Path(out) / "TestData" / stage, stage, overwrite=True)
    return evaluation
