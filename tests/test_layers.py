"""Our layers give what those of Keras give."""

import keras
import numpy as np
import pytest
from keras import ops

from cytomad_lib import layers as module
from cytomad_lib.layers import BatchNormalization, Conv2D, Conv2DTranspose
from cytomad_lib.training import steps

RANDOM = np.random.default_rng(0)


def images(*shape):
    spread, shift = RANDOM.uniform(0.2, 3, shape[-1]), RANDOM.normal(0, 2, shape[-1])
    return (RANDOM.normal(size=shape) * spread + shift).astype("float32")


def pair(shape, **options):
    """Build ours and Keras' own, with the same weights."""
    options = {"momentum": 0.8, "epsilon": 1e-3} | options
    layers = BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    for layer in layers:
        layer.build(shape)
    values = [RANDOM.uniform(0.5, 2, weight.shape) for weight in layers[0].weights]
    for layer in layers:
        layer.set_weights(values)
    return layers


def gradients(layer, x, weights, training):
    """Take a step of plain descent on x and the layer's weights; return what has changed."""
    x, weights = keras.Variable(x), ops.convert_to_tensor(weights)
    learning = [x, *layer.trainable_variables]
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(learning)
    before = [ops.convert_to_numpy(variable).copy() for variable in learning]
    steps.minimise(
        lambda: {"loss": ops.sum(weights * layer(x.value, training=training))}, learning, optimizer
    )
    return [then - ops.convert_to_numpy(now) for then, now in zip(before, learning, strict=True)]


@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (4, 1, 1, 2), (1, 1, 1, 2), (9, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_running_statistics_are_those_of_keras(shape, training):
    ours, theirs = pair(shape)
    for _ in range(2):
        x = images(*shape)
        found, wanted = (
            ops.convert_to_numpy(layer(x, training=training)) for layer in (ours, theirs)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_keras(training):
    x, weights = images(5, 6, 7, 3), images(5, 6, 7, 3)
    found, wanted = (gradients(layer, x, weights, training) for layer in pair(x.shape))
    assert len(found) == 3 and np.abs(wanted[0]).max() > 0.1
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"scale": False}, {"center": False}, {"axis": 1}, {"epsilon": 1e-7}]
)
def test_what_the_operation_cannot_do_is_left_to_keras(options):
    ours, theirs = pair((5, 6, 7, 3), **options)
    x = images(5, 6, 7, 3)
    found, wanted = (ops.convert_to_numpy(layer(x, training=True)) for layer in (ours, theirs))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_frozen_layer_does_not_follow_the_minibatch():
    ours, _ = pair((5, 6, 7, 3))
    ours.trainable = False
    before = ours.get_weights()
    ours(images(5, 6, 7, 3), training=True)
    for then, now in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow only")
@pytest.mark.parametrize("training, many", [(True, "SquaredDifference"), (False, "Rsqrt")])
def test_it_is_one_operation(training, many):
    import tensorflow as tf

    ours, theirs = pair((5, 6, 7, 3))
    kinds = [
        {
            node.type
            for node in tf.function(lambda x, layer=layer: layer(x, training=training))
            .get_concrete_function(tf.TensorSpec((None, 6, 7, 3)))
            .graph.get_operations()
        }
        for layer in (ours, theirs)
    ]
    assert "FusedBatchNormV3" in kinds[0] and many not in kinds[0]
    assert many in kinds[1]


# --- convolutions ---------------------------------------------------------------------------------

LARGE = [
    (Conv2D, keras.layers.Conv2D, 1, 16),
    (Conv2D, keras.layers.Conv2D, 2, 4),
    (Conv2DTranspose, keras.layers.Conv2DTranspose, 1, 16),
    (Conv2DTranspose, keras.layers.Conv2DTranspose, 2, 4),
]


def convolution_pair(kinds, filters, stride, pixels, channels, **options):
    """Build ours and Keras' own, with the same weights."""
    options = {"strides": stride, "padding": "same", "activation": "relu"} | options
    layers = [kind(filters, 4, **options) for kind in kinds]
    for layer in layers:
        layer.build((None, pixels, pixels, channels))
    kernel, bias = (RANDOM.normal(size=weight.shape) for weight in layers[0].weights)
    for layer in layers:
        layer.set_weights([kernel, bias])
    return layers


@pytest.fixture
def forms(monkeypatch):
    """Let a few channels count as many; return the forms by which layers convolve."""
    used, convolve = [], module.convolve

    def watched(images, kernel, form, transposed=False):
        used.append(form)
        return convolve(images, kernel, form, transposed)

    monkeypatch.setattr(module, "convolve", watched)
    monkeypatch.setattr(module, "MANY_CHANNELS", {1: 12, 2: 12})
    return used


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow only")
@pytest.mark.parametrize("ours, theirs, stride, pixels", LARGE)
def test_large_convolutions_are_those_of_keras(forms, ours, theirs, stride, pixels):
    ours, theirs = convolution_pair((ours, theirs), 4, stride, pixels, 3)
    x = images(5, pixels, pixels, 3)
    found, wanted = (ops.convert_to_numpy(layer(x)) for layer in (ours, theirs))
    assert len(forms) == 1 and (wanted > 0).any() and (wanted == 0).any()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.std())


@pytest.mark.parametrize(
    "pixels, channels, options",
    [
        (16, 2, {}),  # too few channels
        (8, 3, {}),  # too few pixels
        (18, 3, {}),  # no whole tiles
        (16, 3, {"padding": "valid"}),
        (16, 3, {"dilation_rate": 2}),
        (16, 3, {"dtype": "mixed_bfloat16"}),
    ],
)
def test_all_other_convolutions_are_left_to_keras(forms, pixels, channels, options):
    kinds = Conv2D, keras.layers.Conv2D
    ours, theirs = convolution_pair(kinds, 4, 1, pixels, channels, **options)
    x = images(2, pixels, pixels, channels)
    found, wanted = (
        ops.convert_to_numpy(ops.cast(layer(x), "float32")) for layer in (ours, theirs)
    )
    np.testing.assert_array_equal(found, wanted)
    assert not forms


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow only")
def test_convolutions_can_be_ordinary_for_a_while(forms):
    layer, _ = convolution_pair((Conv2D, keras.layers.Conv2D), 4, 1, 16, 3)
    with module.ordinary_convolutions():
        layer(images(2, 16, 16, 3))
        assert not forms
    layer(images(2, 16, 16, 3))
    assert len(forms) == 1
