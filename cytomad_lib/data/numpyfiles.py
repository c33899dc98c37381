"""Reading `.npy` files: the part of it that runs in the child process, see `reader`.

Arrays of Python objects are refused: a file with them runs code when it is opened.
"""

import math
from pathlib import Path

import numpy as np

from cytomad_lib.data import stacks

NAME = "a"  # how messages call the array


def stack(path, variable=None, axes=None, tile=None, cells=(), shape=None):
    """Read an image stack: see `stacks.read_cells`."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        lengths, _, dtype = read(file)
        stacks.check_dtype(path, NAME, dtype)
        declared = math.prod(lengths) * dtype.itemsize
        if declared > Path(path).stat().st_size - file.tell():
            stacks.refuse_size(path, "it", declared, Path(path).stat().st_size - file.tell())
    stored = stacks.Stored(np.load(path, mmap_mode="r", allow_pickle=False), NAME)
    yield from stacks.read_cells(
        path, stored, stacks.find_axes(path, stored, axes, tile), tile, cells, shape
    )
