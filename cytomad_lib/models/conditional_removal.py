"""Stage 3, the conditional recipe: images and features from which the batch is really gone.

First the images (`ImageRemoval`), then the features (`FeatureRemoval`). The images are trained
together with an adversary that knows the class and guesses the batch
(`cytomad_lib.models.adversaries`). What differs from the published recipe:

* **Cells change days.** Some brightfield images are shown as another batch would have
  (`cytomad_lib.models.reimaging`), the phase asked for stays: nothing is learned from the day.
* **The answer is seen through the eyes of the cell's own batch** (`models.calibration`), so that
  the image can be free of batch and yet fit what was measured.
* **The adversary of the images** looks at a summary of them (`models.image_summary`). Meanwhile the
  generator normalises by its running statistics, as it will in the end: then an image depends on
  its own cell alone, and the batch cannot hide in what a minibatch does to it.
* **The features have an encoder of their own** (`build_conditional_generator`): one that also has
  to draw the phase cannot forget the day. It learns to tell the class (a class head is trained
  along) from cells that change days. So features and images do not disturb each other, and steps
  on features cost a fifth.
* **The mean of the last weights** is kept of what makes the images, not the last ones, and finished
  images are blurred a little: days differ most in how well the finest can be guessed. One factor
  then brings the images' total phase to the measured one.
* **At the end** the linear trace of the batch is erased from the features, and a small network maps
  them to a few numbers in which all batches of a class are the same cloud (`models.matching`).
* Brightness and contrast of each brightfield image are normalised; cells are turned and mirrored at
  random, as a cell has no up or down but many batches have.

There is no discriminator any more: what it demands is that images look measured, batch included.

Example
-------
>>> generator = build_conditional_generator(64, 8)
>>> adopt_weights(generator, pretrained, *image_statistics(cells))
>>> shares, recipe = batch_shares(cells.labels), DEMO.conditional
>>> reimaging = Reimaging.fit(cells)
>>> change = exchange_days(reimaging, shares, recipe)
>>> model = ImageRemoval(generator, shares, DEMO, steps=900)
>>> model.view.start_from_scales(np.log(reimaging.scales))
>>> model.compile()
>>> feed = Minibatches.of_cells(cells, recipe.image_cells, change=change)
>>> model.fit(feed, epochs=recipe.image_epochs, shuffle=False)
>>> match_total_phase(generator, cells, reimaging.scales)
>>> model = FeatureRemoval(generator, shares, DEMO, steps=3000)
>>> model.compile()
>>> feed = Minibatches.of_cells(cells, recipe.feature_cells, change=change)
>>> model.fit(feed, epochs=recipe.feature_epochs, shuffle=False)
>>> made = erase_linear_trace(generator, generate(generator, cells, images=False))
>>> match_features(generator, made, recipe, n_classes=7)
"""

from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from cytomad_lib.models import losses
from cytomad_lib.models.adversaries import ConditionalAdversary
from cytomad_lib.models.autodiff import adam, compiled, minimise
from cytomad_lib.models.calibration import BatchView
from cytomad_lib.models.erasure import fit_leace, within_class_concept
from cytomad_lib.models.image_summary import ImageSummary
from cytomad_lib.models.networks import build_leaky_mlp
from cytomad_lib.models.pretraining import TrackedLosses

STRUCTURE = 2 / 45  # of the image's side, 2 um of the published field: finer counts as structure
SEEN_AS = "seen_as"  # beside "batch" in the targets: the batch that the brightfield image shows


