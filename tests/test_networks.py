"""The networks are the published ones, at every size, and predict without chance."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras import layers, ops

from cytomad_lib import networks

PUBLISHED_LAYERS = Path(__file__).parent / "data" / "published_networks.csv"
BUILDERS = {
    "generator": networks.build_generator,
    "discriminator": networks.build_discriminator,
    "cnn_classifier_7_classes": lambda: networks.build_cnn_classifier(7),
    "batch_mlp_7_classes": lambda: networks.build_batch_mlp(7),
    "cell_type_mlp_7_classes": lambda: networks.build_cell_type_mlp(7),
}


def outputs_of(generator, images, training=False):
    return [ops.convert_to_numpy(output) for output in generator(images, training=training)]


def published_layers(name):
    with PUBLISHED_LAYERS.open() as file:
        return [row for row in csv.DictReader(file) if row["network"] == name]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_equals_the_published_one(name):
    model = BUILDERS[name]()
    # The published generator gives its bottleneck as 1x1x512; ours also flattens it.
    ours = [
        layer
        for layer in model.layers
        if name != "generator" or not isinstance(layer, layers.Flatten)
    ]
    expected = published_layers(name)
    assert len(ours) == len(expected)
    for layer, row in zip(ours, expected, strict=True):
        shape = "x".join(str(size) for size in layer.output.shape[1:])
        assert (shape, layer.count_params()) == (row["output_shape"], int(row["parameters"])), row
        kind = {"ReLU": "Activation"}.get(type(layer).__name__, type(layer).__name__)
        assert kind == row["layer"], row


@pytest.mark.parametrize(
    "name, total",
    [
        ("generator", 41_909_997),
        ("discriminator", 6_964_161),
        ("cnn_classifier_7_classes", 7_021_511),
        ("batch_mlp_7_classes", 14_932),
        ("cell_type_mlp_7_classes", 159_857),
    ],
)
def test_published_totals(name, total):
    assert sum(int(row["parameters"]) for row in published_layers(name)) == total


@pytest.mark.parametrize("image_size, base_filters", [(16, 4), (32, 4), (64, 6)])
def test_the_rule_holds_for_other_sizes(image_size, base_filters):
    generator = networks.build_generator(image_size, base_filters)
    image, features = generator(np.zeros((2, image_size, image_size, 1)))
    assert image.shape == (2, image_size, image_size, 1)
    assert features.shape == (2, 8 * base_filters)
    strided = [
        layer
        for layer in generator.layers
        if isinstance(layer, layers.Conv2D) and layer.strides == (2, 2)
    ]
    assert len(strided) == np.log2(image_size)  # down to 1x1
    patches = networks.build_discriminator(image_size, base_filters)(
        [np.zeros((2, image_size, image_size, 1))] * 2
    )
    assert patches.shape == (2, image_size // 8, image_size // 8, 1)
    classes = networks.build_cnn_classifier(3, image_size, base_filters)
    guesses = ops.convert_to_numpy(classes(np.zeros((2, image_size, image_size, 1))))
    np.testing.assert_allclose(guesses.sum(axis=1), 1, rtol=1e-5)


def test_no_two_layers_start_equal_and_the_seed_decides():
    first, again, other = (
        networks.build_generator(32, 4, seed=seed).get_weights() for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    kernels = [weight for weight in first if weight.ndim == 4]
    for number, kernel in enumerate(kernels):
        assert not any(
            kernel.shape == later.shape and np.array_equal(kernel, later)
            for later in kernels[number + 1 :]
        )


def test_initial_convolutions_have_the_published_spread():
    kernels = [
        w.ravel() for w in networks.build_generator(64, 32, seed=0).get_weights() if w.ndim == 4
    ]
    values = np.concatenate(kernels)
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std() == pytest.approx(0.02, rel=0.01)


def test_prediction_of_a_cell_ignores_chance_and_the_other_cells():
    generator = networks.build_generator(32, 4, seed=0)
    cells = np.random.default_rng(0).normal(size=(6, 32, 32, 1)).astype("float32")
    for _ in range(3):
        generator(cells, training=True)  # moves the running statistics off their start
    together, _ = outputs_of(generator, cells)
    again, _ = outputs_of(generator, cells)
    np.testing.assert_array_equal(together, again)
    alone = np.concatenate([outputs_of(generator, cells[i : i + 1])[0] for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # ... and in training mode it depends on both: the traps that inference avoids.
    assert np.abs(outputs_of(generator, cells, training=True)[0] - together).max() > 1e-3


@pytest.mark.parametrize("image_size", [0, 8, 100, 96])
def test_impossible_image_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match=f"image_size is {image_size}.*power of two"):
        networks.build_generator(image_size)


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(ValueError, match="n_classes is 1"):
        networks.build_batch_mlp(1)


def test_one_channel_is_the_default_and_more_change_the_first_layers_only():
    for build in (networks.build_generator, networks.build_discriminator):
        one, same, two = (
            build(16, 4, seed=3, **more) for more in ({}, {"channels": 1}, {"channels": 2})
        )
        for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        differ = [
            index
            for index, (a, b) in enumerate(zip(one.get_weights(), two.get_weights(), strict=True))
            if a.shape != b.shape
        ]
        # The first convolution; in the generator also the one that sees the image again.
        assert 0 in differ and len(differ) == (2 if build is networks.build_generator else 1)


@pytest.mark.parametrize("module", ["cytomad_lib.networks", "cytomad_lib.workflow"])
def test_importing_prints_nothing(module):
    """TensorFlow's remarks on missing GPUs look like errors to a learner."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
