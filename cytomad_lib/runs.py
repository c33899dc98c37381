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
>>> run = Run.create("results/run", DEMO, train_cells, seed=0)
>>> run.pretrain(train_cells, valid_cells)
>>> run.fit_classifiers(train_cells, valid_cells)
>>> run.remove_batches(train_cells, valid_cells)
>>> generator = Run.open("results/run").generator("published")
"""

import json
import platform
import shutil
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

import cytomad_lib
from cytomad_lib.backend import keras
from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.batch_transfer import BatchTransfer
from cytomad_lib.conditional.mmd_alignment import align_features
from cytomad_lib.conditional.networks import adopt_weights, build_conditional_generator
from cytomad_lib.conditional.training import (
    FeatureRemoval,
    ImageRemoval,
    erase_linear_trace,
    image_statistics,
    match_total_phase,
    transfer_at_random,
)
from cytomad_lib.config import Preset
from cytomad_lib.data.cells import CellFiles, check_trainable
from cytomad_lib.data.errors import RunError
from cytomad_lib.data.files import FileInMemory, sweep, write_table, write_text
from cytomad_lib.data.layouts import LAYOUTS
from cytomad_lib.history import HISTORY, SECONDS, best_epoch, read_history
from cytomad_lib.locks import locked
from cytomad_lib.models.batch_removal import (
    BatchRemoval,
    Classifiers,
    RefitBatchMLPs,
    generate,
)
from cytomad_lib.models.devices import ONE, DevicesError
from cytomad_lib.models.feeding import Minibatches, ReseedDropout
from cytomad_lib.models.pretraining import Pix2Pix
from cytomad_lib.models.weights import check_run_weights, load_run_weights
from cytomad_lib.networks import build_discriminator, build_generator, computing_in

SETTINGS = "run.json"
IMAGES = "conditional/images"  # the first part of that stage, with losses of its own
GENERATED = "generated"  # images on which classifiers are fitted, if too large for memory
ERASED = "generator_erased.weights.h5"  # the conditional recipe's generator, when all is done
RECIPES = ("published", "conditional")  # of batch removal
STAGES = ("pretraining", *RECIPES)  # stages that leave a generator
JUDGED_STAGES = ("pretraining", "published")  # of these, stages with a discriminator
CLASSIFIERS = ("class_mlp", "class_cnn", "batch_cnn")  # of the published recipe, fitted once
CLASSIFIER_FOLDERS = [f"classifiers/{name}" for name in CLASSIFIERS]
LARGEST_SEED = 2**32 - 1  # that numpy, Keras and scikit-learn all take
LAST = ("conditional",)  # of these the last epoch is kept, see `Run.best_epoch`
VALIDATION_BATCH = 100  # cells per minibatch where nothing is learned

HALF_MAX = 6e4  # larger numbers have no half precision


def _holding_the_folder(method):
    """Let a method of `Run` begin, with all that it reads, when no other training is in there."""

    @wraps(method)
    def held(self, *arguments, **options):
        with self.held():
            return method(self, *arguments, **options)

    return held


class Run:
    """A training run and its folder; made by `Run.create` or `Run.open`.

    Parameters
    ----------
    folder : Path
    settings : dict
        What `run.json` holds.
    devices : Devices
        What pretraining and the published removal are shared by; see `models.devices`. A run may
        be gone on with on others.
    """

    def __init__(self, folder, settings, devices=ONE):
        self.folder = Path(folder)
        self.settings = settings
        self.preset = Preset.from_dict(settings["preset"])
        self.seed = settings["seed"]
        self.batches = tuple(settings["batches"])
        self.classes = tuple(settings["classes"])
        self.channels = settings.setdefault("channels", 1)  # runs of before had but one
        self.devices = devices

    @classmethod
    def create(cls, folder, preset, cells, dataset, seed=0, devices=ONE):
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
            "training_cells": _count_cells(cells.labels),
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
    def open(cls, folder, devices=ONE):
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
    def held(self):
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

    @_holding_the_folder
    def pretrain(self, train, valid, verbose=0, callbacks=()):
        """Stage 1: pix2pix, to the end of the preset's epochs.

        Parameters
        ----------
        train, valid : CellImages or CellFiles
            Cells to learn from, and cells to choose the best epoch by.
        verbose : int
            0 is silent, 1 shows a progress bar, 2 prints a line per epoch.
        callbacks : sequence of keras.callbacks.Callback
            To watch the training, or to stop it. They hear of an epoch's end when the epoch is
            written down, so that nothing they do can lose it.

        Returns
        -------
        DataFrame
            Losses per epoch.
        """
        self._check_cells(train)
        self.devices.check_minibatch(self.preset.batch_size, "The preset")
        with self.devices.scope():
            generator = self._new_generator(self.preset.precision)
            discriminator = self._new_discriminator(self.preset.precision)
            model = Pix2Pix(generator, discriminator, self.preset)
            model.compile()
        stage = _Stage(
            self.folder / "pretraining",
            model,
            {"generator": generator, "discriminator": discriminator},
            self.preset.pretraining_epochs,
        )
        return self._fit_on_cells(stage, train, valid, verbose, watching=callbacks)

    @_holding_the_folder
    def fit_classifiers(self, train, valid, verbose=0):
        """Stage 2: fit class MLP, class CNN and batch CNN on what the generator makes.

        Parameters as in `pretrain`. Of `CellFiles`, the generated images are kept in the run's
        folder, and removed at the end.

        Returns
        -------
        dict of DataFrame
            Losses and accuracies per epoch of each classifier.

        Raises
        ------
        DatasetError
            If the cells are of fewer than two batches or classes.
        """
        check_trainable(train.labels)
        self._check_cells(train)
        self._check_pretrained()
        if not self.devices.writes:
            self.devices.wait()  # for the first machine, which fits them
            return {name: self.history(f"classifiers/{name}") for name in CLASSIFIERS}
        try:
            histories = self._fit_on_generated(train, valid, verbose)
        finally:
            shutil.rmtree(self.folder / GENERATED, ignore_errors=True)
        self.devices.wait()
        return histories

    def _fit_on_generated(self, train, valid, verbose):
        generator = self.generator("pretraining")
        # What was too large to be loaded is too large when generated.
        places = [
            self.folder / GENERATED / f"{name}.npy" if isinstance(cells, CellFiles) else True
            for name, cells in (("train", train), ("valid", valid))
        ]
        made = [
            generate(generator, cells, images=place)
            for cells, place in zip((train, valid), places, strict=True)
        ]
        histories = {}
        for number, job in enumerate(self._new_classifiers().jobs(self.preset)):
            job.compile(self.preset)
            name = job.classifier.name
            say(verbose, f"Fitting {name} on generated {job.inputs}")
            stage = _Stage(
                self.folder / "classifiers" / name,
                job.classifier,
                {name: job.classifier},
                self.preset.classifier_epochs,
            )
            feeds = [
                Minibatches.of_arrays(
                    found[job.inputs],
                    found[job.codes],
                    self.preset.classifier_batch_size,
                    getattr(cells, "file_codes", None),
                    seed=self._seed(10 + number),
                    first_epoch=stage.epochs_done,
                    shuffle=cells is train,
                )
                for cells, found in zip((train, valid), made, strict=True)
            ]
            histories[name] = stage.fit(*feeds, verbose=verbose)
        return histories

    @_holding_the_folder
    def remove_batches(self, train, valid, verbose=0, recipe="published", callbacks=()):
        """Stage 3: batch removal by one of the recipes.

        Parameters and return value as in `pretrain` (of the conditional recipe, callbacks watch
        both parts, one after the other), and

        Parameters
        ----------
        recipe : {"published", "conditional"}
            See `models.batch_removal` and `conditional.training`. Both begin with the
            pretrained generator; only the published one needs `fit_classifiers`.
        """
        check_recipes([recipe])
        check_trainable(train.labels)
        self._check_cells(train)
        self._check_pretrained()
        remove = self._remove_as_published if recipe == "published" else self._remove_conditional
        return remove(train, valid, verbose, callbacks)

    def _remove_as_published(self, train, valid, verbose, watching):
        self.devices.check_minibatch(self.preset.batch_size, "The preset")
        with self.devices.scope():
            model = self.removal_model()
        stage = _Stage(
            self.folder / "published",
            model,
            {"generator": model.generator, "discriminator": model.discriminator},
            self.preset.removal_epochs,
        )
        refit = RefitBatchMLPs(train, seed=self._seed(3), verbose=verbose)
        return self._fit_on_cells(stage, train, valid, verbose, [refit], watching)

    def _remove_conditional(self, train, valid, verbose, watching):
        check_devices("conditional", self.devices)
        check_enough_cells("conditional", self.preset, len(train))
        generator = self._new_conditional_generator(self.preset.precision)
        adopt_weights(generator, self.generator("pretraining"), *image_statistics(train))
        shares, transfer = batch_shares(train.labels), BatchTransfer.fit(train)
        feeds = train, valid, verbose, watching
        self._clean_images(generator, shares, transfer, *feeds)
        say(verbose, "The images are done; now the features")
        history = self._learn_features(generator, shares, transfer, *feeds)
        folder = self.folder / "conditional"
        if not (folder / ERASED).exists():
            self._finish_features(generator, train, verbose)
            _save_weights(generator, folder / ERASED)
        return history

    def _finish_features(self, generator, train, verbose):
        recipe = self.preset.conditional
        say(verbose, "Erasing the linear trace of the batch that is left in the features")
        made = generate(generator, train, images=False)
        made = erase_linear_trace(generator, made)
        say(verbose, "Matching the batches of each class in what is kept of them")
        align_features(generator, made, recipe, len(self.classes), self._seed(27), verbose)

    def _clean_images(self, generator, shares, transfer, train, valid, verbose, watching):
        recipe = self.preset.conditional
        steps = recipe.image_epochs * (len(train) // recipe.image_cells)
        model = ImageRemoval(generator, shares, self.preset, steps, seed=self._seed(23))
        model.batch_effect.start_from_scales(np.log(transfer.scales))
        stage = _Stage(
            self.folder / IMAGES, model, {"generator": generator}, recipe.image_epochs, last=True
        )
        change = transfer_at_random(transfer, shares, recipe)
        cells = recipe.image_cells
        self._fit_conditional(stage, change, cells, train, valid, verbose, watching)
        match_total_phase(generator, train, transfer.scales)

    def _learn_features(self, generator, shares, transfer, train, valid, verbose, watching):
        recipe = self.preset.conditional
        steps = recipe.feature_epochs * (len(train) // recipe.feature_cells)
        stage = _Stage(
            self.folder / "conditional",
            FeatureRemoval(generator, shares, self.preset, steps, seed=self._seed(25)),
            {"generator": generator},
            recipe.feature_epochs,
            last=True,
        )
        change = transfer_at_random(transfer, shares, recipe)
        cells = recipe.feature_cells
        return self._fit_conditional(stage, change, cells, train, valid, verbose, watching)

    def _fit_conditional(self, stage, change, minibatch, train, valid, verbose, watching):
        stage.model.compile()
        feed = Minibatches.of_cells(
            train,
            minibatch,
            seed=self._seed(4),
            first_epoch=stage.epochs_done,
            groups=train.batch_codes * len(self.classes) + train.class_codes,
            change=change,
        )
        valid_feed = Minibatches.of_cells(valid, VALIDATION_BATCH, shuffle=False)
        reseed = ReseedDropout(stage.model.seed_generators, self._seed(5))
        return stage.fit(feed, valid_feed, verbose, [reseed], watching)

    def removal_model(self):
        """Put together the published recipe as it begins: what `remove_batches` then trains.

        Returns
        -------
        BatchRemoval
            With the pretrained generator and discriminator, the fitted classifiers, and batch
            MLPs that have learned nothing yet (see `RefitBatchMLPs`).

        Raises
        ------
        RunError
            If pretraining or a classifier has no finished epoch.
        """
        classifiers = self._new_classifiers()
        for job in classifiers.jobs(self.preset):
            name = job.classifier.name
            self._load(f"classifiers/{name}", name, job.classifier)
        precision = self.preset.precision
        model = BatchRemoval(
            self._load("pretraining", "generator", self._new_generator(precision)),
            self._load("pretraining", "discriminator", self._new_discriminator(precision)),
            classifiers,
            self.preset,
        )
        model.compile()
        return model

    def own_verdict(self, cells):
        """Ask the published recipe's own batch classifiers what they make of cells, in the end.

        Parameters
        ----------
        cells : CellImages or CellFiles

        Returns
        -------
        Series
            For the batch CNN and each batch MLP, the share of cells that it calls "first batch".
            All near 1 means that they are fooled. It does not mean that the batch is gone.

        Raises
        ------
        RunError
            If batch removal has no finished epoch.
        """
        last = int(self._finished_history("published")["epoch"].iloc[-1])
        model = self.removal_model()
        load_run_weights(model, self.folder / "published" / _weights_name("checkpoint", last))
        made = generate(model.generator, cells)
        verdicts = {"batch_cnn": model.batch_cnn.predict(made["images"], verbose=0)}
        for number, mlp in enumerate(model.batch_mlps):
            seen = keras.ops.convert_to_numpy(model.features_of_mlp(made["features"], number))
            verdicts[mlp.name] = mlp.predict(seen, verbose=0)
        return pd.Series(
            {
                name: np.mean(probabilities.argmax(axis=1) == model.fake_batch)
                for name, probabilities in verdicts.items()
            }
        )

    def copy_networks(self, folder, judges=True):
        """Copy what predicting needs into another folder: small enough to be handed on.

        Settings, losses, and of each stage the networks that are kept, without the checkpoints.
        The weights are rounded to seven bits behind the point, as in bfloat16; that changes a phase
        by some 0.01 rad. What erases directions of the features stays exact. A copy can be opened
        and predicted with; a stage that was finished can be built upon, one that was not cannot be
        resumed.

        Parameters
        ----------
        folder : path
            New, or empty.
        judges : bool
            Whether to copy the discriminators and the classifiers, too.

        Returns
        -------
        Run

        Raises
        ------
        RunError
            If the folder holds something.
        """
        folder = Path(folder)
        _check_new(folder)
        for path in sorted(self.folder.rglob("*")):
            copy = folder / path.relative_to(self.folder)
            if path.name in (SETTINGS, HISTORY):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            elif path.name.endswith(".weights.h5") and self._is_handed_on(path, judges):
                copy.parent.mkdir(parents=True, exist_ok=True)
                _copy_rounded(path, copy)
        return Run.open(folder)

    def branch(self, folder, cells, preset=None):
        """Start another run that goes on from this one's pretraining and classifiers.

        Their losses and networks are copied, so batch removal can be tried with other settings or
        on other cells without training all that again.

        Parameters
        ----------
        folder : path
            New, or empty.
        cells : CellImages or CellFiles
            What batch removal will learn from.
        preset : Preset, optional
            By default that of this run. Size and width of the networks must be the same.

        Returns
        -------
        Run
            Its seed is that of this run. `run.json` says under `pretrained` what cells the
            pretraining saw.

        Raises
        ------
        RunError
            If the folder holds something, the pretraining is not finished, or preset or cells do
            not fit the networks.
        """
        folder, preset = Path(folder), preset or self.preset
        _check_new(folder)
        self._check_pretrained()
        self._check_labels(cells)
        if preset.image_network != self.preset.image_network:
            raise RunError(
                f"The preset asks for networks of {preset.image_network}. Expected "
                f"{self.preset.image_network}, as the run in {self.folder} has; change other "
                "settings only, or pretrain anew."
            )
        done = len(self.history("pretraining"))
        settings = self.settings | {
            "preset": replace(preset, pretraining_epochs=done).as_dict(),
            "training_cells": _count_cells(cells.labels),
            "pretrained": self.settings["training_cells"],
            "versions": versions(),
        }
        for part in ("pretraining", "classifiers"):
            if (self.folder / part).is_dir():
                # What is left out is for resuming, and both are finished.
                leave = shutil.ignore_patterns("checkpoint_*")
                shutil.copytree(self.folder / part, folder / part, ignore=leave)
        write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return Run.open(folder)

    def generator(self, stage):
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
            return self._load(stage, "generator", self._new_generator())
        generator = self._new_conditional_generator()
        if (self.folder / stage / ERASED).exists():
            load_run_weights(generator, self.folder / stage / ERASED)
            return generator
        return self._load(stage, "generator", generator)

    def discriminator(self, stage="pretraining"):
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
        return self._load(stage, "discriminator", self._new_discriminator())

    def history(self, stage):
        """Read the losses per epoch of a stage, as a DataFrame (empty before the first)."""
        return read_history(self.folder / stage)

    def training_seconds(self, stage):
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

    def was_trained_on(self, labels):
        """Say whether cells of these labels are as many per batch and class as were trained on."""
        return _count_cells(labels) == self.settings["training_cells"]

    def best_epoch(self, stage):
        """Return the epoch, counted from 1, that is kept.

        The one of the lowest validation loss; of the conditional recipe the last, as its loss is
        what its adversaries happen to see, and low as long as they have learned nothing.
        """
        return best_epoch(self._finished_history(stage), stage in LAST)

    def stages(self):
        """List the stages that have a generator to load."""
        return [stage for stage in STAGES if len(self.history(stage))]

    def last_stage(self):
        """Return the stage whose generator is the most processed one that is there.

        Raises
        ------
        RunError
            If there is none.
        """
        if not self.stages():
            raise RunError(f"{self.folder} has no trained stage. Train it first.")
        return self.stages()[-1]

    def _is_handed_on(self, path, judges):
        """Say whether a file of weights is part of a copy."""
        if path.name.startswith("checkpoint") or path.parent == self.folder / IMAGES:
            return False
        if path.name.startswith("generator"):
            # Where there is an erased one, that is the stage's generator.
            return path.name == ERASED or not (path.parent / ERASED).exists()
        return judges

    def _fit_on_cells(self, stage, train, valid, verbose, callbacks=(), watching=()):
        feed = Minibatches.of_cells(
            train,
            self.preset.batch_size,
            seed=self._seed(1),
            first_epoch=stage.epochs_done,
        )
        at_once = self.devices.evaluation_minibatch(len(valid), VALIDATION_BATCH)
        valid_feed = Minibatches.of_cells(valid, at_once, shuffle=False)
        self.devices.drop_differently(stage.model.generator)
        reseed = ReseedDropout(stage.model.generator, self._seed(2))
        callbacks = [reseed, *callbacks]
        return stage.fit(feed, valid_feed, verbose, callbacks, watching, self.devices)

    @property
    def _image_network(self):
        return self.preset.image_network | {"channels": self.channels}

    def _new_generator(self, precision="float32"):
        return self._build(build_generator, 20, precision)

    def _new_conditional_generator(self, precision="float32"):
        build = partial(build_conditional_generator, blur=self.preset.conditional.blur)
        return self._build(build, 24, precision)

    def _new_discriminator(self, precision="float32"):
        return self._build(build_discriminator, 21, precision)

    def _build(self, build, purpose, precision):
        # To learn, a network is built in the preset's precision; to predict, in float32.
        with computing_in(precision):
            return build(**self._image_network, seed=self._seed(purpose))

    def _new_classifiers(self):
        return Classifiers.build(
            len(self.batches), len(self.classes), self.preset, seed=self._seed(22)
        )

    def _seed(self, purpose):
        """Return a seed of its own for every use of chance, all from the run's seed."""
        return int(np.random.SeedSequence([self.seed, purpose]).generate_state(1)[0])

    def _load(self, stage, name, network):
        best = best_epoch(self._finished_history(stage), stage in LAST)
        load_run_weights(network, self.folder / stage / _weights_name(name, best))
        return network

    def _finished_history(self, stage):
        history = self.history(stage)
        if not len(history):
            raise RunError(
                f"{self.folder / stage} has no finished epoch. Expected a trained stage, and found "
                f"{', '.join(self.stages()) or 'none'}; choose one of these, or train it first."
            )
        return history

    def _check_pretrained(self):
        done, wanted = len(self.history("pretraining")), self.preset.pretraining_epochs
        if done < wanted:
            raise RunError(
                f"{self.folder / 'pretraining'} has {done} finished epochs. Expected all {wanted} "
                "before anything is built on them; call `pretrain` first, it goes on from there."
            )

    def _check_cells(self, cells):
        self._check_labels(cells)
        if not self.was_trained_on(cells.labels):
            raise RunError(
                f"The training cells differ in number from those that the run in {self.folder} "
                "was started with. Load the same cells, or start a run in another folder."
            )

    def _check_labels(self, cells):
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


