"""Prediction depends on the cell alone, unless asked; its files are the published ones."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from keras import Input, Model, layers, ops
from scipy.io import loadmat
from training_cells import TINY, make_cells

from cytomad_lib import prediction as module
from cytomad_lib.data.errors import WriteError
from cytomad_lib.networks import build_generator
from cytomad_lib.prediction import (
    INFERENCE_MODES,
    PredictionError,
    feature_table,
    group_minibatches,
    predict,
    predict_together,
    write_prediction,
)


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


# --- modes --------------------------------------------------------------------------------------


def training_outputs(generator, images):
    """Outputs in training mode without dropout, the plain way: it changes the generator."""
    kept = generator.get_weights()
    dropouts = [layer for layer in generator.layers if isinstance(layer, layers.Dropout)]
    for layer in dropouts:
        layer.rate = 0.0
    made = [ops.convert_to_numpy(output) for output in generator(images, training=True)]
    for layer in dropouts:
        layer.rate = 0.5
    generator.set_weights(kept)
    return made


def test_the_default_mode_is_that_of_running_statistics(generator):
    cells = make_cells()
    assert INFERENCE_MODES[0] == "running"
    default, running = predict(generator, cells), predict(generator, cells, mode="running")
    np.testing.assert_array_equal(default.images, running.images)


def test_batch_mode_normalises_each_group_by_itself(generator):
    cells = make_cells(per_group=5)
    found = predict(generator, cells, mode="batch")
    for start in range(0, 20, 5):
        rows = slice(start, start + 5)
        images, features = training_outputs(generator, cells.brightfield[rows])
        np.testing.assert_allclose(found.images[rows], images, atol=1e-5)
        np.testing.assert_allclose(found.features[rows], features, atol=1e-5)
    pd.testing.assert_frame_equal(found.labels, cells.labels)


@pytest.mark.parametrize("mode", ["batch", "published"])
def test_in_the_other_modes_a_cell_depends_on_its_company(mode, generator):
    """The same cell, with itself and four others of its group, then with four other ones."""
    cells = make_cells(per_group=9)
    one, other = ([0, *company] for company in ([1, 2, 3, 4], [5, 6, 7, 8]))
    changes = {}
    for way in ("running", mode):
        a, b = (predict(generator, cells.select(rows), mode=way) for rows in (one, other))
        changes[way] = np.abs(a.features[0] - b.features[0]).max() / a.features.std()
    assert changes["running"] < 1e-3
    assert changes[mode] > 0.05


def test_the_order_of_the_groups_does_not_matter(generator):
    cells = make_cells(per_group=4)
    order = np.random.default_rng(0).permutation(len(cells))
    found = predict(generator, cells, mode="batch")
    shuffled = predict(generator, cells.select(order), mode="batch")
    np.testing.assert_allclose(shuffled.images, found.images[order], atol=1e-5)
    np.testing.assert_allclose(shuffled.features, found.features[order], atol=1e-5)


def test_dropout_is_on_in_published_mode_and_follows_the_seed(generator):
    cells = make_cells(per_group=5)
    first, again, other = (
        predict(generator, cells, mode="published", seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(first.images - other.images).max() > 1e-3
    without = predict(generator, cells, mode="batch")
    assert np.abs(first.images - without.images).max() > 1e-3
    # The features come from before the dropout layers.
    np.testing.assert_array_equal(first.features, other.features)
    np.testing.assert_array_equal(first.features, without.features)


def test_dropout_drops_half_in_each_minibatch_anew(generator):
    """Two minibatches of the same cells differ, as each has draws of its own."""
    cells = make_cells(per_group=2)
    twice = cells.select([0, 1, 0, 1])
    made = predict_together(generator, twice, [np.array([0, 1]), np.array([2, 3])])
    assert np.abs(made.images[:2] - made.images[2:]).max() > 1e-3


@pytest.mark.parametrize("mode", INFERENCE_MODES)
def test_the_generator_is_left_as_it_was(mode, generator):
    def state():
        rates = [layer.rate for layer in generator.layers if isinstance(layer, layers.Dropout)]
        return [ops.convert_to_numpy(variable) for variable in generator.variables], rates

    before, rates = state()
    predict(generator, make_cells(), mode=mode)
    after, rates_after = state()
    assert rates == rates_after == [0.5, 0.5]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_dropout_comes_back_after_an_error(generator):
    class Broken:
        labels = make_cells().labels

        def __len__(self):
            return len(self.labels)

        def read(self, rows):
            if len(rows) > 1:
                raise OSError("disk gone")
            return make_cells().select(rows)

    with pytest.raises(OSError, match="disk gone"):
        predict(generator, Broken(), mode="batch")
    dropouts = [layer for layer in generator.layers if isinstance(layer, layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.5, 0.5]


@pytest.mark.parametrize("mode", INFERENCE_MODES)
def test_a_generator_inside_another_network_has_the_modes_too(mode, generator):
    cells = make_cells(per_group=5)
    brightfield = Input((16, 16, 1))
    outer = Model(brightfield, generator(brightfield))
    found = predict(outer, cells, mode=mode, seed=1)
    wanted = predict(generator, cells, mode=mode, seed=1)
    np.testing.assert_allclose(found.images, wanted.images, atol=1e-5)
    np.testing.assert_allclose(found.features, wanted.features, atol=1e-5)


def test_groups_are_told_apart_by_dose_and_split_when_large(monkeypatch):
    labels = pd.DataFrame(
        {
            "batch": pd.Categorical(["B1"] * 7 + ["B2"] * 3, categories=["B1", "B2", "B3"]),
            "class_name": ["Docetaxel"] * 10,
            "dose": ["D2"] * 5 + ["D1"] * 5,
        }
    )
    parts = [list(rows) for rows in group_minibatches(labels)]
    assert parts == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    parts = [list(rows) for rows in group_minibatches(labels.drop(columns="dose"))]
    assert parts == [list(range(7)), [7, 8, 9]]
    monkeypatch.setattr(module, "LARGEST_GROUP", 4)  # in equal parts: none is a single cell
    assert [len(rows) for rows in group_minibatches(labels)] == [3, 2, 2, 3]
    parts = [list(rows) for rows in group_minibatches(labels, minibatch=2)]
    assert parts == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]


def test_minibatches_are_those_of_keras(generator):
    """As `predict(batch_size=...)` cuts a group: in order, the rest at the end."""
    cells = make_cells(per_group=5)
    found = predict(generator, cells, mode="batch", minibatch=3)
    for rows in (slice(0, 3), slice(3, 5), slice(5, 8)):
        _, features = training_outputs(generator, cells.brightfield[rows])
        np.testing.assert_allclose(found.features[rows], features, atol=1e-5)
    assert np.abs(found.features - predict(generator, cells, mode="batch").features).max() > 1e-3


def test_unknown_modes_and_minibatches_are_refused(generator):
    cells = make_cells(per_group=2)
    with pytest.raises(PredictionError, match="no mode 'test'.*running, batch, published"):
        predict(generator, cells, mode="test")
    with pytest.raises(PredictionError, match="minibatch is 1.*at least 2"):
        predict(generator, cells, mode="batch", minibatch=1)
    for rows in ([0, 1], [0, 1, 2, 3, 4, 5, 6, 6], list(range(9))):
        with pytest.raises(PredictionError, match=f"hold {len(rows)} rows for 8 cells"):
            predict_together(generator, cells, [np.array(rows)])
    with pytest.raises(PredictionError, match="16 x 16 pixels.*takes 32 x 32"):
        predict(build_generator(32, 4), cells, mode="published")


def test_frozen_statistics_are_refused(generator):
    generator.trainable = False
    try:
        with pytest.raises(PredictionError, match="batch normalisations.*frozen"):
            predict(generator, make_cells(), mode="batch")
    finally:
        generator.trainable = True


def test_importing_prints_nothing():
    """TensorFlow's remarks on missing GPUs look like errors to a learner."""
    command = [sys.executable, "-c", "import cytomad_lib.prediction"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- files --------------------------------------------------------------------------------------


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


def test_measured_images_are_written_beside_where_they_are(generator, tmp_path):
    cells = make_cells(per_group=3)

    class Mixed:
        """Cells of files, of which one group has no phase image."""

        labels, in_slices, __len__ = cells.labels, cells.in_slices, cells.__len__

        def read(self, rows):
            some = cells.select(rows)
            unmeasured = (some.labels["batch"] == "Batch1").any()
            return replace(some, qpi=None) if unmeasured else some

    alone = replace(cells, qpi=None)
    for mode in ("running", "batch"):
        found = predict(generator, alone, mode=mode)
        np.testing.assert_array_equal(found.images, predict(generator, cells, mode=mode).images)
    paths = write_prediction(found, tmp_path / "alone", "published", cells=alone)
    assert sum(path.name.endswith("_BF.mat") for path in paths) == 4
    assert not list((tmp_path / "alone").glob("*_QPI.mat"))
    paths = write_prediction(found, tmp_path / "mixed", "published", cells=Mixed())
    assert sorted(paths) == sorted((tmp_path / "mixed").iterdir()) and len(paths) == 4 + 4 + 3 + 1
    assert not (tmp_path / "mixed" / "CytoMAD_test_published_Batch1_H69_QPI.mat").exists()
    stored = loadmat(tmp_path / "mixed" / "CytoMAD_test_published_Batch3_H520_QPI.mat")["QPI"]
    rows = np.flatnonzero(
        (cells.labels["batch"] == "Batch3") & (cells.labels["class_name"] == "H520")
    )
    np.testing.assert_array_equal(np.moveaxis(stored, -1, 0), cells.qpi[rows, ..., 0])


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


def test_a_half_written_prediction_can_be_written_again(generator, tmp_path, monkeypatch):
    cells = make_cells(per_group=1)
    prediction = predict(generator, cells)
    theirs = tmp_path / "CytoMAD_test_other_Batch1_H69.mat"
    theirs.write_text("of another model")
    write_mat, written = module.write_mat, []

    def write_two(path, *options, **more):
        if len(written) == 2:
            raise WriteError("no room")
        written.append(path)
        write_mat(path, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_mat", write_two)
        with pytest.raises(WriteError):
            write_prediction(prediction, tmp_path, "published", cells=cells)
    assert all(path.exists() for path in written)
    files = write_prediction(prediction, tmp_path, "published", cells=cells)
    assert set(tmp_path.iterdir()) == {*files, theirs}
    with pytest.raises(PredictionError, match="exists already"):  # now it is a whole one
        write_prediction(prediction, tmp_path, "published", cells=cells)


def test_files_of_others_are_not_taken_for_half_of_a_prediction(generator, tmp_path):
    (tmp_path / "CytoMAD_test_published_Batch3_H520.mat").write_text("of the published programs")
    with pytest.raises(PredictionError, match="Batch3_H520.mat exists already"):
        write_prediction(predict(generator, make_cells(per_group=1)), tmp_path, "published")
    assert len(list(tmp_path.iterdir())) == 1


def test_images_of_another_size_are_refused(generator):
    other = build_generator(32, 4)
    with pytest.raises(PredictionError, match="16 x 16 pixels.*takes 32 x 32.*image_size=32"):
        predict(other, make_cells())
