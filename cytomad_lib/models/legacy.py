"""Networks out of the `.h5` files that the published programs write.

Those programs, and the earlier beGAN release, save with TensorFlow 2.4. Keras 3 cannot load all
of these files. So the network is built anew by `cytomad_lib.networks`, and only its weights
are read. Which network a file holds is told by its layers, not by its name; the names are

| file | kind |
|---|---|
| `model_*.h5`, `CytoMADmodel_*.h5`; of beGAN `BeGANmodel_*.h5`, `model_all_*.h5` | `generator` |
| `dmodel_all*.h5` | `discriminator` |
| `bmodelCNN_all*.h5`, `cmodelCNN_all*.h5` | `cnn_classifier` |
| `cmodel_all*.h5` | `cell_type_mlp` |
| `bmodel1_all*.h5` to `bmodel4_all*.h5` | `batch_mlp` |

Any width and image size will do, but images have one channel: brightfield in, phase out. Every
layer is held against the published network (`published_layers`), so a file of another network is
refused, with the name of the layer that differs. How a file is read safely: `legacy_files`.

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

import math
from dataclasses import dataclass
from pathlib import Path

from cytomad_lib.models.legacy_files import (
    GIVE_ANOTHER,
    LegacyFileError,
    opened,
    read_network,
    read_weight,
)
from cytomad_lib.models.published_layers import published_layers
from cytomad_lib.networks import (
    build_batch_mlp,
    build_cell_type_mlp,
    build_cnn_classifier,
    build_discriminator,
    build_generator,
)

ANY_IMAGE_SIZE = 128  # stands in where weights fit several sizes
IN_WORDS = {
    "generator": "a generator",
    "discriminator": "a discriminator",
    "cnn_classifier": "a CNN classifier",
    "cell_type_mlp": "a cell-type MLP",
    "batch_mlp": "a batch MLP",
}
_BUILDERS = {
    "generator": build_generator,
    "discriminator": build_discriminator,
    "cnn_classifier": build_cnn_classifier,
    "cell_type_mlp": build_cell_type_mlp,
    "batch_mlp": build_batch_mlp,
}


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
    with opened(path) as file:
        network = read_network(file)
        return _examine(Path(path), network)


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
    with opened(path) as file:
        network = read_network(file)
        model = _examine(Path(path), network)
        built = _BUILDERS[model.kind](**_arguments(model, image_size))
        takers = [layer for layer in built.layers if layer.weights]
        givers = [layer for layer in network.layers if layer.stored]
        for taker, giver in zip(takers, givers, strict=True):
            for variable in taker.weights:
                variable.assign(read_weight(giver.stored[variable.name]))
    return built


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


def _examine(path, network):
    """Return what a network is, after holding all of it against the published one."""
    kind = _kind(network)
    sizes = _sizes(network, kind)
    image_size = sizes.get("image_size", 0)
    known = sizes if image_size is not None else sizes | {"image_size": ANY_IMAGE_SIZE}
    published = published_layers(kind, **known)
    _Comparison(network, kind, published).check()
    features = {"n_features": 8 * sizes["base_filters"]} if kind == "generator" else {}
    fields = dict.fromkeys(("image_size", "base_filters", "n_classes", "n_features"))
    return LegacyModel(path, kind, **(fields | sizes | features), n_weights=published.n_weights)


def _arguments(model, image_size):
    """Return the arguments of the builder."""
    names = {
        "generator": ("image_size", "base_filters"),
        "discriminator": ("image_size", "base_filters"),
        "cnn_classifier": ("n_classes", "image_size", "base_filters"),
    }.get(model.kind, ("n_classes", "n_features"))
    arguments = {name: getattr(model, name) for name in names}
    if "image_size" not in names:
        return arguments
    if model.image_size is None and image_size is None:
        raise LegacyFileError(
            f"{model.path} holds weights alone, which fit {IN_WORDS[model.kind]} of several image "
            "sizes. Expected to be told which; give image_size=128 if it was trained as published."
        )
    if None not in (model.image_size, image_size) and model.image_size != image_size:
        raise LegacyFileError(
            f"{model.path} holds {IN_WORDS[model.kind]} of {model.image_size} x "
            f"{model.image_size} pixels; image_size={image_size} was asked. Leave it out."
        )
    return arguments | {"image_size": model.image_size or image_size}


# --- which network it is ------------------------------------------------------------------------


def _layers_of(network, *types):
    return [layer for layer in network.layers if layer.type in types]


def _kind(network):
    dense = _layers_of(network, "Dense")
    if _layers_of(network, "Conv2DTranspose"):
        return "generator"
    if _layers_of(network, "Conv2D"):
        return "cnn_classifier" if dense else "discriminator"
    if not dense:
        found = ", ".join(dict.fromkeys(layer.type for layer in network.layers)) or "none"
        raise LegacyFileError(
            f"{network.path} holds layers of other types than the published networks (found: "
            f"{found}). Expected convolutions or dense layers. {GIVE_ANOTHER}"
        )
    by_width = {250: "cell_type_mlp", 75: "batch_mlp"}
    by_number = "cell_type_mlp" if len(dense) > 4 else "batch_mlp"
    return by_width.get(dense[0].settings.get("units"), by_number)


def _sizes(network, kind):
    """Return the sizes, as the arguments of `published_layers`.

    The image size is None where weights alone leave it open.
    """
    sizes = {}
    images, dense = _layers_of(network, "Conv2D", "Conv2DTranspose"), _layers_of(network, "Dense")
    if images:
        sizes["base_filters"] = _count(network, images[0], "filters", least=1)
    if dense:
        sizes["n_classes"] = _count(network, dense[-1], "units", least=2)
    if network.is_described:
        return sizes | _described_input(network, bool(images))
    if not images:
        return sizes | {"n_features": dense[0].stored["kernel"].shape[0]}
    image_size = None
    if kind == "generator":
        # n - 1 blocks down, the bottleneck, n - 1 blocks up, 5 layers in the tail.
        image_size = 2 ** max(4, (len(images) - 4) // 2)
    elif kind == "cnn_classifier":
        pixels = dense[0].stored["kernel"].shape[0] // (8 * sizes["base_filters"])
        # Images of up to 128 pixels all end as a single one.
        image_size = 128 * math.isqrt(pixels) if pixels > 1 else None
    return sizes | {"image_size": image_size}


def _count(network, layer, setting, least):
    number = layer.settings.get(setting)
    if type(number) is not int or number < least:
        raise LegacyFileError(
            f"{network.path}: layer {layer.name!r} has {setting} {_show(number)}. Expected a whole "
            f"number of at least {least}. {GIVE_ANOTHER}"
        )
    return number


def _described_input(network, takes_images):
    """Return the image size, or the number of features, that the first layer takes."""
    first = network.layers[0]
    shape = first.settings.get("batch_input_shape")
    if first.type != "InputLayer" or not isinstance(shape, list):
        raise LegacyFileError(
            f"{network.path} begins with layer {first.name!r} of type {first.type}. Expected an "
            f"InputLayer with its batch_input_shape. {GIVE_ANOTHER}"
        )
    if not takes_images:
        if len(shape) != 2 or type(shape[1]) is not int or shape[1] < 1:
            expected = "features: (cells, number of features)"
            _refuse_input(network, first, shape, expected)
        return {"n_features": shape[1]}
    if len(shape) == 4 and shape[3] != 1:
        _refuse_input(
            network,
            first,
            shape,
            "images of one channel, as this kit turns brightfield images of one channel into "
            "phase images of one channel",
        )
    size = shape[1] if len(shape) == 4 else None
    if type(size) is not int or shape[2] != size or size < 16 or size & (size - 1):
        expected = "square images whose side is a power of two of at least 16 pixels"
        _refuse_input(network, first, shape, expected)
    return {"image_size": size}


def _refuse_input(network, layer, shape, expected):
    raise LegacyFileError(
        f"{network.path}: layer {layer.name!r} takes {_show(shape[1:])}. Expected {expected}. "
        f"{GIVE_ANOTHER}"
    )


# --- whether it is the published one ------------------------------------------------------------


class _Comparison:
    """Holds the layers of a file against those of a published network."""

    def __init__(self, network, kind, published):
        self.network = network
        self.what = IN_WORDS[kind]
        self.published = published
        self.expected = [
            layer for layer in published.layers if layer.weights or network.is_described
        ]

    def check(self):
        """Refuse the first difference."""
        pairs = zip(self.network.layers, self.expected, strict=False)
        for place, (layer, wanted) in enumerate(pairs):
            if self.network.is_described:
                self._check_type(place, layer, wanted)
                self._check_settings(place, layer, wanted)
                self._check_inputs(place, layer, wanted)
            self._check_weights(place, layer, wanted)
        self._check_end()
        if self.network.is_described:
            self._check_ends("inputs", self.network.inputs, self.published.inputs)
            self._check_ends("outputs", self.network.outputs, self.published.outputs)

    def _check_type(self, place, layer, wanted):
        if layer.type != wanted.type:
            settings = _show_settings(wanted.settings) or "its defaults"
            self._refuse(place, layer.type, f"{wanted.type} with {settings}")

    def _check_settings(self, place, layer, wanted):
        # Files of before TensorFlow 2.3 say nothing of groups: there was only 1.
        known = {"groups": 1} | layer.settings
        found = {name: known.get(name) for name in wanted.settings}
        different = [name for name in found if not _same(found[name], wanted.settings[name])]
        if different:
            self._refuse(
                place,
                f"{layer.type} with {_show_settings({name: found[name] for name in different})}",
                _show_settings({name: wanted.settings[name] for name in different}),
            )

    def _check_inputs(self, place, layer, wanted):
        expected = self._names(wanted.inputs)
        if layer.inputs != expected:
            self._refuse(
                place,
                f"{layer.type} fed by {', '.join(layer.inputs) or 'nothing'}",
                f"{', '.join(expected) or 'nothing'}, in this order",
            )

    def _check_weights(self, place, layer, wanted):
        if layer.stored.keys() != wanted.weights.keys():
            self._refuse(
                place,
                f"the weights {', '.join(layer.stored) or 'none'}",
                ", ".join(wanted.weights) or "none",
            )
        for name, shape in wanted.weights.items():
            found = layer.stored[name].shape
            if found != shape:
                self._refuse(place, f"a {name} of shape {_show(found)}", _show(shape))

    def _check_end(self):
        layers, expected = self.network.layers, self.expected
        if len(layers) > len(expected):
            self._refuse(len(expected), layers[len(expected)].type, "no further layer")
        if len(layers) < len(expected):
            raise LegacyFileError(
                f"{self.network.path} is not the published network: what seems {self.what} ends "
                f"after layer {len(layers)}, {layers[-1].name!r}. Expected "
                f"{expected[len(layers)].type} next, {len(expected)} layers in all. {GIVE_ANOTHER}"
            )

    def _check_ends(self, side, found, places):
        expected = self._names(places)
        if found != expected:
            raise LegacyFileError(
                f"{self.network.path} is not the published network: what seems {self.what} has the "
                f"{side} {', '.join(found)}. Expected {', '.join(expected)}. {GIVE_ANOTHER}"
            )

    def _names(self, places):
        return tuple(self.network.layers[place].name for place in places)

    def _refuse(self, place, found, expected):
        raise LegacyFileError(
            f"{self.network.path} is not the published network: layer {place + 1} of what seems "
            f"{self.what}, {self.network.layers[place].name!r}, differs. Found {found}; expected "
            f"{expected}. {GIVE_ANOTHER}"
        )


def _same(found, expected):
    if isinstance(expected, tuple):
        return found == list(expected)
    if isinstance(expected, float):  # 0.2 comes back as 0.20000000298023224
        return type(found) in (int, float) and math.isclose(found, expected, rel_tol=1e-5)
    return found == expected


def _show_settings(settings):
    return ", ".join(f"{name} {_show(value)}" for name, value in settings.items())


def _show(value):
    if isinstance(value, (list, tuple)):
        return "x".join(str(item) for item in value)[:80]
    return str(value)[:80]
