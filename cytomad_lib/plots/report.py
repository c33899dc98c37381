"""One HTML page per run or comparison, to read, print and pass on.

- `Section`: a heading with text, a table, figures and a note.
- `write_report`: title, key facts and sections into one file, by the template `report.html`.

The page is complete in itself: figures are inside the file, nothing is loaded from elsewhere, and
no script runs. It holds only what it is given, so the same input gives the same page.

Example
-------
>>> table = pd.DataFrame({"accuracy": [0.9]}, index=pd.Index(["class"], name="measure"))
>>> sections = [Section("Scores", "Higher is better.", table, table_caption="Probes")]
>>> write_report("results/report.html", "Demo run", "Test split", {"Seed": "0"}, sections).name
'report.html'
"""

import base64
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_text
from cytomad_lib.evaluation.tables import format_value, is_missing, is_number

DPI = 150  # of the figures, as in `plots.save_figure`; a screen has 96
PNG_START = b"\x89PNG\r\n\x1a\n"


class ReportError(CytomadError):
    """A page cannot be made from what was given."""


@dataclass(eq=False)
class Section:
    """One section of a report.

    Parameters
    ----------
    title : str
    text : str
        Plain text: a blank line starts a paragraph, other line ends are kept.
    table : pandas.DataFrame, optional
        Floats are shown with 3 decimals, integers as they are, missing values as a dash. A column
        of counts with gaps stays one of integers with the dtype `Int64`.
    figures : sequence of (path, str)
        PNG files of 150 dpi, each with its caption.
    table_caption : str
        The section's title by default.
    note : str
        Set apart below everything else: how to read it, and what not to conclude.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: Sequence = ()
    table_caption: str = ""
    note: str = ""


def write_report(path, title, subtitle, facts, sections):
    """Write a report as one HTML file that needs nothing else.

    Parameters
    ----------
    path : path
        Ends in `.html`. An existing file is replaced once the new one is complete.
    title, subtitle : str
    facts : dict
        Name to text, or to a dictionary of further names and texts: data, seed, versions, ….
        Shown as they are, so leave out what the reader should not see, such as private folders.
    sections : list of Section

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ReportError
        If a figure's file is missing or not a PNG, or `path` does not end in `.html`.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ReportError(f"Cannot write a report as {path}; give a name that ends in .html.")
    template = _environment().get_template("report.html")
    page = template.render(title=title, subtitle=subtitle, facts=facts, sections=sections)
    write_text(path, page)
    return path


def _environment():
    environment = Environment(
        loader=PackageLoader("cytomad_lib", "plots"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"blocks": _blocks, "table": _table, "png": _png}
    return environment


# --- filters of the template: plain values out of texts, tables and figures --------------------


def _blocks(text):
    """Return the paragraphs of a text."""
    return list(filter(None, map(str.strip, re.split(r"\n\s*\n", text))))


def _table(section):
    """Return caption, columns and rows of a section's table, as texts."""
    table = section.table
    if table.index.names != [None] or not pd.api.types.is_integer_dtype(table.index):
        names = [name or "" for name in table.index.names]
        table = table.reset_index(names=names, allow_duplicates=True)
    values = [list(table.iloc[:, k]) for k in range(table.shape[1])]
    return {
        "caption": section.table_caption or section.title,
        "columns": [
            {"name": str(name), "number": _are_numbers(own)}
            for name, own in zip(table.columns, values, strict=True)
        ],
        "rows": [map(format_value, row) for row in zip(*values, strict=True)],
    }


def _are_numbers(values):
    return bool(values) and all(is_number(v) for v in values if not is_missing(v))


def _png(path):
    """Return a figure as text for a data address, and its width on paper in CSS pixels."""
    try:
        png = Path(path).read_bytes()
    except OSError as error:
        raise ReportError(
            f"The figure {path} cannot be read ({error.strerror}). Expected a PNG file; draw it "
            "again, or leave it out of the report."
        ) from error
    if not png.startswith(PNG_START) or len(png) < 24:
        raise ReportError(
            f"The figure {path} is not a PNG file. Save it as .png, or draw it again if it is "
            "damaged."
        )
    width = struct.unpack(">I", png[16:20])[0]
    return {"width": round(width * 96 / DPI), "data": base64.b64encode(png).decode("ascii")}