class _Removal(TrackedLosses):
    """What both trainings share: one optimizer, whose learning rate falls, and random turns.

    Each says which weights are trained. If it must, it says in `clipnorm` what a gradient cannot
    exceed, and in `ema_decay` that the running mean of the weights is delivered, instead of the
    last ones.
    """

    clipnorm = None
    ema_decay = None  # of the running mean of the weights; None: the last weights are delivered

    def __init__(self, generator, terms, preset, steps, turn_seed, name):
        super().__init__(generator, ("loss", *terms), name)
        self.normalise = generator.get_layer("normalise_image")
        self.recipe, self.precision = preset.conditional, preset.precision
        self.recipe.check_cells()
        self.steps = steps
        self.turn_seed = keras.random.SeedGenerator(turn_seed)
        self.built = True

    def compile(self, **options):
        """Make the optimizers, at once, so that a checkpoint holds their states."""
        super().compile(optimizer=None, **options)
        rate = _LateFall(self.recipe.generator_rate, self.steps)
        self.learner = adam(rate, 0.5, self.precision, self.clipnorm)
        self.learner.build(self.learning)
        # Kept in the model, so that a checkpoint holds them.
        averaged = self.learning if self.ema_decay else []
        self.means = [keras.Variable(weight, trainable=False, name="mean") for weight in averaged]

    @contextmanager
    def delivered(self):
        """Put the running mean of the weights in the place of the last ones, for a while.

        Generator and adversary chase each other. What the generator did in its last steps against
        the guess of the moment cancels in the mean, what it has learned stays.
        """
        last = [ops.convert_to_numpy(weight).copy() for weight in self.learning]
        try:
            for weight, mean in zip(self.learning, self.means, strict=False):
                weight.assign(mean)
            yield
        finally:
            for weight, value in zip(self.learning, last, strict=True):
                weight.assign(value)

    def evaluate(self, *args, **kwargs):
        """Compute the losses of what is delivered; Keras also calls this to validate an epoch."""
        with self.delivered():
            return super().evaluate(*args, **kwargs)

    def _update_means(self):
        """Move each running mean towards its weight.

        A constant decay would keep the weights of the first steps for long: at 0.995, two thirds of
        them after 80 steps. So the decay grows with the number of steps, as in TensorFlow's
        `ExponentialMovingAverage`.
        """
        step = ops.cast(self.learner.iterations, "float32")
        decay = ops.minimum(self.ema_decay, step / (9.0 + step))
        for weight, mean in zip(self.learning, self.means, strict=True):
            mean.assign(mean + (1.0 - decay) * (weight - mean))

    def _draw_turns(self, images):
        """Draw for each cell whether it is mirrored, upside down, and turned by 90 degrees."""
        shape = (3, ops.shape(images)[0], 1, 1, 1)
        return keras.random.uniform(shape, seed=self.turn_seed) < 0.5


class ImageRemoval(_Removal):
    """Train a generator whose images forget the batch, against an adversary that knows the class.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`, with the weights of the pretrained one. What reads the
        features is left as it is.
    shares : array (classes, batches)
        p(batch | class) of the training cells, see `batch_shares`.
    preset : Preset
        Its `conditional` part gives weights, rates and schedule.
    steps : int
        Steps of the whole training.
    seed : int, optional
        Of the initial weights of the adversary, its dropout, and the turns.
    """

    # Nothing keeps activations in their range while the running statistics stay as they are: one
    # long step, away from an adversary that is very sure, can silence the generator for good.
    clipnorm = 1.0

    def __init__(self, generator, shares, preset, steps, seed=None):
        seeds = np.random.default_rng(seed).integers(2**31, size=2).tolist()
        terms = ("mae", "structure", "adversary", "linear_mmd", "adversary_accuracy")
        self.ema_decay = preset.conditional.ema_decay
        super().__init__(generator, terms, preset, steps, seeds[1], name="image_removal")
        self.unet = generator.get_layer("generator")
        self.quiet = generator.get_layer("quiet_background")
        self.view = BatchView(shares.shape[1])
        self.image_summary = ImageSummary(preset.image_size)
        self.adversary = ConditionalAdversary(
            self.image_summary.length,
            shares,
            self.recipe,
            seed=seeds[0],
        )
        self.coarse = STRUCTURE * preset.image_size

    def compile(self, **options):
        """Make the optimizers, the adversary's, too."""
        super().compile(**options)
        self.adversary.compile()

    @property
    def learning(self):
        """The weights that are trained."""
        return self.unet.trainable_variables + self.view.trainable_variables

    @property
    def chance(self):
        """Everything here that draws at random, for `ReseedDropout`."""
        return [self.unet, self.turn_seed, *self.adversary.chance]

    def train_step(self, data):
        """Update what makes the images, then the adversary."""
        brightfield, targets = data
        made = {}

        def image_losses():
            turn = self._draw_turns(brightfield)
            image = _turned_back(self._images(_turned(brightfield, turn)), turn)
            numbers = self.image_summary(image, training=True)
            made["numbers"] = ops.stop_gradient(numbers)
            return self.losses_of(image, numbers, targets)

        terms = minimise(image_losses, self.learning, self.learner)
        self._update_means()
        learned = self.adversary.update(
            made["numbers"], _shown_batch(targets), targets["class_name"]
        )
        terms |= {"adversary_accuracy": learned["accuracy"]}
        return self.track(terms, ops.shape(brightfield)[0])

    def test_step(self, data):
        """Losses on validation cells, with running statistics, batch terms weighted as by now."""
        brightfield, targets = data
        image = self._images(brightfield)
        terms = self.losses_of(image, self.image_summary(image, training=False), targets)
        return self.track(terms, ops.shape(brightfield)[0])

    def losses_of(self, image, numbers, targets):
        """Return the loss terms.

        Parameters
        ----------
        image : tensor (n, size, size, 1)
            Generated, in rad, free of batch.
        numbers : tensor (n, length)
            The summary of the images.
        targets : dict
            `"qpi"` (n, size, size, 1) in rad, `"batch"` and `"class_name"` (n,) codes, and, where
            cells changed days, `"seen_as"` (n,), the batch that the brightfield images show.

        Returns
        -------
        dict of scalar tensors
            `"loss"` is what is minimised.
        """
        recipe = self.recipe
        as_measured = self.view(image, targets["batch"])
        terms = {
            "mae": losses.mean_absolute_error(targets["qpi"], as_measured),
            "structure": losses.lost_structure(targets["qpi"], image, self.coarse),
        }
        terms |= self.adversary.losses_of(numbers, _shown_batch(targets), targets["class_name"])
        loss = recipe.weight_mae * terms["mae"] + recipe.weight_structure * terms["structure"]
        loss += self._ramp() * (
            recipe.weight_adversary * terms["adversary"]
            + recipe.weight_linear_mmd * terms["linear_mmd"]
        )
        return terms | {"loss": loss}

    def _ramp(self):
        """Return what grows from 0 to 1: the adversary must have learned something first."""
        done = ops.cast(self.learner.iterations, "float32")
        return ops.minimum(done / max(self.recipe.ramp * self.steps, 1.0), 1.0)

    def _images(self, brightfield):
        """Make images by the running statistics of the pretraining, which stay as they are."""
        return self.quiet(self.unet(self.normalise(brightfield), training=False)[0])


