"""The code is in the style that `pyproject.toml` asks for: part of the tests, so that nothing is
found only after them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("question", [["check"], ["format", "--check"]])
def test_ruff_finds_nothing_to_say(question):
    """What ruff prints is the message: it names file, line and rule."""
    told = subprocess.run(
        [sys.executable, "-m", "ruff", *question, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
