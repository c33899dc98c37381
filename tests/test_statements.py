"""`docs/statements.md`: each statement stands in its notebook, and its proof in its cell."""

import io
import re
import tokenize
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "statements.md"
COMPUTED = "(computed) "  # the sentence is written by the cell; its start is the proof
LEAST_ROWS = 10  # of each notebook
_ROW = re.compile(
    r"^\| (?P<statement>.+?) \| `(?P<where>[^`]+)` \| (?P<ticks>`+)(?P<proof>.+?)(?P=ticks) \|$"
)


def rows_of(text):
    """Return (notebook, statement, where, proof) of every row of the table."""
    found, notebook = [], None
    for line in text.splitlines():
        if line.startswith("## "):
            notebook = line[3:]
        elif line.startswith("| ") and not line.startswith("| statement"):
            match = _ROW.match(line)
            assert match, f"no row of three columns: {line}"
            proof = match["proof"].strip().replace("\\|", "|")
            found.append((notebook, match["statement"], match["where"], proof))
    return found


def squeezed(text):
    """Leave the spaces out: ruff breaks lines where it likes."""
    return "".join(text.split())


def code_of(source):
    """Return a cell's code without comments: a proof that is commented out proves nothing."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def read(number):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return nbformat.read(path, as_version=4)


@cache
def texts(number):
    """Return the text of a notebook, and {id: code} of its cells."""
    cells = read(number).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return text, {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


def faults(row, notebooks=texts):
    """List what is wrong with a row."""
    number, statement, where, proof = row
    wrong = []
    if not statement.startswith(COMPUTED) and squeezed(statement) not in squeezed(
        notebooks(number)[0]
    ):
        wrong.append("the notebook does not contain the statement")
    if where.endswith(".md"):
        there = (ROOT / where).read_text(encoding="utf-8")
    else:
        other, _, cell = where.rpartition("/")
        source = notebooks(other or number)[1].get(cell)
        if source is None:
            return [*wrong, f"there is no code cell {where}"]
        there = code_of(source)
    if squeezed(proof) not in squeezed(there):
        wrong.append(f"{where} does not contain the proof")
    return wrong


ROWS = rows_of(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", sorted({row[0] for row in ROWS}))
def test_every_statement_stands_and_is_proved(number):
    own = [row for row in ROWS if row[0] == number]
    assert len(own) >= LEAST_ROWS
    assert {row[1:]: faults(row) for row in own if faults(row)} == {}


def test_every_notebook_is_in_the_table():
    assert sorted({row[0] for row in ROWS}) == [f"{number:02}" for number in range(12)]


def test_a_statement_or_a_proof_that_is_gone_is_found():
    def notebook(number):
        return "Training lowers the error.", {"a": "# assert x > 1\nassert last < first, 'lower'"}

    def found(statement, where, proof):
        return faults(("00", statement, where, proof), notebook)

    assert found("Training lowers the error", "a", "last < first") == []
    assert found("Training raises the error", "a", "last < first") != []
    assert found("Training lowers the error", "b", "last < first") != []
    assert found("Training lowers the error", "a", "x > 1") != []  # commented out
    assert found(COMPUTED + "anything", "a", "first < last") != []
