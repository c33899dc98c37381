"""The benchmark for a GPU does all that it does there in miniature, on a CPU and PyTorch alone."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from training_cells import environment_of_a_program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install cytomad-lib[torch]",
)
PROGRAM = """
import sys
sys.modules["tensorflow"] = None  # importing it now fails
from benchmarks.gpu import main
main(sys.argv[1:])
"""


def run(folder):
    command = [sys.executable, "-c", PROGRAM, "--tiny", "--out", str(folder)]
    environment = environment_of_a_program(KERAS_BACKEND="torch")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    before = os.times().children_user
    (folder / "printed.txt").write_text(run(folder))
    assert os.times().children_user - before < 120  # seconds of computing, whoever else computes
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "gpu.json").read_text())


def test_steps_agree_with_ordinary_ones_and_half_precision_with_full(results):
    for work in ("pretraining", "removal"):
        assert results["agreement"][work]["relative_difference"] < 1e-3
    assert 0 < results["bfloat16"]["relative_difference"] < 0.02


def test_speeds_stand_beside_the_published_way(folder):
    rows = pd.read_csv(folder / "gpu.csv")
    assert set(rows["work"]) == {"pretraining", "removal", "inference"}
    ways = rows.groupby("work")["way"].agg(set)
    assert ways["pretraining"] == ways["removal"] == {"ours", "published way"}
    assert (rows["images_per_second"] > 0).all() and (rows["ms"] > 0).all()


def test_all_stages_are_trained_and_predict_the_test_cells(folder, results):
    assert len(results["training"]["pretraining"]["losses"]["loss"]) == 1
    for stage in ("pretraining", "published", "conditional"):
        made = np.load(folder / f"test_{stage}.npz")
        assert made["images"].shape == (21, 16, 16, 1) and made["features"].shape == (21, 32)
        assert np.isfinite(made["images"]).all() and len(set(made["batch"])) == 7
    assert {path.name for path in folder.glob("*.png")} == {"speed.png", "training.png"}


def test_the_table_comes_last_and_a_second_call_repeats_nothing(folder):
    printed = (folder / "printed.txt").read_text()
    assert "five steps of pretraining" in printed and "conditional:" in printed.splitlines()[-1]
    again = run(folder)
    assert "s left" not in again and again.splitlines()[-1] == printed.splitlines()[-1]
