"""The kit's address: in one place, and from there in notebooks, README and citation."""

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest

from cytomad_lib import repository
from cytomad_lib.data.errors import CytomadError

ADDRESS = "https://github.com/someone/kit"
ROOT = repository.ROOT


# --- the first cell ------------------------------------------------------------------------------


def run_first_cell(monkeypatch, folder, address):
    """Run the cell as if on Colab, in a folder; return the commands that it gives to the shell."""
    given, uploads = [], []

    def command(line):
        given.append(line)
        if line.startswith("%cd "):
            os.chdir(line.split()[-1])
        elif "kit.zip" in line or "clone" in line:
            if "test -d kit ||" in line and (folder / "kit").is_dir():
                return
            (folder / "kit" / "notebooks").mkdir(parents=True, exist_ok="unzip -qn" in line)
            (folder / "kit" / "cytomad_lib").mkdir(exist_ok=True)

    def upload():
        uploads.append("kit.zip")
        (folder / "kit.zip").write_bytes(b"")

    colab = ModuleType("google.colab")
    colab.files = SimpleNamespace(upload=upload)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = repository.first_cell(address, "v1.2")
    source = re.sub(r"^( *)([!%].*)$", r"\1command(\2)", source, flags=re.M)
    source = re.sub(r"command\((.*)\)$", lambda m: f"command({m[1]!r})", source, flags=re.M)
    exec(source, {"command": command})
    return given, uploads


def test_without_an_address_the_first_cell_asks_for_the_kit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given, uploads = run_first_cell(monkeypatch, tmp_path, None)
    assert uploads == ["kit.zip"]
    assert given == ["!unzip -qn kit.zip", "%cd kit/notebooks", "%pip install -q .."]


def test_a_kit_that_is_uploaded_already_is_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kit.zip").write_bytes(b"")
    assert run_first_cell(monkeypatch, tmp_path, None)[1] == []


def test_with_an_address_a_release_is_fetched(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given, uploads = run_first_cell(monkeypatch, tmp_path, ADDRESS)
    assert given[0].endswith(f"git clone -q --depth 1 --branch v1.2 {ADDRESS} kit") and not uploads


@pytest.mark.parametrize("address", [None, ADDRESS])
def test_running_the_first_cell_twice_is_harmless(monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    run_first_cell(monkeypatch, tmp_path, address)
    assert run_first_cell(monkeypatch, tmp_path, address) == ([], [])
    assert Path.cwd() == tmp_path / "kit" / "notebooks"


@pytest.mark.parametrize("address", [None, ADDRESS])
def test_running_the_first_cell_after_a_restart_is_harmless(monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    run_first_cell(monkeypatch, tmp_path, address)
    monkeypatch.chdir(tmp_path)  # a new kernel starts here; the files are still there
    assert run_first_cell(monkeypatch, tmp_path, address)[1] == []
    assert Path.cwd() == tmp_path / "kit" / "notebooks"


def test_the_first_cell_does_nothing_outside_colab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "google.colab" not in sys.modules
    for address in (None, ADDRESS):
        source = repository.first_cell(address)
        exec(re.sub(r"^( *)[!%].*$", r"\1raise AssertionError", source, flags=re.M), {})
    assert list(tmp_path.iterdir()) == []


def test_badges_need_an_address():
    page = "notebooks/00_start_here.ipynb"
    assert repository.badges(page, None) == {}
    found = repository.badges(page, ADDRESS)
    assert found["Binder"].startswith("https://mybinder.org/v2/gh/someone/kit/HEAD?")
    assert found["Colab"].endswith(f"github/someone/kit/blob/main/{page}")


# --- where the address is written ----------------------------------------------------------------


@pytest.fixture
def kit(tmp_path):
    """Copy of the files that hold the address."""
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    for path in (ROOT / "notebooks").glob("0[02]*.ipynb"):
        shutil.copy(path, tmp_path / "notebooks")
    repository.set_repository(None, tmp_path)
    return tmp_path


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_address_is_written_everywhere_and_taken_back_to_the_byte(kit):
    before = files_of(kit)
    changed = repository.set_repository(f"{ADDRESS}.git/", kit)
    assert {path.name for path in changed} == set(before)
    assert repository.find_repository(kit) == ADDRESS
    assert f'repository-code: "{ADDRESS}"\n' in (kit / "CITATION.cff").read_text(encoding="utf-8")
    readme = (kit / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        for url in repository.badges(f"notebooks/{path.name}", ADDRESS).values():
            assert readme.count(f"({url})") == 1
    for path in kit.glob("notebooks/*.ipynb"):
        notebook, ours = nbformat.read(path, 4), nbformat.read(ROOT / "notebooks" / path.name, 4)
        for url in repository.badges(f"notebooks/{path.name}", ADDRESS).values():
            assert notebook.cells[0].source.count(f"({url})") == 1
        title, original = (repository.without_badges(n.cells[0].source) for n in (notebook, ours))
        assert title == original  # as in copies for students
        code = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert code.source == repository.first_cell(ADDRESS)
        assert [c.get("outputs") for c in notebook.cells] == [c.get("outputs") for c in ours.cells]

    assert repository.set_repository(ADDRESS, kit) == []  # nothing is written twice
    repository.set_repository(None, kit)
    assert files_of(kit) == before and repository.find_repository(kit) is None


def test_an_address_is_replaced_by_another(kit):
    repository.set_repository(ADDRESS, kit)
    repository.set_repository("https://github.com/other/course", kit)
    for name, text in files_of(kit).items():
        assert b"someone/kit" not in text and b"other/course" in text, name


def test_other_addresses_of_the_project_stay(kit):
    project = kit / "pyproject.toml"
    text = project.read_text(encoding="utf-8").replace(
        "[project.scripts]", '[project.urls]\nPreprint = "https://doi.org/1"\n\n[project.scripts]'
    )
    project.write_text(text, encoding="utf-8")
    repository.set_repository(ADDRESS, kit)
    assert repository._project(kit)["urls"] == {
        "Repository": ADDRESS,
        "Preprint": "https://doi.org/1",
    }
    repository.set_repository(None, kit)
    assert project.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "address",
    ["", "someone/kit", "http://github.com/a/b", "https://gitlab.com/a/b", f"{ADDRESS}/x"],
)
def test_an_address_that_binder_and_colab_cannot_open_is_refused(kit, address):
    before = files_of(kit)
    with pytest.raises(CytomadError, match="Expected one on GitHub, such as"):
        repository.set_repository(address, kit)
    assert files_of(kit) == before


def test_a_kit_that_is_not_complete_is_left_alone(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    with pytest.raises(CytomadError, match="0 notebooks.*missing: pyproject.toml, CITATION.cff"):
        repository.set_repository(ADDRESS, tmp_path)
    assert repository.find_repository(tmp_path) is None