def check_recipes(recipes):
    """Refuse recipes of batch removal that there are not.

    Raises
    ------
    RunError
        Names those there are.
    """
    for recipe in recipes:
        if recipe not in RECIPES:
            raise RunError(f"There is no recipe {recipe!r}. Expected one of {', '.join(RECIPES)}.")


def check_devices(recipe, devices):
    """Refuse several devices for a recipe that they cannot share.

    The adversaries of the conditional recipe compare the cells of a minibatch with one another and
    with those remembered; parts of a minibatch, each by itself, are not the same.

    Raises
    ------
    DevicesError
    """
    if recipe == "conditional" and len(devices) > 1:
        raise DevicesError(
            f"The conditional recipe is trained on one device, there are {len(devices)}: its "
            "adversaries need the whole minibatch. Train with the published recipe only, then call "
            "again with one device for the conditional one; it goes on with the same pretraining."
        )


def check_enough_cells(recipe, preset, n):
    """Refuse fewer training cells than a recipe takes in one step.

    Parameters
    ----------
    recipe : {"published", "conditional"}
    preset : Preset
    n : int
        Number of training cells.

    Raises
    ------
    RunError
    """
    needed = max(preset.conditional.image_cells, preset.conditional.feature_cells)
    if recipe == "conditional" and n < needed:
        raise RunError(
            f"There are {n} training cells. Expected at least {needed}, "
            "which the conditional recipe takes in one step; load more cells per group, or train "
            "with the published recipe only."
        )


