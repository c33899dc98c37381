"""Inference: phase images and bottleneck features of cells, and files of both.

There are three modes, which differ in what batch normalisation and dropout do:

| mode | normalised by | dropout | the result for a cell depends on |
|---|---|---|---|
| `"running"` | running statistics | off | the cell alone |
| `"batch"` | the cells of its group | off | the other cells of its group |
| `"published"` | the cells of its group | on | the other cells of its group, and chance |

A group is one (batch, class, dose). The published test program predicts one group at a time, with
a generator that normalises by what it is given and drops units also then. So every group is moved
to one mean and spread: what sets a batch apart is hidden, and since a group is of one class, the
class decides how a cell is normalised. At the microscope nobody knows the class beforehand, so
such results cannot be had from new cells. Use `"running"`; the others are there to reproduce
published results and to show the difference (`cytomad_lib.evaluation.inference_leak`).

Example
-------
>>> prediction = predict(run.generator("published"), test_cells)
>>> prediction.images.shape, prediction.features.shape
((630, 64, 64, 1), (630, 128))
>>> as_published = predict(run.generator("published"), test_cells, mode="published", seed=0)
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib.backend import keras
from cytomad_lib.data.cells import CellFiles, CellImages
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import StoredArray, write_table, write_text
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.networks import all_layers, seed_generators
from cytomad_lib.training.steps import compiled, without_gradients

FEATURE_TABLE = "features.csv"
UNFINISHED = "prediction_unfinished.txt"  # names its files until all are written
INFERENCE_MODES = ("running", "batch", "published")
AT_ONCE = 100  # cells per slice; bounds the memory, does not change the result
PUBLISHED_MINIBATCH = 32  # the published test programs leave it to Keras, which takes so many
LARGEST_GROUP = 500  # cells normalised together: those of a published file, and a bound on memory


class PredictionError(CytomadError):
    """Cells that a model cannot predict, or output that would overwrite something."""


@dataclass(eq=False)
class Prediction:
    """What a generator makes of cells.

    Parameters
    ----------
    images : float32 array (cells, height, width, 1)
        Phase in rad.
    features : float32 array (cells, n_features)
        Bottleneck features.
    labels : DataFrame
        Of the cells, in the same order.
    """

    images: np.ndarray
    features: np.ndarray
    labels: pd.DataFrame

    def __len__(self):
        """Count the cells."""
        return len(self.labels)


def predict(
    generator: keras.Model,
    cells: CellImages | CellFiles,
    progress: bool = False,
    mode: str = "running",
    seed: int = 0,
    minibatch: int | None = PUBLISHED_MINIBATCH,
) -> Prediction:
    """Predict phase images and features of cells.

    Parameters
    ----------
    generator : keras.Model
        From `Run.generator`, `build_generator` or `load_legacy_generator`. It is left as it was.
    cells : CellImages or CellFiles
    progress : bool
        Show a progress bar.
    mode : {"running", "batch", "published"}
        What batch normalisation and dropout do; see the module.
    seed : int
        Of the dropout in mode "published".
    minibatch : int, optional
        In modes "batch" and "published": so many cells of a group, in their order, are normalised
        together, 32 by default, as in the published test programs. None takes all of them, and
        groups of more than 500 in equal parts; at the published size and width a cell takes 31 MB.

    Returns
    -------
    Prediction

    Raises
    ------
    PredictionError
        If the images are not of the size that the generator takes, the mode is unknown, or a
        minibatch is below 2 cells.
    """
    if mode not in INFERENCE_MODES:
        raise PredictionError(
            f"There is no mode {mode!r}. Expected one of {', '.join(INFERENCE_MODES)}."
        )
    if mode != "running":
        together = group_minibatches(cells.labels, minibatch)
        return predict_together(generator, cells, together, mode == "published", seed, progress)
    _check_size(generator, cells)
    made = generate(generator, cells, AT_ONCE, progress)
    return Prediction(made["images"], made["features"], cells.labels.reset_index(drop=True))


@without_gradients()
def generate(generator, cells, at_once=100, progress=False, images=True):
    """Features and images of cells, in inference mode, with their codes.

    Parameters
    ----------
    generator : keras.Model
    cells : CellImages or CellFiles
        Read in slices; only the results are held together.
    at_once : int
        Cells per slice. It does not change the result.
    progress : bool
        Show a progress bar over the slices.
    images : bool or path
        Whether to keep the images. A path: in this new file instead of memory. (Features always
        stay in memory: 512 numbers per cell at published size, 2 kB.)

    Returns
    -------
    dict of numpy arrays
        `"images"` (n, size, size, 1) in rad (of a path, a `StoredArray`; or missing), `"features"`
        (n, n_features), `"batch_codes"` and `"class_codes"` (n,).
    """
    made = {"features": [], "batch_codes": [], "class_codes": []}
    infer = compiled(generator) if len(cells) > at_once else partial(generator, training=False)

    def parts():
        slices, total = cells.in_slices(at_once), -(-len(cells) // at_once)
        for part in tqdm(slices, "predicting", total, unit="slice", disable=not progress):
            generated, features = infer(part.brightfield)
            made["features"].append(keras.ops.convert_to_numpy(features))
            made["batch_codes"].append(part.batch_codes)
            made["class_codes"].append(part.class_codes)
            yield generated if images is False else keras.ops.convert_to_numpy(generated)

    if images is False:
        for _ in parts():
            pass
    elif images is True:
        made["images"] = list(parts())
    else:
        stored = StoredArray.write(images, parts(), (len(cells), *generator.output_shape[0][1:]))
    found = {name: np.concatenate(some) for name, some in made.items()}
    return found if isinstance(images, bool) else {"images": stored, **found}


def group_minibatches(labels, minibatch=None):
    """Say which cells are normalised together: those of a group, or so many of them at a time.

    Parameters
    ----------
    labels : DataFrame
        Of the cells, with `batch`, `class_name` and, where there is one, `dose`.
    minibatch : int, optional
        As in `predict`.

    Returns
    -------
    list of int arrays
        Row numbers; each row is in one of them.

    Raises
    ------
    PredictionError
        If `minibatch` is below 2.
    """
    if minibatch is not None and minibatch < 2:
        raise PredictionError(
            f"minibatch is {minibatch}. Expected at least 2 cells, which can have a mean and a "
            "spread; the published programs take 32."
        )
    groups = group_rows(labels)
    minibatches = []
    for rows in groups:
        if minibatch is None:
            minibatches += np.array_split(rows, np.ceil(len(rows) / LARGEST_GROUP).astype(int))
        else:
            starts = range(0, len(rows), minibatch)
            minibatches += [rows[start : start + minibatch] for start in starts]
    return minibatches


def group_rows(labels):
    """Return the row numbers of each (batch, class, dose), as a collection of int arrays."""
    columns = [name for name in ("batch", "class_name", "dose") if name in labels]
    return labels.groupby(columns, observed=True, sort=False).indices.values()


def predict_together(generator, cells, minibatches, dropout=True, seed=0, progress=False):
    """Predict cells in minibatches, each normalised by its own mean and spread.

    The generator's running statistics are neither used nor changed.

    Parameters
    ----------
    generator, cells, progress
        As in `predict`.
    minibatches : list of int arrays
        Row numbers of cells that are predicted together; each cell is in one of them.
    dropout : bool
        Whether units are dropped.
    seed : int
        Of the dropout.

    Returns
    -------
    Prediction
        The cells in the order of `cells`, whatever the minibatches.

    Raises
    ------
    PredictionError
        If the images are not of the size that the generator takes, a cell is in no minibatch or
        in several, or the generator's batch normalisation is frozen.
    """
    _check_size(generator, cells)
    _check_minibatches(minibatches, len(cells))
    _check_not_frozen(generator)
    shapes = [(len(cells), *shape[1:]) for shape in generator.output_shape]
    images, features = (np.empty(shape, np.float32) for shape in shapes)
    random = np.random.default_rng(seed)
    bar = tqdm(minibatches, desc="predicting", unit="minibatch", disable=not progress)
    with _dropout_kept(generator, dropout):
        for rows in bar:
            made = _normalised_together(generator, cells.read(rows).brightfield, random)
            images[rows], features[rows] = made
    return Prediction(images, features, cells.labels.reset_index(drop=True))


@without_gradients()
def _normalised_together(generator, brightfield, random):
    """Return images and features; without state, so that nothing of the generator changes."""
    variables = generator.non_trainable_variables
    seeds = {id(one.state): random.integers(2**31, size=2) for one in seed_generators(generator)}
    state = [keras.ops.convert_to_tensor(seeds.get(id(v), v.value), v.dtype) for v in variables]
    weights = [variable.value for variable in generator.trainable_variables]
    outputs, _ = generator.stateless_call(weights, state, brightfield, training=True)
    return [keras.ops.convert_to_numpy(output) for output in outputs]


@contextmanager
def _dropout_kept(generator, kept):
    """Switch dropout off for a while, unless it is to be kept."""
    dropouts = [layer for layer in all_layers(generator) if isinstance(layer, keras.layers.Dropout)]
    rates = [layer.rate for layer in dropouts]
    try:
        for layer in dropouts:
            layer.rate = layer.rate if kept else 0
        yield
    finally:
        for layer, rate in zip(dropouts, rates, strict=True):
            layer.rate = rate


def write_prediction(prediction, folder, model_name, overwrite=False, cells=None, also=None):
    """Write a prediction as the published test programs do: one `.mat` file per group.

    Files are called `CytoMAD_test_<model>_<batch>_<class>.mat` (with the dose, where there is
    one) and hold `CytoMAD_image` (height x width x cells, rad) and `CytoMAD_features`
    (cells x features), readable by `scipy.io.loadmat`. Beside them `features.csv` has one row
    per cell: its labels, then its features.

    Parameters
    ----------
    prediction : Prediction
    folder : path
        Made if it does not exist.
    model_name : str
        Becomes part of the file names, such as `"published"`.
    overwrite : bool
        Replace files of an earlier prediction.
    cells : CellImages or CellFiles, optional
        Those that were predicted. Their images are then written beside, as the published programs
        do: `..._BF.mat` with `BF` and, where it was measured, `..._QPI.mat` with `QPI`, height x
        width x cells.
    also : dict, optional
        Further files: name to a function that writes one, given its path and the prediction; see
        `evaluation.exchange.writers`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    PredictionError
        If one of the files exists already, unless an interrupted call of this function began it,
        and `overwrite` is false; nothing is written then.
    WriteError
        If a file cannot be written.
    """
    folder = Path(folder)
    columns = [name for name in ("batch", "class_name", "dose") if name in prediction.labels]
    groups = {
        folder / f"CytoMAD_test_{model_name}_{'_'.join(map(str, names))}.mat": rows
        for names, rows in prediction.labels.groupby(columns, observed=True).indices.items()
    }
    table, mark = folder / FEATURE_TABLE, folder / UNFINISHED
    kinds = {path: _kinds_beside(cells, rows) for path, rows in groups.items()}
    beside = [_beside(path, kind) for path in groups for kind in kinds[path]]
    others = {folder / name: write for name, write in (also or {}).items()}
    files = [*groups, *beside, *others, table]
    begun = mark.read_text(encoding="utf-8").splitlines() if mark.exists() else []
    existing = [path for path in files if path.exists() and path.name not in begun]
    if existing and not overwrite:
        raise PredictionError(
            f"{existing[0]} exists already. Expected a folder without an earlier prediction; "
            "give another folder, or remove the old files."
        )
    # As long as this list is there, its files are not all written, and may be written again.
    write_text(mark, "".join(f"{path.name}\n" for path in files))
    for path, rows in groups.items():
        arrays = {
            "CytoMAD_image": np.moveaxis(prediction.images[rows, ..., 0], 0, -1),
            "CytoMAD_features": prediction.features[rows],
        }
        write_mat(path, arrays, version="5")
        for kind, name in kinds[path].items():
            images = getattr(cells.read(rows), name)[..., 0]
            write_mat(_beside(path, kind), {kind: np.moveaxis(images, 0, -1)}, version="5")
    for path, write in others.items():
        write(path, prediction)
    write_table(feature_table(prediction), table, index=False)
    mark.unlink()
    return files


def _kinds_beside(cells, rows):
    """Return what is written beside a group's prediction: variables, and where they come from."""
    if cells is None:
        return {}
    measured = cells.read(rows[:1]).qpi is not None
    return {"BF": "brightfield"} | ({"QPI": "qpi"} if measured else {})


