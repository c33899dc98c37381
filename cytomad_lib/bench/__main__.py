"""One measurement, in this process; `cytomad_lib.bench.processes` says which.

(The bench as a whole is `python -m cytomad_lib bench`.)
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from cytomad_lib.bench.machine import peak_memory
from cytomad_lib.bench.work import COLD_START, WORKS, Bed, Effort, find_published_way
from cytomad_lib.config import Preset
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.runs import Run


def _run_task(task):
    """Do one side of a piece of work, and return the peak memory; or the time of a cold start."""
    bed = Bed(
        Preset.from_dict(task["preset"]),
        Effort(**task["effort"]),
        Path(task["folder"]),
        find_published_way(),
    )
    name, *side = task["words"]
    if name == COLD_START:
        return _first_epoch(bed)
    WORKS[name](bed).sides[side[0]]()()
    return peak_memory()


def _first_epoch(bed):
    """Load cells and pretrain for one epoch; return the time of day at its end."""
    size, n = bed.preset.image_size, min(bed.effort.round_cells, bed.effort.pairs)
    train = load_cells(bed.folder, "Train", n, size)
    valid = load_cells(bed.folder, "Valid", None, size)
    preset = replace(bed.preset, pretraining_epochs=1)
    run = Run.create(bed.folder / "run" / str(os.getpid()), preset, train, LUNG, seed=0)
    run.pretrain(train, valid)
    return time.time()


if __name__ == "__main__":
    print(_run_task(json.load(sys.stdin)))
