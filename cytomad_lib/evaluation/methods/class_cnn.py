"""A plain CNN that learns the class from brightfield; its last hidden layer gives the features."""

import numpy as np

from cytomad_lib.backend import keras

NAME = "CNN trained on class"
NEEDS = "nothing"
TRAINS_ON = ("brightfield", "class_name")
FILTERS, FEATURES = (16, 32, 64), 64
MINIBATCH, STEPS, RATE = 32, 400, 3e-3


def fit(features, images, labels, seed):
    """Train the network; the number of steps does not depend on the number of cells."""
    classes = labels["class_name"].cat.remove_unused_categories().cat
    mean, spread = images.brightfield.mean(), images.brightfield.std()
    network = _network(images.brightfield.shape[1:], len(classes.categories), seed)
    rate = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
    network.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy())
    rng = np.random.default_rng(seed)
    passes = -(-STEPS * MINIBATCH // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(passes)])
    for step in range(STEPS):
        cells = order[step * MINIBATCH : (step + 1) * MINIBATCH]
        x = (images.brightfield[cells] - mean) / spread
        network.train_on_batch(x, classes.codes.to_numpy()[cells])
    hidden = keras.Model(network.inputs[0], network.get_layer("features").output)
    return hidden, mean, spread


def transform(fitted, features, images, labels):
    """Return the last hidden layer."""
    hidden, mean, spread = fitted
    return hidden.predict((images.brightfield - mean) / spread, verbose=0)


def _network(shape, n_classes, seed):
    layers = keras.layers
    seeds = iter(np.random.default_rng(seed).integers(2**31, size=len(FILTERS) + 2))

    def start():
        return keras.initializers.HeNormal(seed=int(next(seeds)))

    x = inputs = keras.Input(shape)
    for filters, kernel, stride in zip(FILTERS, (8, 4, 4), (4, 2, 2), strict=True):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": start()}
        x = layers.Conv2D(filters, kernel, strides=stride, **options)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Flatten()(x)
    x = layers.Dense(FEATURES, "relu", kernel_initializer=start(), name="features")(x)
    x = layers.Dense(n_classes, "softmax", kernel_initializer=start())(x)
    return keras.Model(inputs, x)
