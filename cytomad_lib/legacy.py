"""Networks out of the `.h5` files that the published programs write.

Those programs, and the earlier beGAN release, save with TensorFlow 2.4. Keras 3 cannot load all
of these files. So the network is built anew by `cytomad_lib.networks`, and only its weights
are read, by the child process (`data.reader`); no code in the file is run. The shapes of the
weights tell which network a file holds, not its name. The names are

| file | kind |
|---|---|
| `model_*.h5`, `CytoMADmodel_*.h5`; of beGAN `BeGANmodel_*.h5`, `model_all_*.h5` | `generator` |
| `dmodel_all*.h5` | `discriminator` |
| `bmodelCNN_all*.h5`, `cmodelCNN_all*.h5` | `cnn_classifier` |
| `cmodel_all*.h5` | `cell_type_mlp` |
| `bmodel1_all*.h5` to `bmodel4_all*.h5` | `batch_mlp` |

Any width and image size will do, but images have one channel: brightfield in, phase out. A file of
another network is refused with the name of the first layer that differs.

The published generator normalises by the statistics of the cells that are predicted together; for
that see the modes of `cytomad_lib.prediction.predict`. A plain call uses the running statistics,
which the file holds too.

Example
-------
>>> inspect_legacy("ModelParameters/CytoMADmodel_006300.h5").kind
'generator'
>>> generator = load_legacy_generator("ModelParameters/CytoMADmodel_006300.h5")
>>> image, features = generator(np.zeros((1, 128, 128, 1)))
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cytomad_lib import networks
from cytomad_lib.config import PUBLISHED
from cytomad_lib.data import hdf5
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.reader import GET_AGAIN, ask, first_bytes

GIVE_ANOTHER = "Give a file that the published programs saved, such as model_000100.h5."
IN_WORDS = {
    "generator": "a generator",
    "discriminator": "a discriminator",
    "cnn_classifier": "a CNN classifier",
    "cell_type_mlp": "a cell-type MLP",
    "batch_mlp": "a batch MLP",
}
# What the builders take, and what of a layer decides what it computes.
SIZES = {
    "generator": ("image_size", "base_filters"),
    "discriminator": ("image_size", "base_filters"),
    "cnn_classifier": ("n_classes", "image_size", "base_filters"),
    "cell_type_mlp": ("n_classes", "n_features"),
    "batch_mlp": ("n_classes", "n_features"),
}
IMAGE_SIZES = [2**n for n in range(4, 13)]
SETTINGS = ("units", "filters", "kernel_size", "strides", "padding", "activation", "use_bias")
SETTINGS += ("dilation_rate", "groups", "data_format", "rate", "epsilon", "axis", "center", "scale")
SETTINGS += ("pool_size",)


class LegacyFileError(CytomadError):
    """A file that is no network of the published programs, or is damaged."""


@dataclass(frozen=True)
class LegacyModel:
    """What a file holds.

    Parameters
    ----------
    path : Path
    kind : {"generator", "discriminator", "cnn_classifier", "cell_type_mlp", "batch_mlp"}
    image_size : int or None
        Height and width in pixels; None for the MLPs, and where a file of weights alone
        (`save_weights`) leaves it open.
    base_filters : int or None
        Width of the first convolution; None for the MLPs.
    n_classes : int or None
        Outputs of a classifier.
    n_features : int or None
        Inputs of an MLP, or bottleneck features of a generator.
    n_weights : int
        All numbers in the network, running statistics included.
    """

    path: Path
    kind: str
    image_size: int | None
    base_filters: int | None
    n_classes: int | None
    n_features: int | None
    n_weights: int


@dataclass(frozen=True)
class _Layer:
    """A layer of a file or of a published network.

    `shapes` are those of its weights by name, `inputs` the places of the layers that feed it; of an
    input layer, its own among the inputs of the network.
    """

    name: str
    shapes: dict
    type: str = ""
    settings: dict | None = None
    inputs: tuple = ()


def inspect_legacy(path):
    """Say which network a file holds, without reading its weights.

    Parameters
    ----------
    path : path
        A `.h5` file of the published programs.

    Returns
    -------
    LegacyModel

    Raises
    ------
    LegacyFileError
        If the file is missing, damaged or unsafe, or holds another network than the published
        ones; the message names the first layer that differs.
    """
    return _read(Path(path))[0]


def load_legacy(path, image_size=None):
    """Build the network that a file holds, with the file's weights.

    Parameters
    ----------
    path : path
        A `.h5` file of the published programs.
    image_size : int, optional
        Needed only for a discriminator or CNN classifier from `save_weights`: its weights are the
        same for several image sizes.

    Returns
    -------
    keras.Model
        As made by the builder in `cytomad_lib.networks`.

    Raises
    ------
    LegacyFileError
        As `inspect_legacy`; also if a weight is NaN or infinite, or the image size is unknown or
        another one than the file's.
    """
    model, layers, arrays = _read(Path(path), values=True)
    if model.image_size is None and image_size is None and "image_size" in SIZES[model.kind]:
        raise LegacyFileError(
            f"{path} holds weights alone, which fit {IN_WORDS[model.kind]} of several image sizes. "
            "Expected to be told which; give image_size=128 if it was trained as published."
        )
    if None not in (model.image_size, image_size) and model.image_size != image_size:
        raise LegacyFileError(
            f"{path} holds {IN_WORDS[model.kind]} of {model.image_size} x {model.image_size} "
            f"pixels; image_size={image_size} was asked. Leave it out."
        )
    network = _build(**asdict(model) | {"image_size": model.image_size or image_size})
    arrays = iter(arrays)
    takers = [layer for layer in network.layers if layer.weights]
    for taker, giver in zip(takers, (layer for layer in layers if layer.shapes), strict=True):
        given = {name: np.frombuffer(next(arrays), np.float32) for name in giver.shapes}
        for variable in taker.weights:
            variable.assign(given[variable.name].reshape(variable.shape))
    return network


def load_legacy_generator(path):
    """Build the generator that a file holds, with the file's weights.

    Parameters
    ----------
    path : path
        `model_*.h5` or `CytoMADmodel_*.h5`; of the beGAN release `BeGANmodel_*.h5`.

    Returns
    -------
    keras.Model

    Raises
    ------
    LegacyFileError
        As `load_legacy`; also if the file holds another network than a generator.
    """
    kind = inspect_legacy(path).kind
    if kind != "generator":
        raise LegacyFileError(
            f"{path} holds {IN_WORDS[kind]}. Expected a generator; give the generator's file, "
            "model_*.h5 or CytoMADmodel_*.h5."
        )
    return load_legacy(path)


def _read(path, values=False):
    """Return a file's model and layers, compared with the published network, and its arrays."""
    start = first_bytes(path, 8, LegacyFileError, "a .h5 file of the published programs")
    wrong = {
        b"PK\x03\x04": "is a zip archive, such as Keras 3 writes as .keras file",
        b"MATL": "is a MATLAB file, which holds images",
    }.get(start[:4], "does not start like an HDF5 file")
    if start != b"\x89HDF\r\n\x1a\n":
        raise LegacyFileError(
            f"{path} {wrong}. Expected the .h5 file of a network that the published programs saved;"
            f" for a run of this kit give the run's folder. {GET_AGAIN}"
        )
    size, expected = path.stat().st_size, ".h5 file of TensorFlow 2 (HDF5)"
    found, arrays = ask(hdf5.network, path, LegacyFileError, expected, n_bytes=size, values=values)
    try:
        layers = _layers_of_file(path, found)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError, AttributeError) as error:
        if isinstance(error, LegacyFileError):
            raise
        raise LegacyFileError(
            f"{path}: the description of its layers cannot be used ({type(error).__name__}: "
            f"{str(error)[:100]}). Expected that of a functional network as TensorFlow 2 writes "
            f"it. {GIVE_ANOTHER}"
        ) from error
    sizes = _sizes(path, layers)
    with_any_size = sizes | {"image_size": sizes["image_size"] or PUBLISHED.image_size}
    published, n_weights = _published(**with_any_size)
    _compare(path, IN_WORDS[sizes["kind"]], layers, published)
    if sizes["kind"] == "generator":
        sizes["n_features"] = 8 * sizes["base_filters"]
    return LegacyModel(path, **sizes, n_weights=n_weights), layers, arrays


