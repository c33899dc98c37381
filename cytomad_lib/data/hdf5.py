"""Reading HDF5 files: the part that runs in the child process, see `reader`.

Each public function is a generator. It checks what the file declares before it takes memory, yields
a result that fits into JSON, then the arrays that were asked for. Data in other files (links,
external and virtual storage) are refused, as are filters that may load code.
"""

import math
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from cytomad_lib.data import stacks
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.reader import GET_AGAIN

GZIP, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
CHECKSUM = h5py.h5z.FILTER_FLETCHER32
SAFE_BYTES = 2**27  # more than that, a chunk may take only after it was counted
_checked = set()  # image stacks whose storage was checked
MOST_OBJECTS = 5000  # in a file of weights; bounds the work on a made-up file


@contextmanager
def _opened(path):
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise CytomadError(
                f"{path} is locked: it is open in another program, or its drive knows no locks. "
                "Close it there; or set the environment variable HDF5_USE_FILE_LOCKING to FALSE "
                "and start Python again."
            ) from error
        raise
    with file:
        yield file


# --- Image stacks of MATLAB v7.3 -------------------------------------------------------------


def stack(path, variable, axes=None, tile=None, cells=(), shape=None):
    """Read an image stack: see `stacks.read_cells`."""
    with _opened(path) as file:
        dataset = _find_stack(path, file, variable)
        stored = stacks.Stored(dataset, variable, "YXN", matlab=True)
        axes = stacks.find_axes(path, stored, axes, tile)
        _check_once(path, dataset, variable)
        yield from stacks.read_cells(path, stored, axes, tile, cells, shape)


def _find_stack(path, file, variable):
    names = [name for name in file if not name.startswith("#")]  # "#refs#" is MATLAB's own
    if variable not in names:
        stacks.refuse_missing_variable(path, variable, names)
    dataset = _member(file, variable)
    matlab_class = _text(dataset.attrs.get("MATLAB_class"))
    if isinstance(dataset, h5py.Group):
        kind = "sparse" if "MATLAB_sparse" in dataset.attrs else matlab_class or "struct"
        stacks.check_class(path, variable, kind, list(dataset))
    if h5py.check_ref_dtype(dataset.dtype) is not None:
        stacks.check_class(path, variable, "cell")
    if dataset.dtype.names == ("real", "imag"):
        stacks.refuse_complex(path, variable)
    if matlab_class is None:
        raise CytomadError(
            f"{path}: '{variable}' has no MATLAB_class attribute, so the order of its axes is "
            "unknown. Expected a file written by MATLAB or by write_mat; save it with one of them."
        )
    stacks.check_class(path, variable, matlab_class)
    if not np.can_cast(dataset.dtype, stacks.DTYPE_OF_CLASS[matlab_class]):
        stacks.check_class(path, variable, f"{matlab_class}, but stored as {dataset.dtype}")
    if "MATLAB_empty" in dataset.attrs:  # then the dataset holds the shape, not the pixels
        raise CytomadError(
            f"{path}: '{variable}' is an empty array. Expected height x width x cells; "
            "save at least one cell."
        )
    return dataset


def _check_once(path, dataset, variable):
    """Check how a stack is stored; a training reads the same files again and again."""
    state = Path(path).stat()
    state = (path, variable, state.st_ino, state.st_size, state.st_mtime_ns)
    if state not in _checked:
        _check_storage(path, dataset, variable)
        _checked.add(state)


# --- Networks --------------------------------------------------------------------------------


def network(path, values=False):
    """Read the weights of a network that TensorFlow 2 saved (`.h5`), in the order of its layers.

    Parameters
    ----------
    path : str
    values : bool
        Whether to yield the arrays, too.

    Yields
    ------
    dict
        `description`: the text of `model_config`, None in a file of weights alone; `layers`: list
        of (name, list of (name, shape)), such as ("dense", [("dense/kernel:0", (8, 75)), ...]).
    float32 arrays
    """
    with _opened(path) as file:
        _refuse_other_networks(path, file)
        group = _member(file, "model_weights") if "model_weights" in file else file
        layers = [
            (name, [(weight, _member(_member(group, name), weight)) for weight in weights])
            for name, weights in _weight_names(group)
        ]
        datasets = [dataset for _, weights in layers for _, dataset in weights]
        if not datasets:
            raise CytomadError(f"{path} holds no weights. Expected a trained network. {GET_AGAIN}")
        # TensorFlow writes no chunks; with them, a small file could inflate without bound.
        _check_weights(path, datasets, plain=True)
        shapes = [(name, [(key, one.shape) for key, one in weights]) for name, weights in layers]
        yield {"description": _text(file.attrs.get("model_config")), "layers": shapes}
        for dataset in datasets if values else ():
            yield _finite(path, dataset)


