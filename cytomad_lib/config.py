"""Every size, weight, rate, schedule and threshold of a training.

* `Preset`: the published method, and what all trainings share. Its defaults are as published.
* `Conditional`: the conditional recipe, which is ours. A preset holds one.
* `PUBLISHED`, `DEMO`, `STUDY`, `WORKSHOP`: presets for a GPU, minutes on a CPU, a study with
  thousands of cells, and a Colab GPU.
* The constants at the top: numbers of the conditional recipe that no preset changes.

Example
-------
>>> from dataclasses import replace
>>> shorter = replace(DEMO, pretraining_epochs=2)
>>> DEMO.base_filters, DEMO.n_features
(8, 64)
"""

from dataclasses import asdict, dataclass, replace

from cytomad_lib.data.errors import CytomadError

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
LARGEST_SEED = 2**32 - 1  # that numpy, Keras and scikit-learn all take
UPDATES = ("alternating", "simultaneous")  # of generator and discriminator, see `Preset`

# The networks of the conditional recipe
EDGE_PIXELS = 4  # at the image's edge, where zeros from outside reach through the generator's tail
BACKGROUND = 0.005  # of an image's largest value (some 0.01 rad): fainter pixels are background
CELL_MASK = 0.04  # of an image's largest value: brighter pixels are the cell, which is blurred
HEAD_WIDTHS = (64, 64)  # hidden units of the feature head
ADVERSARY_WIDTHS = (128, 64)  # hidden units of the adversary of the images
ADVERSARY_DROPOUT = 0.2  # it is fitted on the cells of the replay buffer again and again
CLASS_HEAD_WIDTHS = (64,)  # hidden units of the class head beside encoder and feature head
CLASS_HEAD_DROPOUT = 0.2

# The measures that the features are trained to predict
OUTLIERS = 0.005  # share of the cells at either end whose measures are clipped
SMALL_GROUP = 5  # cells; the spread of a smaller group is not estimated
STRAY_GROUP = 0.2  # of the largest group of its class and of its batch: no smaller one is aligned

# Its loss of structure
STRUCTURE_UM = 2.0  # micrometres of a field of 45: finer detail counts as structure
STRUCTURE_MASK = 0.35  # of the peak phase: brighter pixels are the cell
RIM_PIXELS = 2  # so near to the outside, structure does not count
DOME_POWERS = 5  # of the thickness of an ellipsoid, from 0: the model of a cell without structure

# What the adversary gets of an image
BANDS = 24  # of spatial frequency
COARSE_SIDE = 16  # pixels a side of the coarse copy, at most
DETAIL_PLACES = 8  # places a side where the energy of fine detail is taken, at most
AREA_LEVELS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.7, 0.85)  # of the image's peak
AREA_SOFTNESS = 0.2  # of a level: pixels so near to it count in part
DETAIL_SIGMA = 2.0  # pixels; finer than this is detail
LOG_FLOOR = 1e-5  # rad^2, below the noise of any measured phase: the logarithm ends there

# Batch effect and batch transfer
EFFECT_KERNEL = 5  # pixels a side: 3.5 um at 64 x 64, wider than the blur of any batch
PHASE_ORDERS = 2  # powers of the phase in the model of a brightfield image
RIDGE = 1e-3  # of each term's own power: frequencies without signal get a filter of 0
TINY_POWER = 1e-12  # far below the noise of any camera

# Alignment of the features by MMD
CELLS_PER_CLASS = 300  # in each step
ALIGNMENT_RATE = 3e-3  # learning rate at the start; it falls to 0
ALIGNMENT_RAMP = 0.3  # part of the steps over which the weight of the MMD grows from 0
ALIGNMENT_STEPS_PER_EPOCH = 50
# Variances of the Gaussian kernels, in units of the variance of all cells: from the gap between
# neighbours to that between classes.
MMD_WIDTHS = (0.02, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Conditional:
    """Sizes, schedule and weights of the conditional recipe; it is ours, not published.

    Parameters
    ----------
    image_epochs, feature_epochs : int
        Passes over the training cells: first for the images, then for the features.
    image_cells, feature_cells : int
        Cells per step.
    transferred : float
        Part of the cells that is shown as another batch would have shown them (`BatchTransfer`).
    blur : float
        Standard deviation of the blur inside the cells of finished images, as part of the image's
        side (`BlurImage`).
    ema_decay : float
        Decay, per step, of the running mean of the weights that make the images; that mean is what
        is delivered. It grows to this value over the first steps.
    feature_filters : int
        Base filters of the feature encoder.
    n_encoded, n_features : int
        Number of features per cell that the encoder makes, and that the head delivers.
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
    alignment_steps : int
        Steps in which the batches' features are aligned.
    weight_mae, weight_structure : float
        Weights, for the image, of its error as its batch would measure it, and of the structure
        inside the cell that is lost (`losses.lost_structure`).
    weight_adversary, weight_linear_mmd : float
        Weights of the batch terms on the image's summary; see `ConditionalAdversary.losses_of`.
    weight_pairs, weight_correlation : float
        Weights, beside 1 for the class and 1 for the measures, when the encoder is trained: of the
        squared difference between the features of a cell on two days, and of the squared
        correlations between features.
    aligned_measures, aligned_mmd, aligned_correlation : float
        Weights, beside 1 for the class, when the features are aligned: of the error of the
        measures, of the MMD between batches, and of the squared correlations.
    """

    image_epochs: int = 50
    feature_epochs: int = 50
    image_cells: int = 42
    feature_cells: int = 42
    transferred: float = 0.5
    blur: float = 1.25 / 64
    ema_decay: float = 0.995
    feature_filters: int = 24
    n_encoded: int = 32
    n_features: int = 6
    generator_rate: float = 7e-4
    adversary_rate: float = 1e-3
    adversary_steps: int = 3
    replay_buffer: int = 4200
    replay_sample: int = 1050
    whitening_floor: float = 0.1
    ramp: float = 0.5
    alignment_steps: int = 400
    weight_mae: float = 60.0
    weight_structure: float = 10.0
    weight_adversary: float = 1.5
    weight_linear_mmd: float = 0.02
    weight_pairs: float = 1.0
    weight_correlation: float = 0.05
    aligned_measures: float = 4.0
    aligned_mmd: float = 100.0
    aligned_correlation: float = 1.0

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

    def __post_init__(self) -> None:
        """Refuse a precision or an order of updates that there is not."""
        for name, known in (("precision", PRECISIONS), ("updates", UPDATES)):
            found = getattr(self, name)
            if found not in known:
                raise CytomadError(f"{name} is {found!r}. Expected one of {', '.join(known)}.")

    @classmethod
    def from_dict(cls, fields: dict) -> "Preset":
        """Make a preset from what `as_dict` gave.

        Raises
        ------
        TypeError
            If a field is unknown.
        """
        return cls(**(fields | {"conditional": Conditional(**fields["conditional"])}))

    def for_dataset(self, name: str) -> "Preset":
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
    def n_features(self) -> int:
        """Number of bottleneck features (512 in the published network)."""
        return 8 * self.base_filters

    @property
    def image_network(self) -> dict:
        """The arguments that every network of images takes."""
        return {
            "image_size": self.image_size,
            "base_filters": self.base_filters,
            "norm_momentum": self.norm_momentum,
        }

    def as_dict(self) -> dict:
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
        feature_epochs=16,
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
    conditional=Conditional(image_epochs=6, feature_epochs=10),
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
