"""Copies of a run: small ones to hand on, and branches that try another batch removal.

Example
-------
>>> small = copy_networks(Run.open("results/run"), "handed_on")
>>> other = branch(Run.open("results/run"), "results/other", train_cells, preset)
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from cytomad_lib.data.errors import RunError
from cytomad_lib.data.files import FileInMemory, write_text
from cytomad_lib.history import HISTORY
from cytomad_lib.runs import ALIGNED, IMAGES, SETTINGS, Run, count_cells, versions
from cytomad_lib.weights import check_run_weights

HALF_MAX = 6e4  # larger numbers have no half precision


def copy_networks(run, folder, judges=True):
    """Copy what predicting needs into another folder: small enough to be handed on.

    Settings, losses, and of each stage the networks that are kept, without the checkpoints.
    The weights are rounded to seven bits behind the point, as in bfloat16; that changes a phase
    by some 0.01 rad. A copy can be opened
    and predicted with; a stage that was finished can be built upon, one that was not cannot be
    resumed.

    Parameters
    ----------
    run : Run
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
    for path in sorted(run.folder.rglob("*")):
        copy = folder / path.relative_to(run.folder)
        if path.name in (SETTINGS, HISTORY):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        elif path.name.endswith(".weights.h5") and _is_handed_on(run, path, judges):
            _copy_rounded(path, copy)
    return Run.open(folder)


def branch(run, folder, cells, preset=None):
    """Start another run from this one's pretraining and classifiers.

    Their losses and networks are copied, so batch removal can be tried with other settings or
    on other cells without training all that again.

    Parameters
    ----------
    run : Run
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
    folder, preset = Path(folder), preset or run.preset
    _check_new(folder)
    run.check_pretrained()
    run.check_labels(cells)
    if preset.image_network != run.preset.image_network:
        raise RunError(
            f"The preset asks for networks of {preset.image_network}. Expected "
            f"{run.preset.image_network}, as the run in {run.folder} has; change other "
            "settings only, or pretrain anew."
        )
    done = len(run.history("pretraining"))
    settings = run.settings | {
        "preset": replace(preset, pretraining_epochs=done).as_dict(),
        "training_cells": count_cells(cells.labels),
        "pretrained": run.settings["training_cells"],
        "versions": versions(),
    }
    for part in ("pretraining", "classifiers"):
        if (run.folder / part).is_dir():
            # What is left out is for resuming, and both are finished.
            leave = shutil.ignore_patterns("checkpoint_*")
            shutil.copytree(run.folder / part, folder / part, ignore=leave)
    write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    return Run.open(folder)


def _is_handed_on(run, path, judges):
    """Say whether a file of weights is part of a copy."""
    if path.name.startswith("checkpoint") or path.parent == run.folder / IMAGES:
        return False
    if path.name.startswith("generator"):
        # Where there is an aligned one, that is the stage's generator.
        return path.name == ALIGNED or not (path.parent / ALIGNED).exists()
    return judges


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
            elif item.ndim and item.dtype == "float32" and np.abs(item[()]).max() < HALF_MAX:
                numbers = _rounded(item[()])
                target = new.create_dataset(name, data=numbers, compression="gzip", shuffle=True)
            else:
                target = new.create_dataset(name, data=item[()])
            target.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(add)
    file.save()


def _rounded(numbers):
    """Return float16 with the last three bits zero: what is alike compresses well."""
    bits = numbers.astype("float16").view("uint16")
    # Half a step is added first, so that cutting rounds; a carry into the exponent is right, too.
    return ((bits + 4) & np.uint16(0xFFF8)).view("float16")