def run_weights(path):
    """Check a `.weights.h5` file of Keras 3: yield how many numbers it holds.

    Everything in it is read once, so that what Keras reads afterwards has been read before.
    """
    with _opened(path) as file:
        datasets = list(_all_datasets(file))
        if not any("/vars/" in dataset.name for dataset in datasets):
            found = ", ".join(sorted(file)[:5]) or "nothing"
            raise CytomadError(
                f"{path} holds no weights of Keras 3 (found: {found}). Expected those that a run "
                "of this kit saved."
            )
        _check_weights(path, datasets)
        yield sum(_finite(path, dataset).size for dataset in datasets)


def _refuse_other_networks(path, file):
    version = _text(file.attrs.get("keras_version")) or ""
    known = "model_config" in file.attrs or "layer_names" in file.attrs
    if version.startswith("3") or (not known and "layers" in file):
        raise CytomadError(
            f"{path} was written by Keras 3. Expected a .h5 file of the published programs, which "
            "run on TensorFlow 2; for a run of this kit give the run's folder."
        )
    if not known:
        found = ", ".join(sorted(file)[:5]) or "nothing"
        raise CytomadError(
            f"{path} holds no network (found: {found}). Expected layers and weights as TensorFlow 2"
            " writes them. Give a file that the published programs saved, such as model_000100.h5."
        )


def _weight_names(group):
    """List each layer and the names of its weights."""
    layers = []
    for name in np.ravel(group.attrs["layer_names"])[:MOST_OBJECTS]:
        weights = np.ravel(_member(group, _text(name)).attrs["weight_names"])[:MOST_OBJECTS]
        # TensorFlow writes an empty list as one of numbers.
        layers.append((_text(name), [_text(weight) for weight in weights]))
    return layers


def _all_datasets(group, depth=0):
    """Yield the datasets of a group and the groups in it; hard links can make a circle."""
    if depth > 20 or len(group) > MOST_OBJECTS:
        raise CytomadError(f"{group.file.filename} holds more groups than a network has.")
    for name in group:
        member = _member(group, name)
        if isinstance(member, h5py.Group):
            yield from _all_datasets(member, depth + 1)
        else:
            yield member


def _check_weights(path, datasets, plain=False):
    """Refuse what is no array of weights, and what declares more than the file can hold."""
    for dataset in datasets:
        problem = None
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
            problem = "is no array of numbers"
        elif dataset.size in (0, None):
            problem = "is empty"
        elif plain and dataset.chunks:
            problem = "is not stored as a plain array"
        if problem:
            raise CytomadError(f"{path}: {dataset.name} {problem}. Expected weights. {GET_AGAIN}")
        _check_storage(path, dataset, dataset.name)
    # Many names can share one array.
    size, declared = Path(path).stat().st_size, sum(dataset.nbytes for dataset in datasets)
    if declared > (1 if plain else stacks.MOST_COMPRESSION) * size or len(datasets) > MOST_OBJECTS:
        raise CytomadError(
            f"{path} declares {len(datasets)} arrays of {declared:,} bytes, but has {size:,} bytes "
            f"in all. Expected a complete file. {GET_AGAIN}"
        )


