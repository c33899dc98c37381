"""The networks of the conditional recipe, and the layers that clean its images.

* `build_conditional_generator`: the published generator, and a second encoder for the features.
* `build_feature_encoder`, `build_feature_head`, `build_leaky_mlp`: its parts.
* `build_readers`: what reads class and measures from features, while these are trained.
* `adopt_weights`: start from a pretrained generator.
* `NormaliseImage`, `CleanBackground`, `BlurImage`: layers before and behind the generator.

Example
-------
>>> generator = build_conditional_generator(image_size=32, base_filters=4)
>>> image, features = generator(np.zeros((1, 32, 32, 1)))
>>> image.shape, features.shape
((1, 32, 32, 1), (1, 6))
"""

import numpy as np
from keras import Input, Model, layers, ops, saving
from scipy.ndimage import gaussian_filter1d

from cytomad_lib.config import (
    BACKGROUND,
    CELL_MASK,
    CLASS_HEAD_DROPOUT,
    CLASS_HEAD_WIDTHS,
    EDGE_PIXELS,
    HEAD_WIDTHS,
    Conditional,
)
from cytomad_lib.networks import (
    LEAKY_SLOPE,
    KernelSeeds,
    build_generator,
    check_sizes,
    computing_in,
    convolution,
    dense,
    encode,
    encoder_widths,
)


def build_conditional_generator(
    image_size=128, base_filters=64, norm_momentum=0.99, seed=None, channels=1, recipe=None
):
    """Build the generator of the conditional recipe, whose features have an encoder of their own.

    Every brightfield image gets one brightness and contrast (`NormaliseImage`). The published
    generator (layer "generator") makes the phase image from that. To draw it, its encoder has to
    know the day. So another encoder ("feature_encoder") reads the features, and a head
    ("feature_head") maps them to the few numbers that are delivered.

    Returns and errors as in `build_generator`, but for the number of features.

    Parameters
    ----------
    image_size, base_filters, norm_momentum, seed, channels
        As in `build_generator`.
    recipe : Conditional, optional
        Its `feature_filters`, `n_encoded`, `n_features`, and `blur` of the images.
    """
    check_sizes(image_size, base_filters)
    seeds, recipe = KernelSeeds(seed), recipe or Conditional()
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    shown = NormaliseImage(dtype="float32", name="normalise_image")(brightfield)
    # No dropout: its noise would hide from the adversary what can be read without it.
    sizes = (image_size, base_filters, norm_momentum, seeds.next())
    image, _ = build_generator(*sizes, dropout=0.0, channels=channels)(shown)
    clean = CleanBackground(EDGE_PIXELS, BACKGROUND, dtype="float32", name="clean_background")
    image = BlurImage(recipe.blur, dtype="float32", name="blur_image")(clean(image))
    sizes = (image_size, recipe.feature_filters, norm_momentum, seeds.next())
    encoder = build_feature_encoder(*sizes, channels, recipe.n_encoded)
    head = build_feature_head(recipe.n_encoded, recipe.n_features, seeds.next())
    features = head(encoder(shown))
    return Model(brightfield, [image, features], name="conditional_generator")


def build_feature_encoder(
    image_size=128, base_filters=24, norm_momentum=0.99, seed=None, channels=1, n_features=32
):
    """Build an encoder like the generator's, down to a bottleneck of standardised features.

    Standardised: mean 0 and variance 1 over the cells. Without a ReLU, no feature is silent.

    Parameters
    ----------
    image_size, base_filters, norm_momentum, seed, channels
        As in `build_generator`.
    n_features : int

    Returns
    -------
    keras.Model
        `(n, size, size, channels)` brightfield -> `(n, n_features)`.
    """
    check_sizes(image_size, base_filters)
    seeds = KernelSeeds(seed)
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    encoded = encode(brightfield, encoder_widths(image_size, base_filters), seeds, norm_momentum)
    bottleneck = layers.Flatten()(convolution(n_features, 2, seeds)(encoded[-1]))
    features = _standardise(norm_momentum)(bottleneck)
    return Model(brightfield, features, name="feature_encoder")