def _layers_of_file(path, found):
    """Return the layers in their order; of a file of weights alone those that have some."""
    layers = []
    for name, weights in found["layers"]:
        shapes = {weight.split("/")[-1].split(":")[0]: tuple(shape) for weight, shape in weights}
        if len(shapes) < len(weights):
            _refuse_several(path, name)
        layers.append(_Layer(name, shapes))
    if found["description"] is None:
        return [layer for layer in layers if layer.shapes]
    config = json.loads(found["description"])["config"]
    nested = [str(layer["name"]) for layer in config["layers"] if "layers" in layer["config"]]
    if nested:
        _refuse_several(path, ", ".join(nested))
    described = {layer["config"]["name"]: layer for layer in config["layers"]}
    names = [layer.name for layer in layers]
    if sorted(described) != sorted(names) or len(config["layers"]) != len(names):
        raise ValueError(
            f"it names {len(config['layers'])} layers, the weights {len(names)} others"
        )
    ends = [end[0] for end in config["input_layers"]]
    return [_described(layer, described[layer.name], names, ends) for layer in layers]


def _refuse_several(path, name):
    raise LegacyFileError(
        f"{path} holds networks within a network ({name}). Expected a single one; give the files "
        "in which each was saved for itself."
    )


def _described(layer, description, names, ends):
    nodes = description["inbound_nodes"]
    if len(nodes) > 1:
        raise ValueError(f"layer {layer.name} is used {len(nodes)} times")
    inputs = [names.index(source[0]) for node in nodes for source in node]
    if description["class_name"] == "InputLayer":
        inputs = [ends.index(layer.name)]
    # Files older than TensorFlow 2.3 do not name groups: there was only 1.
    settings = {"groups": 1} | description["config"]
    kind = str(description["class_name"])
    return _Layer(layer.name, layer.shapes, kind, settings, tuple(inputs))