class _Stage:
    """One model fitted into one folder: epochs are kept, resumed, and the best one restored."""

    def __init__(self, folder, model, networks, epochs, last=False):
        self.folder = Path(folder)
        self.last = last  # keep the last epoch, not the one of the lowest validation loss
        self.model = model
        self.networks = networks
        self.epochs = epochs
        self.epochs_done = len(read_history(self.folder))

    def fit(self, feed, valid_feed, verbose=0, callbacks=(), watching=(), devices=ONE):
        if devices.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
        if 0 < self.epochs_done < self.epochs:
            say(verbose, f"Going on after epoch {self.epochs_done} of {self.epochs}")
            load_run_weights(
                self.model, self.folder / _weights_name("checkpoint", self.epochs_done)
            )
        if self.epochs_done < self.epochs:
            with _kept_in(self.folder, devices) as folder:
                keep = _KeepEpoch(self, folder)
                self._fit(feed, valid_feed, verbose, [*callbacks, keep, *watching])
        devices.wait()  # until the last epoch is written
        history = read_history(self.folder)
        best = best_epoch(history, self.last)
        for name, network in self.networks.items():
            load_run_weights(network, self.folder / _weights_name(name, best))
        return history

    def _fit(self, feed, valid_feed, verbose, callbacks):
        try:
            self.model.fit(
                feed,
                validation_data=valid_feed,
                initial_epoch=self.epochs_done,
                epochs=self.epochs,
                shuffle=False,  # the feed does, by the run's seed
                verbose=verbose,
                callbacks=callbacks,
            )
        except Exception as error:
            # A damaged file, in the words of whoever met it, not in those of the engine.
            raise feed.error or valid_feed.error or error from None


