"""The whole chain, from `.mat` files to scores and figures, on a handful of tiny cells."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from training_cells import TINY

from cytomad_lib import workflow
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.runs import Run
from cytomad_lib.simulation.write import simulate_dataset

GROUPS = ("Batch1/H69", "Batch3/H69", "Batch3/H520", "Batch6/H520")
PRESET = replace(TINY, pretraining_epochs=1, classifier_epochs=1, removal_epochs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    counts = {"Train": 6, "Valid": 3, "Test": 8}
    simulate_dataset(folder, "lung", 16, counts, seed=1, groups=GROUPS, progress=False)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def evaluation(data, results):
    return workflow.demo(results, data, PRESET, seed=3)


def test_every_method_and_measure_is_scored_beside_its_chance(evaluation, results):
    scores = pd.read_csv(results / "scores.csv")
    methods = {"pretrained", "published recipe", "measured QPI (pixels)", "truth (pixels)"}
    assert set(scores["method"]) == methods
    assert len(scores) == 3 * len(methods)
    chance = scores.drop_duplicates("measure").set_index("measure")["chance"]
    assert chance["batch within class"] == pytest.approx(1 / 2)  # each line here in two batches
    assert chance["class"] == pytest.approx(1 / 2)
    assert scores["accuracy"].between(0, 1).all()
    assert (scores["n_cells"] == 8 * len(GROUPS)).all()  # the Test split's, and only those


def test_the_summary_shows_the_methods_side_by_side(evaluation):
    text = evaluation.summary()
    header = next(line for line in text.splitlines() if "null 95 %" in line)
    for name in ("chance", "pretrained", "published recipe", "measured QPI", "truth"):
        assert name in header
    for name in ("batch within class", "class", "class, unseen batch", "in bits"):
        assert any(line.startswith(name) or name in line for line in text.splitlines())
    assert "Test split" in text
    # A quarter of these cells are of the first batch; the classifiers say what they say.
    assert evaluation.first_batch == 1 / 4
    most = f"{100 * evaluation.own_verdict.max():.1f} % of these cells"
    assert most in text and "(25.0 % are)" in text


def test_image_scores_are_those_of_the_written_images(evaluation, results, data):
    table = pd.read_csv(results / "image_scores.csv", index_col="method")
    test = load_cells(data, "Test", with_truth=True)
    rows = np.flatnonzero(
        (test.labels["batch"] == "Batch3") & (test.labels["class_name"] == "H520")
    )
    stored = loadmat(
        results / "TestData" / "pretraining" / "CytoMAD_test_pretraining_Batch3_H520.mat"
    )
    generator = Run.open(results).generator("pretraining")
    image = workflow.predict(generator, test.select(rows)).images[..., 0]
    np.testing.assert_allclose(np.moveaxis(stored["CytoMAD_image"], -1, 0), image, atol=1e-5)
    whole = workflow.predict(generator, test).images
    expected = np.abs(whole - test.truth).mean()
    assert table.loc["pretrained", "MAE, truth (rad)"] == pytest.approx(expected, rel=1e-4)


def test_every_figure_is_there(evaluation, results):
    names = {path.name for path in evaluation.figures}
    assert names == {
        "losses_pretraining.png",
        "losses_published.png",
        "cells.png",
        "scores.png",
        "umap_pretrained.png",
        "umap_published_recipe.png",
        "confusion_pretrained.png",
        "confusion_published_recipe.png",
        "encoding_pretrained.png",
        "encoding_published_recipe.png",
    }
    assert all(path.stat().st_size > 5000 for path in evaluation.figures)
    assert not list(results.rglob("*partial*"))


def test_the_same_demo_again_gives_the_same_scores(evaluation, results, data):
    again = workflow.evaluate(Run.open(results), data, "Test", results / "again", seed=3)
    pd.testing.assert_frame_equal(again.scores, evaluation.scores)


def test_the_cells_shown_are_of_different_lines_and_batches():
    labels = pd.DataFrame(
        {
            "class_name": ["A", "A", "B", "B", "C"],
            "batch": ["1", "2", "1", "2", "2"],
        }
    )
    # C was seen in batch 2 only, which is taken: better shown twice than not at all.
    assert list(workflow._one_cell_of_each_class(labels)) == [0, 3, 4]


def test_without_truth_files_only_the_measured_phase_is_compared(data, results, tmp_path):
    root = tmp_path / "7LungCancerDataset"
    test = load_cells(data, "Test")
    for (batch, name), rows in test.labels.groupby(
        ["batch", "class_name"], observed=True
    ).indices.items():
        for kind, images in (("BF", test.brightfield), ("QPI", test.qpi)):
            stack = np.moveaxis(images[rows, ..., 0], 0, -1)
            write_mat(root / batch / name / "Test" / f"{name}_{kind}.mat", {kind: stack})
    row = workflow._image_row(test.qpi, test)
    assert "MAE, truth (rad)" not in row
    assert row["MAE, measured (rad)"] == 0
    assert workflow._load_with_truth_if_there(root, "Test", 16).truth is None


def test_a_run_is_not_applied_to_another_kind_of_dataset(evaluation, results, tmp_path):
    folder = tmp_path / "H2170DrugTreatmentDataset" / "DMSO" / "B1" / "Control" / "Test"
    for kind in ("BF", "QPI"):
        write_mat(folder / f"Control_{kind}.mat", {kind: np.ones((16, 16, 2), "float32")})
    with pytest.raises(CytomadError, match="drug dataset.*trained on lung"):
        workflow.evaluate(Run.open(results), tmp_path, "Test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
