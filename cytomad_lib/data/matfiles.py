"""Reading and writing stacks of cell images in MATLAB ``.mat`` files.

The published data are MATLAB v7.3 files, which are HDF5 with the axes reversed: MATLAB's
``height x width x cells`` lies on disk as ``(cells, width, height)``. So a few cells can be read
without the rest (`hdf5`, in a process of its own: `reader`). Older v5 files are read from the
beginning to the end (`mat5`).

A ``.mat`` file may come from anywhere. Before anything is allocated, its declared size is held
against what the file really stores, and links out of the file are refused.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from cytomad_lib.data.matfiles import inspect_mat, read_mat, write_mat
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "H69_BF.mat"
    >>> write_mat(path, {"BF": np.ones((8, 8, 5), "float32")})  # height, width, cells
    >>> inspect_mat(path, "BF").shape
    (8, 8, 5)
    >>> read_mat(path, "BF", cells=[4, 0]).shape  # cells, height, width
    (2, 8, 8)
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from cytomad_lib.data import hdf5, mat5
from cytomad_lib.data.errors import MatFileError
from cytomad_lib.data.files import FileInMemory, named_write_errors, written_beside
from cytomad_lib.data.reader import ask, first_bytes
from cytomad_lib.data.stacks import MATLAB_CLASSES

# The first 128 bytes of a MATLAB file: text, 8 zeros, version and byte order. MATLAB puts the
# date and the machine into the text; we do not, so that the same data give the same bytes.
HEADER_73 = (
    b"MATLAB 7.3 MAT-file, written by cytomad_lib HDF5 schema 1.00 .".ljust(116)
    + bytes(8)
    + b"\x00\x02IM"
)
HEADER_TEXT_5 = b"MATLAB 5.0 MAT-file, written by cytomad_lib".ljust(116)
MARKS_5 = (b"\x00\x01IM", b"\x01\x00MI")
MARKS_73 = (b"\x00\x02IM", b"\x02\x00MI")
USER_BLOCK = 512  # bytes before the HDF5 part

CHUNK_BYTES = 64 * 1024  # one 128 x 128 cell in float32
HDF5_START = b"\x89HDF\r\n\x1a\n"
EXPECTED_73 = "MATLAB v7.3 file (HDF5)"


@dataclass(frozen=True)
class MatInfo:
    """What an image stack in a ``.mat`` file declares: known without reading its pixels."""

    path: Path
    variable: str
    shape: tuple[int, int, int]  # height, width, cells
    dtype: str
    version: str  # "7.3" or "5"


# --- Reading ---------------------------------------------------------------------------------


def inspect_mat(path, variable):
    """Check a ``.mat`` file and say what it holds, without reading the pixels.

    Parameters
    ----------
    path : path
        A MATLAB v7.3 or v5 file.
    variable : str
        Name of the image stack in it, ``"BF"`` or ``"QPI"``.

    Returns
    -------
    MatInfo

    Raises
    ------
    MatFileError
        If the file is missing, damaged or unsafe, or the variable is not a real numeric array of
        height x width x cells.
    """
    path = Path(path)
    try:
        found = path.stat()
    except OSError:
        return _inspect(path, variable)  # which says what is wrong
    return _inspect(path, variable, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)  # a training reads the same files again and again
def _inspect(path, variable, *_state):
    version = _find_version(path)
    if version == "5":
        shape, dtype = mat5.inspect(path, variable)
    else:
        found, _ = ask(hdf5.stack, path, MatFileError, EXPECTED_73, variable=variable)
        shape, dtype = found["shape"], found["dtype"]
    return MatInfo(path, variable, tuple(shape), dtype, version)


def read_mat(path, variable, cells=None, out=None):
    """Read cells of an image stack.

    Of a v7.3 file only the asked cells are read; a v5 file is always read as a whole.

    Parameters
    ----------
    path : path
        A MATLAB v7.3 or v5 file.
    variable : str
        Name of the image stack in it, ``"BF"`` or ``"QPI"``.
    cells : slice or array of int, optional
        Which cells, in any order; all by default.
    out : float32 array (cells, height, width), optional
        Where to put them, to save a copy.

    Returns
    -------
    float32 array (cells, height, width)

    Raises
    ------
    MatFileError
        As `inspect_mat`; also if a cell is asked that the file does not have, or if a pixel
        that was read is NaN or infinite.
    """
    info = inspect_mat(path, variable)
    height, width, n_cells = info.shape
    wanted = _cell_numbers(info, cells, n_cells)
    shape = (len(wanted), height, width)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.dtype} {out.shape}; expected float32 {shape}.")

    if info.version == "5":
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite
            mat5.read(info.path, variable, wanted, out)
    elif len(wanted):
        _read_v73(info, wanted, out)
    _refuse_non_finite(info, wanted, out)
    return out


def _read_v73(info, wanted, out):
    """Read cells in the child, directly into `out` where it is contiguous."""
    target = out if out.flags.c_contiguous else np.empty(out.shape, np.float32)
    ask(
        hdf5.stack,
        info.path,
        MatFileError,
        EXPECTED_73,
        out=target,
        n_bytes=math.prod(info.shape) * np.dtype(info.dtype).itemsize,
        variable=info.variable,
        cells=wanted.tolist(),
        shape=info.shape,
    )
    if target is not out:
        out[...] = target


def _find_version(path):
    """Return "7.3" or "5" from the file's first bytes."""
    start = first_bytes(path, 2**13, MatFileError, "a .mat file")
    mark = start[124:128]
    if mark in MARKS_5:
        return "5"
    # An HDF5 file without MATLAB's header is let through here: what matters is checked inside.
    if mark in MARKS_73 or HDF5_START in (start[place : place + 8] for place in (0, 512, 1024)):
        return "7.3"
    raise MatFileError(
        f"{path} does not start like a .mat file. Expected MATLAB v7.3 or v5; if it is one that "
        "was not fully downloaded, get it again, else save it from MATLAB with "
        "save(..., '-v7.3')."
    )


