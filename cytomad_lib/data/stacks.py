"""Image stacks in files: what they must be, and what to do where they are something else.

Each format has an opener (`hdf5.stack`, `mat5.stack`, `numpyfiles.stack`, `tiff.stack`) that gives
the array in a file as a `Stored`. All that follows is the same: `find_axes` tells cells, height and
width apart, `read_cells` reads. Most of this runs in the child process, see `reader`.
"""

from dataclasses import dataclass

import numpy as np

from cytomad_lib.data.errors import ImageFileError
from cytomad_lib.data.reader import GET_AGAIN

MATLAB_CLASSES = {
    "float32": "single",
    "float64": "double",
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
DTYPE_OF_CLASS = {matlab: np.dtype(name) for name, matlab in MATLAB_CLASSES.items()}

# gzip (deflate) cannot shrink more than about 1032-fold, so whatever declares more than this
# many times its stored bytes is damaged or malicious.
MOST_COMPRESSION = 1100
READ_BYTES = 16 * 1024 * 1024  # read at a time, before conversion to float32


@dataclass
class Stored:
    """An array in an open file.

    Parameters
    ----------
    array : object
        With shape and dtype; slices of it are read from the disk.
    name : str
        Of the variable, for messages.
    axes : str, optional
        Their meaning as the file or its format defines it, in the user's order; else inferred.
    matlab : bool
        Whether the user's order is MATLAB's, which is the reverse of that in the file.
    dtype : numpy.dtype, optional
        As declared, where it is stored as a smaller one.
    """

    array: object
    name: str
    axes: str | None = None
    matlab: bool = False
    dtype: np.dtype | None = None

    @property
    def shape(self):
        """Shape in the user's order."""
        return tuple(self.array.shape[:: -1 if self.matlab else 1])


# --- Axes ------------------------------------------------------------------------------------


def find_axes(path, stored, axes=None, tile=None):
    """Return the axes of an array in the user's order, such as "NYX" or "YX".

    Stated `axes` come first, then what the file defines; else the axis that differs in length from
    the two others is that of the cells, or the first one.
    """
    shape = stored.shape
    if axes and len(axes) != len(shape):
        raise ImageFileError(
            f'{path}: {stored.name} has shape {shape_text(shape)}, but axes = "{axes}" is stated. '
            f"Expected {len(axes)} axes; correct axes in dataset.toml, or save the array anew."
        )
    one_image = len(shape) == 2 and (not stored.matlab or axes or tile)
    if not one_image or 0 in shape:
        check_shape(path, stored, shape)
    if axes or one_image:
        return axes or "YX"
    by_shape = "YXN" if shape[0] == shape[1] != shape[2] else "NYX"
    by_shape = "YNX" if shape[0] == shape[2] != shape[1] else by_shape
    return stored.axes or by_shape


def check_shape(path, stored, shape):
    """Refuse what is not a stack of images with at least one pixel and one cell."""
    if len(shape) == 3 and min(shape) > 0:
        return
    name = stored.name
    if 0 in shape:
        remedy = "save at least one cell."
    elif len(shape) > 3 and 1 in shape:
        package = "" if stored.matlab else "numpy."
        remedy = f"remove the axis of length 1: {name} = {package}squeeze({name})."
    elif len(shape) > 3:
        channel = f"squeeze({name}(:, :, 1, :))" if stored.matlab else f"{name}[:, 0]"
        remedy = (
            "colours or channels are separate inputs: save each as a stack of its own, for example "
            f"{channel}, or make the images gray."
        )
    else:
        remedy = (
            "MATLAB drops the last axis of a stack with a single cell: give that file two or more"
            ' cells, write it with cytomad_lib.data.matfiles.write_mat, or state axes = "YX" in '
            "dataset.toml if every file holds one image."
            if stored.matlab
            else "reshape it."
        )
    order = "height x width x cells" if stored.matlab else "cells x height x width"
    raise ImageFileError(
        f"{path}: '{name}' has shape {shape_text(shape)}. Expected {order}, "
        f"none of them zero; {remedy}"
    )


def shape_text(shape):
    """Return a shape as text, such as 64 x 64 x 96."""
    return " x ".join(str(length) for length in shape)


# --- Reading ---------------------------------------------------------------------------------


def read_cells(path, stored, axes, tile=None, cells=(), shape=None):
    """Describe an array, then read cells.

    Parameters
    ----------
    path : str
    stored : Stored
    axes : str
        As `find_axes` returns it.
    tile : int, optional
        Side of the tiles of a montage.
    cells : list of int
        Their numbers, in ascending order.
    shape : list of int, optional
        The shape that an earlier inspection found.

    Yields
    ------
    dict
        `shape` (height, width, cells), `dtype`, `axes`, `whole` (whether a part of the cells can
        only be read with all others) and, of a montage, `names`: the numbers of the tiles in use.
    float32 arrays (cells, height, width)
    """
    array, order = stored.array, axes[::-1] if stored.matlab else axes
    place = order.find("N")
    whole = tile is not None or (place != 0 and not isinstance(array, np.ndarray))
    if whole:
        array = array[...]
    found = {"dtype": str(stored.dtype or array.dtype), "axes": axes, "whole": whole}
    if place < 0:
        array, order, place = array[None], "N" + order, 0
    if tile:
        array = array.transpose([order.index(axis) for axis in "NYX"])
        array, found["names"] = _cut_tiles(path, array, tile)
        order, place = "NYX", 0
    found["shape"] = [array.shape[order.index(axis)] for axis in "YXN"]
    if shape not in (None, found["shape"]):
        raise ImageFileError(f"{path} has changed since it was inspected. Read it again.")
    yield found
    height, width, _ = found["shape"]
    at_once = max(1, READ_BYTES // (height * width * array.dtype.itemsize))
    if getattr(array, "chunks", None):  # a chunk is inflated as a whole
        at_once = max(at_once, array.chunks[0])
    starts = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
    for run in np.split(np.array(cells, int), starts[1:]) if len(cells) else ():
        for start in range(0, len(run), at_once):
            part = run[start : start + at_once]
            index = [slice(None)] * 3
            index[place] = slice(part[0], part[-1] + 1)
            images = array[tuple(index)].transpose([order.index(axis) for axis in "NYX"])
            with np.errstate(over="ignore", invalid="ignore"):  # the parent refuses infinity
                yield np.ascontiguousarray(images, np.float32)


def _cut_tiles(path, images, tile):
    """Cut montages (n, height, width) into tiles, row by row; leave out the empty ones."""
    n, height, width = images.shape
    if height % tile or width % tile:
        raise ImageFileError(
            f"{path} has images of {height} x {width} pixels, which tiles of {tile} x {tile} do "
            "not fill. Expected multiples; correct tile in dataset.toml, or crop the montage."
        )
    tiles = images.reshape(n, height // tile, tile, width // tile, tile).swapaxes(2, 3)
    tiles = tiles.reshape(-1, tile, tile)
    used = np.flatnonzero(tiles.min(axis=(1, 2)) != tiles.max(axis=(1, 2)))
    if not len(used):
        raise ImageFileError(f"{path} has empty tiles only. Expected cells; check the file.")
    return tiles[used], [f"tile {number + 1}" for number in used]


# --- Refusals --------------------------------------------------------------------------------


def refuse_missing_variable(path, variable, names):
    """Refuse a file that has other variables only."""
    found = ", ".join(sorted(names)[:10]) or "none"
    raise ImageFileError(
        f"{path} has no variable '{variable}'. Variables in it: {found}. "
        f"Expected '{variable}'; rename the variable and save the file again."
    )


def check_class(path, variable, matlab_class, fields=()):
    """Refuse what holds no real numbers; `fields` are those of a struct."""
    if matlab_class in DTYPE_OF_CLASS:
        return
    name, images = variable, "save the images themselves, not their names."
    field = (
        f"save the field that holds the stack, for example {name} = {name}.{[*fields, 'img'][0]}."
    )
    remedies = {
        "cell": f"if all its images are of one size, stack them: {name} = cat(3, {name}{{:}}).",
        "sparse": f"make it full: {name} = full({name}).",
        **dict.fromkeys(("char", "string"), images),
        **dict.fromkeys(("struct", "object"), field),
    }
    remedy = remedies.get(matlab_class, f"convert it, for example with single({name}).")
    has = f" with the fields {', '.join(fields[:10])}" if fields else ""
    raise ImageFileError(
        f"{path}: '{name}' is of MATLAB class '{matlab_class}'{has}. Expected an array of real "
        f"numbers ({', '.join(DTYPE_OF_CLASS)}); {remedy}"
    )


def check_dtype(path, name, dtype):
    """Refuse an array, other than MATLAB's, that holds no real numbers."""
    if dtype.kind in "iuf":
        return
    if dtype.kind == "c":
        refuse_complex(path, name)
    what = f"values of type {dtype}"
    remedy = f"convert it, for example with {name}.astype('float32')."
    if dtype.hasobject:
        what = "Python objects"
        remedy = (
            "such files can run code when they are opened. If all images are of one size, save "
            f"numpy.stack(list({name})), else crop them to one size first."
        )
    elif dtype.names:
        remedy = f"save the field that holds the stack, for example {name}['{dtype.names[0]}']."
    raise ImageFileError(f"{path} holds {what}. Expected an array of real numbers; {remedy}")


def refuse_complex(path, variable):
    """Refuse complex numbers."""
    raise ImageFileError(
        f"{path}: '{variable}' holds complex numbers. Expected real numbers; "
        "save the phase (angle) or the intensity (abs)."
    )


def refuse_size(path, what, declared, stored):
    """Refuse an array that its file cannot hold."""
    raise ImageFileError(
        f"{path}: {what} declares {declared:,} bytes, but the file stores {stored:,} "
        f"for it. Expected a complete file; it is damaged or made to exhaust memory. {GET_AGAIN}"
    )
