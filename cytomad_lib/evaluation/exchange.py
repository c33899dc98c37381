"""Predictions in the formats of neighbouring tools, beside `.mat` and CSV.

* `write_h5ad`: features, labels and biophysical measures as AnnData, for scanpy and scvi-tools.
* `write_ome_tiff`: predicted images with the size of a pixel, for Fiji, napari or CellProfiler.

Row i of the one and plane i of the other are the same cell. AnnData is an optional package.

Example
-------
>>> prediction = predict(run.generator("conditional"), cells)
>>> write_h5ad("conditional.h5ad", prediction, cells.layout, cells.pixel_size_um)
>>> write_ome_tiff("conditional.ome.tif", prediction, cells.layout, cells.pixel_size_um)
"""

from functools import partial
from importlib.util import find_spec

import pandas as pd
import tifffile

import cytomad_lib
from cytomad_lib.data.files import written_beside
from cytomad_lib.evaluation.biophysics import measure_cells
from cytomad_lib.packages import find_package
from cytomad_lib.prediction import feature_table


def writers(name, layout, pixel_size_um, **options):
    """Return what writes a prediction for other tools, as `prediction.write_prediction` takes it.

    Parameters
    ----------
    name : str
        Of the files, without their endings.
    layout, pixel_size_um, **options
        As in `write_h5ad`.

    Returns
    -------
    dict
        Name of the file to a function of its path and the prediction. Without the package
        anndata, the `.h5ad` file is not among them; see `missing_note`.
    """
    optics = {"layout": layout, "pixel_size_um": pixel_size_um}
    found = {f"{name}.ome.tif": partial(write_ome_tiff, **optics)}
    if not missing_note():
        found[f"{name}.h5ad"] = partial(write_h5ad, **optics, **options)
    return found


def missing_note():
    """Say that `.h5ad` files cannot be written, and what to do; empty if they can."""
    if find_spec("anndata"):
        return ""
    return (
        "No .h5ad files are written, because the package anndata is missing. Install it, as with "
        "`pip install '.[scverse]'` in the kit's folder."
    )


def write_h5ad(path, prediction, layout, pixel_size_um, measures=None, maps=None):
    """Write features, labels and biophysical measures as AnnData.

    `X` holds the features. `obs` holds the labels and, if the images show a phase, `measures`.

    Parameters
    ----------
    path : path
        A file that is there is replaced.
    prediction : Prediction
    layout : Layout
        Says what the images show, and the wavelength for dry mass.
    pixel_size_um : float
    measures : DataFrame, optional
        A row per cell. By default the predicted images are measured (`biophysics.MEASURES`).
    maps : dict of array (cells, 2), optional
        For `obsm`, by name, such as `"X_umap"`.

    Raises
    ------
    PackageError
        If the package anndata is missing.
    WriteError
        If the file cannot be written.
    """
    anndata = find_package("anndata", "scverse")
    table = feature_table(prediction)
    obs = table[list(prediction.labels)]
    names = obs.astype(str).agg("/".join, axis=1)
    if layout.target.unit == "rad":
        if measures is None:
            constants = layout.wavelength_um, layout.refraction_increment_um3_per_pg
            measures = measure_cells(prediction.images, pixel_size_um, None, *constants)
        obs = pd.concat([obs, measures], axis=1)
    var = pd.DataFrame(index=table.columns[len(prediction.labels.columns) :].astype(object))
    cells = anndata.AnnData(
        prediction.features,
        obs=_with_plain_text(obs.set_index(pd.Index(names, dtype=object))),
        var=var,
        obsm=maps or {},
        uns={
            "dataset": layout.name,
            "pixel_size_um": pixel_size_um,
            "cytomad_lib": cytomad_lib.__version__,
        },
    )
    with written_beside(path) as beside:
        cells.write_h5ad(beside)


def write_ome_tiff(path, prediction, layout, pixel_size_um):
    """Write predicted images as OME-TIFF: a plane per cell, along the axis T.

    OME has no axis for cells. The channel's name says what the images show, and its unit.

    Parameters
    ----------
    path, prediction, layout, pixel_size_um
        As in `write_h5ad`.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    target = layout.target
    about = {
        "axes": "TYX",
        "PhysicalSizeX": pixel_size_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_size_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": f"{target.name} ({target.unit})" if target.unit else target.name},
    }
    with written_beside(path) as beside:
        images = prediction.images[..., 0]
        tifffile.imwrite(beside, images, ome=True, photometric="minisblack", metadata=about)


def _with_plain_text(obs):
    """Store categories as objects: not every reader of `.h5ad` knows the text type of pandas 3."""
    categorical = obs.select_dtypes("category")
    plain = {
        name: column.cat.rename_categories(column.cat.categories.astype(object))
        for name, column in categorical.items()
    }
    return obs.assign(**plain)
