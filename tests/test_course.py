import builtins
import json
import re
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pytest

from cytomad_lib import course, handouts
from cytomad_lib.config import DEMO, PUBLISHED, WORKSHOP
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.download import published_files
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG, find_layout
from cytomad_lib.evaluation.dissection import block_table
from cytomad_lib.networks import build_generator, encoder_widths
from cytomad_lib.repository import find_repository, first_cell

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

# --- the machine ---------------------------------------------------------------------------------


def test_this_machine_is_ready():
    table = course.machine_table()
    assert list(table.columns) == ["found", "needed", "ready"]
    assert {"Python", "keras", "numpy", "processor cores", "memory", "GPU"} <= set(table.index)
    assert (table.loc[["Python", "keras", "numpy"], "ready"] == "yes").all()


def test_an_old_package_a_missing_one_and_little_memory_are_told(monkeypatch):
    versions = {"keras": "3.4.1", "numpy": "missing"}
    monkeypatch.setattr(course, "_version_of", lambda name: versions.get(name, "99.0"))
    monkeypatch.setattr(course, "memory_gb", lambda: 1.0)
    monkeypatch.setattr(course, "find_gpus", list)
    ready = course.machine_table()["ready"]
    assert ready["keras"] == ready["numpy"] == ready["memory"] == "NO"
    assert ready["Python"] == "yes" and ready["GPU"] == "works without"


@pytest.mark.parametrize(
    "found, enough",
    [("3.13.0", True), ("3.9.2", False), ("4.0", True), ("2.99", False), ("3.13rc1", True)]
    + [("3.13.2+cu121", True), ("missing", False), ("3", False)],
)
def test_versions_are_compared_as_numbers(found, enough):
    assert course._is_at_least(found, "3.13") is enough


def test_a_container_has_the_memory_of_its_limit(monkeypatch, tmp_path):
    whole = course.memory_gb()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(course, "MEMORY_LIMIT_FILES", (tmp_path / "none", limit))
    limit.write_text("250000000\n")
    assert course.memory_gb() == 0.25
    limit.write_text("max\n")
    assert course.memory_gb() >= whole


def test_without_a_gpu_the_small_preset_is_chosen(monkeypatch):
    monkeypatch.setattr(course, "find_gpus", list)
    assert course.choose_preset() == DEMO
    monkeypatch.setattr(course, "find_gpus", lambda: ["gpu:0"])
    assert course.choose_preset() == WORKSHOP


class Anything(dict):
    """Names of a notebook; what is not set here does nothing."""

    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        return MagicMock()


@pytest.mark.parametrize(
    "notebook, name",
    [("04_pretraining", "preset"), ("05_batch_removal", "preset")] + [("09_your_own_data", "tiny")],
)
@pytest.mark.parametrize("gpus, chosen", [([], DEMO), (["gpu:0"], WORKSHOP)])
def test_notebooks_that_train_take_the_larger_preset_on_a_gpu(
    notebook, name, gpus, chosen, monkeypatch, capsys
):
    monkeypatch.setattr(course, "find_gpus", lambda: gpus)
    monkeypatch.setattr("cytomad_lib.workflow.train", MagicMock())
    monkeypatch.setattr(course, "fresh_folder", MagicMock())
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (source,) = [source for source in sources if "course.choose_preset()" in source]

    def create(folder, preset, *others, **options):
        return SimpleNamespace(preset=preset)

    run = SimpleNamespace(create=create)
    names = Anything(course=course, replace=replace, PUBLISHED=PUBLISHED, Run=run)
    exec(source, {}, names)
    assert names[name].base_filters == chosen.base_filters
    assert names[name].image_size == (32 if name == "tiny" else chosen.image_size)
    printed = capsys.readouterr().out
    assert repr(chosen.name) in printed and ("GPU" in printed) == bool(gpus)


@pytest.mark.parametrize(
    "cuda, mps, found", [(2, False, ["cuda:0", "cuda:1"]), (0, True, ["mps"]), (0, False, [])]
)
def test_pytorch_is_asked_for_its_own_gpus(monkeypatch, cuda, mps, found):
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: cuda > 0, device_count=lambda: cuda),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(course.keras.backend, "backend", lambda: "torch")
    assert course.find_gpus() == found