def build_feature_head(n_inputs, n_outputs, seed=None):
    """Build the head that `conditional.mmd_alignment` fits: a linear map plus a residual MLP.

    Returns
    -------
    keras.Model
        `(n, n_inputs)` -> `(n, n_outputs)`, standardised.
    """
    seeds = KernelSeeds(seed)
    with computing_in("float32"):
        encoded = Input((n_inputs,))
        linear = dense(n_outputs, seeds, None)(encoded)
        residual = build_leaky_mlp(n_inputs, HEAD_WIDTHS, n_outputs, 0.0, seeds.next())(encoded)
        features = _standardise(0.9)(layers.Add()([linear, residual]))
        return Model(encoded, features, name="feature_head")


def build_readers(n_features, n_classes, n_measures, seed=None):
    """Build what reads class and measures from features, while these are trained.

    Returns
    -------
    keras.Model
        `(n, n_features)` -> `[(n, n_classes) probabilities, (n, n_measures)]`.
    """
    seeds = KernelSeeds(seed)
    features = Input((n_features,))
    class_head = build_leaky_mlp(
        n_features, CLASS_HEAD_WIDTHS, n_classes, CLASS_HEAD_DROPOUT, seeds.next(), "softmax"
    )
    measures = dense(n_measures, seeds, None)(features)
    return Model(features, [class_head(features), measures], name="readers")


def _standardise(momentum):
    return layers.BatchNormalization(
        momentum=momentum, center=False, scale=False, dtype="float32", name="standardised_features"
    )


def adopt_weights(conditional, pretrained, mean, spread):
    """Copy a pretrained generator into a conditional one; the feature encoder is not changed.

    Parameters
    ----------
    conditional, pretrained : keras.Model
        From `build_conditional_generator` and `build_generator`, of one size.
    mean, spread : float, or array (channels,) where there are several
        Brightness and contrast of the images that the pretrained one was trained on: the mean,
        over the training cells, of each image's mean and standard deviation.
    """
    conditional.get_layer("generator").set_weights(pretrained.get_weights())
    conditional.get_layer("normalise_image").set_weights([np.array([mean, spread])])


def build_leaky_mlp(n_inputs, widths, n_outputs, dropout, seed=None, activation=None, name=None):
    """Build one of the conditional recipe's small networks of features: leaky ReLU and dropout.

    Parameters
    ----------
    n_inputs, n_outputs : int
    widths : sequence of int
        Units of the hidden layers.
    dropout : float
        Part of the hidden units that is dropped in training.
    seed : int, optional
        Of the initial weights and of dropout.
    activation : str, optional
        Of the outputs; by default none, so that they are logits.
    name : str, optional

    Returns
    -------
    keras.Model
        `(n, n_inputs)` -> `(n, n_outputs)`.
    """
    seeds = KernelSeeds(seed)
    inputs = x = Input((n_inputs,))
    for units in widths:
        x = layers.LeakyReLU(negative_slope=LEAKY_SLOPE)(dense(units, seeds, None)(x))
        x = layers.Dropout(dropout, seed=seeds.next())(x)
    return Model(inputs, dense(n_outputs, seeds, activation)(x), name=name)