def _cell_numbers(info, cells, n_cells):
    if cells is None:
        return np.arange(n_cells)
    if isinstance(cells, slice):
        return np.arange(n_cells)[cells]
    cells = np.asarray(cells)
    if cells.size == 0:
        return np.zeros(0, int)
    if cells.ndim != 1 or cells.dtype.kind not in "iu":
        raise ValueError(
            f"cells is {cells.dtype} {cells.shape}; expected a slice or a list of cell numbers."
        )
    if cells.min() < 0 or cells.max() >= n_cells:
        raise MatFileError(
            f"{info.path}: cells {cells.min()} to {cells.max()} were asked, but '{info.variable}'"
            f" has {n_cells}. Expected numbers from 0 to {n_cells - 1}; ask for fewer cells."
        )
    return cells.astype(int)


def _refuse_non_finite(info, wanted, images):
    bad_in_cell = np.array([image.size - np.isfinite(image).sum() for image in images], int)
    if bad_in_cell.any():
        first = 1 + wanted[np.flatnonzero(bad_in_cell)[0]]
        raise MatFileError(
            f"{info.path}: {bad_in_cell.sum()} pixels of '{info.variable}' in "
            f"{np.count_nonzero(bad_in_cell)} of the {len(wanted)} cells read are NaN or infinite,"
            f" first in cell {first}, counted from 1 as MATLAB does. Expected finite numbers; "
            "leave these cells out or mend them, in all files of the group."
        )


# --- Writing ---------------------------------------------------------------------------------


def write_mat(path, arrays, version="7.3"):
    """Write arrays into a ``.mat`` file; the same arrays always give the same bytes.

    The file appears under its name only when it is complete. Its folder is made if needed.

    Parameters
    ----------
    path : path
        Where to write; a file that is there is replaced.
    arrays : dict of str to array
        Variables by name, in MATLAB's order of axes: height x width x cells for an image stack.
        Two or more axes; float32, float64 or integers.
    version : "7.3" or "5"
        MATLAB file format. Only "7.3" can later be read in part.

    Raises
    ------
    MatFileError
        If a name is not a MATLAB variable name, or an array is of another type or empty.
    WriteError
        If the file cannot be written.
    """
    path = Path(path)
    if version not in ("7.3", "5"):
        raise ValueError(f"version is {version!r}; expected '7.3' or '5'.")
    arrays = {name: _checked_for_writing(path, name, array) for name, array in arrays.items()}
    write = _write_v73 if version == "7.3" else _write_v5
    with named_write_errors(path):
        write(path, arrays)


def _checked_for_writing(path, name, array):
    if not (name.isascii() and name.isidentifier() and name[0] != "_" and len(name) <= 63):
        raise MatFileError(
            f"{path}: cannot write a variable named {name!r}. Expected a MATLAB name: "
            "a letter, then letters, digits or _, 63 at most."
        )
    array = np.asarray(array)
    if array.dtype.name not in MATLAB_CLASSES:
        raise MatFileError(
            f"{path}: cannot write '{name}' of type {array.dtype}. Expected float32, float64 or "
            "integers; convert it, for example with .astype('float32')."
        )
    if array.ndim < 2 or array.size == 0:
        raise MatFileError(
            f"{path}: cannot write '{name}' of shape {array.shape}. Expected two or more axes, "
            "none of them empty, as in MATLAB; reshape the array."
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _write_v73(path, arrays):
    image = FileInMemory(path)
    with h5py.File(image, "w", userblock_size=USER_BLOCK) as file:
        for name, array in arrays.items():
            reversed_axes = array.T
            row_bytes = math.prod(reversed_axes.shape[1:]) * array.dtype.itemsize
            rows = min(len(reversed_axes), max(1, CHUNK_BYTES // row_bytes))
            dataset = file.create_dataset(
                name,
                shape=reversed_axes.shape,
                dtype=array.dtype,
                chunks=(rows, *reversed_axes.shape[1:]),
                compression="gzip",
                compression_opts=4,
                shuffle=True,
                track_times=False,  # a time stamp would change the bytes
            )
            dataset.attrs["MATLAB_class"] = np.bytes_(MATLAB_CLASSES[array.dtype.name])
            # Chunk by chunk: putting the whole array in disk order would copy it.
            for start in range(0, len(reversed_axes), rows):
                dataset[start : start + rows] = reversed_axes[start : start + rows]
    image.seek(0)
    image.write(HEADER_73)
    image.save()


def _write_v5(path, arrays):
    import scipy.io  # takes long, and few need it

    # An open file, because SciPy would add ".mat" to the name.
    with written_beside(path) as beside, beside.open("wb") as file:
        scipy.io.savemat(file, arrays, format="5", do_compression=True)
        file.seek(0)
        file.write(HEADER_TEXT_5)  # over SciPy's text, which has the date in it
