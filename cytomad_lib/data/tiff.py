"""Reading TIFF files, OME-TIFF and ImageJ's too: the part that runs in the child process.

Cells are along the one axis besides height and width, whatever its name in the file; colours and
channels are refused. Pages are read one by one, so that a few cells do not need the rest.
"""

import logging
import math
from contextlib import contextmanager
from pathlib import Path

import tifffile

from cytomad_lib.data import stacks
from cytomad_lib.data.errors import ImageFileError
from cytomad_lib.data.reader import GET_AGAIN

NAME = "a"  # how messages call the array
COLOURS = "SC"  # axes of samples and channels


class _Damage(logging.Handler):
    """Raise what tifffile would only log: it goes on without the pages that it cannot find."""

    def emit(self, record):
        raise ValueError(record.getMessage())


def stack(path, variable=None, axes=None, tile=None, cells=(), shape=None):
    """Read an image stack: see `stacks.read_cells`."""
    with _strict(path), tifffile.TiffFile(path) as file:
        series = _only_series(path, file)
        stacks.check_dtype(path, NAME, series.dtype)
        declared, size = math.prod(series.shape) * series.dtype.itemsize, Path(path).stat().st_size
        if declared > stacks.MOST_COMPRESSION * size:
            stacks.refuse_size(path, "it", declared, size)
        stored = stacks.Stored(_array(path, file, series), NAME, _known_axes(path, series, axes))
        yield from stacks.read_cells(
            path, stored, stacks.find_axes(path, stored, axes, tile), tile, cells, shape
        )


def _only_series(path, file):
    if len(file.series) != 1:
        shapes = "; ".join(stacks.shape_text(series.shape) for series in file.series[:5]) or "none"
        raise ImageFileError(
            f"{path} holds {len(file.series)} series of images ({shapes}). Expected one stack of "
            "images of one size and type; save each series as a file of its own."
        )
    if file.series[0].is_multifile:
        raise ImageFileError(
            f"{path} keeps images in other files. Expected all of them in this file; save it as "
            "a single file."
        )
    return file.series[0]


def _long_axes(series):
    pairs = zip(series.axes, series.shape, strict=True)
    return [(axis, length) for axis, length in pairs if length > 1 or axis in "YX"]


def _known_axes(path, series, stated):
    """Return the axes as the file defines them, without those of length 1; None if it does not."""
    axes = "".join(axis for axis, _ in _long_axes(series))
    other = axes.replace("Y", "").replace("X", "")
    if not stated and any(axis in COLOURS for axis in other):
        raise ImageFileError(
            f"{path} has colours or channels: its axes are {series.axes} of "
            f"{stacks.shape_text(series.shape)}. Expected gray images: channels are separate "
            'inputs, so save each as a file of its own; or state axes = "NYX" if these are cells.'
        )
    if len(other) != 1 or other == "Q":  # Q: the file does not say
        return None
    return axes.replace(other, "N")


def _array(path, file, series):
    """Return the array without axes of length 1: mapped, by pages, or as a whole."""
    shape = tuple(length for _, length in _long_axes(series))
    try:
        return tifffile.memmap(path, mode="r").reshape(shape)
    except ValueError:  # compressed
        if len(shape) == 3 and len(series.pages) == shape[0]:
            return _Pages(file, shape, series.dtype)
        _refuse_gaps(file, range(len(series.pages)))
        return series.asarray().reshape(shape)


def _refuse_gaps(file, keys):
    """Refuse pages that lack bytes, which tifffile would take for zeros."""
    size = file.filehandle.size
    for page in (file.series[0].pages[key] for key in keys):
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        plain = sum(count for _, count in parts) < page.nbytes and page.compression == 1
        if plain or not parts or any(n == 0 or start + n > size for start, n in parts):
            raise ImageFileError(
                f"{file.filehandle.path} stores fewer pixels than it declares. Expected a complete "
                f"file. {GET_AGAIN}"
            )


class _Pages:
    """A stack of which each page is an image."""

    def __init__(self, file, shape, dtype):
        self.file, self.shape, self.dtype = file, shape, dtype

    def __getitem__(self, index):
        pages = index[0] if isinstance(index, tuple) else slice(None)
        keys = range(*pages.indices(self.shape[0]))
        _refuse_gaps(self.file, keys)
        return self.file.asarray(key=keys, series=0).reshape(-1, *self.shape[1:])


@contextmanager
def _strict(path):
    """Refuse what tifffile only logs; say what to do about compressions it does not know alone."""
    log, handler = logging.getLogger("tifffile"), _Damage(logging.ERROR)
    log.addHandler(handler)
    try:
        yield
    except (KeyError, ValueError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ImageFileError(
            f"{path} needs one more package to be decompressed ({error.args[0]}). Expected "
            "no compression, deflate or PackBits; save it so, or install imagecodecs."
        ) from error
    finally:
        log.removeHandler(handler)
