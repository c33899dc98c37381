"""The whole chain, from `.mat` files to scores and figures, on a handful of tiny cells."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from training_cells import GROUPS, ONE_EPOCH, make_cells, untraced_steps, write_dataset

from cytomad_lib import workflow
from cytomad_lib.config import Conditional
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import DRUG
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.runs import Run
from cytomad_lib.simulation import write
from cytomad_lib.simulation.write import simulate_dataset

ROOT = "7LungCancerDataset"
PRESET = replace(
    ONE_EPOCH,
    conditional=Conditional(
        image_epochs=1, feature_epochs=1, image_cells=6, feature_cells=12, alignment_steps=12
    ),
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
    references = {"measured QPI", "truth"}
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
    most = f"{100 * evaluation.classifier_scores.max():.1f} % of these cells"
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
        "losses_conditional_images.png",
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
        run, data, "Test", results / "again", seed=3, image_probe=False, baselines=False
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
    with untraced_steps():
        run = workflow.train(data, tmp_path, PRESET, recipes=("conditional",))
    assert run.stages() == ["pretraining", "conditional"]
    assert not (tmp_path / "classifiers").exists()  # they serve the published recipe only
    assert np.isfinite(run.training_seconds("conditional"))
    with pytest.raises(CytomadError, match="no recipe 'best'.*published, conditional"):
        workflow.train(data, tmp_path / "other", PRESET, recipes=("best",))
    assert not (tmp_path / "other").exists()


def test_training_from_disk_loads_nothing_before(data, tmp_path, monkeypatch):
    def no_loading(*args, **options):
        raise AssertionError("the cells were loaded")

    monkeypatch.setattr(workflow, "load_cells", no_loading)
    with untraced_steps():
        run = workflow.train(data, tmp_path / "run", PRESET, recipes=(), from_disk=True)
    assert run.stages() == ["pretraining"]  # `test_runs` has the stages that come after it


def test_v5_files_are_refused_before_a_run_from_disk_begins(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = next((tmp_path / "data").rglob("Valid/H520_QPI.mat"))
    write_mat(path, {"QPI": np.ones((16, 16, 3), "float32")}, version="5")
    with pytest.raises(CytomadError, match="H520_QPI.mat is a MATLAB v5 file.*v7.3"):
        workflow.train(tmp_path / "data", tmp_path / "run", PRESET, from_disk=True)
    assert not (tmp_path / "run").exists()


def test_the_conditional_stage_can_be_predicted(evaluation, results, data, tmp_path):
    run = Run.open(results)
    prediction = workflow.predict_split(run, data, "Test", "conditional", tmp_path)
    expected = evaluation.predictions["conditional"].features
    np.testing.assert_allclose(prediction.features, expected, atol=1e-5)
    assert (tmp_path / "CytoMAD_test_conditional_Batch1_H69.mat").exists()


# --- the drug dataset --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drug(tmp_path_factory):
    """Two drugs in one batch each, with the controls of these batches: doses in order, or not."""
    folder = tmp_path_factory.mktemp("drug")
    groups = [
        group.name
        for group in DRUG.groups
        if group.batch in ("B1", "B5") or group.name.startswith(("B2/Docetaxel", "B2/DMSO"))
    ]
    counts = {"Train": 3, "Valid": 2, "Test": 5}
    simulate_dataset(folder, "drug", 16, counts, seed=2, groups=groups, progress=False)
    return folder


@pytest.fixture(scope="module")
def drug_evaluation(drug, tmp_path_factory):
    out = tmp_path_factory.mktemp("drug_results")
    with untraced_steps():
        run = workflow.train(drug, out, PRESET, seed=1, recipes=("published",))
        return workflow.evaluate(run, drug, "Test", out, 1, image_probe=False, baselines=False)


def test_doses_are_ordered_and_nothing_was_shown_them(drug_evaluation):
    order = drug_evaluation.dose_order
    assert {"pretrained", "published recipe"} < set(order["method"])
    assert set(order["class_name"]) == {"Docetaxel", "Gemcitabine"}
    table = drug_evaluation.dose_table()
    assert table.loc["pretrained", "Docetaxel"] <= 1 and (table["null 95 %"] > 0).all()
    assert "Order of the doses" in drug_evaluation.summary()
    names = {path.name for path in drug_evaluation.figures}
    assert {"doses_pretrained.png", "doses_truth.png"} <= names


def test_the_dose_is_in_the_names_of_the_files_and_in_the_table(drug_evaluation, drug, tmp_path):
    run = Run.open(drug_evaluation.figures[0].parents[1])
    workflow.predict_split(run, drug, "Test", "published", tmp_path)
    for dose in ("D1", "D5", "Control"):
        name = "DMSO" if dose == "Control" else "Docetaxel"
        stem = f"CytoMAD_test_published_B1_{name}_{dose}"
        assert loadmat(tmp_path / f"{stem}.mat")["CytoMAD_image"].shape == (16, 16, 5)
        assert loadmat(tmp_path / f"{stem}_BF.mat")["BF"].shape == (16, 16, 5)
    stored = loadmat(tmp_path / "CytoMAD_test_published_B1_Docetaxel_D3_QPI.mat")["QPI"]
    own = load_cells(drug, "Test")
    rows = (own.labels["batch"] == "B1") & (own.labels["dose"] == "D3")
    np.testing.assert_array_equal(np.moveaxis(stored, -1, 0), own.qpi[rows.to_numpy(), ..., 0])
    assert set(pd.read_csv(tmp_path / "features.csv")["dose"]) == set(own.labels["dose"])


# --- files of the published programs -----------------------------------------------------------


def test_an_old_file_predicts_like_a_run(drug, tmp_path):
    old = Path(__file__).parent / "data" / "legacy" / "model_000005.h5"
    made = workflow.predict_by_file(old, drug, "Test", tmp_path / "one")
    assert made.images.shape[1:] == (32, 32, 1)  # that of the network; the cells are resized
    assert (tmp_path / "one" / "CytoMAD_test_model_000005_B1_DMSO_Control.mat").exists()
    published = workflow.predict_by_file(old, drug, "Test", tmp_path / "two", mode="published")
    assert np.abs(published.images - made.images).max() > 1e-3


# --- which dataset -----------------------------------------------------------------------------


def test_the_demonstration_datasets_have_short_names(tmp_path, monkeypatch):
    assert workflow.find_data("lung").name == "7LungCancerDataset"
    assert workflow.find_data("drug").name == "H2170DrugTreatmentDataset"
    assert workflow.find_data(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lung").mkdir()
    assert workflow.find_data("lung") == Path("lung")  # a folder comes first
    monkeypatch.setattr(workflow, "_beside_library", lambda name: tmp_path / "no" / name)
    with pytest.raises(CytomadError, match="simulate --demo --layout drug --out Dataset") as caught:
        workflow.find_data("drug")
    assert str(tmp_path) not in str(caught.value)  # never into the folder of the library


@pytest.mark.parametrize("name", ["lung", "drug"])
def test_a_missing_demonstration_dataset_is_simulated(name, tmp_path, monkeypatch, capsys):
    root = workflow.LAYOUTS[name].root_folder
    assert workflow.demo_dataset(tmp_path, name, verbose=1) == Path(workflow.__file__).parents[
        1
    ] / (f"Dataset/{root}")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(workflow, "_beside_library", lambda name: tmp_path / "away" / root)
    written = []
    monkeypatch.setattr(workflow, "simulate_dataset", lambda out, **settings: written.append(out))
    assert workflow.demo_dataset(tmp_path, name, verbose=1) == tmp_path / "Dataset" / root
    assert written == [tmp_path / "Dataset"]
    said = capsys.readouterr().out
    assert f"no Dataset/{root}" in said and f"simulated into {tmp_path / 'Dataset' / root}" in said
    with pytest.raises(CytomadError, match="no dataset 'liver'"):
        workflow.demo_dataset(tmp_path, "liver")


def test_a_demo_that_was_killed_while_simulating_goes_on(tmp_path, monkeypatch):
    small = {"layout": "lung", "image_size": 16, "cells_per_group": {"Test": 1}, "seed": 3}
    monkeypatch.setitem(workflow.DEMO_DATASETS, "lung", small)
    monkeypatch.setattr(workflow, "_beside_library", lambda name: tmp_path / "no" / ROOT)
    write_mat, count = write.write_mat, iter(range(20))

    def write_or_stop(path, arrays):
        if next(count, None) is None:
            raise KeyboardInterrupt
        write_mat(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_mat", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            workflow.demo_dataset(tmp_path)
    for folder in (tmp_path / "Dataset", tmp_path / "Dataset" / ROOT):
        with pytest.raises(CytomadError, match="was interrupted.*same `simulate` command again"):
            workflow.train(folder, tmp_path / "run")
    root = workflow.demo_dataset(tmp_path)
    assert len(list(root.rglob("*.mat"))) == 21 * 3
    assert workflow.find_data(root) == root and workflow.demo_dataset(tmp_path) == root
    assert not (tmp_path / "run").exists()


# --- pretraining alone, and cells that nobody measured the phase of ----------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run that was trained on one batch and one class, and its dataset."""
    folder = tmp_path_factory.mktemp("one")
    data = write_dataset(folder / "data", groups=GROUPS[:1])
    with untraced_steps():
        return workflow.train(data, folder / "run", PRESET, recipes=()), data


