"""Training runs: one folder each, that can be interrupted, resumed and loaded.

A run's folder holds

* `run.json`: preset, seed, dataset, label order, numbers of cells and channels, versions;
* `pretraining/`, `classifiers/...`, `published/`, `conditional/`: one folder per stage with
  `history.csv` (losses and seconds of every epoch), the best epoch's networks and the last
  epoch's checkpoint;
* `figures/`: filled by whoever plots;
* `training.lock`, while a training goes on.

An epoch counts once its row is in `history.csv`. That file is written last and in one piece, so
an interruption at any moment loses the epoch under way and nothing else.

Example
-------
>>> run = Run.create("results/run", DEMO, train_cells, "lung", seed=0)
>>> pretrain(run, train_cells, valid_cells)                  # see `training.recipes`
>>> generator = Run.open("results/run").generator("published")
"""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import cytomad_lib
from cytomad_lib.backend import keras
from cytomad_lib.config import LARGEST_SEED, Preset
from cytomad_lib.data.cells import CellFiles, CellImages
from cytomad_lib.data.errors import RunError
from cytomad_lib.data.files import sweep, write_text
from cytomad_lib.data.layouts import LAYOUTS, Layout
from cytomad_lib.devices import ONE, Devices
from cytomad_lib.history import SECONDS, best_epoch, read_history
from cytomad_lib.locks import locked
from cytomad_lib.networks import build_discriminator, build_generator, computing_in
from cytomad_lib.weights import load_run_weights

SETTINGS = "run.json"
IMAGES = "conditional/images"  # the first part of that stage, with losses of its own
GENERATED = "generated"  # images on which classifiers are fitted, if too large for memory
ALIGNED = "generator_aligned.weights.h5"  # the conditional recipe's generator, when all is done
RECIPES = ("published", "conditional")  # of batch removal
STAGES = ("pretraining", *RECIPES)  # stages that leave a generator
JUDGED_STAGES = ("pretraining", "published")  # of these, stages with a discriminator
CLASSIFIERS = ("class_mlp", "class_cnn", "batch_cnn")  # of the published recipe, fitted once
CLASSIFIER_FOLDERS = [f"classifiers/{name}" for name in CLASSIFIERS]
# Each use of random numbers gets a seed of its own from the run's seed and this number.
SEEDS = {
    "cell_order": 1,
    "dropout": 2,
    "refit": 3,
    "conditional_cell_order": 4,
    "conditional_dropout": 5,
    "class_mlp_order": 10,
    "class_cnn_order": 11,
    "batch_cnn_order": 12,
    "generator": 20,
    "discriminator": 21,
    "classifiers": 22,
    "image_removal": 23,
    "conditional_generator": 24,
    "feature_removal": 25,
    "mmd_alignment": 27,
}
LAST = (*RECIPES, IMAGES)  # of these the last epoch is kept, see `Run.best_epoch`


