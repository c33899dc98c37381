"""How fast the kit works on this machine, beside the same work done the published way.

`bench` measures every piece of work again and again, ours and the published way in turns, so that
ratios hold on a machine whose speed varies. Before each turn it measures the machine itself: how
many floating-point operations a second a product of two large matrices reaches. The first run of
each, which traces, is not among the measurements; it is reported beside them.

The published way is in `benchmarks/published_way.py`, beside the library in the repository; without
that folder only our side is measured.

Example
-------
>>> result = bench([DEMO], quick=True)
>>> print(result.summary())
>>> result.write("results/bench")
"""

import gc
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.data.cells import CellImages, load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_table, write_text
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.models import keras
from cytomad_lib.models.autodiff import accelerator, accelerator_peak
from cytomad_lib.models.batch_removal import BatchRemoval, Classifiers, RefitBatchMLPs
from cytomad_lib.models.feeding import Minibatches
from cytomad_lib.models.networks import (
    DEMO,
    PUBLISHED,
    Preset,
    build_discriminator,
    build_generator,
)
from cytomad_lib.models.operations import count_operations, step_operations
from cytomad_lib.models.pretraining import Pix2Pix
from cytomad_lib.prediction import predict
from cytomad_lib.runs import Run, say, versions
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.write import round_to_step

PRESETS = {"published": PUBLISHED, "demo": DEMO}
OURS, PUBLISHED_WAY = "ours", "published"
TABLE, DETAILS = "bench.csv", "bench.json"
PRODUCT_SIZE = 4096  # rows and columns of the matrices whose product measures the machine
PRODUCT_SECONDS = 0.3  # shorter products are repeated until they take so long
DISTINCT = 8  # cells that are simulated for each file; turned and shifted, they fill it


@dataclass(frozen=True)
class Effort:
    """How much is done in one measurement, and how often.

    Parameters
    ----------
    repeats, long_repeats : int
        Measurements of each side; the second of work that takes minutes.
    steps : int
        Of a training.
    groups, cells_per_group : int
        That are predicted.
    round_cells : int
        Training cells per group in a round of removal, of 21 groups.
    simulated : int
        Cells.
    pairs : int
        Brightfield and phase images per file, of 21 groups, that are loaded.
    stored_size : int
        Pixels along each side of the images in these files.
    """

    repeats: int
    long_repeats: int
    steps: int
    groups: int
    cells_per_group: int
    round_cells: int
    simulated: int
    pairs: int
    stored_size: int


# 64 cells are two of Keras' minibatches: nothing is held against the published way that real
# groups, of hundreds of cells, would not. 500 pairs per group are the published lung files.
EFFORTS = {
    "published": Effort(9, 3, 3, 2, 64, 10, 64, 500, 144),
    "demo": Effort(9, 3, 40, 12, 64, 36, 256, 110, 64),
}
QUICK = {
    "published": {"repeats": 3, "long_repeats": 1, "steps": 2, "pairs": 50},
    "demo": {"repeats": 5, "long_repeats": 1, "steps": 25, "groups": 4, "simulated": 64},
}


# --- The machine -----------------------------------------------------------------------------


class MatrixProduct:
    """Measures the rate of a float32 product of two matrices, through Keras' backend.

    Parameters
    ----------
    size : int
        Rows and columns.
    """

    def __init__(self, size):
        self.operations = 2 * size**3
        self.factors = [keras.random.normal((size, size), seed=seed) for seed in (0, 1)]
        self.products = 1
        self._seconds()  # the first one sets things up
        self.products = max(1, round(PRODUCT_SECONDS / self._seconds()))

    def rate(self):
        """Return operations per second, as they are now."""
        return self.products * self.operations / self._seconds()

    def _seconds(self):
        start = time.perf_counter()
        for _ in range(self.products):
            product = keras.ops.matmul(*self.factors)
        keras.ops.convert_to_numpy(product[0, 0])  # a GPU computes on until it is asked
        return time.perf_counter() - start


def machine_facts():
    """Say on what is measured: hardware and versions, no names of machine, user or folders."""
    packages = (keras.backend.backend(), "h5py", "mat73", "scikit-image")
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError):  # Windows
        memory = None
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": memory,
            "gpu": accelerator(),
            "system": f"{platform.system()} {platform.machine()}",
            # Jobs that want a core when the measurements begin: well above 0, others work here.
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "versions": versions() | {package: metadata.version(package) for package in packages},
    }


