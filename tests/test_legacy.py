"""Files of the published programs give the published numbers; other networks are refused."""

import hashlib
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from keras import Input, Model, layers, ops
from tf24_files import (
    FILES,
    edited,
    expected,
    genuine,
    layer_of,
    randomised,
    write_tf24,
    write_weights,
)

from cytomad_lib import networks
from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.legacy import (
    LegacyFileError,
    inspect_legacy,
    load_legacy,
    load_legacy_generator,
)
from cytomad_lib.prediction import predict

NETWORKS = {
    "generator": lambda size, base: networks.build_generator(size, base),
    "discriminator": lambda size, base: networks.build_discriminator(size, base),
    "cnn_classifier": lambda size, base: networks.build_cnn_classifier(3, size, base),
    "cell_type_mlp": lambda size, base: networks.build_cell_type_mlp(5, 8 * base),
    "batch_mlp": lambda size, base: networks.build_batch_mlp(5, 2 * base),
}


def outputs_of(network, seed=0):
    random = np.random.default_rng(seed)
    inputs = [
        random.normal(size=(3, *tensor.shape[1:])).astype("float32") for tensor in network.inputs
    ]
    outputs = network(inputs if len(inputs) > 1 else inputs[0], training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [ops.convert_to_numpy(output) for output in outputs]


# --- genuine files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("generator", (32, 4, None, 32, 67_193)),
        ("discriminator", (32, 4, None, None, 28_221)),
        ("cnn_classifier", (32, 4, 7, None, 32_771)),
        ("cell_type_mlp", (None, None, 7, 32, 39_857)),
        ("batch_mlp", (None, None, 7, 8, 5_932)),
    ],
)
def test_genuine_files_are_recognised(kind, sizes):
    found = inspect_legacy(genuine(kind))
    assert (found.kind, found.path) == (kind, genuine(kind))
    assert (
        found.image_size,
        found.base_filters,
        found.n_classes,
        found.n_features,
        found.n_weights,
    ) == sizes
    assert found.n_weights == load_legacy(genuine(kind)).count_params()


@pytest.mark.parametrize(
    "kind, inputs, output",
    [
        ("discriminator", ("brightfield", "qpi"), "patch_probability"),
        ("cnn_classifier", ("qpi",), "cnn_probability"),
        ("cell_type_mlp", ("cell_mlp_input",), "cell_mlp_probability"),
        ("batch_mlp", ("batch_mlp_input",), "batch_mlp_probability"),
    ],
)
def test_classifiers_and_discriminator_give_tensorflows_numbers(kind, inputs, output):
    arrays = expected()
    given = [arrays[name] for name in inputs]
    network = load_legacy(genuine(kind))
    found = network.predict(given if len(given) > 1 else given[0], verbose=0)
    np.testing.assert_allclose(found, arrays[output], atol=1e-6)
    # ... and the weights matter: such a network with others is far off.
    network.set_weights([np.roll(weight, 1) for weight in network.get_weights()])
    other = network.predict(given if len(given) > 1 else given[0], verbose=0)
    assert np.abs(other - arrays[output]).max() > 1e-4


def test_the_generator_gives_tensorflows_images_and_features():
    """TensorFlow normalised the six cells together: they are one group."""
    arrays = expected()
    labels = pd.DataFrame({"batch": "Batch1", "class_name": "H69", "cell": range(6)})
    labels = labels.astype({"batch": "category", "class_name": "category"})
    cells = CellImages(arrays["brightfield"], arrays["qpi"], labels, pixel_size_um=1.0)
    generator = load_legacy_generator(genuine("generator"))
    found = predict(generator, cells, mode="batch")
    np.testing.assert_allclose(found.images, arrays["image_batch_statistics_no_dropout"], atol=1e-5)
    bottleneck = arrays["bottleneck_batch_statistics"].reshape(6, -1)
    np.testing.assert_allclose(found.features, bottleneck, atol=1e-5)
    for mode in ("running", "published"):  # other statistics, or dropout: other images
        assert np.abs(predict(generator, cells, mode=mode).images - found.images).max() > 1e-2


