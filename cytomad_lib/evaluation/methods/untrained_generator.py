"""Bottleneck of a generator with random weights: what the network's structure alone gives."""

import numpy as np

from cytomad_lib.backend import keras
from cytomad_lib.networks import build_generator
from cytomad_lib.training.steps import without_gradients

NAME = "untrained generator"
NEEDS = "nothing"
TRAINS_ON = ()
AT_ONCE = 100  # cells; bounds the memory


def fit(features, images, labels, seed):
    """Keep the seed of the weights."""
    return seed


@without_gradients()
def transform(fitted, features, images, labels):
    """Return the bottleneck features of a new generator, as wide as the trained one."""
    brightfield = images.brightfield
    _, size, _, channels = brightfield.shape
    filters = max(1, features.shape[1] // 8)
    generator = build_generator(size, filters, seed=fitted, channels=channels)
    encoder = keras.Model(generator.inputs[0], generator.get_layer("bottleneck").output)
    parts = [
        keras.ops.convert_to_numpy(encoder(brightfield[start : start + AT_ONCE], training=False))
        for start in range(0, len(brightfield), AT_ONCE)
    ]
    return np.concatenate(parts).reshape(len(brightfield), -1)