# --- Which network it is ------------------------------------------------------------------------


def _sizes(path, layers):
    """Return the kind and the sizes of a network, by the shapes of its weights."""
    kernels = [layer.shapes["kernel"] for layer in layers if "kernel" in layer.shapes]
    images, dense = ([k for k in kernels if len(k) == axes] for axes in (4, 2))
    if not images and not dense:
        raise LegacyFileError(
            f"{path} holds no weights of convolutions or dense layers. Expected a trained network "
            f"of the published ones. {GIVE_ANOTHER}"
        )
    sizes = dict.fromkeys(("image_size", "base_filters", "n_classes", "n_features"))
    sizes["kind"] = kind = _kind(layers, images, dense)
    if dense:
        sizes["n_classes"] = max(dense[-1][1], 2)  # 1 class is refused as a shape that differs
    if not images:
        sizes["n_features"] = dense[0][0]
        return sizes
    sizes["base_filters"] = width = images[0][3]
    # The published networks have more than this; a made-up file would make us build a huge one.
    if 512 * width**2 > sum(math.prod(s) for layer in layers for s in layer.shapes.values()):
        problem = f"its first convolution has {width} filters"
        _refuse(path, f"{problem}, but the others are too small for that")
    fitting = IMAGE_SIZES
    if kind == "generator":
        # n - 1 blocks down, the bottleneck, n - 1 blocks up, 5 layers in the tail.
        fitting = [size for size in IMAGE_SIZES if 2 * size.bit_length() + 2 == len(images)]
    elif kind == "cnn_classifier":  # images of up to 128 pixels all end as a single one
        pixels = dense[0][0] / (8 * width)
        fitting = [size for size in IMAGE_SIZES if math.ceil(size / 128) ** 2 == pixels]
    sizes["image_size"] = _image_size(path, layers[0], fitting)
    return sizes


def _kind(layers, images, dense):
    # The kernel of a transposed convolution is height x width x outputs x inputs.
    shapes = [(layer.shapes.get("kernel", ()), layer.shapes.get("bias")) for layer in layers]
    if any(len(kernel) == 4 and kernel[3:] != bias for kernel, bias in shapes):
        return "generator"
    if images:
        return "cnn_classifier" if dense else "discriminator"
    known = {250: "cell_type_mlp", 75: "batch_mlp"}
    return known.get(dense[0][1], "cell_type_mlp" if len(dense) > 4 else "batch_mlp")


def _image_size(path, first, fitting):
    """Return the image size that the description names, or the only one that fits, or None."""
    if not fitting:
        sizes = f"{IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}"
        _refuse(path, f"its layers fit no image size from {sizes}")
    if first.settings is None:
        return fitting[0] if len(fitting) == 1 else None
    shape = first.settings.get("batch_input_shape")
    if shape in ([None, size, size, 1] for size in fitting):
        return shape[1]
    found = _show(shape[1:]) if isinstance(shape, list) else "an unknown shape"
    raise LegacyFileError(
        f"{path}: its input '{first.name}' takes {found}. Expected images of one channel, "
        f"brightfield or phase, of {' or '.join(f'{size}x{size}x1' for size in fitting)}, as its "
        f"layers do. {GIVE_ANOTHER}"
    )


