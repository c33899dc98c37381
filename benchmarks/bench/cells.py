"""Cells and files to work on, of any size and number, made in no time."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.write import round_to_step

DISTINCT = 8  # cells that are simulated for each file; turned and shifted, they fill it


@lru_cache(maxsize=2)  # both sides work on the same ones
def make_cells(size, n, groups):
    """Make n cells of each group of the lung dataset, or of the first so many groups.

    Parameters
    ----------
    size : int
        Pixels along each side.
    n : int
    groups : int or None

    Returns
    -------
    CellImages
    """
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