def _beside(path, kind):
    return path.with_name(f"{path.stem}_{kind}.mat")


def feature_table(prediction):
    """Return labels and features as one table: a row per cell, features as `f000`, `f001`..."""
    names = [f"f{number:03d}" for number in range(prediction.features.shape[1])]
    features = pd.DataFrame(prediction.features, columns=names)
    return pd.concat([prediction.labels.reset_index(drop=True), features], axis=1)


def _check_size(generator, cells):
    expected = tuple(generator.input_shape[1:3])
    found = tuple(cells.read(np.array([0])).brightfield.shape[1:3])
    if found != expected:
        raise PredictionError(
            f"The images are {found[0]} x {found[1]} pixels, the generator takes "
            f"{expected[0]} x {expected[1]}. Load the cells with image_size={expected[0]}."
        )


def _check_minibatches(minibatches, n_cells):
    rows = np.concatenate([np.asarray(part) for part in minibatches])
    if not np.array_equal(np.sort(rows), np.arange(n_cells)):
        raise PredictionError(
            f"The minibatches hold {len(rows)} rows for {n_cells} cells. Expected each cell's row "
            f"once, from 0 to {n_cells - 1}; see `group_minibatches`."
        )


def _check_not_frozen(generator):
    frozen = [
        layer.name
        for layer in all_layers(generator)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable
    ]
    if frozen:  # Keras then goes on using the running statistics, without a word
        raise PredictionError(
            f"{len(frozen)} batch normalisations of the generator are frozen (first: "
            f"{frozen[0]!r}), so they would not follow the cells. Expected a trainable generator; "
            "load it anew, or set generator.trainable = True."
        )
