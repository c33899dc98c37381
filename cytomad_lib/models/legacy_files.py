"""Reading the `.h5` files of TensorFlow 2 with care.

Such a file is HDF5. Its attribute `model_config` describes the layers in JSON; the group
`model_weights` holds a group per layer, whose attribute `weight_names` lists its arrays. A file
of weights alone (`save_weights`) has the groups at its root and no description.

A file may come from anywhere. Text and numbers are read, nothing is ever executed. What the file
declares is held against what it stores before memory is taken, and links to other places are
refused.

Example
-------
>>> with opened("ModelParameters/model_006300.h5") as file:
...     network = read_network(file)
>>> [layer.name for layer in network.layers][:3]
['input_1', 'conv2d', 'leaky_re_lu']
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from cytomad_lib.data.errors import CytomadError

MOST_LAYERS = 200  # the published generator has 61; bounds the work on a made-up file
GIVE_ANOTHER = "Give a file that the published programs saved, such as model_000100.h5."
COPY_AGAIN = "Copy or download the file again."
H5PY_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError)


class LegacyFileError(CytomadError):
    """A file that is no network of the published programs, or is damaged."""


@dataclass(frozen=True)
class FoundLayer:
    """A layer of a file.

    Parameters
    ----------
    name, type : str
        Such as "conv2d_3" and "Conv2D".
    settings : dict
        As the file describes them.
    inputs : tuple of str
        Names of the layers that feed this one.
    stored : dict
        Name of each weight, such as "kernel", to its HDF5 dataset.
    """

    name: str
    type: str
    settings: dict
    inputs: tuple
    stored: dict


@dataclass(frozen=True)
class FoundNetwork:
    """The network of a file: its layers, each after those that feed it.

    Of a file of weights alone there are only the layers that have weights; their types are
    guessed from shapes, and `inputs` and `outputs` (names of layers) are None.
    """

    path: str
    layers: tuple
    inputs: tuple | None = None
    outputs: tuple | None = None

    @property
    def is_described(self):
        """Whether the file describes its layers, rather than holding weights alone."""
        return self.outputs is not None


@contextmanager
def opened(path):
    """Open an HDF5 file, as `h5py.File`; whatever goes wrong with it is a `LegacyFileError`."""
    path = Path(path)
    _check_start(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise LegacyFileError(
            f"{path} cannot be opened as HDF5: {error}. Expected a complete .h5 file; it is "
            f"damaged or cut short. {COPY_AGAIN}"
        ) from error
    with file:
        try:
            yield file
        except LegacyFileError:
            raise
        except H5PY_ERRORS as error:
            raise LegacyFileError(
                f"{path} cannot be read: {error}. Expected a complete .h5 file as TensorFlow 2 "
                f"writes it; it is damaged. {COPY_AGAIN}"
            ) from error


def read_network(file):
    """Read the layers of a file, without the values of their weights.

    Parameters
    ----------
    file : h5py.File
        From `opened`.

    Returns
    -------
    FoundNetwork

    Raises
    ------
    LegacyFileError
        If the file holds no network, several, or one of Keras 3, or if weights are missing, in
        another place, or declare more than the file stores.
    """
    _refuse_other_formats(file)
    network = _described(file) if "model_config" in file.attrs else _weights_alone(file)
    if not any(layer.stored for layer in network.layers):
        raise LegacyFileError(
            f"{file.filename} holds no weights. Expected a trained network. {GIVE_ANOTHER}"
        )
    _check_storage(file, network)
    return network


def read_weight(dataset):
    """Read one weight as a float32 array.

    Raises
    ------
    LegacyFileError
        If a number is NaN or infinite.
    """
    with np.errstate(over="ignore"):  # what overflows becomes infinite
        values = dataset[...].astype(np.float32)
    bad = values.size - np.isfinite(values).sum()
    if bad:
        raise LegacyFileError(
            f"{dataset.file.filename}: {bad} of {values.size} numbers in {dataset.name} are NaN or "
            "infinite. Expected finite weights: the training diverged, or the file is damaged. "
            "Give the file of an earlier epoch."
        )
    return values


# --- what kind of file it is --------------------------------------------------------------------


def _check_start(path):
    """Refuse what is no HDF5 file, by its first bytes."""
    if path.is_dir():
        raise LegacyFileError(f"{path} is a folder. Expected a .h5 file. {GIVE_ANOTHER}")
    if not path.exists():
        raise LegacyFileError(f"{path} does not exist. Expected a .h5 file; check the path.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise LegacyFileError(
            f"{path} cannot be opened ({error.strerror}). Expected a readable .h5 file; check its "
            "permissions."
        ) from error
    if start.startswith(b"PK\x03\x04"):
        raise LegacyFileError(
            f"{path} is a zip archive, such as Keras 3 writes as .keras file. Expected a .h5 file "
            "of the published programs; for a run of this kit give the run's folder."
        )
    if start.startswith(b"MATLAB"):
        raise LegacyFileError(
            f"{path} is a MATLAB file, which holds images. Expected the .h5 file of a network. "
            f"{GIVE_ANOTHER}"
        )
    if not h5py.is_hdf5(path):
        raise LegacyFileError(
            f"{path} does not start like an HDF5 file ({path.stat().st_size:,} bytes). Expected a "
            f".h5 file as TensorFlow writes it. {COPY_AGAIN}"
        )


def _refuse_other_formats(file):
    version = _text(file, "keras_version") if "keras_version" in file.attrs else ""
    is_known = "model_config" in file.attrs or "layer_names" in file.attrs
    if version.startswith("3") or (not is_known and "layers" in file):
        raise LegacyFileError(
            f"{file.filename} was written by Keras 3. Expected a .h5 file of the published "
            "programs, which run on TensorFlow 2; for a run of this kit give the run's folder."
        )
    if not is_known:
        raise LegacyFileError(
            f"{file.filename} holds no network (found: {', '.join(sorted(file)[:5]) or 'nothing'})."
            f" Expected layers and weights as TensorFlow 2 writes them. {GIVE_ANOTHER}"
        )


# --- layers -------------------------------------------------------------------------------------


def _described(file):
    """Read the network that `model_config` describes."""
    try:
        config = json.loads(_text(file, "model_config"))["config"]
        nested = [str(layer["name"]) for layer in config["layers"] if "layers" in layer["config"]]
        layers = [] if nested else [_described_layer(layer) for layer in config["layers"]]
        ends = [
            tuple(str(end[0]) for end in config[f"{side}_layers"]) for side in ("input", "output")
        ]
    except LegacyFileError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise LegacyFileError(
            f"{file.filename}: the description of its layers cannot be used "
            f"({type(error).__name__}: {error}). Expected that of a functional network as "
            f"TensorFlow 2 writes it. {GIVE_ANOTHER}"
        ) from error
    if nested:
        _refuse_several_networks(file, nested)
    weights = _member(file, "model_weights")
    with_weights = set(_names(weights, "layer_names"))
    layers = tuple(
        replace(layer, stored=_stored_weights(weights, layer.name))
        if layer.name in with_weights
        else layer
        for layer in _in_order(file, layers)
    )
    return FoundNetwork(file.filename, layers, *ends)


def _described_layer(layer):
    settings, nodes = dict(layer["config"]), layer["inbound_nodes"]
    if len(nodes) > 1:
        raise ValueError(f"layer {layer['name']} is used {len(nodes)} times")
    inputs = tuple(str(source[0]) for node in nodes for source in node)
    return FoundLayer(str(settings["name"]), str(layer["class_name"]), settings, inputs, {})


def _in_order(file, layers):
    """Put each layer after those that feed it; the description's order is no promise."""
    names = {layer.name for layer in layers}
    if len(layers) > MOST_LAYERS or len(names) < len(layers):
        raise LegacyFileError(
            f"{file.filename} describes {len(layers)} layers with {len(names)} names. Expected at "
            f"most {MOST_LAYERS}, each with its own name. {GIVE_ANOTHER}"
        )
    waiting, placed = list(layers), {}
    while waiting:
        ready = next((layer for layer in waiting if placed.keys() >= set(layer.inputs)), None)
        if ready is None:
            raise LegacyFileError(
                f"{file.filename}: layer {waiting[0].name!r} is fed by layers that are not there, "
                f"or by itself. Expected one of the published networks. {GIVE_ANOTHER}"
            )
        waiting.remove(ready)
        placed[ready.name] = ready
    return placed.values()