@contextmanager
def _kept_in(folder, devices):
    """Give the folder for the epochs: of machines that write nothing one that is thrown away.

    They have to save, too: to read the metrics, all machines must add up theirs.
    """
    if devices.writes:
        yield folder
        return
    with tempfile.TemporaryDirectory() as thrown_away:
        yield Path(thrown_away)


class _KeepEpoch(keras.callbacks.Callback):
    """Write an epoch's checkpoint, its networks if they are the best so far, then its losses."""

    def __init__(self, stage, folder):
        super().__init__()
        self.stage = stage
        self.folder = folder

    def on_train_begin(self, logs=None):
        self.since = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        number, folder = epoch + 1, self.folder
        row = {"epoch": number} | {name: float(value) for name, value in logs.items()}
        # Since the last epoch's end: what other callbacks do before an epoch is training, too.
        now = time.perf_counter()
        row[SECONDS], self.since = round(now - self.since, 3), now
        if not np.isfinite(list(row.values())).all():
            raise RunError(
                f"A loss became infinite or not a number in epoch {number}: {row}. The run in "
                f"{folder} holds the epochs before; lower the learning rates, or check the "
                "images' units with `check`."
            )
        history = pd.concat([read_history(folder), pd.DataFrame([row])], ignore_index=True)
        best = best_epoch(history, self.stage.last)
        _save_weights(self.model, folder / _weights_name("checkpoint", number))
        if best == number:
            with self.model.delivered() if self.stage.last else nullcontext():
                for name, network in self.stage.networks.items():
                    _save_weights(network, folder / _weights_name(name, number))
        write_table(history, folder / HISTORY, index=False)
        self._forget_others(number, best)

    def _forget_others(self, last, best):
        keep = dict.fromkeys(self.stage.networks, best) | {"checkpoint": last}
        for name, epoch in keep.items():
            # What this class wrote, and no file of the user's.
            for path in self.folder.glob(f"{name}_{'[0-9]' * 6}.weights.h5"):
                if path.name != _weights_name(name, epoch):
                    path.unlink()


