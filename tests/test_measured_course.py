"""Notebooks 01 to 07 on measured cells: the published layout, and no truth."""

import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from cytomad_lib import course
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.simulation import simulate_dataset

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("0[1-7]*.ipynb"))
COUNTS = {"Train": 40, "Valid": 5, "Test": 30}  # the notebooks read no more


def make_measured(out, layout, **arguments):
    """Write cells of other days than the kit's, without truth and without a simulation's notes."""
    root = simulate_dataset(out, layout, with_truth=False, seed=3, progress=False, **arguments)
    (root / "simulation.json").unlink()
    return root


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Both datasets at the sizes of measured files; one group has 500 cells, as a published one."""
    out = tmp_path_factory.mktemp("measured")
    make_measured(out, "lung", cells_per_group=COUNTS, image_size=144)
    few = {"Train": 4, "Valid": 4, "Test": 30}
    make_measured(out, "drug", cells_per_group=few, image_size=128)
    many = {"cells_per_group": {"Test": 500}, "groups": ["Batch1/H69"], "image_size": 144}
    group = make_measured(out / "many", "lung", **many)
    shutil.copytree(group, out / "7LungCancerDataset", dirs_exist_ok=True)
    return out


def test_one_variable_switches_to_measured_cells_without_a_truth(measured, monkeypatch, capsys):
    monkeypatch.setenv("CYTOMAD_DATA", str(measured))
    assert course.data("lung").resolve() == measured / "7LungCancerDataset"
    cells = course.load_with_truth(course.data("drug"), "Test", 2, image_size=32)
    assert np.array_equal(cells.truth, cells.qpi)
    assert "nobody knows their true phase" in capsys.readouterr().out


def test_simulated_cells_keep_their_truth(monkeypatch, capsys):
    monkeypatch.delenv("CYTOMAD_DATA", raising=False)
    cells = course.load_with_truth(course.data("lung"), "Test", 2, image_size=32)
    assert not np.array_equal(cells.truth, cells.qpi)
    assert capsys.readouterr().out == ""


def test_a_folder_without_the_dataset_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CYTOMAD_DATA", str(tmp_path))
    with pytest.raises(CytomadError, match="no folder H2170DrugTreatmentDataset.*download drug"):
        course.data("drug")


def test_with_measured_cells_a_failed_check_prints_a_line(measured, monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr(course, "get_ipython", lambda: shell)
    assert not shell.run_cell("assert 1 > 2, 'words'").success
    monkeypatch.setenv("CYTOMAD_DATA", str(measured))
    for _ in range(2):
        course.data("lung")
    assert len(shell.ast_transformers) == 1
    capsys.readouterr()
    assert shell.run_cell("def f():\n    assert 1 > 2, 'words'\n\nf()\nassert 2 > 1").success
    assert capsys.readouterr().out == "Does not hold for these cells: 1 > 2\n"


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs_on_measured_cells(name, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("CYTOMAD_DATA", str(measured))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for file in ("glossary.md", "trained"):  # what notebooks read beside themselves
        source = NOTEBOOKS / file
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / file)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, resources=resources).execute()
    told = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    needs_truth = "load_with_truth" in "".join(cell.source for cell in notebook.cells)
    assert ("nobody knows their true phase" in told) == needs_truth
