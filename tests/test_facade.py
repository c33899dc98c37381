"""One import is enough, and costs nothing until a name is used."""

import subprocess
import sys

import pytest

import cytomad_lib as cyto

IMPORT = """
import sys, time
start = time.perf_counter()
import cytomad_lib
print(time.perf_counter() - start, "tensorflow" in sys.modules, "numpy" in sys.modules)
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
    with pytest.raises(AttributeError, match="no attribute 'load_cell'"):
        cyto.load_cell  # noqa: B018
