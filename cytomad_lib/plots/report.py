"""One HTML page per run or comparison, to read, print and pass on.

- `Section`: a heading with text, a table, figures and a note.
- `write_report`: title, key facts and sections into one file.

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
import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import pandas as pd

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
    figures : sequence of (path or matplotlib Figure, str)
        PNG files or figures, each with its caption.
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
        Ends in `.html`. A file that is there is replaced once the new one is complete.
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
    blocks = [_section(number, section) for number, section in enumerate(sections, start=1)]
    if facts:
        blocks.insert(0, f'<section id="facts">\n<h2>Key facts</h2>\n{_facts(facts)}\n</section>')
    page = Template(_PAGE).substitute(
        title=escape(title),
        subtitle=f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else "",
        style=_STYLE,
        contents=_contents(bool(facts), sections),
        body="\n".join(blocks),
    )
    write_text(path, page)
    return path


# --- parts of the page: each takes plain values and returns HTML --------------------------------


def _contents(has_facts, sections):
    anchors = {"facts": "Key facts"} if has_facts else {}
    anchors |= {f"section-{k}": section.title for k, section in enumerate(sections, start=1)}
    items = [f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in anchors.items()]
    return "\n".join(items)


def _section(number, section):
    parts = [f"<h2>{escape(section.title)}</h2>", _paragraphs(section.text)]
    if section.table is not None:
        parts.append(_table(section.table, section.table_caption or section.title))
    parts += [_figure(figure, caption) for figure, caption in section.figures]
    if section.note:
        parts.append(f'<div class="note">{_paragraphs(section.note)}</div>')
    inside = "\n".join(filter(None, parts))
    return f'<section id="section-{number}">\n{inside}\n</section>'


def _paragraphs(text):
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text)]
    return "\n".join(f"<p>{escape(block)}</p>" for block in blocks if block)


def _facts(facts):
    rows = []
    for name, value in facts.items():
        shown = _facts(value) if isinstance(value, dict) else escape(str(value))
        rows.append(f"<div><dt>{escape(str(name))}</dt><dd>{shown}</dd></div>")
    return "<dl>" + "\n".join(rows) + "</dl>"


def _table(table, caption):
    table = _with_index_as_columns(table)
    columns = [list(table.iloc[:, k]) for k in range(table.shape[1])]
    sides = [' class="number"' if _are_numbers(values) else "" for values in columns]
    head = "".join(_heading(name, side) for name, side in zip(table.columns, sides, strict=True))
    rows = []
    for row in zip(*columns, strict=True):
        cells = [f"{side}>{escape(format_value(v))}" for v, side in zip(row, sides, strict=True)]
        first = f'<th scope="row"{cells[0]}</th>'
        rows.append(f"<tr>{first}{''.join(f'<td{cell}</td>' for cell in cells[1:])}</tr>")
    body = "\n".join(rows)
    # The box can be scrolled from the keyboard, for which it needs a place in the tab order.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _with_index_as_columns(table):
    """Return the table with its index in front, unless that only counts the rows."""
    if table.index.names == [None] and pd.api.types.is_integer_dtype(table.index):
        return table
    names = [name or "" for name in table.index.names]
    return table.reset_index(names=names, allow_duplicates=True)


def _heading(name, side):
    parts = name if isinstance(name, tuple) else (name,)
    text = ", ".join(str(part) for part in parts if part != "")
    return f'<th scope="col"{side}>{escape(text)}</th>' if text else "<td></td>"


def _are_numbers(values):
    numbers = [is_number(value) for value in values if not is_missing(value)]
    return bool(values) and all(numbers)


def _figure(figure, caption):
    png = _png_of(figure) if hasattr(figure, "savefig") else _read_png(figure)
    # Shown at its size on paper, where the text of all figures is the same.
    width = round(struct.unpack(">I", png[16:20])[0] * 96 / DPI)
    data = base64.b64encode(png).decode("ascii")
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure>\n<img width="{width}" alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}">{below}\n</figure>'
    )


def _png_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def _read_png(path):
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
    return png


# The security policy makes the browser keep the promise: no script, nothing from elsewhere.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
$subtitle
</header>
<nav aria-label="Contents">
<ul>
$contents
</ul>
</nav>
<main>
$body
</main>
</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --soft: #f3f5f7; --line: #cfd6dd;
  --text: #1d2329; --quiet: #55606b; --link: #0b5aa8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --soft: #20252b; --line: #3d454e;
    --text: #e6e9ec; --quiet: #aab3bc; --link: #8dbcf2;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 {
  margin: 2.75rem 0 0.75rem; padding-top: 0.9rem; border-top: 1px solid var(--line);
  font-size: 1.3rem; line-height: 1.3;
}
p { max-width: 46rem; margin: 0.75rem 0; white-space: pre-line; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.subtitle { margin: 0.4rem 0 0; color: var(--quiet); font-size: 1.1rem; }
nav ul {
  display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem;
  margin: 1.25rem 0 0; padding: 0; list-style: none;
}
dl { margin: 0; }
dl > div { display: grid; grid-template-columns: 12rem 1fr; gap: 0 1rem; padding: 0.3rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; min-width: 0; }
dd dl { columns: 15rem; column-gap: 2rem; }
dd dl > div {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
  padding: 0; break-inside: avoid; font-size: 0.9rem; border-bottom: 1px dotted var(--line);
}
.scroll { margin: 1.25rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
caption { padding: 0 0 0.5rem; text-align: left; font-weight: 600; }
th, td { padding: 0.35rem 0.8rem; border-bottom: 1px solid var(--line); text-align: left; }
thead th { vertical-align: bottom; background: var(--soft); font-weight: 600; }
thead td { background: var(--soft); }
tbody th {
  position: sticky; left: 0; min-width: 8rem; background: var(--page); font-weight: 400;
}
.number { text-align: right; }
td.number { white-space: nowrap; }
figure { margin: 1.5rem 0; }
img {
  display: block; max-width: 100%; height: auto; padding: 0.5rem;
  background: #ffffff; border: 1px solid var(--line);
}
figcaption { max-width: 46rem; margin-top: 0.5rem; color: var(--quiet); font-size: 0.94rem; }
.note {
  max-width: 46rem; margin: 1.25rem 0; padding: 0.1rem 1rem;
  background: var(--soft); border-left: 3px solid var(--link);
}
@media (max-width: 40rem) {
  dl > div { grid-template-columns: 1fr; }
}
@media print {
  @page { margin: 16mm; }
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, caption { break-after: avoid; }
  figure, tr, .note { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: 0.2rem 0.4rem; }
  img {
    max-height: 230mm; object-fit: contain; object-position: left top;
    border: 0; padding: 0;
  }
}"""
