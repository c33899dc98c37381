"""Bottleneck of a generator with random weights: what the network's structure alone gives."""

from cytomad_lib.backend import keras
from cytomad_lib.networks import build_generator

NAME = "untrained generator"
NEEDS = "nothing"


def transform(seed, features, images, labels):
    """Return the bottleneck features of a new generator, as wide as the trained one."""
    _, size, _, channels = images.brightfield.shape
    filters = max(1, features.shape[1] // 8)
    generator = build_generator(size, filters, seed=seed, channels=channels)
    encoder = keras.Model(generator.inputs[0], generator.get_layer("bottleneck").output)
    return encoder.predict(images.brightfield, verbose=0).reshape(len(labels), -1)