def test_one_batch_and_class_are_enough_for_pretraining_alone(pretrained, tmp_path):
    run, data = pretrained
    assert run.stages() == ["pretraining"] == [run.last_stage()]
    with pytest.raises(CytomadError, match="only Batch1"):
        workflow.train(data, tmp_path / "run", PRESET, recipes=("published",))
    assert not (tmp_path / "run").exists()


def test_brightfield_alone_can_be_predicted(pretrained, tmp_path):
    run, data = pretrained
    both = workflow.predict_split(run, data, "Test", None, tmp_path / "both")
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*_QPI*.mat"):
        path.unlink()
    alone = workflow.predict_split(run, tmp_path / "data", "Test", None, tmp_path / "alone")
    np.testing.assert_array_equal(alone.images, both.images)
    every = "CytoMAD_test_pretraining"
    stem = f"{every}_Batch1_H69"
    always = {f"{stem}.mat", f"{stem}_BF.mat", "features.csv", f"{every}.h5ad", f"{every}.ome.tif"}
    for name, last in (("both", {f"{stem}_QPI.mat"}), ("alone", set())):
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == always | last


def test_results_go_into_no_dataset(pretrained):
    run, data = pretrained
    inside = data / ROOT / "results"
    for command in (
        lambda: workflow.train(data, inside, PRESET, recipes=()),
        lambda: workflow.predict_split(run, data, "Test", None, inside),
        lambda: workflow.find_data(data, inside),
    ):
        with pytest.raises(CytomadError, match="is inside the dataset"):
            command()
    assert not inside.exists()


