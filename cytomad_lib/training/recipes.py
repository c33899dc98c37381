"""Train a run, stage by stage: pretraining, classifiers, batch removal.

Example
-------
>>> run = Run.create("results/run", DEMO, train_cells, "lung", seed=0)
>>> pretrain(run, train_cells, valid_cells)
>>> fit_classifiers(run, train_cells, valid_cells)
>>> remove_batches(run, train_cells, valid_cells, recipe="published")
>>> generator = run.generator("published")
"""

import shutil
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeVar

import numpy as np
import pandas as pd

from cytomad_lib.backend import keras
from cytomad_lib.data.cells import CellFiles, CellImages, check_trainable
from cytomad_lib.data.errors import RunError
from cytomad_lib.devices import DevicesError
from cytomad_lib.prediction import generate
from cytomad_lib.runs import GENERATED, LAST, RECIPES, Run, weights_name
from cytomad_lib.training.batch_removal import (
    FITTED_ONCE,
    BatchRemoval,
    Classifiers,
    RefitBatchMLPs,
    compile_classifier,
)
from cytomad_lib.training.minibatches import Minibatches, ReseedDropout
from cytomad_lib.training.pix2pix import Pix2Pix
from cytomad_lib.training.stages import Stage, say
from cytomad_lib.weights import load_run_weights

VALIDATION_BATCH = 100  # cells per minibatch where nothing is trained
Training = TypeVar("Training", bound=Callable)


def holding_the_folder(train: Training) -> Training:
    """Run a training only while no other one uses the run's folder."""

    @wraps(train)
    def held(run, *arguments, **options):
        with run.held():
            return train(run, *arguments, **options)

    return held  # type: ignore[return-value]  # it takes what `train` takes


