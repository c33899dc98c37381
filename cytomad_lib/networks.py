"""The five published networks of CytoMAD.

Every builder is a plain function that returns a functional Keras model. One rule gives the
published networks (128x128 images, 64 base filters) and smaller ones alike: sizes and widths
follow from `image_size` (a power of two) and `base_filters`.

* `build_generator`: brightfield image -> phase image and bottleneck features.
* `build_discriminator`: brightfield and phase image -> map of "is this patch real?".
* `build_cnn_classifier`: phase image -> batch or class.
* `build_cell_type_mlp`: all bottleneck features -> class.
* `build_batch_mlp`: a quarter of the bottleneck features -> batch.

Batch normalisation and dropout follow the `training` argument of the call: with
`training=False` (and in `predict`) the networks use running statistics and no dropout, so that
the result for one cell depends neither on chance nor on the other cells of the minibatch.

Source: the CytoMAD publication and its programs; layer for layer at 128x128.

Example
-------
>>> generator = build_generator(image_size=32, base_filters=4)
>>> image, features = generator(np.zeros((1, 32, 32, 1)))
>>> image.shape, features.shape
((1, 32, 32, 1), (1, 32))
"""

import random
from contextlib import contextmanager

from cytomad_lib.backend import keras, replicas
from cytomad_lib.layers import BatchNormalization, Conv2D, Conv2DTranspose

layers = keras.layers

LEAKY_SLOPE = 0.2
DROPOUT = 0.5
KERNEL = 4  # every convolution of the published networks is 4x4