def test_a_training_says_that_its_batches_and_classes_cannot_be_told_apart(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(workflow, "_train_stages", lambda *arguments: None)
    said = {}
    for name, groups in (("mixed", GROUPS), ("confounded", ("Batch1/H69", "Batch3/H520"))):
        data = write_dataset(tmp_path / name, 2, groups)
        for recipe in ("none", "conditional"):
            recipes = () if recipe == "none" else (recipe,)
            workflow.train(data, tmp_path / name / recipe, ONE_EPOCH, verbose=2, recipes=recipes)
            said[name, recipe] = "No class was measured in two batches" in capsys.readouterr().out
    assert [key for key, value in said.items() if value] == [("confounded", "conditional")]


def test_a_training_says_that_a_group_is_too_small_to_be_aligned():
    cells = make_cells(per_group=20)
    assert workflow._design_warnings(cells, ("conditional",)) == []
    small = (cells.labels["batch"] == "Batch3") & (cells.labels["class_name"] == "H69")
    fewer = cells.select((~small | (cells.labels["cell"] < 3)).to_numpy())
    (text,) = workflow._design_warnings(fewer, ("published", "conditional"))
    assert text.startswith("3 training cells") and text.endswith("Are their labels right?")
    assert workflow._design_warnings(fewer, ("published",)) == []