def _weights_name(name, epoch):
    return f"{name}_{epoch:06d}.weights.h5"


def _save_weights(model, path):
    file = FileInMemory(path)
    model.save_weights(file)
    file.save()


def _check_no_stages(folder):
    """Refuse what a training left whose settings are lost: nobody knows what it was trained on."""
    there = [folder / name for name in (*STAGES, "classifiers") if (folder / name).exists()]
    if there:
        raise RunError(
            f"{there[0]} is of a training, and {folder} has no {SETTINGS} that says of which. "
            f"Expected both or none; restore {SETTINGS}, remove the folders of the stages, or give "
            "another folder."
        )


def _check_new(folder):
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already. Expected a new folder; give another name.")


def _copy_rounded(path, copy):
    """Copy a file of weights, rounded and compressed."""
    check_run_weights(path)
    file = FileInMemory(copy)
    with h5py.File(path) as old, h5py.File(file, "w") as new:

        def add(name, item):
            if isinstance(item, h5py.Group):
                target = new.require_group(name)
            elif _may_be_rounded(item) and not (path.name == ERASED and item.ndim == 2):
                # The linear map that erases directions stays exact: of a rounded one, so much of
                # them is left that a probe can read the batch there.
                numbers = _rounded(item[()])
                target = new.create_dataset(name, data=numbers, compression="gzip", shuffle=True)
            else:
                target = new.create_dataset(name, data=item[()])
            target.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(add)
    file.save()


def _may_be_rounded(item):
    return item.ndim and item.dtype == "float32" and np.abs(item[()]).max() < HALF_MAX


def _rounded(numbers):
    """Return float16 with the last three bits zero: what is alike compresses well."""
    bits = numbers.astype("float16").view("uint16")
    # Half a step is added first, so that cutting rounds; a carry into the exponent is right, too.
    return ((bits + 4) & np.uint16(0xFFF8)).view("float16")


def _count_cells(labels):
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


def say(verbose, text):
    """Print a line at once, unless `verbose` is 0."""
    if verbose:
        print(text, flush=True)