def _cpu_model():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory():
    """Return the most memory this process had, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`: on Linux that remembers the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- The work --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bed:
    """What all work at one preset shares.

    Parameters
    ----------
    preset : Preset
    effort : Effort
    folder : Path
        Of a dataset for loading.
    way : module or None
        `benchmarks/published_way.py`.
    """

    preset: Preset
    effort: Effort
    folder: Path
    way: object

    def networks(self):
        """Build generator and discriminator, with the same weights every time."""
        sizes = self.preset.image_network
        return build_generator(**sizes, seed=0), build_discriminator(**sizes, seed=1)

    def classifiers(self):
        """Build the seven classifiers, with the same weights every time."""
        return Classifiers.build(len(LUNG.batches), len(LUNG.classes), self.preset, seed=2)

    def cells(self, n, groups=None):
        """Make `n` cells of each group, or of the first so many groups, of the preset's size."""
        return _make_cells(self.preset.image_size, n, groups)


@dataclass
class Work:
    """One row of the table.

    Parameters
    ----------
    unit : str
        What is counted, such as "step".
    count : int
        How many of these a measurement does.
    sides : dict of callable
        By side: sets all up and returns what does the work once and returns the seconds it took.
    operations : int, optional
        Per unit.
    long : bool
        Whether it is measured a few times only.
    per_second : bool
        Whether it is told in units per second rather than seconds per unit.
    """

    unit: str
    count: int
    sides: dict[str, Callable]
    operations: int | None = None
    long: bool = False
    per_second: bool = False


def _pretraining(bed, updates="alternating"):
    preset, steps = bed.preset, bed.effort.steps

    def ours():
        return _our_steps(Pix2Pix(*bed.networks(), replace(preset, updates=updates)), bed)

    def published():
        return _published_steps(bed.way.Pretraining(*bed.networks(), preset), bed)

    operations = step_operations(*bed.networks(), updates=updates) * preset.batch_size
    return Work("step", steps, {OURS: ours, PUBLISHED_WAY: published}, operations)


def _removal(bed):
    preset, steps = bed.preset, bed.effort.steps

    def ours():
        return _our_steps(BatchRemoval(*bed.networks(), bed.classifiers(), preset), bed)

    def published():
        way = bed.way.BatchRemoval(*bed.networks(), bed.classifiers(), preset)
        return _published_steps(way, bed)

    judges = bed.classifiers()
    judges = (judges.class_mlp, judges.class_cnn, judges.batch_cnn, *judges.batch_mlps)
    operations = step_operations(*bed.networks(), judges) * preset.batch_size
    return Work("step", steps, {OURS: ours, PUBLISHED_WAY: published}, operations)