def _weights_alone(file):
    """Read a file that holds weights in the layers' order, and no description."""
    layers = []
    for name in _names(file, "layer_names"):
        stored = _stored_weights(file, name)
        if stored:
            layers.append(FoundLayer(name, *_type_by_shapes(stored), (), stored))
    return FoundNetwork(file.filename, tuple(layers))


def _type_by_shapes(stored):
    kernel, bias = (getattr(stored.get(name), "shape", ()) for name in ("kernel", "bias"))
    if len(bias) == 1 and len(kernel) == 2:
        return "Dense", {"units": bias[0]}
    if len(bias) == 1 and len(kernel) == 4:
        # A transposed kernel is height x width x outputs x inputs.
        return "Conv2D" if kernel[3] == bias[0] else "Conv2DTranspose", {"filters": bias[0]}
    return "BatchNormalization" if "gamma" in stored else "unknown layer", {}


def _stored_weights(group, layer_name):
    """Return a layer's datasets by what they are: kernel, bias, gamma..."""
    own = _member(group, layer_name)
    names = _names(own, "weight_names")
    stored = {name.split("/")[-1].split(":")[0]: _member(own, name) for name in names}
    if len(stored) < len(names):
        _refuse_several_networks(group.file, [layer_name])
    return stored


def _refuse_several_networks(file, names):
    raise LegacyFileError(
        f"{file.filename} holds networks within a network ({', '.join(names)}). Expected a single "
        "one; give the files in which each was saved for itself."
    )


