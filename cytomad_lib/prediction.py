"""Inference: phase images and bottleneck features of cells, and files of both.

Running statistics are used and no dropout, so the result for a cell depends neither on chance
nor on the other cells that are predicted with it.

Example
-------
>>> prediction = predict(run.generator("published"), test_cells)
>>> prediction.images.shape, prediction.features.shape
((630, 64, 64, 1), (630, 128))
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_table
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.models.batch_removal import generate

FEATURE_TABLE = "features.csv"
AT_ONCE = 100  # cells per slice; bounds the memory, does not change the result


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


def predict(generator, cells, progress=False):
    """Predict phase images and features of cells.

    Parameters
    ----------
    generator : keras.Model
        From `Run.generator` or `build_generator`.
    cells : CellImages or CellFiles
    progress : bool
        Show a progress bar.

    Returns
    -------
    Prediction

    Raises
    ------
    PredictionError
        If the images are not of the size that the generator takes.
    """
    _check_size(generator, cells)
    made = generate(generator, cells, AT_ONCE, progress)
    return Prediction(made["images"], made["features"], cells.labels.reset_index(drop=True))


def write_prediction(prediction, folder, model_name, overwrite=False):
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

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    PredictionError
        If one of the files exists already and `overwrite` is false; nothing is written then.
    """
    folder = Path(folder)
    columns = [name for name in ("batch", "class_name", "dose") if name in prediction.labels]
    groups = {
        folder / f"CytoMAD_test_{model_name}_{'_'.join(map(str, names))}.mat": rows
        for names, rows in prediction.labels.groupby(columns, observed=True).indices.items()
    }
    table = folder / FEATURE_TABLE
    existing = [path for path in (*groups, table) if path.exists()]
    if existing and not overwrite:
        raise PredictionError(
            f"{existing[0]} exists already. Expected a folder without an earlier prediction; "
            "give another folder, or remove the old files."
        )
    for path, rows in groups.items():
        arrays = {
            "CytoMAD_image": np.moveaxis(prediction.images[rows, ..., 0], 0, -1),
            "CytoMAD_features": prediction.features[rows],
        }
        write_mat(path, arrays, version="5")
    write_table(feature_table(prediction), table, index=False)
    return [*groups, table]


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
