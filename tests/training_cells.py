"""Tiny cells for tests of training: discs whose phase can be read off the brightfield image."""

import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.config import Conditional, Preset
from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.simulation.write import simulate_dataset

TINY = Preset(
    name="tiny",
    image_size=16,
    base_filters=4,
    batch_size=6,
    classifier_batch_size=12,
    pretraining_epochs=3,
    classifier_epochs=2,
    removal_epochs=3,
    refit_every=2,
    refit_epochs=3,
    norm_momentum=0.3,
    conditional=Conditional(
        image_epochs=2,
        feature_epochs=2,
        image_cells=4,
        feature_cells=8,
        adversary_steps=1,
        replay_buffer=24,
        replay_sample=24,
        alignment_steps=12,
    ),
)
ONE_EPOCH = replace(TINY, pretraining_epochs=1, classifier_epochs=1, removal_epochs=1)
GROUPS = ("Batch1/H69", "Batch3/H69", "Batch3/H520", "Batch6/H520")


def write_dataset(folder, test=8, groups=GROUPS):
    """Simulate a few cells of 16 x 16 pixels below `folder` and return it."""
    counts = {"Train": 6, "Valid": 3, "Test": test}
    simulate_dataset(folder, "lung", 16, counts, seed=1, groups=groups, progress=False)
    return folder


def make_cells(per_group=4, seed=0):
    """Return cells of two lines in two batches each; the batch changes the gain."""
    random = np.random.default_rng(seed)
    names = [("Batch1", "H69"), ("Batch3", "H69"), ("Batch3", "H520"), ("Batch6", "H520")]
    rows = [(*name, cell) for name in names for cell in range(per_group)]
    labels = pd.DataFrame(rows, columns=["batch", "class_name", "cell"])
    y, x = np.mgrid[:16, :16] - 7.5
    radius = np.where(labels["class_name"] == "H69", 3.5, 5.5) + random.normal(0, 0.3, len(rows))
    disc = np.clip(radius[:, None, None] - np.hypot(x, y), 0, 2)
    gain = np.where(labels["batch"] == "Batch3", 1.3, 0.8)[:, None, None]
    labels["batch"] = pd.Categorical(labels["batch"], categories=LUNG.batches)
    labels["class_name"] = pd.Categorical(labels["class_name"], categories=LUNG.classes)
    return CellImages(
        brightfield=(gain * (1 - 0.3 * disc))[..., None].astype("float32"),
        qpi=disc[..., None].astype("float32"),
        labels=labels,
        pixel_size_um=45 / 16,
    )


def environment_of_a_program(**changed):
    """Return the environment for a test that starts a program: it finds the library, too."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
    kept = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | changed


@contextmanager
def untraced_steps():
    """Train step by step, without tracing: for tests of what is done with a trained network.

    Tracing a training takes seconds, each of its steps a fraction of one. Trainings as they are
    traced for a user are tested in `test_pix2pix`, `test_batch_removal`,
    `test_conditional_training`, `test_runs`, and as a whole chain in `test_workflow`.
    """
    if "tensorflow" not in sys.modules:
        yield  # PyTorch never traces
        return
    config = sys.modules["tensorflow"].config
    config.run_functions_eagerly(True)
    try:
        yield
    finally:
        config.run_functions_eagerly(False)