def _check_storage(file, network):
    """Refuse weights that are no plain array of numbers, or declare more than is stored."""
    size = Path(file.filename).stat().st_size
    declared = 0
    for layer in network.layers:
        for name, dataset in layer.stored.items():
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
                raise LegacyFileError(
                    f"{file.filename}: the {name} of layer {layer.name!r} is no array of real "
                    f"numbers. Expected float32 as TensorFlow writes it. {COPY_AGAIN}"
                )
            stored = dataset.id.get_storage_size()
            # Other storage than TensorFlow's could lie in other files or inflate without bound.
            plain = dataset.chunks is None and not dataset.external and not dataset.is_virtual
            if not plain or stored < dataset.nbytes:
                raise LegacyFileError(
                    f"{file.filename}: the {name} of layer {layer.name!r} declares "
                    f"{dataset.nbytes:,} bytes and stores {stored:,}"
                    f"{'' if plain else ', not as a plain array'}. Expected a complete file as "
                    f"TensorFlow writes it. {COPY_AGAIN}"
                )
            declared += dataset.nbytes
    if declared > size:
        raise LegacyFileError(
            f"{file.filename} declares {declared:,} bytes of weights, but has {size:,} bytes in "
            f"all. Expected a complete file. {COPY_AGAIN}"
        )


# --- members and attributes ---------------------------------------------------------------------


def _member(group, name):
    """Return what is called `name` in a group, unless it is a link to another place."""
    found = group
    for part in name.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) and part else None
        if not isinstance(link, h5py.HardLink):
            what = "missing" if link is None else f"a link to another place ({type(link).__name__})"
            raise LegacyFileError(
                f"{group.file.filename}: {name!r} in {group.name} is {what}. Expected the weights "
                f"in the file itself. {COPY_AGAIN}"
            )
        found = found[part]
    return found


def _attribute(owner, name):
    if name not in owner.attrs:
        raise LegacyFileError(
            f"{owner.file.filename}: {owner.name} has no attribute {name!r}. Expected a .h5 file "
            f"as TensorFlow 2 writes it. {GIVE_ANOTHER}"
        )
    return owner.attrs[name]  # HDF5 itself refuses one that declares more than is stored


def _text(owner, name):
    return _decoded(_attribute(owner, name))


def _names(owner, name):
    """Read an attribute that lists names; TensorFlow writes an empty list as numbers."""
    return [_decoded(value) for value in np.ravel(_attribute(owner, name))]


def _decoded(value):
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
