"""The notebooks for a class: copies for students, slides, and all that `cytomad course` writes.

Example
-------
>>> student_copies("student")                    # without solutions and outputs
>>> write_slides("slides")                       # HTML pages
"""

import re
import shutil
import struct
from base64 import b64decode
from copy import deepcopy
from pathlib import Path

from cytomad_lib.course import NOTEBOOKS, relative_to_here
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.repository import set_repository, without_badges
from cytomad_lib.site import build_site

# Of nbconvert's slides, in the pixels of reveal.js, which fits 960 × 700 of them into a window.
SLIDE_WIDTH, SLIDE_HEIGHT, HEADING, LINE_HEIGHT, LETTERS_PER_LINE = 900, 640, 150, 27, 80
BESIDE_NOTEBOOKS = ("glossary.md", "trained/trade_off.csv")  # what they link to or read


def write(out=None, student=False, slides=False, site=False, add=None, repository=None):
    """Write the chosen parts of `cytomad course`; copies for students and slides if none is chosen.

    Parameters
    ----------
    out : path or None
        None is enough to set the repository's address.
    student, slides, site : bool
        What to write into `out`.
    add : path or None
        As in `build_site`.
    repository : str or None
        As in `set_repository`, but "none" removes the address.

    Returns
    -------
    list of str
        A line for each thing done.

    Raises
    ------
    CytomadError
        If a part needs a folder and `out` is None; else as the functions of the parts.
    """
    lines = []
    if repository is not None:
        changed = set_repository(None if repository.casefold() == "none" else repository)
        lines.append(f"The kit's address is {repository}: changed {len(changed)} files")
        if out is None and not (student or slides or site):
            return lines
    if out is None:
        raise CytomadError("There is no folder for the files. Expected --out with a new folder.")
    default = not (student or slides or site)
    made = student_copies(out) if student or default else []
    made += write_slides(out) if slides or default else []
    if made:
        lines.append(f"Wrote {len(made)} files into {out}")
    return [*lines, f"Site: {build_site(out, add)}"] if site else lines


def student_copies(out, notebooks=NOTEBOOKS):
    """Write the notebooks without solutions and without outputs, and what they need beside them.

    Parameters
    ----------
    out : path
        A folder beside `notebooks/`, so that the notebooks find the rest of the kit.
    notebooks : path

    Returns
    -------
    list of Path
        The notebooks written.

    Raises
    ------
    CytomadError
        If there are no notebooks, or `out` is their own folder.
    """
    import nbformat

    out, sources = Path(out), _sources(notebooks, Path(out))
    for name in BESIDE_NOTEBOOKS:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(notebooks) / name, out / name)
    for source in sources:
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata.pop("widgets", None)  # the state of the explorers, large
        # Binder and Colab would open the notebook with its solutions.
        notebook.cells[0].source = without_badges(notebook.cells[0].source)
        notebook.cells = [c for c in notebook.cells if "solution" not in c.metadata.get("tags", ())]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, out / source.name)
    return [out / source.name for source in sources]


def write_slides(out, notebooks=NOTEBOOKS):
    """Write the notebooks as slides for a browser: texts, figures and results, but no code.

    A slide begins at each heading, and wherever the one before is full. The browser loads reveal.js
    from the network.

    Parameters, returns and errors as in `student_copies`; the files are HTML pages.
    """
    import nbformat
    from nbconvert import SlidesExporter

    out, pages = Path(out), []
    exporter = SlidesExporter(exclude_input=True, exclude_output_prompt=True, reveal_scroll=True)
    for source in _sources(notebooks, out):
        notebook = nbformat.read(source, as_version=4)
        notebook.cells = _fill_slides(notebook.cells)
        pages.append(out / f"{source.stem}.slides.html")
        pages[-1].write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    return pages


def _fill_slides(cells):
    """Return the cells without solutions, cut where a slide is full; say what begins a slide."""
    parts, full = [], 0
    for cell in cells:
        if "solution" in cell.metadata.get("tags", ()):
            continue
        for number, text in enumerate(_pieces(cell)):
            height = _height(cell, text)
            kind = "subslide" if full > HEADING and full + height > SLIDE_HEIGHT else "-"
            heading = cell.cell_type == "markdown" and text.lstrip("\n").startswith("#")
            if heading and (number == 0 or full > HEADING):
                kind = "slide"
            full = height if kind != "-" else full + height
            if number and kind == "-":
                parts[-1].source += f"\n{text}"
                continue
            parts.append(deepcopy(cell))
            parts[-1].update(source=text, id=f"{cell.id}-{number}")
            parts[-1].metadata["slideshow"] = {"slide_type": kind}
    return parts


def _pieces(cell):
    """Cut a text before each paragraph and each item of a list."""
    if cell.cell_type != "markdown" or "<details" in cell.source or "```" in cell.source:
        return [cell.source]
    return re.split(r"\n(?=\n|- |\d+\. )", cell.source)


def _height(cell, text):
    """Estimate how high a cell is on a slide, in pixels."""
    if cell.cell_type == "markdown":
        return _text_height(text)
    return sum(_output_height(output) for output in cell.get("outputs", ()))


def _text_height(text):
    lines = text.splitlines()
    letters = sum(LINE_HEIGHT * -(-len(line) // LETTERS_PER_LINE) for line in lines)
    headings = sum(line.startswith("#") for line in lines)
    return letters + LINE_HEIGHT * (1 + 2 * headings)


def _output_height(output):
    data = output.get("data", {})
    if "image/png" in data:
        width, height = struct.unpack(">II", b64decode(data["image/png"][:48])[16:24])
        return height * min(1, SLIDE_WIDTH / width) + 2 * LINE_HEIGHT
    if "text/html" in data:
        return LINE_HEIGHT * (1 + 1.25 * data["text/html"].count("<tr"))
    return _text_height(
        data.get("text/markdown") or data.get("text/plain") or output.get("text", "")
    )


def _sources(notebooks, out):
    """List the notebooks, and make the folder `out`."""
    sources = sorted(Path(notebooks).glob("[0-9]*.ipynb"))
    if not sources or out.resolve() == Path(notebooks).resolve():
        raise CytomadError(
            f"Found {len(sources)} notebooks in {relative_to_here(notebooks)}, to be written into "
            f"{relative_to_here(out)}. Expected the notebooks of the kit and another folder; use a "
            "complete copy of the kit, and give --out a new folder beside notebooks/."
        )
    out.mkdir(parents=True, exist_ok=True)
    return sources