class Run:
    """A training run and its folder; made by `Run.create` or `Run.open`.

    Parameters
    ----------
    folder : Path
    settings : dict
        What `run.json` holds.
    devices : Devices
        What pretraining and the published removal are shared by; others may resume the run.
    """

    def __init__(self, folder: Path | str, settings: dict, devices: Devices = ONE) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.preset = Preset.from_dict(settings["preset"])
        self.seed = settings["seed"]
        self.batches = tuple(settings["batches"])
        self.classes = tuple(settings["classes"])
        self.channels = settings["channels"]
        self.devices = devices

    @classmethod
    def create(
        cls, folder: Path | str, preset: Preset, cells: CellImages | CellFiles,
        dataset: str | Layout, seed: int = 0, devices: Devices = ONE,
    ) -> "Run":  # fmt: skip
        """Start a run, or take up an interrupted one of the same settings.

        Parameters
        ----------
        folder : path
            Made if it does not exist.
        preset : Preset
        cells : CellImages or CellFiles
            The training cells: their label order and numbers are written down.
        dataset : str or Layout
            The dataset's layout, as `find_layout` gives it, or its name, such as `"lung"`.
        seed : int
        devices : Devices
            See `Run`.

        Returns
        -------
        Run

        Raises
        ------
        RunError
            If the folder holds a run of other settings, stages without a `run.json`, or something
            that is not a run, if another training uses it, if the seed is no number from 0 to
            2^32 - 1, or if the cells have another number of channels than the dataset.
        WriteError
            If the folder cannot be written to.
        """
        check_seed(seed)
        folder = Path(folder)
        settings = {
            "preset": preset.as_dict(),
            "seed": seed,
            **_dataset_settings(dataset, cells.channels),
            "batches": list(cells.batches),
            "classes": list(cells.classes),
            "training_cells": count_cells(cells.labels),
            "pixel_size_um": cells.pixel_size_um,
            "versions": versions(),
        }
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Expected a folder for the run; give another name.")
        run = cls(folder, settings, devices)
        with run.held():
            if (folder / SETTINGS).exists():
                run = cls.open(folder, devices)
                # Fields that a preset did not have when the run began have their defaults.
                begun = run.settings | {"preset": run.preset.as_dict()}
                _check_same_settings(folder, begun, settings)
            else:
                _check_no_stages(folder)
                write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, folder: Path | str, devices: Devices = ONE) -> "Run":
        """Open a run's folder.

        Raises
        ------
        RunError
            If there is no run, or its `run.json` cannot be used.
        """
        path = Path(folder) / SETTINGS
        if not path.exists():
            raise RunError(
                f"{path} does not exist. Expected the folder of a training run; "
                "give the folder that `train` or `demo` wrote."
            )
        try:
            return cls(folder, json.loads(path.read_text(encoding="utf-8")), devices)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} cannot be used ({type(error).__name__}: {error}). Expected the settings "
                "that this version of the kit writes; train again into a new folder."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other trainings out of the folder; what they left half-written is removed.

        Whatever trains does so by itself. Machines that write nothing need not.

        Raises
        ------
        LockedError
            If another training is in there; it says which.
        """
        if not self.devices.writes:
            yield
            return
        with locked(self.folder):
            for part in ("", *STAGES, IMAGES, *CLASSIFIER_FOLDERS):
                sweep(self.folder / part)
            yield

    def generator(self, stage: str) -> keras.Model:
        """Load the generator of a finished or unfinished stage, at `best_epoch`.

        Parameters
        ----------
        stage : {"pretraining", "published", "conditional"}

        Returns
        -------
        keras.Model

        Raises
        ------
        RunError
            If the stage is unknown or has no finished epoch.
        """
        if stage not in STAGES:
            raise RunError(f"There is no stage {stage!r}. Expected one of {', '.join(STAGES)}.")
        if stage != "conditional":
            return self.load(stage, "generator", self.new_generator())
        generator, aligned = self.new_conditional_generator(), self.folder / stage / ALIGNED
        if aligned.exists():
            return load_run_weights(generator, aligned)
        return self.load(stage, "generator", generator)

    def discriminator(self, stage: str = "pretraining") -> keras.Model:
        """Load the discriminator that was trained beside a stage's generator, at `best_epoch`.

        Parameters
        ----------
        stage : {"pretraining", "published"}
            The conditional recipe has none.

        Returns
        -------
        keras.Model

        Raises
        ------
        RunError
            If the stage has no discriminator, or no finished epoch.
        """
        if stage not in JUDGED_STAGES:
            raise RunError(
                f"There is no discriminator of {stage!r}. Expected one of "
                f"{', '.join(JUDGED_STAGES)}."
            )
        return self.load(stage, "discriminator", self.new_discriminator())

    def history(self, stage: str) -> pd.DataFrame:
        """Read the losses per epoch of a stage, as a DataFrame (empty before the first)."""
        return read_history(self.folder / stage)

    def training_seconds(self, stage: str) -> float:
        """Return how long a stage was trained, in seconds.

        Of "published" that includes the three classifiers, which serve nothing else. Pretraining,
        with which both recipes begin, is a stage of its own. Time between interruption and
        resumption, and in epochs that were lost, does not count.

        Parameters
        ----------
        stage : {"pretraining", "published", "conditional"}

        Returns
        -------
        float
            NaN if the stage has no finished epoch, or one that was trained before times were kept.
        """
        folders = [self.folder / stage]
        if stage == "conditional":
            folders.append(self.folder / IMAGES)
        if stage == "published":
            folders += sorted((self.folder / "classifiers").glob("*/"))
        histories = [read_history(folder) for folder in folders]
        if not all(SECONDS in history for history in histories):
            return float("nan")
        return float(sum(history[SECONDS].sum(skipna=False) for history in histories))

    def was_trained_on(self, labels: pd.DataFrame) -> bool:
        """Say whether cells of these labels are as many per batch and class as were trained on."""
        return count_cells(labels) == self.settings["training_cells"]

    def best_epoch(self, stage: str) -> int:
        """Return the epoch, counted from 1, that is kept.

        Of a batch removal the last: its loss depends on the classifiers that judge it, and is low
        when they are fooled, just before new ones come. Of all else that of the lowest validation
        loss.
        """
        return best_epoch(self.finished_history(stage), stage in LAST)

    def stages(self) -> list[str]:
        """List the stages that have a generator to load."""
        return [stage for stage in STAGES if len(self.history(stage))]

    def last_stage(self) -> str:
        """Return the stage whose generator is the most processed one that is there.

        Raises
        ------
        RunError
            If there is none.
        """
        if not self.stages():
            raise RunError(f"{self.folder} has no trained stage. Train it first.")
        return self.stages()[-1]

    def new_generator(self, precision: str = "float32") -> keras.Model:
        """Build the published generator, untrained."""
        return self._build(build_generator, "generator", precision)

    def new_conditional_generator(self, precision: str = "float32") -> keras.Model:
        """Build the generator of the conditional recipe, untrained."""
        from cytomad_lib.conditional.networks import build_conditional_generator

        build = partial(build_conditional_generator, recipe=self.preset.conditional)
        return self._build(build, "conditional_generator", precision)

    def new_discriminator(self, precision: str = "float32") -> keras.Model:
        """Build the discriminator, untrained."""
        return self._build(build_discriminator, "discriminator", precision)

    def _build(self, build, purpose, precision):
        # To learn, a network is built in the preset's precision; to predict, in float32.
        options = self.preset.image_network | {"channels": self.channels}
        with computing_in(precision):
            return build(**options, seed=self.seed_for(purpose))

    def seed_for(self, purpose: str) -> int:
        """Return the seed of one use of random numbers, by its name in `SEEDS`."""
        sequence = np.random.SeedSequence([self.seed, SEEDS[purpose]])
        return int(sequence.generate_state(1)[0])

    def load(self, stage: str, name: str, network: keras.Model) -> keras.Model:
        """Load a network's weights of the epoch that is kept of a stage, and return it."""
        path = self.folder / stage / weights_name(name, self.best_epoch(stage))
        return load_run_weights(network, path)

    def finished_history(self, stage: str) -> pd.DataFrame:
        """Return the losses per epoch of a stage; refuse one without a finished epoch."""
        history = self.history(stage)
        if not len(history):
            raise RunError(
                f"{self.folder / stage} has no finished epoch. Expected a trained stage, and found "
                f"{', '.join(self.stages()) or 'none'}; choose one of these, or train it first."
            )
        return history

    def check_pretrained(self) -> None:
        """Refuse a run whose pretraining is not finished."""
        done, wanted = len(self.history("pretraining")), self.preset.pretraining_epochs
        if done < wanted:
            raise RunError(
                f"{self.folder / 'pretraining'} has {done} finished epochs. Expected all {wanted} "
                "before anything is built on them; call `pretrain` first; it resumes."
            )

    def check_cells(self, cells: CellImages | CellFiles) -> None:
        """Refuse cells that differ from those that the run was started with."""
        self.check_labels(cells)
        if not self.was_trained_on(cells.labels):
            raise RunError(
                f"The training cells differ in number from those that the run in {self.folder} "
                "was started with. Load the same cells, or start a run in another folder."
            )

    def check_labels(self, cells: CellImages | CellFiles) -> None:
        """Refuse cells of other labels or channels than those of the run."""
        found = (tuple(cells.batches), tuple(cells.classes))
        if found != (self.batches, self.classes):
            raise RunError(
                f"The cells' labels are {found}, the run in {self.folder} was started with "
                f"{(self.batches, self.classes)}. Use cells of the same dataset."
            )
        if cells.channels != self.channels:
            raise RunError(
                f"The cells have {cells.channels} channels, the run in {self.folder} was started "
                f"with {self.channels}. Use cells of the same dataset."
            )


