"""The notebooks as they are stored: complete, run from top to bottom, and tidy.

That they still run is what pytest checks by itself: it runs every cell of `notebooks/` with nbval.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cytomad_lib.repository import badges, find_repository, first_cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
BROKEN = Path(__file__).parent / "data" / "notebooks"
NAMES = (
    "00_start_here",
    "01_cells_and_data",
    "02_generator",
    "03_discriminator_and_classifiers",
    "04_pretraining",
    "05_batch_removal",
    "06_fooled_or_forgotten",
    "07_drug_response",
    "08_explore",
    "09_your_own_data",
    "10_real_cells",
    "11_metric_mirages",
)
NEXT = dict(zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True))  # the last one leads to the first
MB = 1e6

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_PATH = re.compile(
    r"(?<![\w/:.])/(?:work|home|root|tmp|Users|content|var|mnt)/|\b[A-Za-z]:\\+[A-Za-z]"
)
_EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s]+")  # pictures inside HTML hold anything


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def texts_of(cell):
    """List the source of a cell, and its outputs that are text."""
    texts = [cell.source]
    for output in cell.get("outputs", ()):
        texts.append(output.get("text", ""))
        for kind, value in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                texts.append(value if isinstance(value, str) else str(value))
    return [_EMBEDDED.sub("", text) for text in texts]


def run_pytest(*words):
    """Run pytest with the project's own settings, as a reader would."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        timeout=300,
    )


# --- which there are ---------------------------------------------------------------------------


def test_these_twelve_notebooks_and_no_others():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


def test_pytest_collects_every_code_cell():
    """A notebook that nbval does not see would pass for ever."""
    found = run_pytest("--collect-only", "notebooks")
    assert found.returncode == 0, found.stdout + found.stderr
    collected = re.findall(r"^notebooks/(\w+)\.ipynb::Cell \d+$", found.stdout, re.M)
    counts = {name: collected.count(name) for name in set(collected)}
    assert counts == {name: len(code_cells(read(name))) for name in NAMES}


def test_pytest_by_itself_runs_tests_and_notebooks_and_no_broken_ones(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests", "notebooks"]
    options = pytestconfig.option
    assert options.nbval_lax and options.nbval_current_env
    assert float(options.nbval_cell_timeout) >= 300
    assert (ROOT / options.nbval_sanitize_with).is_file()
    found = run_pytest("--collect-only", "--ignore-glob=*.py", "tests")
    assert found.returncode == 5 and "no tests collected" in found.stdout


# --- a broken notebook is found ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words",
    [
        ("raises", "this cell is broken"),
        ("prints_something_else", "mismatch"),
        ("counts_on_an_earlier_run", "NameError"),
    ],
)
def test_a_broken_notebook_fails(name, words):
    found = run_pytest(BROKEN / f"{name}.ipynb")
    assert found.returncode == 1, found.stdout + found.stderr
    assert words in found.stdout and "1 failed, 1 passed" in found.stdout


def test_a_whole_notebook_passes():
    found = run_pytest(BROKEN / "fine.ipynb")
    assert found.returncode == 0 and "2 passed" in found.stdout, found.stdout + found.stderr


# --- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_was_run_from_top_to_bottom(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", (cell.source, output.text)


@pytest.mark.parametrize("name", NAMES)
def test_it_knows_no_folder_of_the_machine_it_was_made_on(name):
    for cell in read(name).cells:
        for text in texts_of(cell):
            found = _PATH.search(text)
            assert not found, text[max(0, found.start() - 80) : found.end() + 80]


def test_absolute_paths_are_recognised():
    for text in ("in /tmp/x", "'/home/me/kit'", "C:\\Users", r"D:\\data", "file=/root/a"):
        assert _PATH.search(text), text
    for text in ("results/tmp/x", "https://a.org/home/b", "../root/", "a/b", "Note:\\n"):
        assert not _PATH.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_the_cell_for_colab(name):
    assert code_cells(read(name))[0].source == first_cell(find_repository())


@pytest.mark.parametrize("name", NAMES)
def test_it_has_title_goals_time_solution_and_key_points(name):
    notebook = read(name)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith(f"# {name[:2]} ")
    for heading in ("Goals", "Time"):
        assert re.search(rf"(\*\*|#+ ){heading}\b", first.source), heading
    assert "Key points" in last.source
    assert f"({NEXT[name]}.ipynb)" in last.source


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_there_and_folded(name):
    cells = code_cells(read(name))
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", ())]
    assert solutions
    for cell in solutions:
        assert cell.metadata.jupyter.source_hidden
    titled = [cell for cell in cells if re.match("# ?@title Solution", cell.source)]
    assert titled == solutions


