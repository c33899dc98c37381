"""What is measured: each piece of work, ours and the published way, set up and ready to be timed.

The published way is in `benchmarks/published_way.py`, beside the library in the repository; without
that folder only our side is measured.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.bench.cells import make_cells
from benchmarks.bench.operations import count_operations, step_operations
from benchmarks.bench.processes import in_new_process
from cytomad_lib.backend import keras
from cytomad_lib.config import Preset
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.networks import build_discriminator, build_generator
from cytomad_lib.prediction import predict
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.training.batch_removal import BatchRemoval, Classifiers, RefitBatchMLPs
from cytomad_lib.training.minibatches import Minibatches
from cytomad_lib.training.pix2pix import Pix2Pix

OURS, PUBLISHED_WAY = "ours", "published"
COLD_START = "cold start to first epoch"


@dataclass(frozen=True)
class Cost:
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
COSTS = {
    "published": Cost(9, 3, 3, 2, 64, 10, 64, 500, 144),
    "demo": Cost(9, 3, 40, 12, 64, 36, 256, 110, 64),
}
QUICK = {
    "published": {"repeats": 3, "long_repeats": 1, "steps": 2, "pairs": 50},
    "demo": {"repeats": 5, "long_repeats": 1, "steps": 25, "groups": 4, "simulated": 64},
}


@dataclass(frozen=True)
class Case:
    """What all work at one preset shares.

    Parameters
    ----------
    preset : Preset
    cost : Cost
    folder : Path
        Of a dataset for loading.
    way : module or None
        `benchmarks/published_way.py`.
    """

    preset: Preset
    cost: Cost
    folder: Path
    way: object

    def networks(self):
        """Build generator and discriminator, with the same weights every time."""
        sizes = self.preset.image_network
        return build_generator(**sizes, seed=0), build_discriminator(**sizes, seed=1)

    def plain_networks(self):
        """Build the same for the published way."""
        return [self.way.plain(network) for network in self.networks()]

    def classifiers(self):
        """Build the seven classifiers, with the same weights every time."""
        return Classifiers.build(len(LUNG.batches), len(LUNG.classes), self.preset, seed=2)

    def cells(self, n, groups=None):
        """Make `n` cells of each group, or of the first so many groups, of the preset's size."""
        return make_cells(self.preset.image_size, n, groups)


@dataclass
class Benchmark:
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


def _pretraining(case, updates="alternating"):
    preset, steps = case.preset, case.cost.steps

    def ours():
        return _our_steps(Pix2Pix(*case.networks(), replace(preset, updates=updates)), case)

    def published():
        return _published_steps(case.way.Pretraining(*case.plain_networks(), preset), case)

    operations = step_operations(*case.networks(), updates=updates) * preset.batch_size
    return Benchmark("step", steps, {OURS: ours, PUBLISHED_WAY: published}, operations)


def _removal(case, updates="alternating"):
    preset, steps = case.preset, case.cost.steps

    def ours():
        own = replace(preset, updates=updates)
        return _our_steps(BatchRemoval(*case.networks(), case.classifiers(), own), case)

    def published():
        way = case.way.BatchRemoval(*case.plain_networks(), case.classifiers(), preset)
        return _published_steps(way, case)

    judges = case.classifiers()
    judges = (judges.class_mlp, judges.class_cnn, judges.batch_cnn, *judges.batch_mlps)
    operations = step_operations(*case.networks(), judges, updates) * preset.batch_size
    return Benchmark("step", steps, {OURS: ours, PUBLISHED_WAY: published}, operations)