@holding_the_folder
def pretrain(
    run: Run,
    train: CellImages | CellFiles,
    valid: CellImages | CellFiles,
    verbose: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> pd.DataFrame:
    """Stage 1: pix2pix, to the end of the preset's epochs.

    Parameters
    ----------
    run : Run
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
    run.check_cells(train)
    run.devices.check_minibatch(run.preset.batch_size, "The preset")
    with run.devices.scope():
        generator = run.new_generator(run.preset.precision)
        discriminator = run.new_discriminator(run.preset.precision)
        model = Pix2Pix(generator, discriminator, run.preset)
        model.compile()
    stage = _stage(run, "pretraining", model, run.preset.pretraining_epochs)
    return _fit_on_cells(run, stage, train, valid, verbose, watching=callbacks)


@holding_the_folder
def fit_classifiers(
    run: Run, train: CellImages | CellFiles, valid: CellImages | CellFiles, verbose: int = 0
) -> dict[str, pd.DataFrame]:
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
    run.check_cells(train)
    run.check_pretrained()
    if not run.devices.writes:
        run.devices.wait()  # for the first machine, which fits them
        return {name: run.history(f"classifiers/{name}") for name in FITTED_ONCE}
    try:
        histories = _fit_on_generated(run, train, valid, verbose)
    finally:
        shutil.rmtree(run.folder / GENERATED, ignore_errors=True)
    run.devices.wait()
    return histories


def _fit_on_generated(run, train, valid, verbose):
    generator = run.generator("pretraining")
    made = []
    for name, cells in (("train", train), ("valid", valid)):
        # What was too large to be loaded is too large when generated.
        file = run.folder / GENERATED / f"{name}.npy"
        images = file if isinstance(cells, CellFiles) else True
        made.append((cells, generate(generator, cells, images=images)))
    classifiers, histories = _new_classifiers(run), {}
    for name, (inputs, codes, rate) in FITTED_ONCE.items():
        classifier = getattr(classifiers, name)
        compile_classifier(classifier, getattr(run.preset, rate), run.preset)
        say(verbose, f"Fitting {name} on generated {inputs}")
        folder = run.folder / "classifiers" / name
        stage = Stage(folder, classifier, {name: classifier}, run.preset.classifier_epochs)
        feeds = [
            Minibatches.of_arrays(
                found[inputs],
                found[codes],
                run.preset.classifier_batch_size,
                getattr(cells, "file_codes", None),
                seed=run.seed_for(f"{name}_order"),
                first_epoch=stage.epochs_done,
                shuffle=cells is train,
            )
            for cells, found in made
        ]
        histories[name] = stage.fit(*feeds, verbose=verbose)
    return histories


@holding_the_folder
def remove_batches(
    run: Run,
    train: CellImages | CellFiles,
    valid: CellImages | CellFiles,
    verbose: int = 0,
    recipe: str = "published",
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> pd.DataFrame:
    """Stage 3: batch removal by one of the recipes.

    Parameters and return value as in `pretrain` (of the conditional recipe, callbacks watch
    both parts, one after the other), and

    Parameters
    ----------
    recipe : {"published", "conditional"}
        See `training.batch_removal` and `conditional.recipe`. Both begin with the
        pretrained generator; only the published one needs `fit_classifiers`.
    """
    check_recipes([recipe])
    check_trainable(train.labels)
    run.check_cells(train)
    run.check_pretrained()
    if recipe == "published":
        return _remove_as_published(run, train, valid, verbose, callbacks)
    from cytomad_lib.conditional.recipe import remove_batches as remove_conditionally

    check_devices("conditional", run.devices)
    check_enough_cells("conditional", run.preset, len(train))
    return remove_conditionally(run, train, valid, verbose, callbacks)


def _remove_as_published(run, train, valid, verbose, watching):
    run.devices.check_minibatch(run.preset.batch_size, "The preset")
    with run.devices.scope():
        model = removal_model(run)
    stage = _stage(run, "published", model, run.preset.removal_epochs)
    refit = RefitBatchMLPs(train, seed=run.seed_for("refit"), verbose=verbose)
    return _fit_on_cells(run, stage, train, valid, verbose, [refit], watching)


def removal_model(run):
    """Build the published recipe as it begins: what `remove_batches` then trains.

    Parameters
    ----------
    run : Run

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
    classifiers = _new_classifiers(run)
    for name in FITTED_ONCE:
        run.load(f"classifiers/{name}", name, getattr(classifiers, name))
    precision = run.preset.precision
    model = BatchRemoval(
        run.load("pretraining", "generator", run.new_generator(precision)),
        run.load("pretraining", "discriminator", run.new_discriminator(precision)),
        classifiers,
        run.preset,
    )
    model.compile()
    return model


def classifier_scores(run, cells):
    """Score cells by the published recipe's own batch classifiers, as they are in the end.

    Parameters
    ----------
    run : Run
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
    last = run.best_epoch("published")
    model = removal_model(run)
    load_run_weights(model, run.folder / "published" / weights_name("checkpoint", last))
    made = generate(model.generator, cells)
    probabilities_of = {"batch_cnn": model.batch_cnn.predict(made["images"], verbose=0)}
    for number, mlp in enumerate(model.batch_mlps):
        inputs = keras.ops.convert_to_numpy(model.features_of_mlp(made["features"], number))
        probabilities_of[mlp.name] = mlp.predict(inputs, verbose=0)
    return pd.Series(
        {
            name: np.mean(probabilities.argmax(axis=1) == model.fake_batch)
            for name, probabilities in probabilities_of.items()
        }
    )


def _stage(run, folder, model, epochs):
    """Return the stage that trains a generator and its discriminator."""
    networks = {"generator": model.generator, "discriminator": model.discriminator}
    return Stage(run.folder / folder, model, networks, epochs, last=folder in LAST)


def _fit_on_cells(run, stage, train, valid, verbose, callbacks=(), watching=()):
    feed = Minibatches.of_cells(
        train,
        run.preset.batch_size,
        seed=run.seed_for("cell_order"),
        first_epoch=stage.epochs_done,
    )
    at_once = run.devices.evaluation_minibatch(len(valid), VALIDATION_BATCH)
    valid_feed = Minibatches.of_cells(valid, at_once, shuffle=False)
    run.devices.drop_differently(stage.model.generator)
    reseed = ReseedDropout(stage.model.generator, run.seed_for("dropout"))
    callbacks = [reseed, *callbacks]
    return stage.fit(feed, valid_feed, verbose, callbacks, watching, run.devices)


def _new_classifiers(run):
    return Classifiers.build(
        len(run.batches), len(run.classes), run.preset, seed=run.seed_for("classifiers")
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
