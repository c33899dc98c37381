"""Evaluations: all tables and figures, a complete page, baselines beside the stages."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
from training_cells import GROUPS, ONE_EPOCH, write_dataset

from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.evaluation import (
    baselines,
    biology,
    biophysics,
    draw,
    image_probe,
    image_quality,
    image_tables,
    pages,
    probes,
    results,
    score,
)
from cytomad_lib.evaluation.evaluate import evaluate
from cytomad_lib.evaluation.image_tables import TRUTH
from cytomad_lib.evaluation.methods import class_cnn
from cytomad_lib.run_copies import copy_networks
from cytomad_lib.simulation.write import simulate_dataset
from cytomad_lib.workflow import train

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    # Five of the six training cells of each group, so that finding them again is a task.
    return train(data, tmp_path_factory.mktemp("run"), ONE_EPOCH, 3, 5)


@pytest.fixture(scope="module")
def found(run, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_probe, "MIN_EPOCHS", 1)
        patch.setattr(image_probe, "MIN_STEPS", 2)
        patch.setattr(class_cnn, "STEPS", 2)
        return out, evaluate(run, data, "Test", out, seed=1)


def test_all_that_was_promised_is_written(found):
    out, made = found
    names = {path.name for path in out.iterdir()}
    assert names == {
        "scores.csv",
        "image_scores.csv",
        "cell_measures.csv",
        "biology.csv",
        "ranking.csv",
        "mixing.csv",
        "baselines.csv",
        "not_scored.csv",
        "figures",
        "predictions",
        "report.html",
    }
    assert all(path.exists() for path in made.figures)


def test_other_tools_get_the_predictions_of_each_stage(found):
    anndata = pytest.importorskip("anndata", reason="needs `pip install '.[scverse]'`")
    out, made = found
    assert set(made.predictions) == {"pretraining", "published"}
    for stage, prediction in made.predictions.items():
        cells = anndata.read_h5ad(out / "predictions" / f"{stage}.h5ad")
        np.testing.assert_array_equal(cells.X, prediction.features)
        coordinates = made.maps[results.METHOD_NAMES[stage]]
        np.testing.assert_array_equal(cells.obsm["X_umap"], coordinates)
        measured = image_quality.dry_mass_pg(
            made.cells.qpi,
            image_quality.foreground_mask(made.cells.qpi),
            made.cells.pixel_size_um,
            made.cells.wavelength_um,
        )
        np.testing.assert_allclose(cells.obs["measured_dry_mass_pg"], measured)
        images = tifffile.imread(out / "predictions" / f"{stage}.ome.tif")
        np.testing.assert_array_equal(images, prediction.images[..., 0])


def test_a_copy_of_a_run_is_scored_without_its_own_classifiers(run, data, tmp_path):
    copy = copy_networks(run, tmp_path / "copy")
    made = score.score(copy, data, "Test", image_probe=False, baselines=False)
    assert made.classifier_scores is None
    (reason,) = [row[2] for row in made.left_out if row[0] == "the recipe's own classifiers"]
    assert "checkpoint" in reason
    assert len(made.scores)


def test_images_are_probed_beside_the_features(found):
    out, _ = found
    scores = pd.read_csv(out / "scores.csv")
    rows = scores[scores["measure"] == "batch within class, images"]
    assert set(rows["method"]) == {"pretrained", "published recipe", "measured QPI", TRUTH}
    by_probe = rows[["logistic", "knn", "mlp", "whitened", "cnn"]]
    named = [by_probe.loc[row, probe] for row, probe in rows["probe"].items()]
    assert (by_probe.max(axis=1) == named).all()  # two probes can be equally good
    assert (by_probe.max(axis=1) == rows["accuracy"]).all()
    assert (rows["null_95"].between(rows["chance"], 0.9)).all()
    assert scores.loc[scores["measure"] == "class", "cnn"].isna().all()


def test_a_faint_mark_of_the_batch_at_one_place_is_found(monkeypatch):
    """Beside a cell of 2 rad, a CNN of two steps does not see 1 mrad in a corner; pixels do."""
    monkeypatch.setattr(image_probe, "MIN_EPOCHS", 1)
    monkeypatch.setattr(image_probe, "MIN_STEPS", 2)
    labels = pd.DataFrame({"batch": ["B1", "B2"] * 30, "class_name": "H69"}, dtype="category")
    random = np.random.default_rng(0)
    images = np.zeros((60, 16, 16, 1), "float32")
    images[:, 4:12, 4:12] = 2 + random.normal(0, 0.1, (60, 8, 8, 1))

    def probed():
        cnn = score._probe_by_cnn({"cells": images}, labels, 0, progress=False)["cells"]
        return score._stronger(cnn, images, cnn, labels, 0)

    none = probed()
    images[1::2, 0, 0] = 1e-3
    found = probed()
    assert found.accuracy > 0.9 > 0.8 > none.accuracy
    assert found.probe != "cnn" and found.per_probe["cnn"] < 0.8
    assert found.measure == "batch within class, images"


def test_baselines_are_named_marked_and_apart(found):
    _, made = found
    names = set(made.scores.loc[made.scores["kind"] == "baseline", "method"])
    assert {"LEACE", "ComBat with class (oracle)"} <= names and "untouched" not in names
    assert not names & set(made.main_scores["method"])
    assert set(made.ranking.index) == names | set(made.main_scores["method"])
    # All there is, is in the table; all that is missing, in a sentence.
    assert names == set(made.baselines.loc[made.baselines["available"], "baseline"])
    assert set(made.mixing["method"]) == names | {
        "pretrained",
        "published recipe",
        "batches shuffled",
    }


def test_the_null_control_stands_beside_the_baselines(found):
    out, made = found
    table = pd.read_csv(out / "baselines.csv")
    control = table.set_index("baseline")[["null_control", "null_control_95"]].dropna()
    assert control["null_control"].between(0.1, 1).all()
    assert (control["null_control_95"] > 0.5).all()
    assert {"LEACE", "sphering", "ComBat with class (oracle)"} <= set(control.index)
    assert "CNN trained on class" not in control.index  # it uses no batch
    assert made.ranking.loc[control.index, "null_control"].tolist() == list(control["null_control"])
    table = pd.DataFrame(
        [("ComBat", True, 0.98, 0.55, "n"), ("LEACE", True, 0.5, 0.55, "n")],
        columns=["baseline", "available", "null_control", "null_control_95", "note"],
    )
    (remark,) = results.baseline_remarks(table)
    assert remark.startswith("ComBat writes a batch in") and "0.98" in remark


def test_biology_stands_beside_the_probes(found):
    out, made = found
    table = pd.read_csv(out / "biology.csv").pivot(
        index="method", columns="measure", values="value"
    )
    assert set(table.index) == set(made.ranking.index)
    assert table.loc[TRUTH, biology.BIOLOGY] == pytest.approx(1, abs=0.01)
    assert table.loc["measured QPI", biology.BIOLOGY] > table.loc["pretrained", biology.BIOLOGY]
    needs = made.ranking["needs"]
    assert needs["measured QPI"] == "phase microscope" and needs["LEACE"] == "nothing"
    assert needs["pretrained: measures of its images"] == "nothing"
    for text in (made.summary(), (out / "report.html").read_text(encoding="utf-8")):
        assert "biology" in text and "phase microscope" in text


def test_without_truth_biology_is_that_of_measured_phenotypes_inside_their_group():
    groups = [(b, c) for b in ("B1", "B2", "B3") for c in ("X", "Y") for _ in range(30)]
    labels = pd.DataFrame(groups, columns=["batch", "class_name"]).astype("category")
    cell = np.random.default_rng(0).normal(size=(len(labels), 3))
    batch = labels["batch"].cat.codes.to_numpy()[:, None].astype(float)
    methods = {"cell": cell, "batch": batch}
    measured = {"measured QPI": (cell + 3 * batch) * (1 + batch)}
    table = score._biology(methods, measured, labels, 0, False, [])
    kept = table[table["measure"] == biology.BIOLOGY].set_index("method")["value"]
    assert kept["cell"] > 0.9 and kept["batch"] < 0.05
    assert not len(score._biology(methods, {}, labels, 0, False, []))  # no phase, no biophysics


def test_the_order_of_doses_is_a_share_of_that_by_the_truth():
    rows = [(m, b, r) for m, r in ((TRUTH, 0.9), ("mine", 0.6)) for b in ("all", "B1")]
    order = pd.DataFrame(rows, columns=["method", "batch", "rho_groups"])
    shares = score._dose_shares(order).set_index("method")["value"]
    assert shares.to_dict() == pytest.approx({TRUTH: 1, "mine": 2 / 3})
    assert not len(score._dose_shares(order[order["method"] == "mine"]))
    assert not len(score._dose_shares(pd.DataFrame()))


def test_a_method_of_ones_own_is_scored_beside_the_others(run, data, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "NEEDS = 'nothing'\n"
        "def transform(seed, features, images, labels): return (seed + 2.0) * features\n",
        encoding="utf-8",
    )
    options = {"image_probe": False, "baselines": False, "methods": [baselines.load_method(path)]}
    made = evaluate(run, data, "Test", tmp_path / "out", **options)
    assert "mine" in made.ranking.index and "LEACE" not in made.ranking.index
    # Twice the pretrained features keep what these keep.
    kept = made.ranking.loc[["mine", "pretrained"], list(biology.KEPT[:4])]
    np.testing.assert_allclose(*kept.to_numpy(), atol=0.01)
    assert made.ranking.loc["mine", list(probes.MEASURES)].between(0, 1).all()


def test_a_missing_baseline_is_said_in_summary_and_report(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "training_cells", lambda run, data: None)
    made = evaluate(run, data, "Test", tmp_path, image_probe=False)
    assert "LEACE" not in set(made.scores["method"])
    for text in (made.summary(), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert "LEACE is missing: LEACE is fitted on training cells" in text


def test_the_training_cells_are_found_again(run, data):
    labels = score.training_cells(run, data).labels
    assert (labels.groupby(["batch", "class_name"], observed=True).size() == 5).all()
    assert labels["cell"].max() == 4  # the first five of each file, as in training


def test_other_training_cells_are_not_taken_for_those_of_the_run(run, tmp_path):
    counts = {"Train": 4, "Test": 8}
    simulate_dataset(tmp_path, "lung", 16, counts, seed=1, groups=GROUPS, progress=False)
    assert score.training_cells(run, tmp_path) is None


def test_the_report_is_complete_in_itself(found):
    out, made = found
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count("data:image/png;base64,") == len(made.figures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert str(out) not in page
    for words in (
        "SIMULATED",
        "7LungCancerDataset",
        "tiny (16 x 16 pixels",
        "20 in 4 groups (5 per group)",
        "32 cells of the Test split",
        "own batch classifiers call",
        "batches shuffled",
        "dry_mass_pg",
        "wavelength 1.06 µm, refraction increment 0.19 µm³/pg",
        "Null control",
    ):
        assert words in page, words
    assert "not kept" not in page  # the training times


def test_a_report_of_other_data_does_not_say_simulated(found, run):
    out, made = found
    assert (
        pages.dataset_text(made.dataset, made.simulated) == "7LungCancerDataset (SIMULATED cells)"
    )
    measured = replace(made, simulated=False)
    page = pages.write_evaluation_page(out / "measured.html", measured, run, {})
    assert "7LungCancerDataset" in page.read_text() and "SIMULATED" not in page.read_text()
    page.unlink()


def test_nothing_is_written_into_the_run(run, data, tmp_path):
    def state():
        return {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}

    before = state()
    made = evaluate(run, data, "Test", tmp_path / "out", image_probe=False, baselines=False)
    assert state() == before
    assert (tmp_path / "out" / "figures" / "losses_pretraining.png") in made.figures


DESIGNS = {
    "one day": (("Batch3/H69", "Batch3/H520"), {"class"}),
    "one class": (("Batch1/H69", "Batch3/H69"), {"batch within class"}),
    "one group": (("Batch3/H69",), set()),
}


@pytest.mark.parametrize(("groups", "scored"), DESIGNS.values(), ids=DESIGNS)
def test_of_any_design_what_can_be_is_scored(run, tmp_path, monkeypatch, groups, scored):
    monkeypatch.setattr(image_probe, "MIN_EPOCHS", 1)
    monkeypatch.setattr(image_probe, "MIN_STEPS", 2)
    monkeypatch.setattr(class_cnn, "STEPS", 2)
    simulate_dataset(tmp_path / "data", "lung", 16, {"Test": 6}, groups=groups, progress=False)
    out = tmp_path / "out"
    made = evaluate(run, tmp_path / "data", "Test", out)
    measures = set(pd.read_csv(out / "scores.csv")["measure"])
    assert measures - {"batch within class, images"} == scored
    left_out = pd.read_csv(out / "not_scored.csv")
    unasked = set(left_out.loc[left_out["left_out"] == "all", "measure"])
    assert set(probes.MEASURES) - unasked == scored
    assert made.not_scored_lines()[0] in made.summary()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What was not scored, and why" in page
    # What needs no other batch and class is there.
    assert len(pd.read_csv(out / "image_scores.csv")) == 4
    assert ("baselines" in unasked) == ("batch within class" not in scored)


def test_an_unknown_split_and_a_missing_target_are_said_before_any_work(
    run, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(score, "predict", lambda *args: pytest.fail("predicted"))
    with pytest.raises(CytomadError, match="'Tset'.*Train, Valid, Test"):
        evaluate(run, data, "Tset", tmp_path)
    without = SimpleNamespace(qpi=None)
    monkeypatch.setattr(score, "load_with_truth_if_there", lambda *args: without)
    with pytest.raises(CytomadError, match="Test split of .* has no measured phase.*predict"):
        evaluate(run, data, "Test", tmp_path)
    assert not list(tmp_path.iterdir())


def errors_of(images, cells, measures=("area_um2", "dry_mass_pg", "mean_phase_rad")):
    """Compare the measures of images with those of the measured phase and of the truth."""
    images = images | {"measured QPI": cells.qpi, TRUTH: cells.truth}
    tables = {name: biophysics.measure_images(stack, cells) for name, stack in images.items()}
    references = {"measured": "measured QPI", "truth": TRUTH}
    return image_tables.cell_measure_errors(tables, references, measures)


def test_without_a_wavelength_dry_mass_is_left_out_with_a_note(data):
    cells = load_cells(data, "Test", with_truth=True)
    assert cells.wavelength_um == 1.06
    left_out = []
    measures = image_tables.comparable_measures(replace(LUNG, wavelength_um=None), left_out)
    ((what, _, why),) = left_out
    assert what == "dry mass" and "wavelength_um" in why and "dataset.toml" in why
    blind = replace(cells, wavelength_um=None)
    table = errors_of({"m": cells.truth * 1.1}, blind, measures)
    assert set(table["measure"]) == {"area_um2", "mean_phase_rad"}
    red = replace(cells, wavelength_um=0.53).select([0, 1])  # half of 1.06
    masses = [
        errors_of({"m": c.qpi * 1.1}, c)
        .set_index(["method", "reference", "measure"])
        .loc[("m", "measured", "dry_mass_pg"), "reference_mean"]
        for c in (red, cells.select([0, 1]))
    ]
    assert masses[0] == pytest.approx(masses[1] / 2)


def test_measures_of_cells_against_known_errors(data):
    cells = load_cells(data, "Test", with_truth=True)
    table = errors_of({"scaled": 1.1 * cells.truth, "empty": 0 * cells.truth}, cells)
    rows = table.set_index(["method", "reference", "measure"])
    mass = rows.loc[("scaled", "truth", "dry_mass_pg")]
    # Ten percent more phase is ten percent more dry mass, give or take the outline.
    assert mass["mean_error"] / mass["reference_mean"] == pytest.approx(0.1, abs=0.02)
    assert mass["r"] > 0.99
    area = rows.loc[("scaled", "truth", "area_um2")]
    assert abs(area["mean_error"]) < 0.02 * area["reference_mean"]
    # The truth is not compared with itself, but with what was measured.
    assert set(table.loc[table["method"] == TRUTH, "reference"]) == {"measured"}
    # Where no cell is found there is no area, and no phase to average.
    nothing = rows.loc[("empty", "truth")]
    assert nothing.loc["area_um2", "mean_error"] == -nothing.loc["area_um2", "reference_mean"]
    assert np.isnan(nothing.loc["mean_phase_rad", "mean_error"])


def test_the_cells_shown_are_of_different_lines_and_batches():
    labels = pd.DataFrame(
        {
            "class_name": ["A", "A", "B", "B", "C"],
            "batch": ["1", "2", "1", "2", "2"],
        }
    )
    # C was seen in batch 2 only, which is taken: better shown twice than not at all.
    assert list(draw.one_cell_of_each_class(labels)) == [0, 3, 4]


def test_without_truth_files_only_the_measured_phase_is_compared(data, tmp_path):
    root = tmp_path / "7LungCancerDataset"
    test = load_cells(data, "Test")
    for (batch, name), rows in test.labels.groupby(
        ["batch", "class_name"], observed=True
    ).indices.items():
        for kind, images in (("BF", test.brightfield), ("QPI", test.qpi)):
            stack = np.moveaxis(images[rows, ..., 0], 0, -1)
            write_mat(root / batch / name / "Test" / f"{name}_{kind}.mat", {kind: stack})
    row = image_tables._image_row(test.qpi, test)
    assert "MAE, truth (rad)" not in row
    assert row["MAE, measured (rad)"] == 0
    assert score.load_with_truth_if_there(root, "Test", 16).truth is None
