"""Image stacks in files of all formats: `.mat` (v7.3 and v5), `.npy` and TIFF, one or several.

A file may come from anywhere. Before anything is allocated, its declared size is held against what
the file really stores, and links out of the file are refused. All files are opened in a process of
their own (`reader`).

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for number in range(12):
    ...     np.save(folder / f"cell{number}.npy", np.full((8, 8), number))
    >>> info = inspect_stack(folder / "cell*.npy")
    >>> info.shape, info.names[-1]
    ((8, 8, 12), '11')
    >>> read_stack(info, [11, 2])[:, 0, 0]
    array([11.,  2.], dtype=float32)
"""

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from cytomad_lib.data import hdf5, mat5, numpyfiles, tiff
from cytomad_lib.data.description import folded
from cytomad_lib.data.errors import CytomadError, ImageFileError
from cytomad_lib.data.reader import ask, first_bytes

# Version -> what reads it, and its name in messages.
FORMATS = {
    "5": (mat5.stack, "MATLAB v5 file"),
    "7.3": (hdf5.stack, "MATLAB v7.3 file (HDF5)"),
    "npy": (numpyfiles.stack, ".npy file"),
    "TIFF": (tiff.stack, "TIFF file"),
}
MARKS = {b"\x00\x01IM": "5", b"\x01\x00MI": "5", b"\x00\x02IM": "7.3", b"\x02\x00MI": "7.3"}
STARTS = {b"\x93NUMPY": "npy"}
STARTS |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
HDF5_START = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class StackInfo:
    """What an image stack declares: known without reading its pixels (but of a montage)."""

    path: Path  # with * where several files make a stack
    variable: str
    shape: tuple[int, int, int]  # height, width, cells
    dtype: str
    version: str  # "7.3", "5", "npy" or "TIFF"
    axes: str  # as in the file: "NYX", "YXN", "YX"…
    whole: bool  # a part of the cells can only be read with all the others
    tile: int | None = None  # of a montage
    names: tuple[str, ...] | None = None  # of the cells, where files or tiles tell them apart
    parts: tuple["StackInfo", ...] = ()  # the files of a series


def matching(path):
    """Return the files that a path stands for: itself, or those that its * matches, in order."""
    path = Path(path)
    if "*" not in path.name:
        return [path] if path.exists() else []
    if not path.parent.is_dir():
        return []
    found = [
        other
        for other in path.parent.iterdir()
        if _star(path, other) is not None and not other.name.startswith((".", "_"))
    ]
    return sorted(found, key=lambda other: _by_number(_star(path, other)))


def _star(pattern, path):
    """Return what * stands for in the name of a file; None if it does not match."""
    before, after = folded(pattern.name).split("*")
    found = re.fullmatch(re.escape(before) + "(.*)" + re.escape(after), folded(path.name))
    return found and found[1]


def _by_number(name):
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def inspect_stack(path, variable="", axes=None, tile=None):
    """Check an image stack and return what it holds, without reading the pixels.

    Parameters
    ----------
    path : path
        A file, or with one * in its name several files that make one stack.
    variable : str
        Name of the stack in a `.mat` file.
    axes : str, optional
        Order of the axes in the file, such as "NYX"; by default the format's own, or inferred.
    tile : int, optional
        Side of the tiles, if the images are montages.

    Returns
    -------
    StackInfo

    Raises
    ------
    ImageFileError
        If a file is missing, damaged or unsafe, or does not hold real numbers of cells, height and
        width.
    """
    path = Path(path)
    files = matching(path) if "*" in path.name else [path]
    if not files:
        raise ImageFileError(f"{path}: no file matches. Expected at least one; check the pattern.")
    return _inspect(path, tuple(files), variable, axes, tile, tuple(map(_state, files)))


def _state(file):
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)  # a training reads the same files again and again
def _inspect(path, files, variable, axes, tile, _states):
    jobs, parts = [(str(file), _find_version(file), axes, (), None) for file in files], []
    for (file, version, *_), found in zip(jobs, _ask(path, jobs, variable, tile), strict=True):
        found = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        parts.append(StackInfo(Path(file), variable, version=version, tile=tile, **found))
    return _joined(path, tuple(parts)) if "*" in path.name else parts[0]


def _joined(path, parts):
    """Return the info of a stack in several files."""
    for part in parts:
        if part.shape[:2] != parts[0].shape[:2]:
            sizes = [f"{p.shape[0]} x {p.shape[1]}" for p in (parts[0], part)]
            raise ImageFileError(
                f"{part.path} has images of {sizes[1]} pixels, but {parts[0].path.name} beside it "
                f"has {sizes[0]}. Expected one size; crop or resize them to one."
            )
    names = []
    for part in parts:
        own = part.names or ([""] if part.shape[2] == 1 else range(1, part.shape[2] + 1))
        names += [f"{_star(path, part.path)} {name}".strip() for name in own]
    return replace(
        parts[0],
        path=path,
        shape=(*parts[0].shape[:2], len(names)),
        dtype="/".join(sorted({part.dtype for part in parts})),
        version="/".join(sorted({part.version for part in parts})),
        whole=any(part.whole for part in parts),
        names=tuple(names),
        parts=parts,
    )