def _our_steps(model, bed):
    model.compile()
    feed = Minibatches.of_cells(_step_cells(bed), bed.preset.batch_size)

    def run():
        clock = _EpochClock()
        model.fit(feed, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    return run


def _published_steps(way, bed):
    cells = _step_cells(bed)

    def run():
        for _ in range(bed.effort.steps):
            way.step(cells)

    return partial(_timed, run)


def _step_cells(bed):
    """Make cells for exactly so many minibatches as there are steps."""
    needed = bed.effort.steps * bed.preset.batch_size
    cells = bed.cells(-(-needed // len(LUNG.groups)))
    return cells.select(slice(needed))


def _refit(bed):
    """Time the re-fit of the batch MLPs alone: features of all training cells, four fits."""
    cells = bed.cells(bed.effort.round_cells)

    def ours():
        model = BatchRemoval(*bed.networks(), bed.classifiers(), bed.preset)
        refit = RefitBatchMLPs(cells)
        refit.set_model(model)
        return partial(_timed, lambda: refit.refit(0))

    def published():
        way = bed.way.BatchRemoval(*bed.networks(), bed.classifiers(), bed.preset)
        return partial(_timed, lambda: way.refit(cells))

    return Work("re-fit", 1, {OURS: ours, PUBLISHED_WAY: published}, long=True)


def _round(bed):
    """Time a round: new batch MLPs, and the epochs in which they are kept."""
    preset, cells = bed.preset, bed.cells(bed.effort.round_cells)

    def ours():
        model = BatchRemoval(*bed.networks(), bed.classifiers(), preset)
        model.compile()
        feed, refit = Minibatches.of_cells(cells, preset.batch_size), RefitBatchMLPs(cells)
        options = {"epochs": preset.refit_every, "shuffle": False, "verbose": 0}

        def run():
            model.fit(feed, callbacks=[refit], **options)
            _wait_for(model)

        return partial(_timed, run)

    def published():
        way = bed.way.BatchRemoval(*bed.networks(), bed.classifiers(), preset)
        return partial(_timed, lambda: way.round(cells))

    return Work("round", 1, {OURS: ours, PUBLISHED_WAY: published}, long=True)


def _inference(bed):
    cells = bed.cells(bed.effort.cells_per_group, bed.effort.groups)

    def ours():
        generator, _ = bed.networks()
        return partial(_timed, lambda: predict(generator, cells))

    def published():
        generator, _ = bed.networks()
        return partial(_timed, lambda: bed.way.predict_cells(generator, cells))

    generator, _ = bed.networks()
    sides = {OURS: ours, PUBLISHED_WAY: published}
    return Work("cell", len(cells), sides, count_operations(generator), per_second=True)


def _loading(bed):
    size = bed.preset.image_size

    def ours():
        return partial(_timed, lambda: load_cells(bed.folder, "Train", image_size=size))

    def published():
        return partial(_timed, lambda: bed.way.load_cells(bed.folder, "Train", size))

    pairs = bed.effort.pairs * len(LUNG.groups)
    return Work("pair", pairs, {OURS: ours, PUBLISHED_WAY: published}, long=True, per_second=True)


def _simulating(bed):
    group, n = LUNG.groups[0], bed.effort.simulated

    def ours():
        names = (group.class_name, n, group.batch)
        return partial(_timed, lambda: simulate_cells(*names, image_size=bed.preset.image_size))

    return Work("cell", n, {OURS: ours}, per_second=True)


def _cold_start(bed):
    """Time a new process from its start to the end of its first epoch of pretraining."""

    def run():
        start = time.time()
        return _in_new_process(bed, "cold start") - start

    return Work("start", 1, {OURS: lambda: run}, long=True)


WORKS = {
    "pretraining step": _pretraining,
    # The published way has no such order; beside it stands its own.
    "pretraining step, simultaneous updates": partial(_pretraining, updates="simultaneous"),
    "batch-removal step": _removal,
    "re-fit of the batch MLPs": _refit,
    "removal round": _round,
    "inference": _inference,
    "loading": _loading,
    "simulating": _simulating,
    "cold start to first epoch": _cold_start,
}
ROUND = ("re-fit of the batch MLPs", "removal round")
# Nothing of these is done by a GPU.
FROM_FILES = ("loading", "cold start to first epoch")
ON_CPU = (*FROM_FILES, "simulating")


class _EpochClock(keras.callbacks.Callback):
    """Times an epoch with its feeding, without what `fit` does once per training."""

    def on_epoch_begin(self, epoch, logs=None):
        _wait_for(self.model)
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        _wait_for(self.model)
        self.seconds = time.perf_counter() - self.start


def _wait_for(model):
    """Read a weight: a GPU hands it out only when all steps that were begun are done."""
    keras.ops.convert_to_numpy(model.generator.trainable_variables[-1])


def _timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- Cells and files to work on --------------------------------------------------------------


@lru_cache(maxsize=2)  # both sides work on the same ones
def _make_cells(size, n, groups):
    chosen = LUNG.groups[:groups]
    stacks = [_images(group, size, n, "Train") for group in chosen]
    labels = {
        "batch": pd.Categorical(np.repeat([g.batch for g in chosen], n), LUNG.batches),
        "class_name": pd.Categorical(np.repeat([g.class_name for g in chosen], n), LUNG.classes),
        "cell": np.tile(np.arange(n), len(chosen)),
    }
    images = [
        np.concatenate([stack[kind] for stack in stacks])[..., None] for kind in ("BF", "QPI")
    ]
    return CellImages(*images, pd.DataFrame(labels), LUNG.field_of_view_um / size)


def _images(group, size, n, split):
    """Make n cells of a group from a few simulated ones: what they show does not matter here."""
    made = simulate_cells(
        group.class_name, min(n, DISTINCT), group.batch, image_size=size, split=split
    )
    random = np.random.default_rng(0)
    source, shift = random.integers(min(n, DISTINCT), size=n), random.integers(-4, 5, size=(n, 2))
    return {
        kind: np.stack(
            [np.roll(images[s], move, (0, 1)) for s, move in zip(source, shift, strict=True)]
        )
        for kind, images in (
            ("BF", round_to_step(made.brightfield, "BF").astype(np.float32)),
            ("QPI", round_to_step(made.qpi, "QPI").astype(np.float32)),
        )
    }


def write_files(folder, size, pairs):
    """Write a dataset in the layout of the lung dataset: so many pairs per group, in each split.

    Parameters
    ----------
    folder : path
    size : int
        Pixels along each side.
    pairs : dict of int
        By split.

    Returns
    -------
    Path
        The dataset's own folder.
    """
    root = Path(folder) / LUNG.root_folder
    for group in LUNG.groups:
        for split, n in pairs.items():
            for kind, images in _images(group, size, n, split).items():
                write_mat(root / group.file(split, kind), {kind: np.moveaxis(images, 0, -1)})
    return root


# --- Measuring -------------------------------------------------------------------------------


@dataclass
class Measurement:
    """What was measured of one piece of work.

    Parameters
    ----------
    preset, work, unit : str
    per_second : bool
    operations : int or None
        Per unit.
    first : dict of float
        By side: seconds of the first run, with all that is done once.
    seconds : dict of list of float
        By side: seconds per unit, measurement after measurement.
    rates : list of float
        Operations per second of the matrix product, before each measurement.
    memory : dict of int or None
        By side: bytes.
    """

    preset: str
    work: str
    unit: str
    per_second: bool
    operations: int | None
    first: dict
    seconds: dict
    rates: list
    memory: dict = field(default_factory=dict)

    def row(self):
        """Return the row of the table: medians and quartiles."""
        row = {
            "preset": self.preset,
            "work": self.work,
            "unit": f"{self.unit}s/s" if self.per_second else f"s/{self.unit}",
            "repeats": len(self.rates),
            "gflop": None if self.operations is None else self.operations / 1e9,
        }
        for side, prefix in ((OURS, ""), (PUBLISHED_WAY, "published_")):
            seconds = np.array(self.seconds.get(side, []))
            row |= _quartiles(side, 1 / seconds if self.per_second else seconds)
            row[f"{prefix}first_run_s"] = self.first.get(side)
            memory = self.memory.get(side)
            row[f"{prefix}memory_mb"] = None if memory is None else memory / 1e6
            share = None
            if self.operations is not None and len(seconds):
                share = float(np.median(self.operations / seconds / np.array(self.rates)))
            row[f"{prefix}share"] = share
        return row | _quartiles("ratio", self.ratios())

    def ratios(self):
        """Return how many times faster ours was, for each pair of neighbouring measurements."""
        if PUBLISHED_WAY not in self.seconds:
            return np.array([])
        return np.array(self.seconds[PUBLISHED_WAY]) / np.array(self.seconds[OURS])


def _quartiles(name, values):
    q1, median, q3 = np.percentile(values, [25, 50, 75]) if len(values) else [None] * 3
    return {name: median, f"{name}_q1": q1, f"{name}_q3": q3}


def measure(work, repeats, product):
    """Run all sides of a piece of work once, then time them in turns.

    Parameters
    ----------
    work : Work
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


@dataclass
class BenchResult:
    """The table, and what it was measured on.

    Parameters
    ----------
    measurements : list of Measurement
    facts : dict
        From `machine_facts`.
    notes : list of str
        What a reader has to know.
    """

    measurements: list
    facts: dict
    notes: list

    @property
    def table(self):
        """One row per preset and work; see `Measurement.row`."""
        return pd.DataFrame([measurement.row() for measurement in self.measurements])

    @property
    def product_rate(self):
        """Median rate of the matrix product over the whole run, operations per second."""
        return float(np.median([rate for found in self.measurements for rate in found.rates]))

    def summary(self):
        """Return the table as text, in Markdown."""
        hardware, versions = self.facts["hardware"], self.facts["versions"]
        backend = versions["backend"]
        facts = [
            f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB",
            f"GPU: {hardware['gpu'] or 'none'}",
            f"Keras {versions['keras']} on {backend} {versions[backend]}",
            f"matrix product {self.product_rate / 1e9:.0f} GFLOP/s",
        ]
        columns = {
            "work": [f"{found.preset}: {found.work}" for found in self.measurements],
            **_columns(self.table),
        }
        lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        table = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join(["; ".join(facts), "", *table, "", *self.notes])

    def write(self, folder):
        """Write the table as CSV, and all measurements with versions and hardware as JSON.

        Returns
        -------
        list of Path
        """
        paths = [Path(folder) / TABLE, Path(folder) / DETAILS]
        write_table(self.table, paths[0], index=False)
        details = self.facts | {
            "matrix_product_gflops": self.product_rate / 1e9,
            "notes": self.notes,
            "measurements": [asdict(found) for found in self.measurements],
        }
        write_text(paths[1], json.dumps(details, indent=2) + "\n")
        return paths


def _columns(table):
    def with_spread(name, digits=3):
        return [
            "–" if pd.isna(middle) else f"{middle:.{digits}g} ({low:.{digits}g}–{high:.{digits}g})"
            for middle, low, high in table[[name, f"{name}_q1", f"{name}_q3"]].to_numpy()
        ]

    def as_text(name, form):
        return ["–" if pd.isna(value) else form.format(value) for value in table[name]]

    shown = {"unit": list(table["unit"]), OURS: with_spread("ours")}
    published = bool(table["published"].notna().any())
    if published:
        shown |= {"published way": with_spread("published"), "ratio": with_spread("ratio")}
    shown["first run, s"] = as_text("first_run_s", "{:.1f}")
    shown["peak MB"] = as_text("memory_mb", "{:.0f}")
    if published:
        shown["peak MB, published way"] = as_text("published_memory_mb", "{:.0f}")
    shown |= {"GFLOP": as_text("gflop", "{:.3g}"), "of matrix product": as_text("share", "{:.0%}")}
    return shown


def find_published_way():
    """Import `benchmarks/published_way.py` from beside the library; None if it is not there."""
    path = Path(__file__).parents[1] / "benchmarks" / "published_way.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("published_way", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    efforts=None,
    works=tuple(WORKS),
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
    efforts : dict of Effort, optional
        By the preset's name; the usual ones by default.
    works : sequence of str
        Some of `WORKS`.
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
    efforts = efforts or _usual_efforts(quick)
    facts, product, measurements = machine_facts(), MatrixProduct(PRODUCT_SIZE), []
    for preset in presets:
        effort = efforts[preset.name]
        chosen = [name for name in works if name not in ROUND or preset.name in rounds]
        folder = Path(tempfile.mkdtemp(prefix="cytomad-bench-"))
        try:
            if any(name in FROM_FILES for name in chosen):
                say(verbose, f"{preset.name}: writing files to load")
                write_files(
                    folder,
                    effort.stored_size,
                    {"Train": effort.pairs, "Valid": min(10, effort.pairs)},
                )
            bed = Bed(preset, effort, folder, way)
            for name in chosen:
                say(verbose, f"{preset.name}: {name}")
                found = _measure_row(name, bed, product)
                if gpu:
                    found.memory = {OURS: accelerator_peak()}
                elif memory:
                    found.memory = _memory_of(name, bed, found.seconds)
                say(verbose, "  " + _line(found.row()))
                measurements.append(found)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return BenchResult(measurements, facts, _notes(way, gpu, quick, presets, efforts))


def _usual_efforts(quick):
    if not quick:
        return EFFORTS
    return {name: replace(effort, **QUICK[name]) for name, effort in EFFORTS.items()}


def _measure_row(name, bed, product):
    accelerator_peak()  # what was before does not count
    work = WORKS[name](bed)
    if bed.way is None:
        work.sides.pop(PUBLISHED_WAY, None)
    repeats = bed.effort.long_repeats if work.long else bed.effort.repeats
    about = bed.preset.name, name, work.unit, work.per_second, work.operations
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


def _memory_of(name, bed, sides):
    """Return the peak memory of each side, each from a new process; nothing of a cold start."""
    if WORKS[name] is _cold_start:
        return {}
    return {side: _in_new_process(bed, name, side) for side in sides}


def _in_new_process(bed, *words):
    """Run this module as a program and return the number that it prints last."""
    task = {
        "preset": bed.preset.as_dict(),
        "effort": asdict(bed.effort),
        "folder": str(bed.folder),
        "words": words,
    }
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "cytomad_lib.bench"],
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


def _run_task(task):
    """Do one side of a piece of work, and return the peak memory; or the time of a cold start."""
    bed = Bed(
        Preset.from_dict(task["preset"]),
        Effort(**task["effort"]),
        Path(task["folder"]),
        find_published_way(),
    )
    name, *side = task["words"]
    if name == "cold start":
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


def _check_gpu():
    if accelerator() is None:
        raise CytomadError(
            f"Keras computes with {keras.backend.backend()} and finds no GPU. Expected one for "
            "--gpu; install the backend with GPU support as the README says, or leave --gpu out."
        )


def _notes(way, gpu, quick, presets, efforts):
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
        effort = efforts[preset.name]
        stored = effort.stored_size
        resized = "" if stored == preset.image_size else f", resized to {preset.image_size}"
        notes.append(
            f"{preset.name}: steps of {preset.batch_size} cells; round: {preset.refit_every} "
            f"epochs of {effort.round_cells * len(LUNG.groups)} cells; loading: images stored at "
            f"{stored} x {stored}{resized}."
        )
    if quick:
        notes.append("A quick run: few measurements, so the spread says little.")
    return notes


if __name__ == "__main__":
    print(_run_task(json.load(sys.stdin)))
