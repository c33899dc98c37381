"""Kill trainings at random moments, resume each, and compare it with one that nobody killed.

    python tests/kills.py --n 25 --seed 0

Every training is a program of its own with the command line's way to end: `train` with both
recipes on tiny cells, then probes in processes beside it. Printed is a line per kill: differences
in weights and losses, partial files and processes that are left. All have to be 0.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
from training_cells import TINY, environment_of_a_program, untraced_steps, write_dataset

PRESET = replace(
    TINY,
    pretraining_epochs=2,
    classifier_epochs=1,
    removal_epochs=2,
    refit_every=1,
    refit_epochs=1,
    conditional=replace(TINY.conditional, alignment_steps=2),
)
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")
PATIENCE = 60  # seconds within which a signal must have ended a training
GRACE = 3  # seconds within which its workers must have followed


def work(data: Path, out: Path):
    """Train, and probe something in other processes."""
    from cytomad_lib import workflow
    from cytomad_lib.data.cells import load_cells
    from cytomad_lib.evaluation.probes import score_side_by_side

    print("begun", flush=True)
    with untraced_steps():
        workflow.train(data, out, PRESET, recipes=("published", "conditional"))
    cells = load_cells(data, "Test")
    pixels = cells.qpi.reshape(len(cells), -1)
    list(score_side_by_side({"one": pixels, "two": pixels}, cells.labels))
    print("done", flush=True)


def start(data, run):
    """Start a training and return it when it has begun."""
    training = subprocess.Popen(
        [sys.executable, __file__, "--work", data, run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of_a_program(),
        start_new_session=True,
    )
    assert training.stdout.readline() == "begun\n", training.stderr.read()
    return training


def finish(training):
    """Wait for a training; return what it said, if it failed."""
    _, errors = training.communicate(timeout=600)
    assert training.returncode == 0, errors


def members(session):
    """List the processes of a session that are at work."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == session:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue  # it has just ended
    return found


def kill(training, name, after):
    """Send a signal after some seconds; return how many processes are left, and what went wrong.

    Once the work is done, Python itself decides how a signal ends the exiting interpreter. Then
    only the files count.
    """
    time.sleep(after)
    number = getattr(signal, name)
    if name in ("SIGINT", "SIGHUP") and training.poll() is None:
        os.killpg(training.pid, number)  # the terminal tells all processes
    else:
        training.send_signal(number)
    output, errors = training.communicate(timeout=PATIENCE)
    wanted = -number if name == "SIGKILL" else 128 + number
    wrong = ""
    if "done" not in output and (training.returncode not in (0, wanted) or "Traceback" in errors):
        wrong = f"exit code {training.returncode}: {errors[-2000:]}"
    end = time.monotonic() + GRACE
    while (left := members(training.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return len(left), wrong


def differences(run, other):
    """Count the files that differ in a weight or a loss, or are in one of the runs only."""
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".csv", ".h5")}
        for folder in (run, other)
    ]
    count = len(names[0] ^ names[1])
    for name in names[0] & names[1]:
        if name.suffix == ".h5":
            count += not same_arrays(run / name, other / name)
        else:
            ours, theirs = (
                pd.read_csv(folder / name).drop(columns="seconds") for folder in (run, other)
            )
            count += not ours.equals(theirs)
    return count


def same_arrays(path, other):
    """Say whether two files hold the same numbers, bit for bit."""
    with h5py.File(path) as one, h5py.File(other) as two:
        names = [[], []]
        for file, found in zip((one, two), names, strict=True):
            file.visititems(lambda name, item, f=found: f.append(name))
        return names[0] == names[1] and all(
            np.array_equal(one[name][()], two[name][()])
            for name in names[0]
            if isinstance(one[name], h5py.Dataset)
        )


def partial_files(run):
    """Count the files that are half-written."""
    return len(list(run.rglob(".partial-*")))


def kill_some(folder, n, seed=0):
    """Kill n trainings, resume and compare them; return a table with a row per kill."""
    chance = random.Random(seed)
    data = write_dataset(folder / "data")
    since = time.monotonic()
    training = start(data, folder / "whole")
    begun = time.monotonic()
    finish(training)
    seconds = time.monotonic() - begun
    print(f"undisturbed: {time.monotonic() - since:.0f} s", flush=True)
    rows = []
    for number in range(n):
        run, name = folder / f"run{number}", NAMES[number % len(NAMES)]
        after = chance.uniform(0, seconds)
        orphans, wrong = kill(start(data, run), name, after)
        partial = 0 if name == "SIGKILL" else partial_files(run)
        finish(start(data, run))
        row = {
            "signal": name,
            "after (s)": round(after, 1),
            "different": differences(folder / "whole", run),
            "partial files": partial + partial_files(run),
            "orphans": orphans,
            "wrong": wrong,
        }
        print(row, flush=True)
        rows.append(row)
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = kill_some(Path(folder), options.n, options.seed)
    counts = table[["different", "partial files", "orphans"]].sum()
    print(counts.to_string(), f"\nwrong ends     {(table['wrong'] != '').sum()} of {len(table)}")
    sys.exit(int(counts.any() or (table["wrong"] != "").any()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        from cytomad_lib import cli as command_line

        command_line.app.command()(work)
        sys.argv[1] = "work"
        command_line.main()
    else:
        main()