def _build(kind, **sizes):
    needed = {name: sizes[name] for name in SIZES[kind]}
    return getattr(networks, f"build_{kind}")(**needed)


# --- Whether it is the published one ------------------------------------------------------------


@lru_cache
def _published(kind, **sizes):
    """Return the layers of our network, in the words of TensorFlow 2.4, and its number of weights.

    Two layers differ: the published generator puts out the bottleneck as it is, and the published
    discriminator has its sigmoid in a layer of its own.
    """
    network, found, places = _build(kind, **sizes), [], {}
    n_inputs = 0
    for layer in network.layers:
        if layer.name == "features" and kind == "generator":
            continue
        config, name = layer.get_config(), type(layer).__name__
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        inputs = [places.get(source._keras_history.operation.name) for source in sources]
        if name == "InputLayer":
            inputs, n_inputs = [n_inputs], n_inputs + 1
            settings = {"batch_input_shape": config["batch_shape"]}
        elif name == "LeakyReLU":
            settings = {"alpha": config["negative_slope"]}
        elif name == "ReLU":
            name, settings = "Activation", {"activation": "relu"}
        else:
            settings = {key: config[key] for key in SETTINGS if key in config}
        shapes = {weight.name: tuple(weight.shape) for weight in layer.weights}
        own = settings.get("activation") == "sigmoid"
        settings |= {"activation": "linear"} if own else {}
        found.append(_Layer(layer.name, shapes, name, settings, tuple(inputs)))
        if own:
            last = (len(found) - 1,)
            found.append(_Layer(layer.name, {}, "Activation", {"activation": "sigmoid"}, last))
        places[layer.name] = len(found) - 1
    return found, network.count_params()


def _compare(path, what, found, published):
    """Refuse the first layer that differs, with what is wrong with it."""
    described = found[0].settings is not None
    published = [layer for layer in published if described or layer.shapes]
    for place, (layer, wanted) in enumerate(zip(found, published, strict=False), start=1):
        if difference := _difference(layer, wanted, found, described):
            what = f"layer {place} of what seems {what}, '{layer.name}', differs"
            _refuse(path, f"{what}. Found {difference[0]}; expected {difference[1]}")
    if len(found) != len(published):
        _refuse(path, f"what seems {what} has {len(found)} layers. Expected {len(published)}")


def _refuse(path, difference):
    raise LegacyFileError(f"{path} is not the published network: {difference}. {GIVE_ANOTHER}")


def _difference(layer, wanted, layers, described):
    """Return what was found and what was expected, None where both are the same."""
    if described and layer.type != wanted.type:
        return layer.type, wanted.type
    if layer.shapes.keys() != wanted.shapes.keys():
        return f"the weights {_names(layer.shapes)}", _names(wanted.shapes)
    for name, shape in wanted.shapes.items():
        if layer.shapes[name] != shape:
            return f"a {name} of shape {_show(layer.shapes[name])}", _show(shape)
    if not described:
        return None
    for name, value in wanted.settings.items():
        if not _same(layer.settings.get(name), value):
            return f"{name} {_show(layer.settings.get(name))}", f"{name} {_show(value)}"
    if layer.inputs == wanted.inputs:
        return None
    if wanted.type == "InputLayer":
        return f"input {layer.inputs[0] + 1} of the network", f"input {wanted.inputs[0] + 1}"
    names = [_names(layers[n].name for n in each) for each in (layer.inputs, wanted.inputs)]
    return f"input from {names[0]}", names[1]


def _same(found, expected):
    if isinstance(expected, float):  # 0.2 comes back as 0.20000000298023224
        return type(found) in (int, float) and math.isclose(found, expected, rel_tol=1e-5)
    # TensorFlow 2.4 writes the axis of a batch normalisation as a list.
    expected = list(expected) if isinstance(expected, tuple) else expected
    return found in (expected, [3] if expected == -1 else expected)


def _names(names):
    return ", ".join(names) or "none"


def _show(value):
    if isinstance(value, (list, tuple)):
        return "x".join(str(item) for item in value)[:80]
    return str(value)[:80]