def figures_without_words(notebook):
    """List the cells that show a picture without a text for readers who cannot see it."""
    return [
        cell.source
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
        and len(output.metadata.get("image/png", {}).get("alt", "")) < 20
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_described_in_words(name):
    assert figures_without_words(read(name)) == []


def test_a_figure_without_words_is_found():
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f", outputs=[picture])])
    assert figures_without_words(notebook) == ["f"]
    picture.metadata = {"image/png": {"alt": "Loss against epoch, from 3 to 0.5"}}
    assert figures_without_words(notebook) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_exercise_begins_with_a_prediction_and_questions_are_folded(name):
    notebook = read(name)
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and re.search(r"^#+ Exercise \d", cell.source, re.M):
            assert "**Your prediction" in cell.source
            assert "course.check(" in notebook.cells[place + 1].source
    text = prose(notebook)
    assert text.count("<details><summary>") == text.count("</details>") == 2


def test_together_they_are_small():
    files = sum(path.stat().st_size for path in FOLDER.glob("*.ipynb"))
    trained = [path for path in (FOLDER / "trained").rglob("*") if path.is_file()]
    assert 0 < files <= 12 * MB
    assert 0 < sum(path.stat().st_size for path in trained) <= 13 * MB


# --- links --------------------------------------------------------------------------------------


def anchors(text):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in headings]


def pages():
    """Return {file name: its prose} of the notebooks and the glossary."""
    found = {f"{name}.ipynb": prose(read(name)) for name in NAMES}
    return found | {"glossary.md": (FOLDER / "glossary.md").read_text(encoding="utf-8")}


def test_every_term_is_explained_once():
    found = anchors((FOLDER / "glossary.md").read_text(encoding="utf-8"))
    assert len(found) == len(set(found)) and len(found) > 10


def test_terms_with_capitals_have_an_anchor_without():
    # GitHub's links are in small letters, JupyterLab keeps the capitals of a heading.
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.M)
    capital = [title for title in titles if title != title.lower()]
    assert capital
    for title in capital:
        assert f'<a id="{anchors("## " + title)[0]}"></a>\n\n## {title}' in text, title


@pytest.mark.parametrize("file", [*(f"{name}.ipynb" for name in NAMES), "glossary.md"])
def test_links_lead_somewhere(file):
    for target in _LINK.findall(pages()[file] if file == "glossary.md" else prose(read(file[:-6]))):
        if target.startswith(("https://", "http://", "attachment:", "mailto:")):
            continue
        page, _, anchor = target.partition("#")
        path = FOLDER / (page or file)
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


# --- the repository's address --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_badges_lead_to_this_repository_or_are_not_shown(name):
    ours = badges(f"notebooks/{name}.ipynb", find_repository())
    hosts = r"https://(?:mybinder\.org/v2|colab\.research\.google\.com/github)/[^)\s]+"
    assert set(re.findall(hosts, read(name).cells[0].source)) == set(ours.values())
    rows = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith("|") and f"notebooks/{name}.ipynb" in row]
    assert set(re.findall(hosts, row)) == set(ours.values())


@pytest.mark.parametrize("file", ["README.md", *(f"notebooks/{name}.ipynb" for name in NAMES)])
def test_nothing_is_installed_from_an_address_that_is_not_the_kits(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    fetched = re.findall(r"(?:git clone|git\+)[^\n]*?(https?://[^\s\"\\]+)", text)
    assert set(fetched) <= {find_repository()}


# --- what mybinder.org builds -------------------------------------------------------------------


FAKE_PYTHON = """#!/bin/bash
echo "$*" >> "$LOG"
case "$*" in *" -r "*) cp "${@: -1}" "$LOG.pins";; "-c"*) echo /nowhere;; *" -e ."*) exit 3;; esac
"""


@pytest.mark.skipif(os.name != "posix", reason="the script is for Linux")
def test_binder_gets_the_tested_versions_and_stops_at_the_first_error(tmp_path):
    """The script runs as it is; only Python is replaced, by one that fails at `-e .`."""
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    log = tmp_path / "log"
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["binder/postBuild"], cwd=ROOT, env={**os.environ, "PATH": path, "LOG": str(log)}
    )
    calls = log.read_text().splitlines()
    assert done.returncode == 3 and calls[-1] == "-m pip install --no-cache-dir --no-deps -e ."
    assert "--no-deps -r" in calls[0]
    given, ours = Path(f"{log}.pins").read_text(), (ROOT / "requirements.txt").read_text()
    assert given == re.sub("^tensorflow==", "tensorflow-cpu==", ours, flags=re.M).replace(
        "-e .\n", ""
    )
    assert "tensorflow-cpu==" in given