@contextmanager
def computing_in(precision):
    """Set the precision of the networks that are built inside the block; see `Preset`.

    >>> with computing_in("mixed_float16"):
    ...     generator = build_generator(64, 8)
    >>> generator.compute_dtype
    'float16'
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def encoder_widths(image_size, base_filters):
    """List the filters of the stride-2 encoder blocks: 1, 2, 4, 8, 8... times `base_filters`.

    An image of 2^n pixels gets n - 1 blocks; the bottleneck convolution then makes it 1x1.

    >>> encoder_widths(128, 64)
    [64, 128, 256, 512, 512, 512]
    """
    n = int(image_size).bit_length() - 1
    return [base_filters * min(2**block, 8) for block in range(n - 1)]


def tail_widths(base_filters):
    """List the filters of the generator's full-size tail (published: 32, 16, 8, 4)."""
    return [max(base_filters // divisor, 4) for divisor in (2, 4, 8, 16)]


def build_generator(
    image_size: int = 128,
    base_filters: int = 64,
    norm_momentum: float = 0.99,
    seed: int | None = None,
    dropout: float = DROPOUT,
    channels: int = 1,
) -> keras.Model:
    """Build the pix2pix U-Net whose bottleneck is 1x1.

    Parameters
    ----------
    image_size : int
        Height and width in pixels, a power of two, at least 16.
    base_filters : int
        Filters of the first convolution.
    norm_momentum : float
        Momentum of the running statistics in batch normalisation.
    seed : int, optional
        Seed of the initial weights and of dropout.
    dropout : float
        Part of the units dropped in training, in the first two blocks of the decoder.
    channels : int
        Images per cell that go in.

    Returns
    -------
    keras.Model
        `(n, size, size, channels)` brightfield -> `[(n, size, size, 1) phase in rad,
        (n, 8 * base_filters) bottleneck features]`.

    Raises
    ------
    ValueError
        If `image_size` is not a power of two of at least 16, or `base_filters` is below 1.
    """
    check_sizes(image_size, base_filters)
    seeds, norm = KernelSeeds(seed), norm_momentum
    brightfield = keras.Input((image_size, image_size, channels), name="brightfield")
    widths = encoder_widths(image_size, base_filters)
    encoded = encode(brightfield, widths, seeds, norm)
    bottleneck = convolution(8 * base_filters, 2, seeds)(encoded[-1])
    bottleneck = layers.ReLU(name="bottleneck")(bottleneck)

    x = bottleneck
    for block, (filters, skip) in enumerate(zip(reversed(widths), reversed(encoded), strict=True)):
        x = _up(x, filters, 2, seeds, norm)
        if block < 2:
            x = layers.Dropout(dropout, seed=seeds.next())(x)
        x = layers.ReLU()(layers.Concatenate()([x, skip]))

    first, *thin = tail_widths(base_filters)
    x = _up(x, first, 2, seeds, norm)
    x = layers.ReLU()(layers.Concatenate()([x, brightfield]))
    for filters in thin:
        x = layers.ReLU()(_up(x, filters, 1, seeds, norm))
    image = layers.Activation("linear", dtype="float32", name="image")(_transposed(1, 1, seeds)(x))
    features = layers.Flatten(dtype="float32", name="features")(bottleneck)
    return keras.Model(brightfield, [image, features], name="generator")


def all_layers(network):
    """List the layers of a network, and of the networks inside it.

    Parameters
    ----------
    network : keras.Model

    Returns
    -------
    list of keras.layers.Layer
        In order; a network inside the network stands as its layers, not as itself.
    """
    nested = [
        all_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in network.layers
    ]
    return [layer for part in nested for layer in part]


def seed_generators(network):
    """List what draws at random in a network, and in the networks inside it, in order."""
    drawing = [layer for layer in all_layers(network) if hasattr(layer, "seed_generator")]
    return [layer.seed_generator for layer in drawing]


def build_discriminator(
    image_size: int = 128,
    base_filters: int = 64,
    norm_momentum: float = 0.99,
    seed: int | None = None,
    channels: int = 1,
) -> keras.Model:
    """Build the PatchGAN that says, patch by patch, whether a phase image is a measured one.

    Parameters
    ----------
    image_size, base_filters, norm_momentum, seed, channels
        As in `build_generator`.

    Returns
    -------
    keras.Model
        `[brightfield (n, size, size, channels), phase (n, size, size, 1)]` ->
        `(n, size / 8, size / 8, 1)` probabilities that the patch is real.

    Raises
    ------
    ValueError
        As `build_generator`.
    """
    check_sizes(image_size, base_filters)
    seeds, norm = KernelSeeds(seed), norm_momentum
    brightfield = keras.Input((image_size, image_size, channels), name="brightfield")
    phase = keras.Input((image_size, image_size, 1), name="phase")
    x = layers.Concatenate()([brightfield, phase])
    for block, (multiple, stride) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1), (8, 1)]):
        x = _conv(x, multiple * base_filters, stride, seeds, norm if block > 0 else None)
    patches = convolution(1, 1, seeds, activation="sigmoid", dtype="float32", name="patches")(x)
    return keras.Model([brightfield, phase], patches, name="discriminator")


def build_cnn_classifier(
    n_classes, image_size=128, base_filters=64, norm_momentum=0.99, seed=None, name="cnn"
):
    """Build a convolutional classifier of phase images, used for batch and for class.

    Parameters
    ----------
    n_classes : int
        Number of classes (or of batches).
    image_size, base_filters, norm_momentum, seed
        As in `build_generator`.
    name : str
        Name of the Keras model.

    Returns
    -------
    keras.Model
        `(n, size, size, 1)` phase -> `(n, n_classes)` probabilities.

    Raises
    ------
    ValueError
        As `build_generator`, and if `n_classes` is below 2.
    """
    check_sizes(image_size, base_filters)
    _check_classes(n_classes)
    seeds, norm = KernelSeeds(seed), norm_momentum
    phase = keras.Input((image_size, image_size, 1), name="phase")
    x = phase
    for block, (multiple, stride) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1), (8, 1)]):
        x = _conv(x, multiple * base_filters, stride, seeds, norm if block > 0 else None)
        if block > 0:
            # "same": small images are already 1x1 here, and stay so.
            x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Flatten()(x)
    x = dense(128, seeds)(x)
    return keras.Model(phase, dense(n_classes, seeds, "softmax")(x), name=name)