def _finite(path, dataset):
    """Read an array as float32, without NaN or infinity."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite
        values = np.ascontiguousarray(dataset[()], np.float32)
    bad = values.size - np.isfinite(values).sum()
    if bad:
        raise CytomadError(
            f"{path}: {bad} of {values.size} numbers in {dataset.name} are NaN or infinite. "
            "Expected finite weights: the training diverged, or the file is damaged. Take the "
            "weights of an earlier epoch, or train again."
        )
    return values


# --- What all share --------------------------------------------------------------------------


def _member(group, name):
    """Return what is called `name` in a group, unless its data are at another place."""
    found = group
    for part in name.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) and part else None
        if not isinstance(link, h5py.HardLink):
            what = "missing" if link is None else f"a link to another place ({type(link).__name__})"
            raise CytomadError(
                f"{group.file.filename}: '{name}' is {what}. Expected the data in this file "
                "itself; save the array, not a link."
            )
        found = found[part]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise CytomadError(
            f"{group.file.filename}: '{name}' keeps its data in other files (virtual or external "
            "storage). Expected the data in this file itself; save the array into one file."
        )
    return found


def _check_storage(path, dataset, name):
    """Refuse a dataset that declares more than the file can hold, or uses unusual storage.

    HDF5 lets a file of a few kB declare terabytes that were never written, and would then fill
    them with zeros. MATLAB's kind of HDF5 has no checksums, so what can be compared is compared.
    """
    what, size = f"'{name}'", dataset.dtype.itemsize
    filters = _filters(path, dataset, name)
    if h5py.h5t.py_create(dataset.dtype, logical=True) != dataset.id.get_type():
        raise CytomadError(
            f"{path}: {what} is of no usual type of numbers. Expected one of MATLAB's. {GET_AGAIN}"
        )
    stored = min(dataset.id.get_storage_size(), Path(path).stat().st_size)
    if dataset.chunks is None:
        if stored != dataset.nbytes:
            stacks.refuse_size(path, what, dataset.nbytes, stored)
        return
    # Whole chunks are stored, also where they reach over the edge.
    axes = list(zip(dataset.chunks, dataset.shape, dataset.maxshape, strict=True))
    n_chunks = math.prod(math.ceil(n / chunk) for chunk, n, _ in axes)
    chunk_bytes = math.prod(dataset.chunks) * size
    declared = n_chunks * chunk_bytes
    most = stacks.MOST_COMPRESSION if GZIP in filters else 1
    # HDF5 makes no chunk longer than an axis, unless that may still grow.
    odd = any(longest == n < chunk or longest not in (None, n) for chunk, n, longest in axes)
    odd = odd or filters.get(SHUFFLE, size) != size or dataset.id.get_num_chunks() != n_chunks
    if odd or declared > most * stored or chunk_bytes > dataset.nbytes + SAFE_BYTES:
        stacks.refuse_size(path, what, declared, stored)
    _check_chunks(path, dataset, f"a chunk of {what}", chunk_bytes, GZIP in filters)


def _filters(path, dataset, name):
    """Return the first parameter of each filter by its code."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    codes = [code for code, *_ in filters]
    # Other filters may load a plugin, which is code; two gzips multiply what they may shrink.
    if not set(codes) <= {GZIP, SHUFFLE, CHECKSUM} or len(set(codes)) < len(codes):
        raise CytomadError(
            f"{path}: '{name}' is stored with HDF5 filters {codes}. Expected at most gzip, "
            "shuffle and checksum, as MATLAB writes; save it again from MATLAB or with write_mat."
        )
    return {code: (*values, None)[0] for code, _, values, _ in filters}


def _check_chunks(path, dataset, what, chunk_bytes, gzipped):
    """Refuse chunks that lie beside the array or inflate to more than a chunk has."""
    chunks = []
    dataset.id.chunk_iter(lambda chunk: chunks.append((chunk.size, chunk.chunk_offset)))
    offsets = np.array([offset for _, offset in chunks])
    twice = len(np.unique(offsets, axis=0)) < len(offsets)
    if twice or ((offsets % dataset.chunks != 0) | (offsets >= dataset.shape)).any():
        raise CytomadError(f"{path}: {what} lies beside the array. {GET_AGAIN}")
    for size, offset in chunks:
        # gzip adds less than a thousandth to what it cannot shrink.
        if size > 1.01 * chunk_bytes + 100:
            stacks.refuse_size(path, what, chunk_bytes, size)
        if gzipped and stacks.MOST_COMPRESSION * size > SAFE_BYTES:
            _count_inflated(path, dataset, what, offset, chunk_bytes)


def _count_inflated(path, dataset, what, offset, chunk_bytes):
    """Inflate a large chunk piece by piece, and keep nothing of it."""
    _, content = dataset.id.read_direct_chunk(offset)
    inflater, size = zlib.decompressobj(), 0
    with suppress(zlib.error):  # HDF5 will refuse it, or this chunk is stored as it is
        while content and size <= chunk_bytes + 4:  # 4: a checksum
            size += len(inflater.decompress(content, 2**20))
            content = inflater.unconsumed_tail
    if size > chunk_bytes + 4:
        stacks.refuse_size(path, what, chunk_bytes, size)


def _text(value):
    if isinstance(value, bytes):  # NumPy's kind of bytes is one, too
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)
