"""Compare both recipes at equal updates of the generator, and at equal computing time.

    python -m benchmarks.equal_time --out results/equal_time --preset study --cells 300,20,60

Both recipes continue from one pretraining on newly simulated cells. Then the published recipe is
trained once more, from the same pretraining and the same classifiers, with as many epochs as fit
into the CPU time of the conditional recipe. The classifiers count as part of the published one.
All are scored on the Test split; the table is printed and written as CSV. A second call reuses what
is finished. A stage that was interrupted counts only the time since it was resumed.

Example
-------
>>> epochs_in_equal_time({"classifiers": 20, "published": 40, "conditional": 100}, 8)
16
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.robustness import PRESETS, cells_per_group, simulated_cells
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.files import write_table, write_text
from cytomad_lib.evaluation.results import METHOD_NAMES
from cytomad_lib.evaluation.score import score
from cytomad_lib.run_copies import branch
from cytomad_lib.runs import SETTINGS, Run
from cytomad_lib.training.recipes import fit_classifiers, pretrain, remove_batches

LONGER = "published recipe, equal CPU time"


def timed(path, name, train):
    """Train, unless that is done, and write the CPU seconds of this process into a JSON file."""
    seconds = json.loads(path.read_text()) if path.exists() else {}
    if name not in seconds:
        print(f"\n{name}", flush=True)
        start = time.process_time()
        train()
        seconds[name] = time.process_time() - start
        write_text(path, json.dumps(seconds, indent=2) + "\n")
    return seconds


def epochs_in_equal_time(seconds, removal_epochs):
    """Return the epochs of published removal that take as long as the conditional recipe.

    Parameters
    ----------
    seconds : dict of float
        CPU seconds of `"classifiers"`, of `"published"` (the removal alone), and of
        `"conditional"`.
    removal_epochs : int
        Epochs of published removal that were timed.
    """
    left = seconds["conditional"] - seconds["classifiers"]
    return max(round(left / seconds["published"] * removal_epochs), 1)


def table_of(found, longer):
    """Return measures in rows and methods in columns.

    Parameters
    ----------
    found, longer : Evaluation
        Of the run with both recipes, and of the longer published training, which gets the last
        column.
    """
    first, other = (_wide(evaluation) for evaluation in (found, longer))
    return first.assign(**{LONGER: other[METHOD_NAMES["published"]]})


def _wide(evaluation):
    scores = evaluation.scores.rename(columns={"accuracy": "value"})
    rows = pd.concat([scores, evaluation.biology])[["method", "measure", "value"]]
    wide = rows.pivot(index="measure", columns="method", values="value")
    return pd.concat([wide, evaluation.images.T])


def main():
    """Train and score all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="study")
    parser.add_argument(
        "--cells", type=cells_per_group, default="300,20,60", help="of a group: Train, Valid, Test"
    )
    parser.add_argument("--seed", type=int, default=77, help="of the simulated cells")
    options = parser.parse_args()
    out, preset = options.out, PRESETS[options.preset]
    data = simulated_cells(out / "cells", options.cells, options.seed)
    cells = [load_cells(data, s, image_size=preset.image_size) for s in ("Train", "Valid")]
    run = Run.create(out / "run", preset, cells[0], "lung", seed=0)
    times = run.folder / "cpu_seconds.json"
    timed(times, "pretraining", lambda: pretrain(run, *cells, verbose=2))
    timed(times, "classifiers", lambda: fit_classifiers(run, *cells))
    for recipe in ("published", "conditional"):
        train = partial(remove_batches, run, *cells, verbose=2, recipe=recipe)
        seconds = timed(times, recipe, train)
    longer = replace(preset, removal_epochs=epochs_in_equal_time(seconds, preset.removal_epochs))
    folder = out / "equal_time"
    there = (folder / SETTINGS).exists()
    other = Run.open(folder) if there else branch(run, folder, cells[0], longer)
    seconds = timed(times, LONGER, lambda: remove_batches(other, *cells, 2, "published"))

    scored = [score(one, data, "Test", progress=True, baselines=False) for one in (run, other)]
    table = table_of(*scored)
    write_table(table.round(4), out / "equal_time.csv", index_label="measure")
    print(table.round(3).to_string())
    print("\nCPU seconds\n" + pd.Series(seconds).round().to_string())
    print(f"\nEpochs of published removal: {preset.removal_epochs} and {longer.removal_epochs}")


if __name__ == "__main__":
    main()
