"""Reading and writing stacks of cell images in MATLAB ``.mat`` files.

The published data are MATLAB v7.3 files, which are HDF5 with the axes reversed: MATLAB's
``height x width x cells`` lies on disk as ``(cells, width, height)``. So a few cells can be read
without the rest. Older v5 files are read through SciPy, always as a whole.

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from cytomad_lib.data.errors import MatFileError
from cytomad_lib.data.files import FileInMemory, named_write_errors, written_beside

MATLAB_CLASSES = {
    "float32": "single",
    "float64": "double",
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
BYTES_OF_CLASS = {matlab: np.dtype(name).itemsize for name, matlab in MATLAB_CLASSES.items()}

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
READ_BYTES = 16 * 1024 * 1024  # read at a time, before conversion to float32

# gzip (deflate) cannot shrink more than about 1032-fold, so whatever declares more than this
# many times its stored bytes is damaged or malicious.
MOST_COMPRESSION = 1100

GET_AGAIN = "Copy or download the file again."


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
    version = _find_version(path)
    if version == "5":
        shape, dtype = _inspect_v5(path, variable)
    else:
        with _open_v73(path, variable) as dataset:
            shape, dtype = dataset.shape[::-1], str(dataset.dtype)
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

    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes inf, found below
        if info.version == "5":
            out[...] = _load_v5(info)[:, :, wanted].transpose(2, 0, 1)
        else:
            with _open_v73(info.path, variable) as dataset:
                _copy_cells(info, dataset, wanted, out)
    _refuse_non_finite(info, wanted, out)
    return out


def _find_version(path):
    """Return "7.3" or "5" from the file's first bytes."""
    if path.is_dir():
        raise MatFileError(f"{path} is a folder. Expected a .mat file; name a file in it.")
    if not path.exists():
        raise MatFileError(f"{path} does not exist. Expected a .mat file; check the path.")
    try:
        with path.open("rb") as file:
            mark = file.read(128)[124:]
    except OSError as error:
        raise MatFileError(
            f"{path} cannot be opened ({error.strerror}). Expected a readable .mat file; "
            "check its permissions."
        ) from error
    if path.stat().st_size == 0:
        raise MatFileError(f"{path} is empty (0 bytes). Expected a .mat file. {GET_AGAIN}")
    if mark in MARKS_5:
        return "5"
    # An HDF5 file without MATLAB's header is let through here: what matters is checked inside.
    if mark in MARKS_73 or h5py.is_hdf5(path):
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
        first = wanted[np.flatnonzero(bad_in_cell)[0]]
        raise MatFileError(
            f"{info.path}: {bad_in_cell.sum()} pixels of '{info.variable}' in "
            f"{np.count_nonzero(bad_in_cell)} of the {len(wanted)} cells read are NaN or infinite,"
            f" first in cell {first}. Expected finite numbers; leave these cells out or mend "
            "them, in both the BF and the QPI file."
        )


def _refuse_class(path, variable, matlab_class):
    if matlab_class not in BYTES_OF_CLASS:
        raise MatFileError(
            f"{path}: '{variable}' is of MATLAB class '{matlab_class}'. Expected real numbers "
            f"({', '.join(BYTES_OF_CLASS)}); convert it, for example with single(...)."
        )


def _refuse_complex(path, variable):
    raise MatFileError(
        f"{path}: '{variable}' holds complex numbers. Expected real numbers; "
        "save the phase (angle) or the intensity (abs)."
    )


def _refuse_missing_variable(path, variable, names):
    found = ", ".join(sorted(names)[:10]) or "none"
    raise MatFileError(
        f"{path} has no variable '{variable}'. Variables in it: {found}. "
        f"Expected '{variable}'; rename the variable and save the file again."
    )


def _refuse_shape(path, variable, shape):
    """Refuse what is not height x width x cells with at least one pixel and one cell."""
    text = " x ".join(str(length) for length in shape)
    if len(shape) == 3 and min(shape) > 0:
        return
    if len(shape) == 3:
        remedy = "save at least one cell."
    else:
        remedy = (
            "MATLAB drops the last axis of a stack with a single cell: give that file two or more"
            " cells, or write it with cytomad_lib.data.matfiles.write_mat."
        )
    raise MatFileError(
        f"{path}: '{variable}' has shape {text}. Expected height x width x cells, none of them "
        f"zero; {remedy}"
    )


def _refuse_size(path, variable, declared, stored):
    raise MatFileError(
        f"{path}: '{variable}' declares {declared:,} bytes, but the file stores only {stored:,} "
        f"for it. Expected a complete file; it is damaged or made to exhaust memory. {GET_AGAIN}"
    )


# --- MATLAB v7.3 (HDF5) ----------------------------------------------------------------------