def read_stack(info, cells=None):
    """Read cells of an image stack; only those requested, where the format allows it.

    Parameters
    ----------
    info : StackInfo
        As `inspect_stack` returns it.
    cells : slice or array of int, optional
        Which cells, in any order; all by default.

    Returns
    -------
    float32 array (cells, height, width)

    Raises
    ------
    ImageFileError
        If a file cannot be read, it lacks a requested cell, or a pixel that was read is NaN or
        infinite.
    """
    wanted = _cell_numbers(info, cells)
    in_order, places = np.unique(wanted, return_inverse=True)
    images = np.empty((len(in_order), *info.shape[:2]), np.float32)
    jobs, start = [], 0
    for part in info.parts or (info,):
        own = in_order[(in_order >= start) & (in_order < start + part.shape[2])] - start
        start += part.shape[2]
        if len(own):
            jobs.append((str(part.path), part.version, part.axes, own.tolist(), part.shape))
    try:
        if jobs:
            _ask(info.path, jobs, info.variable, info.tile, images)
    except ImageFileError:
        for path, *_ in jobs:
            _find_version(Path(path))  # whose words are better for a file that was replaced
        raise
    if not np.array_equal(in_order, wanted):
        images = images[places]
    _refuse_non_finite(info, wanted, images)
    return images


def _ask(path, jobs, variable, tile, out=None):
    """Have files read in the child process; return what they hold."""
    n_bytes = sum(Path(file).stat().st_size + 200_000 for file, *_ in jobs)
    n_bytes += sum(8 * math.prod(shape or ()) for *_, shape in jobs)
    expected = FORMATS[jobs[0][1]][1]
    options = {"jobs": jobs, "variable": variable, "tile": tile}
    return ask(series, path, ImageFileError, expected, out, n_bytes, **options)[0]


def series(path, jobs, variable, tile):
    """Read one or several files, in the child process.

    Parameters
    ----------
    path : str
        The file, or the pattern that all files match.
    jobs : list of (file, version, axes, cells, shape)
        For each file, see `stacks.read_cells`; without cells, files are only described.
    variable, tile
        As in `inspect_stack`.

    Yields
    ------
    list of dict
        What each file holds.
    float32 arrays (cells, height, width)
    """
    reading = any(cells for *_, cells, _ in jobs)
    yield [] if reading else [next(_parts(path, variable, tile, *job)) for job in jobs]
    for job in jobs if reading else ():
        parts = _parts(path, variable, tile, *job)
        next(parts)
        yield from parts


def _parts(path, variable, tile, file, version, axes, cells, shape):
    try:
        yield from FORMATS[version][0](file, variable, axes, tile, cells, shape)
    except (CytomadError, MemoryError):
        raise
    except Exception as error:  # damaged files raise errors of almost any kind
        raise ValueError(f"{Path(file).name}: {error}" if file != path else str(error)) from error


def _find_version(path):
    """Return the version from the file's first bytes."""
    suffix = path.suffix.casefold()
    start = first_bytes(path, 2**13, ImageFileError, f"a {suffix} file")
    for mark, version in STARTS.items():
        if start.startswith(mark):
            return version
    # An HDF5 file without MATLAB's header is let through here: what matters is checked inside.
    if HDF5_START in (start[place : place + 8] for place in (0, 512, 1024)):
        return "7.3"
    if start[124:128] in MARKS:
        return MARKS[start[124:128]]
    raise ImageFileError(
        f"{path} does not start like a {suffix} file. Expected MATLAB v7.3 or v5, .npy or TIFF; if "
        "it is one that was not fully downloaded, get it again, else save it anew, from MATLAB "
        "with save(..., '-v7.3')."
    )


def _cell_numbers(info, cells):
    n_cells = info.shape[2]
    if cells is None or isinstance(cells, slice):
        return np.arange(n_cells)[cells or slice(None)]
    cells = np.asarray(cells)
    if cells.size == 0:
        return np.zeros(0, int)
    if cells.ndim != 1 or cells.dtype.kind not in "iu":
        raise ValueError(
            f"cells is {cells.dtype} {cells.shape}; expected a slice or a list of cell numbers."
        )
    if cells.min() < 0 or cells.max() >= n_cells:
        raise ImageFileError(
            f"{info.path}: cells {cells.min()} to {cells.max()} were requested, but it has "
            f"{n_cells}. Expected numbers from 0 to {n_cells - 1}; ask for fewer cells."
        )
    return cells.astype(int)


def _refuse_non_finite(info, wanted, images):
    bad_in_cell = np.array([image.size - np.isfinite(image).sum() for image in images], int)
    if bad_in_cell.any():
        first = 1 + wanted[np.flatnonzero(bad_in_cell)[0]]
        counted = "as MATLAB does" if info.variable else "in the order of the file"
        if info.names:
            counted += f" ({info.names[first - 1]})"
        of = f" of '{info.variable}'" if info.variable else ""
        raise ImageFileError(
            f"{info.path}: {bad_in_cell.sum()} pixels{of} in "
            f"{np.count_nonzero(bad_in_cell)} of the {len(wanted)} cells read are NaN or infinite,"
            f" first in cell {first}, counted from 1 {counted}. Expected finite numbers; "
            "leave these cells out or mend them, in all files of the group."
        )
