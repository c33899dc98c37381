"""The published networks as lists of layers, the way TensorFlow 2.4 describes them.

`cytomad_lib.networks` builds these networks; here they are plain data, that cost no memory.
`cytomad_lib.models.legacy` holds a file against them before it builds anything.

Source: the CytoMAD publication and its programs.

Example
-------
>>> network = published_layers("generator", image_size=128, base_filters=64)
>>> network.layers[1].type, network.layers[1].weights["kernel"]
('Conv2D', (4, 4, 1, 64))
>>> network.n_weights
41909997
"""

import math
from dataclasses import dataclass

from cytomad_lib.networks import (
    KERNEL,
    LEAKY_SLOPE,
    encoder_widths,
    tail_widths,
)


@dataclass(frozen=True)
class PublishedLayer:
    """One layer.

    Parameters
    ----------
    type : str
        As TensorFlow calls it, such as "Conv2D".
    settings : dict
        Those that decide what the layer computes.
    inputs : tuple of int
        Places, in the network, of the layers that feed this one.
    weights : dict
        Name of each weight to its shape.
    """

    type: str
    settings: dict
    inputs: tuple
    weights: dict


@dataclass(frozen=True)
class PublishedNetwork:
    """The layers of a network, each after those that feed it, and which of them put out."""

    layers: tuple
    outputs: tuple

    @property
    def inputs(self):
        """Places of the layers that take in."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.type == "InputLayer")

    @property
    def n_weights(self):
        """All numbers in the network, running statistics included."""
        shapes = [shape for layer in self.layers for shape in layer.weights.values()]
        return sum(math.prod(shape) for shape in shapes)


def published_layers(kind, **sizes):
    """List the layers of a published network.

    Parameters
    ----------
    kind : {"generator", "discriminator", "cnn_classifier", "cell_type_mlp", "batch_mlp"}
    sizes : int
        What the builder of that kind takes: `image_size` and `base_filters` for networks of
        images, `n_classes` for classifiers, `n_features` for MLPs.

    Returns
    -------
    PublishedNetwork
    """
    return _KINDS[kind](**sizes)


def _generator(image_size, base_filters):
    net = _Layers()
    image = net.image(image_size)
    widths = encoder_widths(image_size, base_filters)
    encoded = []
    for block, filters in enumerate(widths):
        net.conv(filters, 2)
        if block > 0:
            net.norm()
        encoded.append(net.leaky_relu())
    net.conv(8 * base_filters, 2)
    bottleneck = net.activation("relu")
    for block, (filters, skip) in enumerate(zip(reversed(widths), reversed(encoded), strict=True)):
        net.transposed(filters, 2)
        up = net.norm()
        if block < 2:
            up = net.add("Dropout", {"rate": 0.5})
        net.concatenate(up, skip)
        net.activation("relu")
    first, *thin = tail_widths(base_filters)
    net.transposed(first, 2)
    net.concatenate(net.norm(), image)
    net.activation("relu")
    for filters in thin:
        net.transposed(filters, 1)
        net.norm()
        net.activation("relu")
    net.transposed(1, 1)
    return net.finish(net.activation("linear"), bottleneck)


def _discriminator(image_size, base_filters):
    net = _Layers()
    net.concatenate(net.image(image_size), net.image(image_size))
    net.patch_blocks(base_filters, pooled=False)
    net.conv(1, 1)
    return net.finish(net.activation("sigmoid"))


def _cnn_classifier(n_classes, image_size, base_filters):
    net = _Layers()
    net.image(image_size)
    net.patch_blocks(base_filters, pooled=True)
    net.add("Flatten", {}, channels=net.sides[-1] ** 2 * net.channels[-1], side=1)
    net.dense(128)
    return net.finish(net.dense(n_classes, "softmax"))


def _cell_type_mlp(n_classes, n_features):
    return _mlp(n_classes, n_features, (250, 100, 50, 25))


def _batch_mlp(n_classes, n_features):
    return _mlp(n_classes, n_features, (75, 50, 25))


def _mlp(n_classes, n_features, widths):
    net = _Layers()
    net.features(n_features)
    for units in widths:
        net.dense(units)
    return net.finish(net.dense(n_classes, "softmax"))


_KINDS = {
    "generator": _generator,
    "discriminator": _discriminator,
    "cnn_classifier": _cnn_classifier,
    "cell_type_mlp": _cell_type_mlp,
    "batch_mlp": _batch_mlp,
}


class _Layers:
    """Layers that are added one after the other, each fed by the one before.

    `sides` and `channels` are those of what each layer puts out. Each method returns the place of
    the layer that it adds.
    """

    def __init__(self):
        self.layers, self.sides, self.channels = [], [], []

    def finish(self, *outputs):
        return PublishedNetwork(tuple(self.layers), outputs)

    def add(self, layer_type, settings, weights=None, inputs=None, channels=None, side=None):
        last = len(self.layers) - 1
        inputs = (last,) if inputs is None else inputs
        self.layers.append(PublishedLayer(layer_type, settings, inputs, weights or {}))
        self.channels.append(self.channels[last] if channels is None else channels)
        self.sides.append(self.sides[last] if side is None else side)
        return last + 1

    def image(self, size):
        shape = {"batch_input_shape": (None, size, size, 1)}
        return self.add("InputLayer", shape, inputs=(), channels=1, side=size)

    def features(self, number):
        shape = {"batch_input_shape": (None, number)}
        return self.add("InputLayer", shape, inputs=(), channels=number, side=1)

    def conv(self, filters, stride):
        kernel = (KERNEL, KERNEL, self.channels[-1], filters)
        side = math.ceil(self.sides[-1] / stride)
        return self._convolution("Conv2D", filters, stride, kernel, side)

    def transposed(self, filters, stride):
        kernel = (KERNEL, KERNEL, filters, self.channels[-1])
        side = self.sides[-1] * stride
        return self._convolution("Conv2DTranspose", filters, stride, kernel, side)

    def _convolution(self, layer_type, filters, stride, kernel, side):
        settings = {
            "filters": filters,
            "kernel_size": (KERNEL, KERNEL),
            "strides": (stride, stride),
            "padding": "same",
            "activation": "linear",
            "use_bias": True,
            "dilation_rate": (1, 1),
            "groups": 1,
            "data_format": "channels_last",
        }
        weights = {"kernel": kernel, "bias": (filters,)}
        return self.add(layer_type, settings, weights, channels=filters, side=side)

    def norm(self):
        settings = {"axis": (3,), "epsilon": 1e-3, "center": True, "scale": True}
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        weights = dict.fromkeys(names, (self.channels[-1],))
        return self.add("BatchNormalization", settings, weights)

    def leaky_relu(self):
        return self.add("LeakyReLU", {"alpha": LEAKY_SLOPE})

    def activation(self, name):
        return self.add("Activation", {"activation": name})

    def concatenate(self, *inputs):
        channels = sum(self.channels[place] for place in inputs)
        return self.add("Concatenate", {"axis": -1}, inputs=inputs, channels=channels)

    def patch_blocks(self, base_filters, pooled):
        """Add what discriminator and CNN classifier share; the latter halves the images more."""
        for block, (multiple, stride) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1), (8, 1)]):
            self.conv(multiple * base_filters, stride)
            if block > 0:
                self.norm()
            self.leaky_relu()
            if block > 0 and pooled:
                settings = {"pool_size": (2, 2), "strides": (2, 2), "padding": "same"}
                self.add("MaxPooling2D", settings, side=math.ceil(self.sides[-1] / 2))

    def dense(self, units, activation="relu"):
        settings = {"units": units, "activation": activation, "use_bias": True}
        weights = {"kernel": (self.channels[-1], units), "bias": (units,)}
        return self.add("Dense", settings, weights, channels=units)
