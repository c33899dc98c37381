"""What an image stack in a `.mat` file must be, and what to do where it is something else.

Both readers, of v7.3 and of v5, refuse in these words.
"""

import numpy as np

from cytomad_lib.data.errors import MatFileError
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


def refuse_missing_variable(path, variable, names):
    """Refuse a file that has other variables only."""
    found = ", ".join(sorted(names)[:10]) or "none"
    raise MatFileError(
        f"{path} has no variable '{variable}'. Variables in it: {found}. "
        f"Expected '{variable}'; rename the variable and save the file again."
    )


def check_class(path, variable, matlab_class, fields=()):
    """Refuse what holds no real numbers; `fields` are those of a struct."""
    if matlab_class in DTYPE_OF_CLASS:
        return
    name = variable
    remedies = {
        "cell": f"if all its images are of one size, stack them: {name} = cat(3, {name}{{:}}).",
        "sparse": f"make it full: {name} = full({name}).",
        "char": "save the images themselves, not their names.",
        "string": "save the images themselves, not their names.",
    }
    remedy = remedies.get(matlab_class, f"convert it, for example with single({name}).")
    what = f"of MATLAB class '{matlab_class}'"
    if matlab_class in ("struct", "object"):
        what += f" with the fields {', '.join(fields[:10])}" if fields else ""
        field = fields[0] if fields else "img"
        remedy = f"save the field that holds the stack, for example {name} = {name}.{field}."
    raise MatFileError(
        f"{path}: '{name}' is {what}. Expected an array of real numbers "
        f"({', '.join(DTYPE_OF_CLASS)}); {remedy}"
    )


def refuse_complex(path, variable):
    """Refuse complex numbers."""
    raise MatFileError(
        f"{path}: '{variable}' holds complex numbers. Expected real numbers; "
        "save the phase (angle) or the intensity (abs)."
    )


def check_shape(path, variable, shape):
    """Refuse what is not height x width x cells with at least one pixel and one cell."""
    if len(shape) == 3 and min(shape) > 0:
        return
    if 0 in shape:
        remedy = "save at least one cell."
    elif len(shape) > 3 and 1 in shape:
        remedy = f"remove the axis of length 1: {variable} = squeeze({variable})."
    elif len(shape) > 3:
        remedy = (
            "colours or channels are separate inputs: save each as a stack of its own, for example "
            f"squeeze({variable}(:, :, 1, :)), or make the images gray."
        )
    else:
        remedy = (
            "MATLAB drops the last axis of a stack with a single cell: give that file two or more"
            " cells, or write it with cytomad_lib.data.matfiles.write_mat."
        )
    raise MatFileError(
        f"{path}: '{variable}' has shape {shape_text(shape)}. Expected height x width x cells, "
        f"none of them zero; {remedy}"
    )


def shape_text(shape):
    """Return a shape as MATLAB writes it, such as 64 x 64 x 96."""
    return " x ".join(str(length) for length in shape)


def refuse_size(path, what, declared, stored):
    """Refuse an array that its file cannot hold."""
    raise MatFileError(
        f"{path}: {what} declares {declared:,} bytes, but the file stores {stored:,} "
        f"for it. Expected a complete file; it is damaged or made to exhaust memory. {GET_AGAIN}"
    )