class FeatureRemoval(_Removal):
    """Train the encoder whose features forget the batch and keep the class.

    Parameters
    ----------
    generator : keras.Model
        As for `ImageRemoval`. What makes the images is left as it is.
    shares, preset, steps
        As for `ImageRemoval`.
    seed : int, optional
        Of the initial weights of class head and adversary, of dropout, and of the turns.
    """

    def __init__(self, generator, shares, preset, steps, seed=None):
        seeds = np.random.default_rng(seed).integers(2**31, size=3).tolist()
        super().__init__(
            generator, ("class_head",), preset, steps, seeds[2], name="feature_removal"
        )
        self.encoder = generator.get_layer("feature_encoder")
        self.class_head = build_leaky_mlp(
            preset.n_features, (64,), len(shares), 0.3, seeds[0], "softmax", name="class_head"
        )

    @property
    def learning(self):
        """The weights that are trained."""
        return self.encoder.trainable_variables + self.class_head.trainable_variables

    @property
    def chance(self):
        """Everything here that draws at random, for `ReseedDropout`."""
        return [self.class_head, self.turn_seed]

    def train_step(self, data):
        """Update the encoder and the class head."""
        brightfield, targets = data

        def feature_losses():
            turned = _turned(brightfield, self._draw_turns(brightfield))
            return self.losses_of(self._features(turned, training=True), targets, training=True)

        terms = minimise(feature_losses, self.learning, self.learner)
        return self.track(terms, ops.shape(brightfield)[0])

    def test_step(self, data):
        """Losses on validation cells, with running statistics."""
        brightfield, targets = data
        terms = self.losses_of(self._features(brightfield, False), targets, training=False)
        return self.track(terms, ops.shape(brightfield)[0])

    def losses_of(self, features, targets, training):
        """Return the loss terms on features (n, n_features); see `ImageRemoval.losses_of`."""
        probabilities = self.class_head(features, training=training)
        cross_entropy = losses.cross_entropy(targets["class_name"], probabilities)
        return {"class_head": cross_entropy, "loss": cross_entropy}

    def _features(self, brightfield, training):
        return self.encoder(self.normalise(brightfield), training=training)


