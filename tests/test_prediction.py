"""Prediction depends on the cell alone, and its files are those of the published programs."""

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from training_cells import TINY, make_cells

from cytomad_lib import prediction as module
from cytomad_lib.models.networks import build_generator
from cytomad_lib.prediction import PredictionError, feature_table, predict, write_prediction


@pytest.fixture(scope="module")
def generator():
    generator = build_generator(**TINY.image_network, seed=0)
    for _ in range(3):
        generator(make_cells().brightfield, training=True)  # moves the running statistics
    return generator


def test_a_cells_prediction_ignores_chance_and_company(generator, monkeypatch):
    cells = make_cells(per_group=5)
    first, again = predict(generator, cells), predict(generator, cells)
    np.testing.assert_array_equal(first.images, again.images)
    some = [7, 3, 19]
    alone = predict(generator, cells.select(some))
    np.testing.assert_allclose(alone.images, first.images[some], atol=1e-5)
    np.testing.assert_allclose(alone.features, first.features[some], atol=1e-5)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    sliced = predict(generator, cells)
    np.testing.assert_allclose(sliced.images, first.images, atol=1e-5)
    pd.testing.assert_frame_equal(sliced.labels, cells.labels)


def test_files_are_named_and_shaped_as_published(generator, tmp_path):
    prediction = predict(generator, make_cells(per_group=3))
    paths = write_prediction(prediction, tmp_path / "TestData", "published")
    names = {path.name for path in paths}
    assert names == {
        "CytoMAD_test_published_Batch1_H69.mat",
        "CytoMAD_test_published_Batch3_H69.mat",
        "CytoMAD_test_published_Batch3_H520.mat",
        "CytoMAD_test_published_Batch6_H520.mat",
        "features.csv",
    }
    stored = loadmat(tmp_path / "TestData" / "CytoMAD_test_published_Batch3_H520.mat")
    assert stored["CytoMAD_image"].shape == (16, 16, 3)
    assert stored["CytoMAD_features"].shape == (3, TINY.n_features)
    rows = np.flatnonzero(
        (prediction.labels["batch"] == "Batch3") & (prediction.labels["class_name"] == "H520")
    )
    np.testing.assert_array_equal(
        np.moveaxis(stored["CytoMAD_image"], -1, 0), prediction.images[rows, ..., 0]
    )
    np.testing.assert_array_equal(stored["CytoMAD_features"], prediction.features[rows])


def test_the_feature_table_has_a_row_per_cell(generator, tmp_path):
    prediction = predict(generator, make_cells(per_group=3))
    write_prediction(prediction, tmp_path, "published")
    table = pd.read_csv(tmp_path / "features.csv")
    assert list(table.columns[:4]) == ["batch", "class_name", "cell", "f000"]
    np.testing.assert_allclose(table.filter(regex=r"^f\d").to_numpy(), prediction.features)
    assert list(table["batch"]) == list(prediction.labels["batch"])
    pd.testing.assert_index_equal(feature_table(prediction).columns, table.columns)


def test_doses_do_not_overwrite_each_other(tmp_path):
    labels = pd.DataFrame(
        {"batch": ["B1"] * 2, "class_name": ["Docetaxel"] * 2, "dose": ["D1", "D2"], "cell": [0, 0]}
    )
    images = np.zeros((2, 4, 4, 1), "float32")
    paths = write_prediction(
        module.Prediction(images, np.eye(2, dtype="float32"), labels), tmp_path, "published"
    )
    assert {path.name for path in paths} > {
        "CytoMAD_test_published_B1_Docetaxel_D1.mat",
        "CytoMAD_test_published_B1_Docetaxel_D2.mat",
    }


def test_an_earlier_prediction_is_replaced_only_on_request(generator, tmp_path):
    prediction = predict(generator, make_cells(per_group=1))
    write_prediction(prediction, tmp_path, "published")
    with pytest.raises(PredictionError, match="exists already.*another folder"):
        write_prediction(prediction, tmp_path, "published")
    write_prediction(prediction, tmp_path, "published", overwrite=True)
    assert not list(tmp_path.glob("*partial*"))


def test_images_of_another_size_are_refused(generator):
    other = build_generator(32, 4)
    with pytest.raises(PredictionError, match="16 x 16 pixels.*takes 32 x 32.*image_size=32"):
        predict(other, make_cells())
