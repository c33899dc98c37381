"""One measurement, in this process; `benchmarks.bench.processes` says which.

(The bench as a whole is `python -m cytomad_lib bench`.)
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.bench.machine import peak_memory
from benchmarks.bench.work import BENCHMARKS, COLD_START, Case, Cost, find_published_way
from cytomad_lib.config import Preset
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.runs import Run
from cytomad_lib.training.recipes import pretrain


def _run_task(task):
    """Do one side of a piece of work, and return the peak memory; or the time of a cold start."""
    case = Case(
        Preset.from_dict(task["preset"]),
        Cost(**task["cost"]),
        Path(task["folder"]),
        find_published_way(),
    )
    name, *side = task["words"]
    if name == COLD_START:
        return _first_epoch(case)
    BENCHMARKS[name](case).sides[side[0]]()()
    return peak_memory()


def _first_epoch(case):
    """Load cells and pretrain for one epoch; return the time of day at its end."""
    size, n = case.preset.image_size, min(case.cost.round_cells, case.cost.pairs)
    train = load_cells(case.folder, "Train", n, size)
    valid = load_cells(case.folder, "Valid", None, size)
    preset = replace(case.preset, pretraining_epochs=1)
    run = Run.create(case.folder / "run" / str(os.getpid()), preset, train, LUNG, seed=0)
    pretrain(run, train, valid)
    return time.time()


if __name__ == "__main__":
    print(_run_task(json.load(sys.stdin)))