def exchange_days(reimaging, shares, recipe):
    """Let cells of a minibatch change days, as the argument `change` of `Minibatches.of_cells`.

    Parameters
    ----------
    reimaging : Reimaging
    shares : array (classes, batches)
        p(batch | class), see `batch_shares`: each day is drawn with the share that it has of the
        cell's class. So the days shown tell as much about the class as before, and no more.
    recipe : Conditional
        Its part `exchanged` of the cells changes days.

    Returns
    -------
    callable
        Adds `"seen_as"` to the targets, the batch that each brightfield image shows by then.
    """

    def change(brightfield, targets, random):
        shown = targets["batch"].copy()
        moved = np.flatnonzero(random.random(len(shown)) < recipe.exchanged)
        reach = np.cumsum(shares[targets["class_name"][moved]], axis=1)
        shown[moved] = np.argmax(reach > random.random((len(moved), 1)) * reach[:, -1:], axis=1)
        brightfield = brightfield.copy()
        brightfield[moved] = reimaging(
            brightfield[moved], targets["qpi"][moved], targets["batch"][moved], shown[moved]
        )
        return brightfield, targets | {SEEN_AS: shown}

    return change


def image_statistics(cells):
    """Return the mean brightness of the training cells' images, and their mean contrast.

    Parameters
    ----------
    cells : CellImages or CellFiles
        Read in slices.

    Returns
    -------
    tuple of float, or of arrays (channels,) where there are several
        Means over the cells of each brightfield image's mean and standard deviation.
    """
    means, spreads = [], []
    for part in cells.in_slices():
        means.append(part.brightfield.mean(axis=(1, 2)))
        spreads.append(part.brightfield.std(axis=(1, 2)))
    found = [np.concatenate(values).mean(axis=0) for values in (means, spreads)]
    return tuple(float(values[0]) if len(values) == 1 else values for values in found)


def match_total_phase(generator, cells, scales):
    """Scale the images so that their total over the training cells is the measured one.

    The mean absolute error aims at the median, and the mean of weights damps what varies from step
    to step. Both leave the images darker than measured, by some percent. The last convolution is
    linear, and the layers after it are proportional to their input, so one factor on its weights
    corrects the images exactly.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`; changed in place. The features stay as they are.
    cells : CellImages or CellFiles
        The training cells; read in slices.
    scales : array (batches,)
        Phase scale of each batch, which is taken out of the measured total; see `batch_scales`.
    """
    infer = compiled(generator)
    measured = generated = 0.0
    for part in cells.in_slices(100):
        scale = scales[part.batch_codes][:, None, None, None]
        measured += float(np.sum(part.qpi / scale, dtype=float))
        generated += float(np.sum(ops.convert_to_numpy(infer(part.brightfield)[0]), dtype=float))
    if min(measured, generated) <= 0:
        return  # a target that has no total to match, such as one centred at zero
    last = [layer for layer in generator.get_layer("generator").layers if layer.weights][-1]
    last.set_weights([weight * (measured / generated) for weight in last.get_weights()])


def erase_linear_trace(generator, made):
    """Project out of the features what a linear probe could still find: LEACE within class.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`; its last linear map is set, once. The images do not
        change.
    made : dict
        What `generate` returns for the training cells.

    Returns
    -------
    dict
        `made` with the features that the generator has now.
    """
    concept = within_class_concept(made["batch_codes"], made["class_codes"])
    erase = fit_leace(made["features"], concept)
    matrix, offset = erase.as_affine()
    generator.get_layer("feature_encoder").get_layer("features").set_weights([matrix, offset])
    return made | {"features": (made["features"] @ matrix + offset).astype("float32")}


@keras.saving.register_keras_serializable("cytomad_lib")
class _LateFall(keras.optimizers.schedules.LearningRateSchedule):
    """Stay at one rate for the first 70 % of the steps, then fall to a tenth of it."""

    def __init__(self, rate, steps):
        self.rate = rate
        self.steps = steps

    def __call__(self, step):
        done = ops.cast(step, "float32") / max(self.steps, 1)
        return self.rate * (1.0 - 0.9 * ops.clip((done - 0.7) / 0.3, 0.0, 1.0))

    def get_config(self):
        return {"rate": self.rate, "steps": self.steps}


def _turned(images, turn):
    images = ops.where(turn[0], ops.flip(images, 1), images)
    images = ops.where(turn[1], ops.flip(images, 2), images)
    return ops.where(turn[2], ops.transpose(images, (0, 2, 1, 3)), images)


def _turned_back(images, turn):
    images = ops.where(turn[2], ops.transpose(images, (0, 2, 1, 3)), images)
    images = ops.where(turn[1], ops.flip(images, 2), images)
    return ops.where(turn[0], ops.flip(images, 1), images)


def _shown_batch(targets):
    """Return the batch that the brightfield images show: the cells' own, unless they changed."""
    return targets.get(SEEN_AS, targets["batch"])
