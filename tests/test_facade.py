"""One import is enough, costs nothing until a name is used, and tells editors its types."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cytomad_lib as cyto

ROOT = Path(__file__).parents[1]
IMPORT = """
import sys, time
start = time.perf_counter()
import cytomad_lib
print(time.perf_counter() - start, "tensorflow" in sys.modules, "numpy" in sys.modules)
"""
WRONG = """\
# mypy: disallow-untyped-calls
import cytomad_lib as cyto
train = cyto.load_cells("data", "Train", "36")
run = cyto.Run.create("run", "demo", train, "lung")
cyto.evaluate(run, "data", "Test")
cyto.load_cell("data")
loss: int = cyto.PUBLISHED.generator_rate
"""


def test_importing_it_takes_no_time_and_no_engine():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    seconds, engine, numpy = done.stdout.split()
    assert float(seconds) < 0.3 and engine == numpy == "False", done


@pytest.mark.parametrize("name", cyto.__all__)
def test_every_name_is_there(name):
    assert name in dir(cyto)
    assert getattr(cyto, name) is getattr(cyto, name)


def test_there_are_about_twenty_and_no_others():
    assert 15 <= len(cyto.__all__) <= 25
    with pytest.raises(AttributeError, match="attribute load_cell"):
        cyto.load_cell  # noqa: B018


def functions(thing):
    """Return a function itself, or the public functions of a class."""
    if inspect.isfunction(thing):
        return [thing]
    parts = vars(thing) if inspect.isclass(thing) else {}
    found = (getattr(p, "fget", None) or getattr(p, "__func__", p) for p in parts.values())
    return [f for f in found if inspect.isfunction(f) and not f.__name__.startswith("_")]


@pytest.mark.parametrize("name", cyto.__all__)
def test_all_arguments_and_results_have_types(name):
    for function in functions(getattr(cyto, name)):
        signature = inspect.signature(function)
        annotations = {"return": signature.return_annotation}
        annotations |= {p.name: p.annotation for p in signature.parameters.values()}
        lacking = [key for key, found in annotations.items() if found is inspect.Signature.empty]
        assert set(lacking) <= {"self", "cls"}, f"{function.__qualname__} lacks types: {lacking}"


def test_a_type_checker_agrees_with_the_types_and_finds_wrong_uses(tmp_path):
    """It reads the modules behind the façade, the example of the README, and `WRONG`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import cytomad_lib.*?)```", readme, re.S)
    (tmp_path / "example.py").write_text("# mypy: disallow-untyped-calls\n" + example)
    (tmp_path / "wrong.py").write_text(WRONG)
    stub = (ROOT / "cytomad_lib" / "__init__.pyi").read_text(encoding="utf-8")
    modules = [f"cytomad_lib.{name}" for name in re.findall(r"^from \.(\S+) import", stub, re.M)]
    files = [f.replace(".", "/") + ".py" for f in modules if f != "cytomad_lib.simulation"]
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, "--no-error-summary"]
    command += [*files, tmp_path / "example.py", tmp_path / "wrong.py"]
    told = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MYPYPATH": "."}, capture_output=True, text=True
    )
    errors = re.findall(r"^(.*?)(\w+\.py):(\d+): error", told.stdout, re.M)
    assert {file for _, file, _ in errors} == {"wrong.py"}, told.stdout + told.stderr
    assert sorted({int(line) for *_, line in errors}) == [3, 4, 5, 6, 7], told.stdout
