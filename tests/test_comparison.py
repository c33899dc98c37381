"""Claims over seeds and over a batch that was left out."""

import shutil

import pandas as pd
import pytest
from training_cells import GROUPS, ONE_EPOCH, write_dataset

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.evaluation import compare as comparison
from cytomad_lib.evaluation.compare import compare, leave_batch_out
from cytomad_lib.evaluation.methods import class_cnn
from cytomad_lib.runs import Run

pytestmark = pytest.mark.usefixtures("untraced")
ONE_RECIPE = ("published",)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), 6, (*GROUPS, "Batch1/HCC827"))


def compared(data, out):
    return compare(data, out, ONE_EPOCH, (4, 7), ONE_RECIPE, image_probe=False)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_cnn, "STEPS", 2)
        return out, compared(data, out)


def test_the_means_are_those_of_the_seeds(made):
    out, found = made
    values = []
    for seed in (4, 7):
        scores = pd.read_csv(out / f"seed_{seed}" / "scores.csv").set_index(["method", "measure"])
        values.append(scores.loc[("published recipe", "class"), "accuracy"])
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    shown = found.methods_table().loc["class", "published recipe"]
    assert shown == f"{mean:.3f} ± {spread:.3f}"
    tidy = pd.read_csv(out / "compare.csv")
    rows = tidy[(tidy["method"] == "published recipe") & (tidy["measure"] == "class")]
    assert list(rows["seed"]) == [4, 7] and list(rows["value"]) == pytest.approx(values)


def test_images_times_and_references_are_in_the_table(made):
    _, found = made
    table = found.methods_table()
    assert list(table.index[:3]) == ["batch within class", "class", "class, unseen batch"]
    for measure in ("r, truth", "MAE, measured (rad)", "structure r, truth"):
        assert table.loc[measure, "pretrained"] and table.loc[measure, "measured QPI"]
    times = table.loc[comparison.TIME]
    assert times[["pretrained", "published recipe"]].notna().all()
    assert pd.isna(times["truth"])
    assert {"pretrained", "LEACE", "truth"} <= set(found.ranking().index)
    kept = float(table.loc["biology within class", "truth"].split()[0])
    assert kept == pytest.approx(1, abs=0.01)
    assert found.ranking().loc["LEACE", "needs"] == "nothing"


def test_the_page_holds_its_figures(made):
    out, _ = made
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3  # scores, cells, baselines
    assert "SIMULATED" in page and "4, 7" in page and str(out) not in page


def test_a_second_call_trains_and_evaluates_nothing(made, data, monkeypatch):
    out, first = made

    def never(*args, **kwargs):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(comparison, "evaluate", never)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    again = compared(data, out)
    assert before and before == {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    pd.testing.assert_frame_equal(again.table, first.table)


def test_scores_that_do_not_cover_what_is_asked_are_not_taken(made):
    out, _ = made
    run = Run.open(out / "seed_4")
    assert comparison._is_evaluated(run, out / "seed_4", image_probe=False)
    assert not comparison._is_evaluated(run, out / "seed_4", image_probe=True)
    run.stages = lambda: ["pretraining", "published", "conditional"]
    assert not comparison._is_evaluated(run, out / "seed_4", image_probe=False)


def test_seeds_that_make_no_sense(data, tmp_path):
    for seeds in ((), (1, 1)):
        with pytest.raises(CytomadError, match="Expected one or more, each once"):
            compare(data, tmp_path / "out", ONE_EPOCH, seeds, ONE_RECIPE)
    assert not (tmp_path / "out").exists()


def test_the_batch_left_out_is_never_opened_in_training(data, tmp_path):
    spoiled = tmp_path / "data"
    shutil.copytree(data, spoiled)
    root = spoiled / LUNG.root_folder
    for path in root.glob("Batch1/*/*/*.mat"):
        if path.parent.name != "Test":
            path.write_bytes(b"not a file of images")
    table = leave_batch_out(spoiled, tmp_path / "out", "Batch1", ONE_EPOCH, ONE_RECIPE)
    run = Run.open(tmp_path / "out")
    assert set(run.settings["training_cells"]) == {"Batch3/H69", "Batch3/H520", "Batch6/H520"}
    stored = pd.read_csv(tmp_path / "out" / "left_out.csv")
    assert list(stored["method"]) == list(table["method"])
    assert {"pretrained", "published recipe", "measured QPI"} <= set(stored["method"])
    # HCC827 is in Batch1 only: nobody can know it. H69 is in Batch3, too.
    assert (stored["n_cells"] == 6).all() and (stored["n_not_counted"] == 6).all()
    assert (stored["chance"] == 0.5).all()  # the probe knows H69 and H520
    assert stored["accuracy"].between(0, 1).all() and stored["null_95"].notna().all()


def test_what_cannot_be_asked_is_not_waited_for(made, tmp_path):
    out, _ = made
    run, folder = Run.open(out / "seed_4"), tmp_path / "copy"
    shutil.copytree(out / "seed_4", folder, ignore=shutil.ignore_patterns("*.h5"))
    row = {"measure": "batch within class, images", "left_out": "all", "why": "one batch"}
    pd.DataFrame([row]).to_csv(folder / "not_scored.csv", index=False)
    assert comparison._is_evaluated(run, folder, image_probe=True)


def test_a_batch_that_cannot_be_predicted_is_refused_before_training(tmp_path):
    groups = ("Batch1/H69", "Batch3/H69", "Batch3/H520")
    data = write_dataset(tmp_path / "data", 6, groups)
    with pytest.raises(CytomadError, match="No cell of Batch3 can be predicted"):
        leave_batch_out(data, tmp_path / "out", "Batch3", ONE_EPOCH)
    assert not (tmp_path / "out").exists()


def test_an_unknown_batch_is_answered_with_those_there(data, tmp_path):
    with pytest.raises(CytomadError, match="no batch 'Batch2'.*Batch1, Batch3, Batch6"):
        leave_batch_out(data, tmp_path / "out", "Batch2", ONE_EPOCH)
    assert not (tmp_path / "out").exists()