# --- data and trained models ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lung", "drug"])
def test_data_are_found_from_any_folder(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = course.data(name)
    assert find_layout(folder)[0].name == name
    assert not folder.is_absolute()


@pytest.mark.parametrize("name", ["lung", "drug"])
def test_the_trained_models_are_complete(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = course.trained(name)
    layout = find_layout(course.data(name))[0]
    assert run.preset.image_size == 64
    assert {"pretraining", "published", "conditional"} <= set(run.stages())
    assert run.settings["classes"] == list(layout.classes)


def test_missing_models_are_told_with_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(course, "TRAINED", tmp_path / "trained")
    with pytest.raises(CytomadError, match="train drug --recipe both --out results/drug") as caught:
        course.trained("drug")
    assert str(tmp_path) not in str(caught.value)


def test_models_of_another_name_are_refused():
    with pytest.raises(CytomadError, match="'liver'.*'lung' or 'drug'"):
        course.trained("liver")


# --- the same cells on every day -----------------------------------------------------------------


def test_the_same_cells_are_seen_on_every_day_and_are_those_of_the_files():
    cells = course.same_cells_on_every_day("H520", n=2)
    assert len(cells) == 14 and cells.labels["cell"].tolist() == [0, 1] * 7
    assert cells.labels["batch"].astype(str).tolist() == [b for b in LUNG.batches for _ in "ab"]
    for day in range(7):
        assert np.array_equal(cells.truth[2 * day : 2 * day + 2], cells.truth[:2])
    assert not np.array_equal(cells.truth[0], cells.truth[1])
    assert np.ptp(cells.qpi.mean(axis=(1, 2, 3))[::2]) > 0.01

    stored = load_cells(course.data("lung"), "Test", 2, batches=["Batch3"], classes=["H520"])
    own = cells.select((cells.labels["batch"] == "Batch3").to_numpy())
    assert np.abs(own.brightfield - stored.brightfield).max() < 1 / 128  # the files' steps
    assert np.abs(own.qpi - stored.qpi).max() < 1 / 64
    assert own.pixel_size_um == stored.pixel_size_um


def test_cells_of_an_unknown_line_are_refused():
    with pytest.raises(CytomadError, match="HeLa"):
        course.same_cells_on_every_day("HeLa")


# --- where a notebook writes ---------------------------------------------------------------------


def test_a_fresh_folder_is_empty(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (course.fresh_folder("04_training") / "old.txt").write_text("old")
    beside = course.fresh_folder("05_other") / "kept.txt"
    beside.write_text("kept")
    folder = course.fresh_folder("04_training")
    assert folder.as_posix() == "results/04_training" and not folder.is_absolute()
    assert list(folder.iterdir()) == [] and beside.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../notebooks", "a/b", "a\\b", "/abs"])
def test_no_other_folder_is_ever_emptied(name, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CytomadError, match="no name of a folder"):
        course.fresh_folder(name)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_file_in_its_place_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "04").write_text("mine")
    with pytest.raises(CytomadError, match="cannot be emptied"):
        course.fresh_folder("04")
    assert (tmp_path / "results" / "04").read_text() == "mine"


# --- real cells ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["phenotypes", "jurkat"])
def test_without_a_connection_real_cells_are_missing_and_the_reason_is_told(
    name, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("CYTOMAD_MIRROR", "http://127.0.0.1:1")
    assert course.real_cells(name) is None
    told = capsys.readouterr().out
    assert f"The {name} cells are missing: 127.0.0.1:1 cannot be reached" in told
    assert "skipped" in told and str(tmp_path) not in told


def test_one_montage_of_each_group_of_jurkat_is_enough(monkeypatch):
    files = published_files("jurkat", groups=course.JURKAT_GROUPS)
    assert len(files) == 8  # three phases and another experiment, brightfield and DNA
    asked = []
    monkeypatch.setattr(course, "download_dataset", lambda *words, **_: asked.append(words))
    course.real_cells("jurkat")
    assert asked[0][0] == "jurkat" and course.JURKAT_GROUPS in asked[0]


# --- answers to exercises ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exercise, answer, verdict",
    [
        ("02-1", 2128, "right"),
        ("02-1", 2112, "right"),  # within 2 %
        ("02-1", 2048, "nearly"),
        ("02-1", 136, "wrong"),
        ("02-2", " C ", "right"),
        ("02-2", "b", "nearly"),
        ("02-2", "a", "wrong"),
        ("03-1", (1.03, 0.73), "right"),
        ("03-1", (0.73, 1.03), "wrong"),
        ("03-1", [1.0, 2.0, 3.0], "wrong"),
        ("03-1", "ln 2", "wrong"),
        ("06-1", 1 / 7, "wrong"),
        ("06-1", None, "no answer yet"),
    ],
)
def test_an_answer_is_right_nearly_right_or_wrong(exercise, answer, verdict, capsys):
    course.check(exercise, answer)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{exercise}: {verdict}.")
    assert ("Hint: " in line) == (verdict in ("nearly", "wrong"))


def test_an_unknown_exercise_is_told():
    with pytest.raises(CytomadError, match="'12-1'.*00-1, .*11-2"):
        course.check("12-1", "a")


def test_the_answers_that_can_be_computed_are_right():
    answers = tomllib.loads(course.ANSWERS.read_text())
    patches = np.array([0.9, 0.6, 0.5, 0.2])
    window = 1
    for stride in (1, 1, 1, 2, 2):
        window = (window - 1) * stride + 4
    table = block_table(build_generator(64, 8))
    computed = {
        "01-2": 1 / 3,
        "02-1": table.loc["encoder 2", "parameters"],
        "02-3": len(encoder_widths(256, 64)),
        "03-1": [-np.log(1 - patches).mean(), -np.log(patches).mean()],
        "03-2": window,
        "05-2": np.log(7) * PUBLISHED.weight_classifier / PUBLISHED.weight_mae_removal,
        "06-1": 1 / 3,
    }
    for exercise, number in computed.items():
        assert answers[exercise]["answer"] == pytest.approx(number, rel=2e-3), exercise
    assert answers["01-1"]["answer"] == len(load_cells(course.data("lung"), "Train")) / 21


def exercises_of_the_notebooks():
    for path in sorted(course.NOTEBOOKS.glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield from re.findall(r'course\.check\("([^"]+)"', "".join(cell["source"]))


def test_every_exercise_has_a_check_and_every_check_an_answer():
    answers = tomllib.loads(course.ANSWERS.read_text())
    assert set(exercises_of_the_notebooks()) == set(answers)
    for path in course.NOTEBOOKS.glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        titles = re.findall(r"^#+ Exercise \d", "\n".join(texts), re.M)
        own = [name for name in answers if name.startswith(path.name[:2])]
        assert len(titles) == len(own), path.name


# --- for a class ---------------------------------------------------------------------------------


def test_student_copies_have_no_solutions_and_no_outputs(tmp_path):
    copies = handouts.student_copies(tmp_path / "student")
    assert [path.name for path in copies] == sorted(
        path.name for path in course.NOTEBOOKS.glob("*.ipynb")
    )
    for path in copies:
        ours = nbformat.read(course.NOTEBOOKS / path.name, as_version=4)
        copy = nbformat.read(path, as_version=4)
        nbformat.validate(copy)
        assert "@title Solution" not in path.read_text(encoding="utf-8")
        assert any("solution" in cell.metadata.get("tags", ()) for cell in ours.cells)
        assert "course.check(" in path.read_text(encoding="utf-8")
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        assert code[0].source == first_cell(find_repository()) and "widgets" not in copy.metadata
    assert (tmp_path / "student" / "glossary.md").is_file()
    assert (tmp_path / "student" / "trained" / "trade_off.csv").is_file()


def test_slides_show_texts_and_figures_but_no_code_and_no_solution(tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(course.NOTEBOOKS / "02_generator.ipynb", tmp_path / "one")
    (page,) = handouts.write_slides(tmp_path / "slides", tmp_path / "one")
    text = page.read_text(encoding="utf-8")
    assert page.name == "02_generator.slides.html"
    assert "The bottleneck" in text and "data:image/png;base64" in text
    assert text.count("<section>") > 20
    assert "keras.Sequential" not in text and "my_count = 4 * 4" not in text


@pytest.mark.parametrize("name", ["00_start_here", "06_fooled_or_forgotten"])
def test_slides_lose_no_text_and_only_one_table_or_figure_can_overfill_one(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    parts = handouts._fill_slides(notebook.cells)
    ours = [c for c in notebook.cells if "solution" not in c.metadata.get("tags", ())]
    texts = [
        "\n".join(c.source for c in cells if c.cell_type == "markdown") for cells in (ours, parts)
    ]
    assert texts[0] == texts[1]
    slides = []
    for part in parts:
        if part.metadata["slideshow"]["slide_type"] != "-":
            slides.append([])
        slides[-1].append(handouts._height(part, part.source))
    assert len(slides) > 10
    for heights in slides:
        assert sum(heights) - max(heights) <= handouts.HEADING or sum(heights) <= 640, heights


def test_the_notebooks_themselves_are_never_overwritten(tmp_path):
    before = {path: path.read_bytes() for path in course.NOTEBOOKS.glob("*.ipynb")}
    with pytest.raises(CytomadError, match="another folder"):
        handouts.student_copies(course.NOTEBOOKS)
    with pytest.raises(CytomadError, match="Found 0 notebooks"):
        handouts.write_slides(tmp_path / "out", tmp_path)
    assert before == {path: path.read_bytes() for path in before}


def test_the_handout_has_the_published_numbers():
    text = (course.NOTEBOOKS.parent / "docs" / "handout.md").read_text(encoding="utf-8")
    stages = re.findall(r"^\| (pretraining|classifiers|batch removal) \| (\d+)", text, re.M)
    assert dict(stages) == {
        "pretraining": str(PUBLISHED.pretraining_epochs),
        "classifiers": str(PUBLISHED.classifier_epochs),
        "batch removal": str(PUBLISHED.removal_epochs),
    }
    assert f"MAE × {PUBLISHED.weight_mae_pretraining:.0f} " in text
    assert f"measured phase | {PUBLISHED.weight_mae_removal:.0f} |" in text
    assert f'"measured" | {PUBLISHED.weight_adversarial:.0f} |' in text
    classifiers = rf'\| (?:true class|"first batch") \| {PUBLISHED.weight_classifier:.0f}\b'
    assert len(re.findall(classifiers, text)) == 4
    assert f"{PUBLISHED.n_features} features" in text
    assert f"{PUBLISHED.n_features // PUBLISHED.batch_mlps} disjoint" in text
    refits = f"Every {PUBLISHED.refit_every} epochs, four new batch MLPs, {PUBLISHED.refit_epochs}"
    assert refits in text
