"""The whole chain, from `.mat` files to scores and figures, on a handful of tiny cells."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from training_cells import GROUPS, ONE_EPOCH, write_dataset

from cytomad_lib import workflow
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.models.networks import Conditional
from cytomad_lib.runs import Run

PRESET = replace(
    ONE_EPOCH,
    conditional=Conditional(epochs=1, image_cells=6, feature_cells=6, feature_steps=1),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def evaluation(data, results):
    return workflow.demo(results, data, PRESET, seed=3)


def test_every_method_and_measure_is_scored_beside_its_chance(evaluation, results):
    scores = pd.read_csv(results / "scores.csv")
    stages = {"pretrained", "published recipe", "conditional recipe"}
    references = {"measured QPI (pixels)", "truth (pixels)"}
    for kind, methods in (("stage", stages), ("reference", references)):
        assert set(scores.loc[scores["kind"] == kind, "method"]) == methods
    assert (scores.groupby("method").size() == 3).all()  # the demo leaves out the image probe
    chance = scores.drop_duplicates("measure").set_index("measure")["chance"]
    assert chance["batch within class"] == pytest.approx(1 / 2)  # each line here in two batches
    assert chance["class"] == pytest.approx(1 / 2)
    assert scores["accuracy"].between(0, 1).all()
    assert (scores["n_cells"] == 8 * len(GROUPS)).all()  # the Test split's, and only those


def test_the_summary_shows_the_methods_side_by_side(evaluation):
    text = evaluation.summary()
    header = next(line for line in text.splitlines() if "null 95 %" in line)
    for name in ("chance", "pretrained", "published recipe", "conditional recipe", "truth"):
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
        "losses_conditional.png",
        "cells.png",
        "scores.png",
        "umap_pretrained.png",
        "umap_published_recipe.png",
        "umap_conditional_recipe.png",
        "confusion_pretrained.png",
        "confusion_published_recipe.png",
        "confusion_conditional_recipe.png",
        "encoding_pretrained.png",
        "encoding_published_recipe.png",
        "encoding_conditional_recipe.png",
    }
    assert all(path.stat().st_size > 5000 for path in evaluation.figures)
    assert not list(results.rglob("*partial*"))


def test_the_same_demo_again_gives_the_same_scores(evaluation, results, data):
    run = Run.open(results)
    again = workflow.evaluate(
        run, data, "Test", results / "again", seed=3, image_probe=False, peers=False
    )
    pd.testing.assert_frame_equal(again.scores, evaluation.scores)


def test_a_run_is_not_applied_to_another_kind_of_dataset(evaluation, results, tmp_path):
    folder = tmp_path / "H2170DrugTreatmentDataset" / "DMSO" / "B1" / "Control" / "Test"
    for kind in ("BF", "QPI"):
        write_mat(folder / f"Control_{kind}.mat", {kind: np.ones((16, 16, 2), "float32")})
    with pytest.raises(CytomadError, match="drug dataset.*trained on lung"):
        workflow.evaluate(Run.open(results), tmp_path, "Test", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_the_recipes_asked_for_are_trained(data, tmp_path):
    run = workflow.train(data, tmp_path, PRESET, recipes=("conditional",))
    assert run.stages() == ["pretraining", "conditional"]
    assert not (tmp_path / "classifiers").exists()  # they serve the published recipe only
    assert np.isfinite(run.training_seconds("conditional"))
    with pytest.raises(CytomadError, match="no recipe 'best'.*published, conditional"):
        workflow.train(data, tmp_path / "other", PRESET, recipes=("best",))
    assert not (tmp_path / "other").exists()


def test_the_conditional_stage_can_be_predicted(evaluation, results, data, tmp_path):
    run = Run.open(results)
    prediction = workflow.predict_split(run, data, "Test", "conditional", tmp_path)
    expected = evaluation.predictions["conditional"].features
    np.testing.assert_allclose(prediction.features, expected, atol=1e-5)
    assert (tmp_path / "CytoMAD_test_conditional_Batch1_H69.mat").exists()
