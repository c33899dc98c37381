"""The five networks of CytoMAD, those of the conditional recipe, and the presets that size them.

Every builder is a plain function that returns a functional Keras model. One rule gives the
published networks (128x128 images, 64 base filters) and smaller ones alike: sizes and widths
follow from `image_size` (a power of two) and `base_filters`.

* `build_generator`: brightfield image -> phase image and bottleneck features.
* `build_discriminator`: brightfield and phase image -> map of "is this patch real?".
* `build_cnn_classifier`: phase image -> batch or class.
* `build_cell_type_mlp`: all bottleneck features -> class.
* `build_batch_mlp`: a quarter of the bottleneck features -> batch.
* `build_conditional_generator`: the generator of the conditional recipe, with a second encoder.

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
from dataclasses import asdict, dataclass, replace

import numpy as np
from keras import Input, Model, config, initializers, layers, ops, saving
from scipy.ndimage import gaussian_filter1d

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.models import devices
from cytomad_lib.models.batch_norm import BatchNormalization

LEAKY_SLOPE = 0.2
DROPOUT = 0.5
EDGE = 4  # pixels: so far the zeros from beyond the edge reach through the generator's tail
CELL = 0.04  # of an image's largest value: what exceeds it is the cell
HEAD_WIDTHS = (32, 32)  # hidden units of the head that matches the batches of features
FAINT = 0.005  # of an image's largest value; some 0.01 rad, less than a measured background varies
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
UPDATES = ("alternating", "simultaneous")  # of generator and discriminator, see `Preset`
KERNEL = 4  # every convolution of the published networks is 4x4


@dataclass(frozen=True)
class Conditional:
    """Sizes, schedule and weights of the conditional recipe; it is ours, not published.

    Parameters
    ----------
    image_epochs, feature_epochs : int
        Passes over the training cells: first for the images, then for the features.
    image_cells, feature_cells : int
        Cells per step.
    exchanged : float
        Part of the cells that is shown as another batch would have, see `Reimaging`.
    blur : float
        Standard deviation of the blur inside the cells of finished images, as part of the image's
        side (`BlurImage`).
    ema_decay : float
        Decay, per step, of the running mean of the weights that make the images; that mean is what
        is delivered. It grows to this value over the first steps.
    directions : int
        How many directions of the features are kept.
    generator_rate, adversary_rate : float
        Learning rates (Adam). The generator's falls to a tenth towards the end.
    adversary_steps : int
        Steps of the adversary per step of the generator.
    replay_buffer : int
        Number of recent cells that the adversary keeps.
    replay_sample : int
        Number of these, drawn at random, that the adversary is fitted on in one step.
    whitening_floor : float
        Variance, of standardised values, below which a direction counts as constant.
    ramp : float
        Part of the training over which the weights of the batch terms grow from 0.
    matching_steps : int
        Steps in which the batches are matched.
    weight_mae, weight_structure : float
        Weights, for the image, of its error as its batch would measure it, and of the structure
        inside the cell that is lost (`losses.lost_structure`).
    weight_adversary, weight_linear_mmd : float
        Weights of the batch terms on the image's summary; see `ConditionalAdversary.losses_of`.
    weight_matching : float
        Weight of the discrepancy between batches, beside 1 for the class, when they are matched.
    """

    image_epochs: int = 50
    feature_epochs: int = 50
    image_cells: int = 42
    feature_cells: int = 42
    exchanged: float = 0.5
    blur: float = 1.25 / 64
    ema_decay: float = 0.995
    directions: int = 2
    generator_rate: float = 7e-4
    adversary_rate: float = 1e-3
    adversary_steps: int = 3
    replay_buffer: int = 4200
    replay_sample: int = 1050
    whitening_floor: float = 0.1
    ramp: float = 0.5
    matching_steps: int = 200
    weight_mae: float = 60.0
    weight_structure: float = 10.0
    weight_adversary: float = 1.5
    weight_linear_mmd: float = 0.02
    weight_matching: float = 15.0

    def check_cells(self):
        """Refuse numbers of cells that do not go together.

        Raises
        ------
        ValueError
            Says which.
        """
        if not 1 <= self.image_cells <= self.replay_buffer or self.feature_cells < 1:
            raise ValueError(
                f"image_cells is {self.image_cells}, feature_cells {self.feature_cells} and "
                f"replay_buffer {self.replay_buffer}. Expected at least 1, and a replay buffer "
                "that holds a whole minibatch of image_cells."
            )


@dataclass(frozen=True)
class Preset:
    """Everything that sizes and schedules a training run.

    The defaults are the published values for the lung dataset.

    Parameters
    ----------
    name : str
    image_size : int
        Height and width of the images, in pixels; a power of two.
    base_filters : int
        Width of the first convolution; the bottleneck has 8 times as many features.
    batch_size : int
        Cells per minibatch (a minibatch is not an acquisition batch).
    classifier_batch_size : int
        Cells per minibatch when the classifiers are fitted on their own.
    pretraining_epochs, classifier_epochs, removal_epochs : int
        Passes over the training cells in each stage.
    refit_every, refit_epochs : int
        During removal, new batch MLPs are fitted every `refit_every` epochs, for `refit_epochs`.
    batch_mlps : int
        Number of batch MLPs; they share the bottleneck features among them, without overlap.
    generator_rate, discriminator_rate, batch_mlp_rate, class_mlp_rate, cnn_rate : float
        Learning rates (Adam).
    removal_rate : float
        The generator's learning rate during batch removal.
    beta_1 : float
        First-moment decay of every Adam optimizer.
    updates : {"alternating", "simultaneous"}
        Whether the generator is updated after the discriminator, as published, or together with it,
        which is faster; see `Pix2Pix`.
    weight_adversarial, weight_mae_pretraining, weight_mae_removal, weight_classifier : float
        Weights of the generator's loss terms.
    norm_momentum : float
        How slowly the running statistics of batch normalisation follow the minibatches. At
        0.99 they need some 500 steps to arrive; short trainings take 0.9.
    precision : {"float32", "mixed_float16", "mixed_bfloat16"}
        In which the networks of images compute while they are trained. The mixed ones are for
        GPUs (float16 from NVIDIA's V100 and T4 on, bfloat16 from the A100 on); weights, losses,
        outputs and classifiers stay in float32.
    conditional : Conditional
        All about the conditional recipe.
    """

    name: str = "published"
    image_size: int = 128
    base_filters: int = 64
    batch_size: int = 10
    classifier_batch_size: int = 500
    pretraining_epochs: int = 100
    classifier_epochs: int = 100
    removal_epochs: int = 300
    refit_every: int = 5
    refit_epochs: int = 100
    batch_mlps: int = 4
    generator_rate: float = 2e-4
    removal_rate: float = 2e-4
    discriminator_rate: float = 1e-4
    batch_mlp_rate: float = 0.05
    class_mlp_rate: float = 1e-3
    cnn_rate: float = 1e-3
    beta_1: float = 0.5
    updates: str = "alternating"
    weight_adversarial: float = 1.0
    weight_mae_pretraining: float = 100.0
    weight_mae_removal: float = 300.0
    weight_classifier: float = 100.0
    norm_momentum: float = 0.99
    precision: str = "float32"
    conditional: Conditional = Conditional()

    def __post_init__(self):
        """Refuse a precision or an order of updates that there is not."""
        if self.precision not in PRECISIONS:
            raise CytomadError(
                f"precision is {self.precision!r}. Expected one of {', '.join(PRECISIONS)}."
            )
        if self.updates not in UPDATES:
            raise CytomadError(
                f"updates is {self.updates!r}. Expected one of {', '.join(UPDATES)}."
            )

    @classmethod
    def from_dict(cls, fields):
        """Make a preset from what `as_dict` gave.

        Raises
        ------
        TypeError
            If a field is unknown.
        """
        return cls(**(fields | {"conditional": Conditional(**fields["conditional"])}))

    def for_dataset(self, name):
        """Return the preset with the published learning rates of a dataset's classifiers.

        The drug dataset has rates of its own, ten times lower. `demo` and `study` have too few
        steps for these and keep the others.

        Parameters
        ----------
        name : str
            Of the layout, such as "drug".
        """
        if name != "drug" or self.name not in ("published", "workshop"):
            return self
        return replace(self, batch_mlp_rate=5e-3, class_mlp_rate=1e-4, cnn_rate=1e-4)

    @property
    def n_features(self):
        """Number of bottleneck features (512 in the published network)."""
        return 8 * self.base_filters

    @property
    def image_network(self):
        """The arguments that every network of images takes."""
        return {
            "image_size": self.image_size,
            "base_filters": self.base_filters,
            "norm_momentum": self.norm_momentum,
        }

    def as_dict(self):
        """All fields, as plain Python values that fit into a JSON file."""
        return asdict(self)


PUBLISHED = Preset()
DEMO = Preset(
    name="demo",
    image_size=64,
    base_filters=8,
    classifier_batch_size=50,
    pretraining_epochs=8,
    classifier_epochs=8,
    removal_epochs=4,
    refit_every=2,
    refit_epochs=25,
    generator_rate=5e-4,
    norm_momentum=0.9,
    conditional=Conditional(
        image_epochs=16,
        feature_epochs=24,
        directions=3,
        replay_buffer=1500,
        adversary_steps=2,
    ),
)
STUDY = replace(
    DEMO,
    name="study",
    batch_size=20,
    classifier_batch_size=100,
    classifier_epochs=6,
    removal_epochs=8,
    refit_epochs=20,
    conditional=Conditional(image_epochs=6, feature_epochs=8),
)
WORKSHOP = Preset(
    name="workshop",
    image_size=64,
    base_filters=32,
    pretraining_epochs=60,
    classifier_batch_size=100,
    classifier_epochs=30,
    removal_epochs=60,
    refit_every=5,
    refit_epochs=50,
    norm_momentum=0.9,
    conditional=Conditional(image_epochs=20, feature_epochs=20),
)
PRESETS = {preset.name: preset for preset in (PUBLISHED, DEMO, STUDY, WORKSHOP)}


@contextmanager
def computing_in(precision):
    """Let the networks that are built inside compute in this precision; see `Preset`.

    >>> with computing_in("mixed_float16"):
    ...     generator = build_generator(64, 8)
    >>> generator.compute_dtype
    'float16'
    """
    before = config.dtype_policy()
    config.set_dtype_policy(precision)
    try:
        yield
    finally:
        config.set_dtype_policy(before)


def find_preset(name):
    """Return the preset called `name`.

    Raises
    ------
    CytomadError
        If there is none.
    """
    if name not in PRESETS:
        raise CytomadError(f"There is no preset {name!r}. Expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def encoder_widths(image_size, base_filters):
    """List the filters of the stride-2 encoder blocks: 1, 2, 4, 8, 8... times `base_filters`.

    An image of 2^n pixels gets n - 1 blocks; the bottleneck convolution then makes it 1x1.

    >>> encoder_widths(128, 64)
    [64, 128, 256, 512, 512, 512]
    """
    n = _log2(image_size)
    return [base_filters * min(2**block, 8) for block in range(n - 1)]


def tail_widths(base_filters):
    """List the filters of the generator's full-size tail (published: 32, 16, 8, 4)."""
    return [max(base_filters // divisor, 4) for divisor in (2, 4, 8, 16)]


def build_generator(
    image_size=128, base_filters=64, norm_momentum=0.99, seed=None, dropout=DROPOUT, channels=1
):
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
    _check_sizes(image_size, base_filters)
    seeds, norm = _Seeds(seed), norm_momentum
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    widths = encoder_widths(image_size, base_filters)
    encoded = _encoder(brightfield, widths, seeds, norm)
    bottleneck = _convolution(8 * base_filters, 2, seeds)(encoded[-1])
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
    return Model(brightfield, [image, features], name="generator")


def build_conditional_generator(
    image_size=128,
    base_filters=64,
    norm_momentum=0.99,
    seed=None,
    channels=1,
    blur=0.0,
):
    """Build the generator of the conditional recipe, whose features have an encoder of their own.

    Every brightfield image gets one brightness and contrast (`NormaliseImage`). The published
    generator (layer "generator") makes the phase image from that. To draw it, its encoder has to
    know the day; so another one of the same shape ("feature_encoder") reads the features. They go
    through a head ("feature_head") that leaves them as they are until `match_features` fits it.

    Returns and errors as in `build_generator`; the features are standardised.

    Parameters
    ----------
    image_size, base_filters, norm_momentum, seed, channels
        As in `build_generator`.
    blur : float
        Standard deviation of the blur of the images, as part of their side (`BlurImage`).
    """
    _check_sizes(image_size, base_filters)
    seeds = _Seeds(seed)
    sizes = (image_size, base_filters, norm_momentum)
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    shown = NormaliseImage(dtype="float32", name="normalise_image")(brightfield)
    # No dropout: its noise would hide from the adversaries what can be read without it.
    image, _ = build_generator(*sizes, seeds.next(), dropout=0.0, channels=channels)(shown)
    image = QuietBackground(EDGE, FAINT, dtype="float32", name="quiet_background")(image)
    image = BlurImage(blur, dtype="float32", name="blur_image")(image)
    features = build_feature_encoder(*sizes, seeds.next(), channels)(shown)
    features = _build_feature_head(8 * base_filters, seeds.next())(features)
    return Model(brightfield, [image, features], name="conditional_generator")


def build_feature_encoder(
    image_size=128, base_filters=64, norm_momentum=0.99, seed=None, channels=1
):
    """Build an encoder like the generator's, down to its bottleneck.

    The bottleneck features are standardised (mean 0, variance 1 over the cells) and go through one
    more linear map, for the erasure at the end.

    Parameters and errors as in `build_generator`.

    Returns
    -------
    keras.Model
        `(n, size, size, channels)` brightfield -> `(n, 8 * base_filters)` features.
    """
    _check_sizes(image_size, base_filters)
    seeds, n_features = _Seeds(seed), 8 * base_filters
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    widths = encoder_widths(image_size, base_filters)
    encoded = _encoder(brightfield, widths, seeds, norm_momentum)
    bottleneck = layers.ReLU()(_convolution(n_features, 2, seeds)(encoded[-1]))
    standard = layers.BatchNormalization(
        momentum=norm_momentum,
        center=False,
        scale=False,
        dtype="float32",
        name="standardised_features",
    )(layers.Flatten()(bottleneck))
    features = layers.Dense(
        n_features, kernel_initializer="identity", trainable=False, dtype="float32", name="features"
    )(standard)
    return Model(brightfield, features, name="feature_encoder")


def _build_feature_head(n_features, seed):
    """Build what `models.matching` sets in the end: a linear map and a bent one, added up."""
    with computing_in("float32"):
        features = Input((n_features,))
        straight = layers.Dense(
            n_features, use_bias=False, kernel_initializer="identity", name="straight"
        )(features)
        bend = build_bend(n_features, n_features, seed)
        head = Model(features, layers.Add()([straight, bend(features)]), name="feature_head")
    head.trainable = False
    return head


def build_bend(n_inputs, n_outputs, seed):
    """Build the bent part of the head, `(n, n_inputs)` -> `(n, n_outputs)`: zeros until trained."""
    bend = build_leaky_mlp(n_inputs, HEAD_WIDTHS, n_outputs, 0.0, seed, name="bend")
    last = bend.layers[-1]
    last.set_weights([np.zeros_like(weight) for weight in last.get_weights()])
    return bend


def adopt_weights(conditional, pretrained, mean, spread):
    """Let a conditional generator begin with the images and the encoder of a pretrained one.

    Parameters
    ----------
    conditional, pretrained : keras.Model
        From `build_conditional_generator` and `build_generator`, of one size.
    mean, spread : float, or array (channels,) where there are several
        Brightness and contrast that the pretrained one is used to: mean over the training cells
        of the images' mean and standard deviation.
    """
    conditional.get_layer("generator").set_weights(pretrained.get_weights())
    conditional.get_layer("normalise_image").set_weights([np.array([mean, spread])])
    own = ("standardised_features", "features")
    encoder = conditional.get_layer("feature_encoder")
    takers = [layer for layer in encoder.layers if layer.weights and layer.name not in own]
    givers = [layer for layer in pretrained.layers if layer.weights]  # the encoder comes first
    for taker, giver in zip(takers, givers, strict=False):
        taker.set_weights(giver.get_weights())


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
        all_layers(layer) if isinstance(layer, Model) else [layer] for layer in network.layers
    ]
    return [layer for part in nested for layer in part]


def seed_generators(network):
    """List what draws at random in a network, and in the networks inside it, in order."""
    drawing = [layer for layer in all_layers(network) if hasattr(layer, "seed_generator")]
    return [layer.seed_generator for layer in drawing]


@saving.register_keras_serializable("cytomad_lib")
class QuietBackground(layers.Layer):
    """Take from a generated image what is no cell: the pattern along its edge, and faint leftovers.

    A generator does not know what lies beyond the edge and takes it for zero, which leaves a
    pattern of some 0.05 rad there; and of the brightfield background some 0.00001 rad come through.
    Nobody sees either. But both are much the same in all cells, and so the place where a probe
    reads the least trace of a batch.

    Parameters
    ----------
    edge : int
        Pixels along each edge in whose place comes what lies inside, mirrored.
    faint : float
        Part of the image's largest value: all come nearer to zero by so much, and what is fainter
        becomes zero. A generator that is trained with this layer makes up for it inside the cell.
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
    """Blur finished images a little: what is finer is guessed, and days differ in how well.

    Only inside the cell, from pixels of the cell: its outline stays sharp, and nothing is added
    around it. A cell is what exceeds 4 % of the image's largest value; the rest becomes zero.

    Parameters
    ----------
    sigma : float
        Standard deviation of the Gaussian, as part of the image's side; 0 changes nothing. Beyond
        the edge lies what lies inside, mirrored.
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
        cell = ops.cast(size > CELL * ops.max(size, axis=(1, 2), keepdims=True), images.dtype)
        # A mean over the pixels of the cell alone: each in the cell is near to itself, at least.
        return cell * self._blurred(cell * images) / ops.maximum(self._blurred(cell), 1e-6)

    def _blurred(self, images):
        weights = ops.convert_to_tensor(self._weights)
        return ops.matmul(weights, ops.matmul(images[..., 0], ops.transpose(weights)))[..., None]

    def get_config(self):
        """Return what is needed to build it again."""
        return super().get_config() | {"sigma": self.sigma}


@saving.register_keras_serializable("cytomad_lib")
class NormaliseImage(layers.Layer):
    """Give every image the same mean and standard deviation, each channel by itself.

    The brightness of a lamp, the gain and the offset of a camera are gone then, whatever they
    were. It looks at nothing but the image itself, so cells stay independent of one another.

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


def build_discriminator(image_size=128, base_filters=64, norm_momentum=0.99, seed=None, channels=1):
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
    _check_sizes(image_size, base_filters)
    seeds, norm = _Seeds(seed), norm_momentum
    brightfield = Input((image_size, image_size, channels), name="brightfield")
    phase = Input((image_size, image_size, 1), name="phase")
    x = layers.Concatenate()([brightfield, phase])
    for block, (multiple, stride) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1), (8, 1)]):
        x = _conv(x, multiple * base_filters, stride, seeds, norm if block > 0 else None)
    patches = _convolution(1, 1, seeds, activation="sigmoid", dtype="float32", name="patches")(x)
    return Model([brightfield, phase], patches, name="discriminator")


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
    _check_sizes(image_size, base_filters)
    _check_classes(n_classes)
    seeds, norm = _Seeds(seed), norm_momentum
    phase = Input((image_size, image_size, 1), name="phase")
    x = phase
    for block, (multiple, stride) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1), (8, 1)]):
        x = _conv(x, multiple * base_filters, stride, seeds, norm if block > 0 else None)
        if block > 0:
            # "same": small images are already 1x1 here, and stay so.
            x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Flatten()(x)
    x = _dense(128, seeds)(x)
    return Model(phase, _dense(n_classes, seeds, "softmax")(x), name=name)


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
    seeds = _Seeds(seed)
    inputs = x = Input((n_inputs,))
    for units in widths:
        x = layers.LeakyReLU(negative_slope=LEAKY_SLOPE)(_dense(units, seeds, None)(x))
        x = layers.Dropout(dropout, seed=seeds.next())(x)
    return Model(inputs, _dense(n_outputs, seeds, activation)(x), name=name)


class _Seeds:
    """Hands out one seed after another, so that no two layers start with equal weights."""

    def __init__(self, seed):
        self._draw = random.Random(seed)

    def next(self):
        return self._draw.randrange(2**31)


def _convolution(filters, stride, seeds, **options):
    return layers.Conv2D(
        filters,
        KERNEL,
        strides=stride,
        padding="same",
        kernel_initializer=_normal(seeds),
        **options,
    )


def _transposed(filters, stride, seeds, **options):
    return layers.Conv2DTranspose(
        filters,
        KERNEL,
        strides=stride,
        padding="same",
        kernel_initializer=_normal(seeds),
        **options,
    )


def _normal(seeds):
    return initializers.RandomNormal(0.0, 0.02, seed=seeds.next())


def _conv(x, filters, stride, seeds, norm_momentum):
    x = _convolution(filters, stride, seeds)(x)
    if norm_momentum is not None:
        x = _batch_norm(norm_momentum)(x)
    return layers.LeakyReLU(negative_slope=LEAKY_SLOPE)(x)


def _encoder(x, widths, seeds, norm_momentum):
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
    return BatchNormalization(momentum=momentum, epsilon=1e-3, synchronized=devices.replicas() > 1)


def _dense(units, seeds, activation="relu"):
    return layers.Dense(
        units,
        activation=activation,
        kernel_initializer=initializers.GlorotUniform(seed=seeds.next()),
    )


def _mlp(n_classes, n_features, widths, seed, name):
    _check_classes(n_classes)
    if n_features < 1:
        raise ValueError(f"n_features is {n_features}; give at least 1.")
    seeds = _Seeds(seed)
    features = Input((n_features,), name="features")
    x = features
    for units in widths:
        x = _dense(units, seeds)(x)
    return Model(features, _dense(n_classes, seeds, "softmax")(x), name=name)


def _log2(image_size):
    return int(image_size).bit_length() - 1


def _check_sizes(image_size, base_filters):
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
