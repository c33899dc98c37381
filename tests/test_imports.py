"""Imports go downwards, as pyproject.toml lists the layers; the core loads no recipe by itself."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = """
import sys
import cytomad_lib.runs, cytomad_lib.training.recipes, cytomad_lib.prediction
print([name for name in sys.modules if name.startswith("cytomad_lib.conditional")])
"""


def lint(folder):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_imports_go_downwards():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_upwards_is_found(tmp_path):
    shutil.copytree(ROOT / "cytomad_lib", tmp_path / "cytomad_lib")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    config = tmp_path / "cytomad_lib" / "config.py"
    config.write_text(config.read_text() + "\nimport cytomad_lib.runs  # noqa: E402, F401\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "config -> cytomad_lib.runs" in done.stdout, done.stdout


def test_the_core_does_not_load_the_conditional_recipe():
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
