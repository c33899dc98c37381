"""Reading and writing stacks of cell images in MATLAB ``.mat`` files.

The published data are MATLAB v7.3 files, which are HDF5 with the axes reversed: MATLAB's
``height x width x cells`` lies on disk as ``(cells, width, height)``. So a few cells can be read
without the rest. Older v5 files are read from the beginning to the end (`mat5`).
`cytomad_lib.data.stackfiles` reads these and the other formats.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from cytomad_lib.data.matfiles import read_mat, write_mat
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "H69_BF.mat"
    >>> write_mat(path, {"BF": np.ones((8, 8, 5), "float32")})  # height, width, cells
    >>> read_mat(path, "BF", cells=[4, 0]).shape  # cells, height, width
    (2, 8, 8)
"""

import math
from pathlib import Path

import h5py
import numpy as np

from cytomad_lib.data.errors import ImageFileError
from cytomad_lib.data.files import FileInMemory, named_write_errors, written_beside
from cytomad_lib.data.stackfiles import inspect_stack, read_stack
from cytomad_lib.data.stacks import MATLAB_CLASSES

# The first 128 bytes of a MATLAB file: text, 8 zeros, version and byte order. MATLAB puts the
# date and the machine into the text; we do not, so that the same data give the same bytes.
HEADER_73 = (
    b"MATLAB 7.3 MAT-file, written by cytomad_lib HDF5 schema 1.00 .".ljust(116)
    + bytes(8)
    + b"\x00\x02IM"
)
HEADER_TEXT_5 = b"MATLAB 5.0 MAT-file, written by cytomad_lib".ljust(116)
USER_BLOCK = 512  # bytes before the HDF5 part

CHUNK_BYTES = 64 * 1024  # one 128 x 128 cell in float32


def read_mat(path, variable, cells=None):
    """Read cells of an image stack in a ``.mat`` file.

    Parameters
    ----------
    path : path
        A MATLAB v7.3 or v5 file.
    variable : str
        Name of the image stack in it, ``"BF"`` or ``"QPI"``.
    cells : slice or array of int, optional
        Which cells, in any order; all by default.

    Returns
    -------
    float32 array (cells, height, width)

    Raises
    ------
    ImageFileError
        As `stackfiles.read_stack`.
    """
    return read_stack(inspect_stack(path, variable), cells)


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
    ImageFileError
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
    array, what, expected = np.asarray(array), f"'{name}'", None
    if not (name.isascii() and name.isidentifier() and name[0] != "_" and len(name) <= 63):
        what = f"a variable named {name!r}"
        expected = "a MATLAB name: a letter, then letters, digits or _, 63 at most"
    elif array.dtype.name not in MATLAB_CLASSES:
        what += f" of type {array.dtype}"
        expected = "float32, float64 or integers; convert it, as with .astype('float32')"
    elif array.ndim < 2 or array.size == 0:
        what += f" of shape {array.shape}"
        expected = "two or more axes, none of them empty, as in MATLAB; reshape the array"
    if expected:
        raise ImageFileError(f"{path}: cannot write {what}. Expected {expected}.")
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