def build_cell_type_mlp(n_classes, n_features=512, seed=None, name="cell_type_mlp"):
    """Build the cell-type classifier of all bottleneck features: 250-100-50-25, softmax.

    Parameters
    ----------
    n_classes, n_features : int
        Outputs and inputs.
    seed : int, optional
        Seed of the initial weights.
    name : str
        Name of the Keras model.

    Returns
    -------
    keras.Model
        `(n, n_features)` -> `(n, n_classes)` probabilities.

    Raises
    ------
    ValueError
        If `n_classes` is below 2 or `n_features` below 1.
    """
    return _mlp(n_classes, n_features, (250, 100, 50, 25), seed, name)


def build_batch_mlp(n_classes, n_features=128, seed=None, name="batch_mlp"):
    """Build a batch classifier of a part of the bottleneck features: 75-50-25, softmax.

    Parameters, returns and errors as in `build_cell_type_mlp`.
    """
    return _mlp(n_classes, n_features, (75, 50, 25), seed, name)


class KernelSeeds:
    """Draw one seed after another, so that no two layers start with equal weights."""

    def __init__(self, seed):
        self._draw = random.Random(seed)

    def next(self):
        """Return the next seed."""
        return self._draw.randrange(2**31)


def convolution(filters, stride, seeds, **options):
    """Return a 4x4 convolution layer with the published initial weights, N(0, 0.02)."""
    return Conv2D(filters, **_kernel(stride, seeds), **options)


def _transposed(filters, stride, seeds):
    return Conv2DTranspose(filters, **_kernel(stride, seeds))


def _kernel(stride, seeds):
    initial = keras.initializers.RandomNormal(0.0, 0.02, seed=seeds.next())
    shape = {"kernel_size": KERNEL, "strides": stride, "padding": "same"}
    return shape | {"kernel_initializer": initial}


def _conv(x, filters, stride, seeds, norm_momentum):
    x = convolution(filters, stride, seeds)(x)
    if norm_momentum is not None:
        x = _batch_norm(norm_momentum)(x)
    return layers.LeakyReLU(negative_slope=LEAKY_SLOPE)(x)


def encode(x, widths, seeds, norm_momentum):
    """Return what the stride-2 blocks make, one after the other; the first has no norm."""
    encoded = []
    for block, filters in enumerate(widths):
        x = _conv(x, filters, 2, seeds, norm_momentum if block > 0 else None)
        encoded.append(x)
    return encoded


def _up(x, filters, stride, seeds, norm_momentum):
    return _batch_norm(norm_momentum)(_transposed(filters, stride, seeds)(x))


def _batch_norm(momentum):
    # Where several devices share a minibatch, it is normalised as a whole.
    return BatchNormalization(momentum=momentum, epsilon=1e-3, synchronized=replicas() > 1)


def dense(units, seeds, activation="relu"):
    """Return a dense layer with Glorot's uniform initial weights."""
    return layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seeds.next()),
    )


def _mlp(n_classes, n_features, widths, seed, name):
    _check_classes(n_classes)
    if n_features < 1:
        raise ValueError(f"n_features is {n_features}; give at least 1.")
    seeds = KernelSeeds(seed)
    features = keras.Input((n_features,), name="features")
    x = features
    for units in widths:
        x = dense(units, seeds)(x)
    return keras.Model(features, dense(n_classes, seeds, "softmax")(x), name=name)


def check_sizes(image_size, base_filters):
    """Refuse an image size that is no power of two from 16 on, and a width below 1."""
    if image_size < 16 or image_size & (image_size - 1):
        raise ValueError(
            f"image_size is {image_size}, expected a power of two of at least 16 "
            "(16, 32, 64, 128, ...). Load the cells with that image_size to resize them."
        )
    if base_filters < 1:
        raise ValueError(f"base_filters is {base_filters}; give at least 1 (published: 64).")


def _check_classes(n_classes):
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; a classifier needs at least 2.")
