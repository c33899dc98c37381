"""Predictions open in other tools: AnnData, and readers of OME-TIFF."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageSequence
from skimage.io import imread
from training_cells import make_cells

from cytomad_lib import cli
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.stackfiles import inspect_stack, read_stack
from cytomad_lib.evaluation.biophysics import measure_cells
from cytomad_lib.evaluation.exchange import write_h5ad, write_ome_tiff, writers
from cytomad_lib.packages import PackageError
from cytomad_lib.prediction import Prediction

anndata = pytest.importorskip("anndata", reason=".h5ad files need `pip install '.[scverse]'`")

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "notebooks" / "trained" / "lung"
PIXEL_SIZE = 45 / 16


@pytest.fixture(scope="module")
def prediction():
    cells = make_cells()
    features = np.random.default_rng(0).normal(size=(len(cells), 5)).astype("float32")
    return Prediction(cells.qpi, features, cells.labels)


def test_anndata_opens_features_labels_measures_and_maps(prediction, tmp_path):
    path, n = tmp_path / "cells.h5ad", len(prediction)
    maps = {"X_umap": np.arange(2.0 * n).reshape(n, 2)}
    constants = LUNG.wavelength_um, LUNG.refraction_increment_um3_per_pg
    predicted, measured = (
        measure_cells(images, PIXEL_SIZE, None, *constants)
        for images in (prediction.images, 2 * prediction.images)
    )
    measures = predicted.join(measured.add_prefix("measured_"))
    write_h5ad(path, prediction, LUNG, PIXEL_SIZE, measures, maps)
    found = anndata.read_h5ad(path)
    np.testing.assert_array_equal(found.X, prediction.features)
    assert list(found.var_names) == [f"f{number:03d}" for number in range(5)]
    assert found.obs_names.is_unique and found.obs_names[5] == "Batch3/H69/1"
    for name in ("batch", "class_name"):
        labels = prediction.labels[name]
        assert list(found.obs[name]) == list(labels)
        assert list(found.obs[name].cat.categories) == list(labels.cat.categories)
    assert list(found.obs["cell"]) == list(prediction.labels["cell"])
    for prefix, images in (("", prediction.images), ("measured_", 2 * prediction.images)):
        measures = measure_cells(images, PIXEL_SIZE, None, *constants)
        assert measures["dry_mass_pg"].std() > 0
        for name, values in measures.items():
            np.testing.assert_allclose(found.obs[prefix + name], values)
    np.testing.assert_array_equal(found.obsm["X_umap"], maps["X_umap"])
    assert found.uns["pixel_size_um"] == PIXEL_SIZE


def test_texts_are_stored_as_every_version_of_anndata_knows_them(prediction, tmp_path):
    write_h5ad(tmp_path / "cells.h5ad", prediction, LUNG, PIXEL_SIZE)
    kinds = set()
    with h5py.File(tmp_path / "cells.h5ad") as file:
        file.visititems(lambda _, item: kinds.add(item.attrs.get("encoding-type")))
    assert {"string-array", "categorical"} <= kinds
    assert not any("nullable" in kind for kind in kinds if kind)


def test_other_readers_open_the_images_and_their_metadata(prediction, tmp_path):
    path = tmp_path / "cells.ome.tif"
    write_ome_tiff(path, prediction, LUNG, PIXEL_SIZE)
    images = prediction.images[..., 0]
    np.testing.assert_array_equal(imread(path), images)
    with Image.open(path) as file:  # Pillow, which knows nothing of tifffile
        planes = [np.array(plane) for plane in ImageSequence.Iterator(file)]
    np.testing.assert_array_equal(planes, images)
    some = np.array([0, 5, 15])
    np.testing.assert_array_equal(read_stack(inspect_stack(path), some), images[some])
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    about = pixels.attrib
    for side in "XY":
        assert float(about[f"PhysicalSize{side}"]) == PIXEL_SIZE
        assert about[f"PhysicalSize{side}Unit"] == "µm"
    assert int(about["SizeT"]) == len(images) and about["Type"] == "float"
    assert pixels.find("{*}Channel").attrib["Name"] == "phase (rad)"


def predict_on_the_command_line(out, monkeypatch, capsys):
    data = ROOT / "Dataset" / "7LungCancerDataset"
    words = ["cytomad", "predict", str(TRAINED), str(data), "--out", str(out), "--split", "Valid"]
    monkeypatch.setattr(sys, "argv", [*words, "--stage", "pretraining"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert not end.value.code, shown.err
    return shown.out


def test_predict_writes_both_in_the_order_of_the_table(tmp_path, monkeypatch, capsys):
    predict_on_the_command_line(tmp_path, monkeypatch, capsys)
    table = pd.read_csv(tmp_path / "features.csv")
    cells = anndata.read_h5ad(tmp_path / "CytoMAD_test_pretraining.h5ad")
    np.testing.assert_allclose(cells.X, table.filter(regex=r"^f\d"), rtol=1e-5)
    assert list(cells.obs["class_name"]) == list(table["class_name"])
    images = tifffile.imread(tmp_path / "CytoMAD_test_pretraining.ome.tif")
    phase = images.mean(axis=(1, 2)) * images[0].size
    mass = phase * 0.703125**2  # of the whole image: nearly all of it is the cell's
    assert np.corrcoef(mass, cells.obs["dry_mass_pg"])[0, 1] > 0.98


def test_without_anndata_the_rest_is_written_and_a_line_says_so(
    prediction, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "anndata", None)
    assert list(writers("cells", LUNG, PIXEL_SIZE)) == ["cells.ome.tif"]
    with pytest.raises(PackageError, match=r"anndata.*pip install '\.\[scverse\]'"):
        write_h5ad(tmp_path / "cells.h5ad", prediction, LUNG, PIXEL_SIZE)
    assert not list(tmp_path.iterdir())
    shown = predict_on_the_command_line(tmp_path / "out", monkeypatch, capsys)
    assert "anndata is missing" in shown and "pip install '.[scverse]'" in shown
    assert not list((tmp_path / "out").glob("*.h5ad"))
    assert (tmp_path / "out" / "CytoMAD_test_pretraining.ome.tif").exists()
