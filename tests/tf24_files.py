"""Writes `.h5` files as TensorFlow 2.4 does, from our networks, and edits those that are there.

What such a file says of each layer is copied from the genuine files in `data/legacy`, and then
given the numbers of our layer. The layers' numbers count down, so that neither the names' order
nor the alphabet is the order of the layers; TensorFlow promises neither.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
from keras import layers

GENUINE = Path(__file__).parent / "data" / "legacy"
FILES = {
    "generator": "model_000005.h5",
    "discriminator": "dmodel_all.h5",
    "cnn_classifier": "cmodelCNN_all_000005_0.500.h5",
    "cell_type_mlp": "cmodel_all_000005_0.500.h5",
    "batch_mlp": "bmodel1_all_000005_0.500.h5",
}
WEIGHT_NAMES = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    **dict.fromkeys(("Conv2D", "Conv2DTranspose", "Dense"), ("kernel", "bias")),
}


def genuine(kind):
    """Return the path of the genuine file of a kind."""
    return GENUINE / FILES[kind]


def expected():
    """Return inputs, and what TensorFlow 2.4.4 made of them."""
    with np.load(GENUINE / "expected.npz") as arrays:
        return dict(arrays)


def edited(kind, path, edit):
    """Copy a genuine file to `path`, after `edit(config)` has changed its description."""
    shutil.copy(genuine(kind), path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config["config"])
        file.attrs["model_config"] = json.dumps(config).encode()
    return path


def layer_of(config, name):
    """Return the description of a layer."""
    return next(layer for layer in config["layers"] if layer["config"]["name"] == name)


def write_tf24(network, path, weights_alone=False):
    """Write one of our networks as TensorFlow 2.4's `save`, or `save_weights`, would."""
    described, weights, names = [], {}, _Names(len(network.layers))
    for layer in network.layers:
        if isinstance(layer, layers.Flatten) and layer.name == "features":
            continue  # the published generator puts out the bottleneck as it is
        class_name = "Activation" if isinstance(layer, layers.ReLU) else type(layer).__name__
        name = names.new(class_name, layer)
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        sources = [] if class_name == "InputLayer" else [names.of(source) for source in sources]
        settings = _settings(class_name, layer) | {"name": name}
        activated = settings.get("activation") == "sigmoid"
        if activated:  # the published programs give the sigmoid a layer of its own
            settings["activation"] = "linear"
        described.append(_description(class_name, settings, sources))
        weights[name] = dict(
            zip(WEIGHT_NAMES.get(class_name, ()), layer.get_weights(), strict=True)
        )
        if activated:
            name = names.new("Activation", layer)
            described.append(
                _description(
                    "Activation", {"name": name, "activation": "sigmoid"}, [settings["name"]]
                )
            )
            weights[name] = {}
    outputs = network.outputs
    if network.name == "generator":
        outputs = [outputs[0], network.get_layer("bottleneck").output]
    config = {
        "name": "model",
        "layers": described,
        "input_layers": [[names.of(tensor), 0, 0] for tensor in network.inputs],
        "output_layers": [[names.of(tensor), 0, 0] for tensor in outputs],
    }
    with h5py.File(path, "w") as file:
        group = file if weights_alone else file.create_group("model_weights")
        if not weights_alone:
            text = json.dumps({"class_name": "Functional", "config": config})
            file.attrs["model_config"] = text.encode()
            file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.4.0"
        write_weights(group, weights)
    return path


def write_weights(group, weights):
    """Write {layer: {weight: array}} into an HDF5 group as TensorFlow 2.4 does."""
    group.attrs["backend"], group.attrs["keras_version"] = "tensorflow", "2.4.0"
    group.attrs["layer_names"] = _list(weights)
    for layer, arrays in weights.items():
        own = group.create_group(layer)
        own.attrs["weight_names"] = _list(f"{layer}/{name}:0" for name in arrays)
        for name, array in arrays.items():
            own.create_dataset(f"{layer}/{name}:0", data=array)


def _list(names):
    names = [name.encode() for name in names]
    return np.array(names) if names else np.zeros(0)


def randomised(network, seed=0):
    """Give every weight of a network a value of its own; returns the network."""
    random = np.random.default_rng(seed)
    for layer in network.layers:
        arrays = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = arrays
            arrays = [random.uniform(0.5, 1.5, gamma.shape), random.normal(0, 0.1, beta.shape)]
            arrays += [random.normal(0, 0.1, mean.shape), random.uniform(0.5, 1.5, variance.shape)]
        elif arrays:
            fan_in = np.prod(arrays[0].shape) / arrays[1].size
            arrays = [random.normal(0, 1 / np.sqrt(fan_in), arrays[0].shape)]
            arrays += [random.normal(0, 0.1, layer.get_weights()[1].shape)]
        layer.set_weights(arrays)
    return network


class _Names:
    """Names for our layers, numbered downwards."""

    def __init__(self, first):
        self.next = first
        self.names = {}

    def new(self, class_name, layer):
        self.next -= 1
        self.names[id(layer)] = f"{class_name.lower()}_{self.next}"
        return self.names[id(layer)]

    def of(self, tensor):
        return self.names[id(tensor._keras_history.operation)]


def _genuine_descriptions():
    found = {}
    for kind in FILES:
        with h5py.File(genuine(kind)) as file:
            for layer in json.loads(file.attrs["model_config"])["config"]["layers"]:
                found.setdefault(layer["class_name"], layer)
    return found


_GENUINE = _genuine_descriptions()


def _description(class_name, settings, sources):
    genuine_layer = _GENUINE[class_name]
    always_on = {"training": True} if class_name in ("Dropout", "BatchNormalization") else {}
    return genuine_layer | {
        "name": settings["name"],
        "config": genuine_layer["config"] | settings,
        "inbound_nodes": [[[source, 0, 0, always_on] for source in sources]] if sources else [],
    }


def _settings(class_name, layer):
    """Return the settings that our layer has, under TensorFlow 2.4's names."""
    config = layer.get_config()
    if class_name == "InputLayer":
        return {"batch_input_shape": list(config["batch_shape"])}
    if isinstance(layer, layers.ReLU):
        return {"activation": "relu"}
    if class_name == "LeakyReLU":
        return {"alpha": float(np.float32(config["negative_slope"]))}
    if class_name == "BatchNormalization":
        config["axis"] = [3]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
        if name in _GENUINE[class_name]["config"]
        and not name.endswith(("initializer", "regularizer", "constraint"))
        and name != "dtype"
    }