def test_the_running_statistics_are_the_files():
    generator = load_legacy(genuine("generator"))
    with h5py.File(genuine("generator")) as file:
        layer = file["model_weights/batch_normalization_3/batch_normalization_3"]
        mean, variance = layer["moving_mean:0"][...], layer["moving_variance:0"][...]
    norms = [layer for layer in generator.layers if "batch_norm" in layer.name]
    np.testing.assert_array_equal(norms[3].moving_mean, mean)
    np.testing.assert_array_equal(norms[3].moving_variance, variance)
    assert np.abs(mean).max() > 0 and np.abs(variance - 1).max() > 0.01


# --- other sizes, written as TensorFlow 2.4 writes ----------------------------------------------


@pytest.mark.parametrize("image_size, base_filters", [(16, 3), (64, 8), (256, 2)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_size_comes_back_the_same(kind, image_size, base_filters, tmp_path):
    network = randomised(NETWORKS[kind](image_size, base_filters))
    path = write_tf24(network, tmp_path / "model.h5")
    found = inspect_legacy(path)
    assert found.kind == kind
    assert found.n_weights == network.count_params()
    assert found.image_size == (None if "mlp" in kind else image_size)
    again = load_legacy(path)
    for before, after in zip(outputs_of(network), outputs_of(again), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.std() > 1e-6


@pytest.mark.parametrize("image_size, base_filters", [(32, 4), (256, 2)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_alone_are_matched_by_order_and_shape(kind, image_size, base_filters, tmp_path):
    network = randomised(NETWORKS[kind](image_size, base_filters))
    path = write_tf24(network, tmp_path / "model.weights", weights_alone=True)
    found = inspect_legacy(path)
    assert (found.kind, found.n_weights) == (kind, network.count_params())
    is_open = kind == "discriminator" or (kind == "cnn_classifier" and image_size <= 128)
    if is_open:
        assert found.image_size is None
        with pytest.raises(LegacyFileError, match="weights alone.*several image sizes.*image_size"):
            load_legacy(path)
    again = load_legacy(path, image_size=image_size if is_open else None)
    for before, after in zip(outputs_of(network), outputs_of(again), strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_image_size_than_the_files_is_refused():
    with pytest.raises(LegacyFileError, match="generator of 32 x 32 pixels; image_size=64"):
        load_legacy(genuine("generator"), image_size=64)
    assert load_legacy(genuine("generator"), image_size=32).input_shape == (None, 32, 32, 1)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_are_converted(dtype, tmp_path):
    path = edited("batch_mlp", tmp_path / "model.h5", lambda config: None)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/dense_2/dense_2"]
        kernel = group["kernel:0"][...]
        del group["kernel:0"]
        group["kernel:0"] = kernel.astype(dtype)
    found = load_legacy(path).layers[1].kernel
    assert ops.convert_to_numpy(found).dtype == np.float32
    np.testing.assert_allclose(found, kernel, atol=1e-3)


FULL_WIDTH = """
import hashlib, sys, time
from cytomad_lib.legacy import load_legacy_generator
from cytomad_lib.networks import build_generator

def megabytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))

build_generator(16, 1)  # what TensorFlow takes at its first use
before, start = megabytes("VmRSS"), time.perf_counter()
generator = load_legacy_generator(sys.argv[1])
print(time.perf_counter() - start, megabytes("VmHWM") - before, generator.count_params())
print(hashlib.sha256(b"".join(w.tobytes() for w in generator.get_weights())).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_the_published_width_loads_in_seconds_and_little_memory(tmp_path):
    network = networks.build_generator()
    path = write_tf24(network, tmp_path / "model_000001.h5")
    wanted = hashlib.sha256(b"".join(w.tobytes() for w in network.get_weights())).hexdigest()
    result = subprocess.run(
        [sys.executable, "-c", FULL_WIDTH, str(path)], capture_output=True, text=True, check=True
    )
    path.unlink()  # 168 MB
    seconds, megabytes, n_weights, digest = result.stdout.split()
    assert (int(n_weights), digest) == (41_909_997, wanted)
    assert float(seconds) < 10
    assert 150 < float(megabytes) < 1000  # the weights themselves are 160


# --- files of another network -------------------------------------------------------------------


def set_in(name, **settings):
    """Return an edit that changes the settings of a layer."""
    return lambda config: layer_of(config, name)["config"].update(settings)


def set_type(name, class_name):
    return lambda config: layer_of(config, name).update(class_name=class_name)


def set_inputs(name, *sources):
    nodes = [[[source, 0, 0, {}] for source in sources]]
    return lambda config: layer_of(config, name).update(inbound_nodes=nodes)


@pytest.mark.parametrize(
    "kind, edit, message",
    [
        (
            "generator",
            set_in("conv2d_2", strides=[1, 1]),
            "layer 7 of what seems a generator, 'conv2d_2', differs. Found strides 1x1; "
            "expected strides 2x2",
        ),
        ("generator", set_in("conv2d_2", filters=17), "filters 17; expected filters 16"),
        ("generator", set_in("conv2d_2", kernel_size=[3, 3]), "kernel_size 3x3; .* 4x4"),
        ("generator", set_in("conv2d_2", padding="valid"), "padding valid; expected padding same"),
        ("generator", set_in("conv2d_2", activation="relu"), "activation relu; .* linear"),
        ("generator", set_in("conv2d_2", use_bias=False), "use_bias False; expected .* True"),
        ("generator", set_in("leaky_re_lu", alpha=0.3), "alpha 0.3; expected alpha 0.2"),
        ("generator", set_in("leaky_re_lu", alpha=None), "alpha None; expected alpha 0.2"),
        ("generator", set_in("dropout", rate=0.4), "rate 0.4; expected rate 0.5"),
        ("generator", set_in("batch_normalization", epsilon=1e-5), "epsilon 1e-05"),
        ("generator", set_in("activation", activation="tanh"), "tanh; expected activation relu"),
        (
            "generator",
            set_type("dropout", "SpatialDropout2D"),
            "'dropout', differs. Found SpatialDropout2D; expected Dropout",
        ),
        (
            "generator",
            set_inputs("concatenate", "leaky_re_lu_3", "dropout"),
            "'concatenate', differs. Found input from leaky_re_lu_3, dropout; expected "
            "dropout, leaky_re_lu_3",
        ),
        (
            "discriminator",
            lambda config: config["input_layers"].reverse(),
            "'input_2', differs. Found input 2 of the network; expected input 1",
        ),
        ("discriminator", set_in("activation_10", activation="linear"), "expected .* sigmoid"),
        ("cnn_classifier", set_in("max_pooling2d_1", padding="valid"), "expected padding same"),
        ("cnn_classifier", set_in("dense_1", units=64), "units 64; expected units 128"),
        ("cell_type_mlp", set_in("dense_7", units=101), "units 101; expected units 100"),
        ("batch_mlp", set_in("dense_5", activation="sigmoid"), "sigmoid; .* softmax"),
        (
            "batch_mlp",
            set_in("dense_5", units=1),
            "'dense_5', differs. Found units 1; expected units 7",
        ),
        ("generator", set_in("conv2d", filters="4"), "'conv2d', differs. Found filters 4"),
    ],
)
def test_the_layer_that_differs_is_named(kind, edit, message, tmp_path):
    path = edited(kind, tmp_path / FILES[kind], edit)
    with pytest.raises(LegacyFileError, match=message) as caught:
        load_legacy(path)
    assert isinstance(caught.value, CytomadError)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x, "has 3 layers. Expected 5"),
        (layers.Dense(50, "relu"), "layer 4 of .* Found a kernel of shape 50x50; expected 50x25"),
        (layers.ReLU(), "layer 4 of .* Found Activation; expected Dense"),
    ],
)
def test_a_network_with_other_layers_is_refused(change, message, tmp_path):
    """Written whole: the description and the weights agree, and are not the published ones."""
    features = Input((8,))
    x = layers.Dense(50, "relu")(layers.Dense(75, "relu")(features))
    path = write_tf24(randomised(Model(features, change(x))), tmp_path / "m.h5")
    with pytest.raises(LegacyFileError, match=message):
        inspect_legacy(path)


def test_a_description_of_other_layers_than_the_weights_is_refused(tmp_path):
    def cut(config):
        config["layers"].pop()
        config["output_layers"] = [["conv2d_10", 0, 0]]

    def lengthen(config):
        last = layer_of(config, "activation_10")
        more = {**last, "config": {**last["config"], "name": "more"}}
        config["layers"].append({**more, "inbound_nodes": [[["activation_10", 0, 0, {}]]]})

    for edit, n in ((cut, 18), (lengthen, 20)):
        path = edited("discriminator", tmp_path / "m.h5", edit)
        with pytest.raises(LegacyFileError, match=f"names {n} layers, the weights 19 others"):
            load_legacy(path)


def test_the_descriptions_order_does_not_matter(tmp_path):
    """Layers are ordered by what feeds what."""
    path = edited("generator", tmp_path / "model.h5", lambda config: config["layers"].reverse())
    for found, wanted in zip(
        load_legacy(path).get_weights(),
        load_legacy(genuine("generator")).get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "shape, message",
    [
        ([None, 32, 32, 3], "takes 32x32x3. Expected images of one channel"),
        ([None, 32, 16, 1], "takes 32x16x1. Expected .* 32x32x1, as its layers do"),
        ([None, 64, 64, 1], "takes 64x64x1. Expected .* 32x32x1, as its layers do"),
        ([None, None, None, 1], "takes NonexNonex1. Expected"),
        ([None, 2**20, 2**20, 1], "takes 1048576x1048576x1. Expected"),
        ([None, 32], "takes 32. Expected"),
        (None, "'input_1' takes an unknown shape. Expected"),
    ],
)
def test_images_of_another_kind_are_refused(shape, message, tmp_path):
    path = edited("generator", tmp_path / "m.h5", set_in("input_1", batch_input_shape=shape))
    with pytest.raises(LegacyFileError, match=message):
        inspect_legacy(path)


@pytest.mark.parametrize("shape", [[None], [None, 0], [None, None], [None, 8, 1]])
def test_features_of_another_kind_are_refused(shape, tmp_path):
    path = edited("batch_mlp", tmp_path / "m.h5", set_in("input_5", batch_input_shape=shape))
    with pytest.raises(LegacyFileError, match="'input_5', differs. .*expected .* Nonex8"):
        inspect_legacy(path)


def test_declared_widths_are_checked_before_memory_is_taken(tmp_path):
    """10^9 filters everywhere would be terabytes."""

    def widen(config):
        for layer in config["layers"]:
            if layer["class_name"] == "Conv2D" and layer["config"]["filters"] > 1:
                layer["config"]["filters"] *= 250_000_000

    path = edited("discriminator", tmp_path / "dmodel_all.h5", widen)
    with pytest.raises(LegacyFileError, match="Found filters 1000000000; expected filters 4"):
        load_legacy(path)


def test_weights_alone_of_another_network_are_refused(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        shapes = {"a": (8, 75), "b": (75, 49), "c": (49, 25), "d": (25, 7)}
        arrays = {
            name: {"kernel": np.zeros(shape, "float32"), "bias": np.zeros(shape[1], "float32")}
            for name, shape in shapes.items()
        }
        write_weights(file, arrays)
    with pytest.raises(LegacyFileError, match="'b', differs.*shape 75x49; expected 75x50"):
        load_legacy(path)


def test_layers_of_other_types_are_refused(tmp_path):
    def replace(config):
        for layer in config["layers"]:
            if layer["class_name"] == "Dense":
                layer["class_name"] = "LSTM"

    path = edited("batch_mlp", tmp_path / "m.h5", replace)
    with pytest.raises(LegacyFileError, match="Found LSTM; expected Dense"):
        inspect_legacy(path)


def test_a_network_without_an_input_layer_is_refused(tmp_path):
    def remove(config):
        config["layers"].pop(0)
        config["layers"][0]["inbound_nodes"] = []

    path = edited("cell_type_mlp", tmp_path / "m.h5", remove)
    with pytest.raises(LegacyFileError, match="names 5 layers, the weights 6 others"):
        inspect_legacy(path)


def test_a_first_convolution_too_wide_for_the_rest_is_refused_before_it_is_built(tmp_path):
    """40,000 filters would make a generator of 16 TB."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        shapes = {"a": (4, 4, 1, 40_000), "b": (4, 4, 2, 4)}
        arrays = {
            name: {"kernel": np.zeros(shape, "float32"), "bias": np.zeros(shape[3], "float32")}
            for name, shape in shapes.items()
        }
        write_weights(file, arrays)
    with pytest.raises(LegacyFileError, match="first convolution has 40000 filters"):
        load_legacy(path)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("batch_mlp", "a batch MLP"),
        ("cell_type_mlp", "a cell-type MLP"),
        ("cnn_classifier", "a CNN classifier"),
        ("discriminator", "a discriminator"),
    ],
)
def test_where_a_generator_is_needed_others_are_refused(kind, words):
    with pytest.raises(LegacyFileError, match=f"{words}.*model_.*h5 or CytoMADmodel_"):
        load_legacy_generator(genuine(kind))