@saving.register_keras_serializable("cytomad_lib")
class CleanBackground(layers.Layer):
    """Remove from a generated image the pattern along its edge and the faint background.

    The generator's convolutions pad with zeros, which leaves a pattern of some 0.05 rad along the
    edge, and some 0.00001 rad of the brightfield background come through. Neither is visible. But
    both are nearly equal in all cells, so a probe reads even a small trace of a batch there.

    Parameters
    ----------
    edge : int
        Pixels along each edge, which are replaced by the mirrored pixels next to them.
    faint : float
        Share of the image's largest value: all pixels are moved towards zero by that much, and
        fainter ones become zero. A generator that is trained with this layer compensates for it
        inside the cell.
    """

    def __init__(self, edge, faint, **options):
        super().__init__(**options)
        self.edge = edge
        self.faint = faint

    def call(self, images):
        """Return images of the same shape (n, height, width, channels)."""
        images = self._mirrored(self._mirrored(images, axis=1), axis=2)
        largest = ops.max(ops.abs(images), axis=(1, 2), keepdims=True)
        faint = self.faint * ops.stop_gradient(largest)
        return ops.sign(images) * ops.relu(ops.abs(images) - faint)

    def _mirrored(self, images, axis):
        # Not by `ops.pad`, whose mode "symmetric" repeats the last pixel on PyTorch.
        inside = np.arange(self.edge, images.shape[axis] - self.edge)
        return ops.take(images, np.pad(inside, self.edge, mode="symmetric"), axis=axis)

    def get_config(self):
        """Return what is needed to build it again."""
        return super().get_config() | {"edge": self.edge, "faint": self.faint}


@saving.register_keras_serializable("cytomad_lib")
class BlurImage(layers.Layer):
    """Blur finished images a little, as the finest detail is guessed, better on some days.

    The cell is what exceeds 4 % of the image's largest value. It is blurred as if it lay in an
    empty field, and what spreads beyond its outline is cut off. So the rim gets darker, as that of
    any cell out of focus. A mean over the pixels of the cell alone would make the rim brighter, and
    a cell seem a fifth larger.

    Parameters
    ----------
    sigma : float
        Standard deviation of the Gaussian, as a share of the image's side; 0 changes nothing. The
        image is mirrored at its edge.
    """

    def __init__(self, sigma, **options):
        super().__init__(**options)
        self.sigma = sigma

    def build(self, shape):
        """Find the weights of a line's pixels; images are square."""
        line = np.eye(shape[1], dtype="float32")
        if self.sigma > 0:
            line = gaussian_filter1d(line, self.sigma * shape[1], axis=0, mode="reflect")
        self._weights = line

    def call(self, images):
        """Return images of the same shape (n, size, size, 1)."""
        if not self.sigma:
            return images
        size = ops.abs(images)
        cell = ops.cast(size > CELL_MASK * ops.max(size, axis=(1, 2), keepdims=True), images.dtype)
        return cell * self._blurred(cell * images)

    def _blurred(self, images):
        weights = ops.convert_to_tensor(self._weights)
        return ops.matmul(weights, ops.matmul(images[..., 0], ops.transpose(weights)))[..., None]

    def get_config(self):
        """Return what is needed to build it again."""
        return super().get_config() | {"sigma": self.sigma}


@saving.register_keras_serializable("cytomad_lib")
class NormaliseImage(layers.Layer):
    """Give every image the same mean and standard deviation, each channel by itself.

    This removes the brightness of the lamp and the gain and offset of the camera. Each image is
    normalised by itself, so cells stay independent of one another.

    Its weights are the mean and the standard deviation that it gives, (2,) or (2, channels) where
    there are several; see `adopt_weights`.
    """

    def build(self, shape):
        """Make the weights: mean 0 and standard deviation 1 to begin with."""
        start = np.array([0.0, 1.0]) if shape[-1] == 1 else np.repeat([[0.0], [1.0]], shape[-1], 1)
        self.target = self.add_weight(shape=start.shape, trainable=False, name="mean_and_spread")
        self.target.assign(start)

    def call(self, images):
        """Normalise images (n, size, size, channels)."""
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        spread = ops.std(images, axis=(1, 2), keepdims=True)
        # The floor is far below the contrast of any cell; it guards against an empty image.
        return (images - mean) / (spread + 1e-4) * self.target[1] + self.target[0]
