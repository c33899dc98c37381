"""How fast the kit works on this machine, beside the same work done the published way.

`bench` measures every piece of work again and again, ours and the published way in turns, so that
ratios hold on a machine whose speed varies. Before each turn it measures the machine itself: how
many floating-point operations a second a product of two large matrices reaches. The first run of
each, which traces, is not among the measurements; it is reported beside them.

Example
-------
>>> result = bench([DEMO], quick=True)
>>> print(result.summary())
>>> result.write("results/bench")
"""

import gc
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.bench.cells import write_files
from benchmarks.bench.machine import (
    PRODUCT_SIZE,
    MatrixProduct,
    accelerator,
    accelerator_peak,
    machine_facts,
)
from benchmarks.bench.processes import in_new_process
from benchmarks.bench.table import BenchResult, Measurement
from benchmarks.bench.work import (
    BENCHMARKS,
    COLD_START,
    COSTS,
    FROM_FILES,
    ON_CPU,
    OURS,
    PUBLISHED_WAY,
    QUICK,
    ROUND,
    Case,
    find_published_way,
)
from cytomad_lib.backend import keras
from cytomad_lib.config import DEMO, PUBLISHED
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.training.stages import say

PRESETS = {"published": PUBLISHED, "demo": DEMO}


def find_presets(name):
    """Return the presets meant by "published", "demo" or "both".

    Raises
    ------
    CytomadError
        If it is none of these.
    """
    if name == "both":
        return list(PRESETS.values())
    if name not in PRESETS:
        raise CytomadError(f"There is no bench of {name!r}. Expected published, demo or both.")
    return [PRESETS[name]]


def bench(
    presets=(PUBLISHED, DEMO),
    quick=False,
    gpu=False,
    rounds=("demo",),
    verbose=1,
    costs=None,
    works=tuple(BENCHMARKS),
    memory=True,
):
    """Measure everything, one piece of work after the other.

    Parameters
    ----------
    presets : sequence of Preset
    quick : bool
        Fewer measurements of less work: for a first look.
    gpu : bool
        Measure what a GPU does, on our side alone.
    rounds : sequence of str
        Names of the presets of which a whole round of removal is measured. One at the published
        size takes a quarter of an hour on two cores, each time.
    verbose : int
        0 is silent; 1 says what is measured.
    costs : dict of Cost, optional
        By the preset's name; the usual ones by default.
    works : sequence of str
        Some of `BENCHMARKS`.
    memory : bool
        Measure the peak of the memory, too: each side in a process of its own. (That of a GPU is
        asked of the backend.)

    Returns
    -------
    BenchResult

    Raises
    ------
    CytomadError
        If a GPU is asked for and Keras has none, or a process that was started fails.
    """
    # Before the backend takes the whole GPU for itself, which is its habit: the processes that
    # measure memory want some of it.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if gpu:
        _check_gpu()
    way = None if gpu else find_published_way()
    works = [name for name in works if not (gpu and name in ON_CPU)]
    costs = costs or _usual_efforts(quick)
    facts, product, measurements = machine_facts(), MatrixProduct(PRODUCT_SIZE), []
    for preset in presets:
        cost = costs[preset.name]
        chosen = [name for name in works if name not in ROUND or preset.name in rounds]
        folder = Path(tempfile.mkdtemp(prefix="cytomad-bench-"))
        try:
            if any(name in FROM_FILES for name in chosen):
                say(verbose, f"{preset.name}: writing files to load")
                write_files(
                    folder,
                    cost.stored_size,
                    {"Train": cost.pairs, "Valid": min(10, cost.pairs)},
                )
            case = Case(preset, cost, folder, way)
            for name in chosen:
                say(verbose, f"{preset.name}: {name}")
                found = _measure_row(name, case, product)
                if gpu:
                    found.memory = {OURS: accelerator_peak()}
                elif memory:
                    found.memory = _memory_of(name, case, found.seconds)
                say(verbose, "  " + _line(found.row()))
                measurements.append(found)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return BenchResult(measurements, facts, _notes(way, gpu, quick, presets, costs))


def measure(work, repeats, product):
    """Run all sides of a piece of work once, then time them in turns.

    Parameters
    ----------
    work : Benchmark
    repeats : int
    product : MatrixProduct

    Returns
    -------
    first : dict of float
        Seconds of the first run of each side.
    seconds : dict of list of float
        Seconds per unit.
    rates : list of float
        Of the matrix product.
    """
    runs = {side: make() for side, make in work.sides.items()}
    first = {side: run() for side, run in runs.items()}
    seconds, rates = {side: [] for side in runs}, []
    for repeat in range(repeats):
        rates.append(product.rate())
        # Back and forth, so that a machine that slows down is unfair to nobody.
        for side in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[side].append(runs[side]() / work.count)
    return first, seconds, rates


def _usual_efforts(quick):
    if not quick:
        return COSTS
    return {name: replace(cost, **QUICK[name]) for name, cost in COSTS.items()}


def _measure_row(name, case, product):
    accelerator_peak()  # what was before does not count
    work = BENCHMARKS[name](case)
    if case.way is None:
        work.sides.pop(PUBLISHED_WAY, None)
    repeats = case.cost.long_repeats if work.long else case.cost.repeats
    about = case.preset.name, name, work.unit, work.per_second, work.operations
    found = Measurement(*about, *measure(work, repeats, product))
    del work
    keras.backend.clear_session()
    gc.collect()
    return found


def _line(row):
    text = f"{row['ours']:.3g} {row['unit']}"
    if row["ratio"] is not None:
        text += f"; the published way {row['published']:.3g}, ratio {row['ratio']:.2f}"
    return text


def _memory_of(name, case, sides):
    """Return the peak memory of each side, each from a new process; nothing of a cold start."""
    if name == COLD_START:
        return {}
    return {side: in_new_process(case, name, side) for side in sides}


def _check_gpu():
    if accelerator() is None:
        raise CytomadError(
            f"Keras computes with {keras.backend.backend()} and finds no GPU. Expected one for "
            "--gpu; install the backend with GPU support as the README says, or leave --gpu out."
        )


def _notes(way, gpu, quick, presets, costs):
    notes = [
        "Medians (quartiles). Ratio: how many times faster ours is, median of neighbouring pairs.",
        "GFLOP: what a step or a cell needs, counted from the layers; the share is of the rate of "
        f"a {PRODUCT_SIZE} x {PRODUCT_SIZE} float32 matrix product, measured before each.",
    ]
    if gpu:
        notes.append("On the GPU our side alone is measured.")
    elif way is None:
        notes.append(
            "The published way is left out: it is in the folder benchmarks/ of the repository, "
            "which is not beside this installation."
        )
    for preset in presets:
        cost = costs[preset.name]
        stored = cost.stored_size
        resized = "" if stored == preset.image_size else f", resized to {preset.image_size}"
        notes.append(
            f"{preset.name}: steps of {preset.batch_size} cells; round: {preset.refit_every} "
            f"epochs of {cost.round_cells * len(LUNG.groups)} cells; loading: images stored at "
            f"{stored} x {stored}{resized}."
        )
    if quick:
        notes.append("A quick run: few measurements, so the spread says little.")
    return notes