@contextmanager
def _open_v73(path, variable):
    """Open the HDF5 dataset of an image stack, after every check that needs no pixels."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise MatFileError(
            f"{path} cannot be opened as HDF5: {error}. Expected a complete MATLAB v7.3 file; "
            f"it is damaged or cut short. {GET_AGAIN}"
        ) from error
    with file:
        try:
            _check_link(path, file, variable)
            dataset = file[variable]
            _check_type(path, dataset, variable)
            _refuse_shape(path, variable, dataset.shape[::-1])
            _check_storage(path, dataset, variable)
            yield dataset
        except MatFileError:
            raise
        except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:  # h5py's kinds
            raise MatFileError(
                f"{path}: '{variable}' cannot be read: {error}. Expected a complete MATLAB v7.3 "
                f"file; it is damaged or of an unknown kind. {GET_AGAIN}"
            ) from error


def _check_link(path, file, variable):
    names = [name for name in file if not name.startswith("#")]  # "#refs#" is MATLAB's own
    if variable not in names:
        _refuse_missing_variable(path, variable, names)
    link = file.get(variable, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise MatFileError(
            f"{path}: '{variable}' is a link to another place ({type(link).__name__}). Expected "
            "the data in this file itself; save the array, not a link."
        )


def _check_type(path, dataset, variable):
    if not isinstance(dataset, h5py.Dataset):
        _refuse_class(path, variable, "struct or sparse")
    if dataset.is_virtual or dataset.external:
        raise MatFileError(
            f"{path}: '{variable}' keeps its data in other files (virtual or external storage). "
            "Expected the data in this file itself; save the array into one file."
        )
    if h5py.check_ref_dtype(dataset.dtype) is not None:
        _refuse_class(path, variable, "cell")
    if dataset.dtype.names == ("real", "imag"):
        _refuse_complex(path, variable)
    matlab_class = dataset.attrs.get("MATLAB_class")
    if matlab_class is None:
        raise MatFileError(
            f"{path}: '{variable}' has no MATLAB_class attribute, so the order of its axes is "
            "unknown. Expected a file written by MATLAB or by write_mat; save it with one of them."
        )
    if isinstance(matlab_class, bytes):
        matlab_class = matlab_class.decode("ascii", "replace")
    _refuse_class(path, variable, matlab_class)
    if dataset.dtype.kind not in "fiu":
        _refuse_class(path, variable, str(dataset.dtype))
    if "MATLAB_empty" in dataset.attrs:  # then the dataset holds the shape, not the pixels
        raise MatFileError(
            f"{path}: '{variable}' is an empty array. Expected height x width x cells; "
            "save at least one cell."
        )


def _check_storage(path, dataset, variable):
    """Refuse a dataset that declares more than the file can hold.

    HDF5 lets a file of a few kB declare terabytes that were never written, and would then fill
    them with zeros.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    gzip, harmless = h5py.h5z.FILTER_DEFLATE, (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
    # Other filters may load a plugin, which is code; two gzips multiply what they may shrink.
    if any(f != gzip and f not in harmless for f in filters) or filters.count(gzip) > 1:
        raise MatFileError(
            f"{path}: '{variable}' is stored with HDF5 filters {filters}. Expected at most gzip, "
            "shuffle and checksum, as MATLAB writes; save it again from MATLAB or with write_mat."
        )

    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    if dataset.chunks is None:
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        if stored < declared:
            _refuse_size(path, variable, declared, stored)
        return
    # Whole chunks are stored, also where they reach over the edge.
    n_chunks = math.prod(
        math.ceil(n / chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True)
    )
    declared = n_chunks * math.prod(dataset.chunks) * dataset.dtype.itemsize
    most = MOST_COMPRESSION if gzip in filters else 1
    if declared > most * stored or dataset.id.get_num_chunks() != n_chunks:
        _refuse_size(path, variable, declared, stored)


def _copy_cells(info, dataset, wanted, out):
    """Copy cells into `out`; neighbours that are wanted together are read together."""
    _, width, height = dataset.shape
    at_once = max(1, READ_BYTES // (width * height * dataset.dtype.itemsize))
    starts = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
    for run in np.split(np.arange(len(wanted)), starts[1:]):
        for place in range(0, len(run), at_once):
            rows = run[place : place + at_once]
            first = int(wanted[rows[0]])
            stored = dataset[first : first + len(rows)]
            out[rows[0] : rows[-1] + 1] = stored.transpose(0, 2, 1)


# --- MATLAB v5 -------------------------------------------------------------------------------


@contextmanager
def _v5_errors(path):
    try:
        yield
    except MatFileError:
        raise
    # SciPy meets a damaged file with almost any error, from zlib's to TypeError.
    except Exception as error:
        raise MatFileError(
            f"{path} cannot be read as MATLAB v5: {error}. Expected a complete file; it is "
            f"damaged or cut short. {GET_AGAIN}"
        ) from error


def _inspect_v5(path, variable):
    with _v5_errors(path):
        found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
    if variable not in found:
        _refuse_missing_variable(path, variable, found)
    shape, matlab_class = found[variable]
    _refuse_class(path, variable, matlab_class)
    _refuse_shape(path, variable, shape)
    declared = math.prod(int(n) for n in shape) * BYTES_OF_CLASS[matlab_class]
    stored = path.stat().st_size
    if min(shape) < 0 or declared > MOST_COMPRESSION * stored:
        _refuse_size(path, variable, declared, stored)
    dtype = {matlab: name for name, matlab in MATLAB_CLASSES.items()}[matlab_class]
    return shape, dtype


def _load_v5(info):
    with _v5_errors(info.path):
        images = scipy.io.loadmat(info.path, variable_names=[info.variable])[info.variable]
    if np.iscomplexobj(images):
        _refuse_complex(info.path, info.variable)
    return images


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
    # An open file, because SciPy would add ".mat" to the name.
    with written_beside(path) as beside, beside.open("wb") as file:
        scipy.io.savemat(file, arrays, format="5", do_compression=True)
        file.seek(0)
        file.write(HEADER_TEXT_5)  # over SciPy's text, which has the date in it
