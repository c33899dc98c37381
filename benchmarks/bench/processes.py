"""Measurements in a process of their own: the peak of its memory, or how long it takes to start.

The process is `python -m benchmarks.bench`, which reads what to do from its standard input.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from cytomad_lib.data.errors import CytomadError


def in_new_process(case, *words):
    """Start a process for one measurement and return the number that it prints last.

    Parameters
    ----------
    case : Case
    words : str
        The name of the work and the side, for the peak of the memory in bytes; or the name of the
        cold start alone, for the time of day when its first epoch has ended.

    Raises
    ------
    CytomadError
        If the process fails.
    """
    task = {
        "preset": case.preset.as_dict(),
        "cost": asdict(case.cost),
        "folder": str(case.folder),
        "words": words,
    }
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise CytomadError(
            f"The process that measures {' '.join(words)} ended with code {done.returncode} and "
            f"said: {last}. Expected it to run through; there may be too little memory for it: "
            "close other programs, or choose the demo preset."
        )
    return float(done.stdout.split()[-1])