def _our_steps(model, case):
    model.compile()
    feed = Minibatches.of_cells(_step_cells(case), case.preset.batch_size)

    def run():
        clock = _EpochClock()
        model.fit(feed, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    return run


def _published_steps(way, case):
    cells = _step_cells(case)

    def run():
        for _ in range(case.cost.steps):
            way.step(cells)

    return partial(_timed, run)


def _step_cells(case):
    """Make cells for exactly so many minibatches as there are steps."""
    needed = case.cost.steps * case.preset.batch_size
    cells = case.cells(-(-needed // len(LUNG.groups)))
    return cells.select(slice(needed))


def _refit(case):
    """Time the re-fit of the batch MLPs alone: features of all training cells, four fits."""
    cells = case.cells(case.cost.round_cells)

    def ours():
        model = BatchRemoval(*case.networks(), case.classifiers(), case.preset)
        refit = RefitBatchMLPs(cells)
        refit.set_model(model)
        return partial(_timed, lambda: refit.refit(0))

    def published():
        way = case.way.BatchRemoval(*case.plain_networks(), case.classifiers(), case.preset)
        return partial(_timed, lambda: way.refit(cells))

    return Benchmark("re-fit", 1, {OURS: ours, PUBLISHED_WAY: published}, long=True)


def _round(case):
    """Time a round: new batch MLPs, and the epochs in which they are kept."""
    preset, cells = case.preset, case.cells(case.cost.round_cells)

    def ours():
        model = BatchRemoval(*case.networks(), case.classifiers(), preset)
        model.compile()
        feed, refit = Minibatches.of_cells(cells, preset.batch_size), RefitBatchMLPs(cells)
        options = {"epochs": preset.refit_every, "shuffle": False, "verbose": 0}

        def run():
            model.fit(feed, callbacks=[refit], **options)
            _wait_for(model)

        return partial(_timed, run)

    def published():
        way = case.way.BatchRemoval(*case.plain_networks(), case.classifiers(), preset)
        return partial(_timed, lambda: way.round(cells))

    return Benchmark("round", 1, {OURS: ours, PUBLISHED_WAY: published}, long=True)


def _inference(case):
    cells = case.cells(case.cost.cells_per_group, case.cost.groups)

    def ours():
        generator, _ = case.networks()
        return partial(_timed, lambda: predict(generator, cells))

    def published():
        generator, _ = case.plain_networks()
        return partial(_timed, lambda: case.way.predict_cells(generator, cells))

    generator, _ = case.networks()
    sides = {OURS: ours, PUBLISHED_WAY: published}
    return Benchmark("cell", len(cells), sides, count_operations(generator), per_second=True)


def _loading(case):
    size = case.preset.image_size

    def ours():
        return partial(_timed, lambda: load_cells(case.folder, "Train", image_size=size))

    def published():
        return partial(_timed, lambda: case.way.load_cells(case.folder, "Train", size))

    pairs = case.cost.pairs * len(LUNG.groups)
    return Benchmark(
        "pair", pairs, {OURS: ours, PUBLISHED_WAY: published}, long=True, per_second=True
    )


def _simulating(case):
    group, n = LUNG.groups[0], case.cost.simulated

    def ours():
        names = (group.class_name, n, group.batch)
        return partial(_timed, lambda: simulate_cells(*names, image_size=case.preset.image_size))

    return Benchmark("cell", n, {OURS: ours}, per_second=True)


def _cold_start(case):
    """Time a new process from its start to the end of its first epoch of pretraining."""

    def run():
        start = time.time()
        return in_new_process(case, COLD_START) - start

    return Benchmark("start", 1, {OURS: lambda: run}, long=True)


BENCHMARKS = {
    "pretraining step": _pretraining,
    # The published way has no such order; beside it stands its own.
    "pretraining step, simultaneous updates": partial(_pretraining, updates="simultaneous"),
    "batch-removal step": _removal,
    "batch-removal step, simultaneous updates": partial(_removal, updates="simultaneous"),
    "re-fit of the batch MLPs": _refit,
    "removal round": _round,
    "inference": _inference,
    "loading": _loading,
    "simulating": _simulating,
    COLD_START: _cold_start,
}
ROUND = ("re-fit of the batch MLPs", "removal round")
# Nothing of these is done by a GPU.
FROM_FILES = ("loading", COLD_START)
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


def find_published_way():
    """Import `benchmarks/published_way.py` from beside the library; None if it is not there."""
    path = Path(__file__).parents[2] / "benchmarks" / "published_way.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("published_way", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