def check_seed(seed):
    """Refuse a seed that numpy, Keras or scikit-learn would refuse later.

    Raises
    ------
    RunError
    """
    if not (isinstance(seed, int | np.integer) and 0 <= seed <= LARGEST_SEED):
        raise RunError(
            f"The seed is {seed!r}. Expected a whole number from 0 to {LARGEST_SEED}; give another."
        )


def weights_name(name, epoch):
    """Return the name of a network's file of one epoch."""
    return f"{name}_{epoch:06d}.weights.h5"


def _check_no_stages(folder):
    """Refuse what a training left whose settings are lost: nobody knows what it was trained on."""
    there = [folder / name for name in (*STAGES, "classifiers") if (folder / name).exists()]
    if there:
        raise RunError(
            f"{there[0]} is of a training, and {folder} has no {SETTINGS} that says of which. "
            f"Expected both or none; restore {SETTINGS}, remove the folders of the stages, or give "
            "another folder."
        )


def count_cells(labels):
    """Count the cells of each batch and class, as `run.json` holds them."""
    counts = labels.groupby(["batch", "class_name"], observed=True).size()
    return {f"{batch}/{name}": int(n) for (batch, name), n in counts.items()}


def _dataset_settings(dataset, channels):
    """Return what a run remembers of its dataset; of a described one also what it shows."""
    layout = LAYOUTS.get(dataset) if isinstance(dataset, str) else dataset
    if layout is None:
        return {"dataset": dataset, "channels": channels}
    if len(layout.inputs) != channels:
        raise RunError(
            f"The cells have {channels} channels. Expected {len(layout.inputs)}, as the "
            f"{layout.name} dataset has; load them from it."
        )
    found = {"dataset": layout.name, "channels": channels}
    return found | ({"images": layout.images} if layout.described else {})


def versions():
    """Return the versions of what computes, by name."""
    return {
        "cytomad_lib": cytomad_lib.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _check_same_settings(folder, earlier, now):
    for name in now:
        # A run may be resumed after an upgrade; the versions of its start stay written down.
        if name != "versions" and earlier.get(name) != now[name]:
            raise RunError(
                f"{folder / SETTINGS} has {name} = {earlier.get(name)}, now it would be "
                f"{now[name]}. Expected the same to go on with that run; give another folder "
                "to start a new one."
            )
