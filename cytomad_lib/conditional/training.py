"""The two trainings of the conditional recipe: `ImageRemoval`, then `FeatureRemoval`.

Why the recipe is as it is, and in which order its parts run: `conditional.recipe`.
"""

from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from cytomad_lib.conditional.adversary import ConditionalAdversary
from cytomad_lib.conditional.batch_effect import BatchEffect
from cytomad_lib.conditional.image_summary import ImageSummary
from cytomad_lib.conditional.losses import feature_losses, lost_structure, ramp
from cytomad_lib.conditional.networks import build_readers
from cytomad_lib.config import STRUCTURE_UM
from cytomad_lib.training import losses
from cytomad_lib.training.pix2pix import TrackedLosses
from cytomad_lib.training.steps import adam, compiled, minimise

SHOWN_BATCH = "shown_batch"  # in the targets, beside "batch": what the brightfield image shows
TRANSFERRED = "transferred"  # in the targets: the brightfield images as other batches show them
FIELD_UM = 45  # side of the published images
LARGEST_FACTOR = 2.0  # by which `match_total_phase` changes the images


class _Removal(TrackedLosses):
    """What both trainings share: one optimizer, whose learning rate falls, and random turns.

    A subclass defines `trained_weights` and `seed_generators`.
    """

    clipnorm = None  # largest norm of the gradient; None: any
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
        """Build the optimizer at once, so that a checkpoint holds its state."""
        super().compile(optimizer=None, **options)
        rate = _LateFall(self.recipe.generator_rate, self.steps)
        self.optimizer = adam(rate, 0.5, self.precision, self.clipnorm)
        self.optimizer.build(self.trained_weights)
        # Kept in the model, so that a checkpoint holds them.
        averaged = self.trained_weights if self.ema_decay else []
        self.means = [keras.Variable(weight, trainable=False, name="mean") for weight in averaged]

    @contextmanager
    def delivered(self):
        """Replace the last weights by their running mean inside a `with` block.

        Generator and adversary chase each other. The mean over many steps cancels what the
        generator did against the adversary of the moment.
        """
        last = [ops.convert_to_numpy(weight).copy() for weight in self.trained_weights]
        try:
            for weight, mean in zip(self.trained_weights, self.means, strict=False):
                weight.assign(mean)
            yield
        finally:
            for weight, value in zip(self.trained_weights, last, strict=True):
                weight.assign(value)

    def evaluate(self, *args, **kwargs):
        """Compute the losses of what is delivered; Keras also calls this to validate an epoch."""
        with self.delivered():
            return super().evaluate(*args, **kwargs)

    def _update_means(self):
        """Move each running mean towards its weight.

        With a constant decay of 0.995, two thirds of the first step's weights would remain after
        80 steps. So the decay grows with the number of steps, as in TensorFlow's
        `ExponentialMovingAverage`.
        """
        step = ops.cast(self.optimizer.iterations, "float32")
        decay = ops.minimum(self.ema_decay, step / (9.0 + step))
        for weight, mean in zip(self.trained_weights, self.means, strict=True):
            mean.assign(mean + (1.0 - decay) * (weight - mean))

    def _ramp(self):
        """Return a factor that grows from 0 to 1, so that the batch terms come last."""
        return ramp(self.optimizer, self.recipe.ramp * self.steps)

    def _draw_turns(self, images):
        """Draw for each cell whether it is mirrored, upside down, and turned by 90 degrees."""
        shape = (3, ops.shape(images)[0], 1, 1, 1)
        return keras.random.uniform(shape, seed=self.turn_seed) < 0.5


class ImageRemoval(_Removal):
    """Train a generator whose images forget the batch, against an adversary that knows the class.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`, with the weights of the pretrained one. The feature
        encoder does not change.
    shares : array (classes, batches)
        p(batch | class) of the training cells, see `batch_shares`.
    preset : Preset
        Its `conditional` part gives weights, rates and schedule.
    steps : int
        Steps of the whole training.
    seed : int, optional
        Of the initial weights of the adversary, its dropout, and the turns.
    """

    # The running statistics are fixed, so nothing keeps activations in their range: one long step
    # away from a confident adversary can silence the generator for good.
    clipnorm = 1.0

    def __init__(self, generator, shares, preset, steps, seed=None):
        seeds = np.random.default_rng(seed).integers(2**31, size=2).tolist()
        terms = ("mae", "structure", "adversary", "linear_mmd", "adversary_accuracy")
        self.ema_decay = preset.conditional.ema_decay
        super().__init__(generator, terms, preset, steps, seeds[1], name="image_removal")
        self.unet = generator.get_layer("generator")
        self.clean_background = generator.get_layer("clean_background")
        self.batch_effect = BatchEffect(shares.shape[1])
        self.image_summary = ImageSummary(preset.image_size)
        self.adversary = ConditionalAdversary(
            self.image_summary.length, shares, self.recipe, seed=seeds[0]
        )
        self.coarse = STRUCTURE_UM / FIELD_UM * preset.image_size

    def compile(self, **options):
        """Build both optimizers at once, so that a checkpoint holds their states."""
        super().compile(**options)
        self.adversary.compile()

    @property
    def trained_weights(self):
        """The weights that are trained."""
        return self.unet.trainable_variables + self.batch_effect.trainable_variables

    @property
    def seed_generators(self):
        """Networks and generators of random numbers that `ReseedDropout` seeds anew."""
        return [self.unet, self.turn_seed, *self.adversary.seed_generators]

    def train_step(self, data):
        """Update the generator of the images, then the adversary."""
        brightfield, targets = data
        made = {}

        def image_losses():
            turn = self._draw_turns(brightfield)
            image = _turned_back(self._images(_turned(brightfield, turn)), turn)
            numbers = self.image_summary(image, training=True)
            made["numbers"] = ops.stop_gradient(numbers)
            return self.losses_of(image, numbers, targets)

        terms = minimise(image_losses, self.trained_weights, self.optimizer)
        self._update_means()
        learned = self.adversary.update(
            made["numbers"], _shown_batch(targets), targets["class_name"]
        )
        terms |= {"adversary_accuracy": learned["accuracy"]}
        return self.track(terms, ops.shape(brightfield)[0])

    def test_step(self, data):
        """Compute the losses on validation cells, with the current weight of the batch terms."""
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
            cells changed days, `"shown_batch"` (n,), the batch that the brightfield images show.

        Returns
        -------
        dict of scalar tensors
            `"loss"` is what is minimised.
        """
        recipe = self.recipe
        as_measured = self.batch_effect(image, targets["batch"])
        terms = {
            "mae": losses.mean_absolute_error(targets["qpi"], as_measured),
            "structure": lost_structure(targets["qpi"], image, self.coarse),
        }
        terms |= self.adversary.losses_of(numbers, _shown_batch(targets), targets["class_name"])
        loss = recipe.weight_mae * terms["mae"] + recipe.weight_structure * terms["structure"]
        loss += self._ramp() * (
            recipe.weight_adversary * terms["adversary"]
            + recipe.weight_linear_mmd * terms["linear_mmd"]
        )
        return terms | {"loss": loss}

    def _images(self, brightfield):
        """Generate images with the running statistics of the pretraining, which do not change."""
        return self.clean_background(self.unet(self.normalise(brightfield), training=False)[0])


class FeatureRemoval(_Removal):
    """Train the encoder of the features on pairs: each cell as it is, and as on another day.

    The features of both must tell the class and the cell's measures, whose batch is removed, and
    must be alike.

    Parameters
    ----------
    generator : keras.Model
        As for `ImageRemoval`. The generator of the images does not change.
    n_classes, n_measures : int
        Of the targets.
    preset, steps
        As for `ImageRemoval`.
    seed : int, optional
        Of the initial weights of what reads the features, of its dropout, and of the turns.
    """

    clipnorm = 5.0

    def __init__(self, generator, n_classes, n_measures, preset, steps, seed=None):
        seeds = np.random.default_rng(seed).integers(2**31, size=2).tolist()
        terms = ("class_head", "measures", "pairs", "correlation")
        super().__init__(generator, terms, preset, steps, seeds[1], name="feature_removal")
        self.encoder = generator.get_layer("feature_encoder")
        n_features = self.encoder.output_shape[1]
        self.readers = build_readers(n_features, n_classes, n_measures, seeds[0])

    @property
    def trained_weights(self):
        """The weights that are trained."""
        return self.encoder.trainable_variables + self.readers.trainable_variables

    @property
    def seed_generators(self):
        """Networks and generators of random numbers that `ReseedDropout` seeds anew."""
        return [self.readers, self.turn_seed]

    def train_step(self, data):
        """Update the encoder and what reads its features."""
        brightfield, targets = data

        def feature_losses():
            images = [brightfield, targets[TRANSFERRED]]
            pair = [_turned(image, self._draw_turns(image)) for image in images]
            features = self._features(ops.concatenate(pair), training=True)
            return self.losses_of(features, targets, training=True)

        terms = minimise(feature_losses, self.trained_weights, self.optimizer)
        return self.track(terms, ops.shape(brightfield)[0])

    def test_step(self, data):
        """Compute the losses on validation cells, as they are, with running statistics."""
        brightfield, targets = data
        features = self._features(brightfield, training=False)
        terms = self.losses_of(ops.tile(features, (2, 1)), targets, training=False)
        del terms["pairs"]  # of a cell with itself
        return self.track(terms, ops.shape(brightfield)[0])

    def losses_of(self, features, targets, training):
        """Return the loss terms.

        Parameters
        ----------
        features : tensor (2 n, n_features)
            Of the cells, then of the same cells on other days.
        targets : dict
            `"class_name"` (n,) codes and `"measures"` (n, n_measures).

        Returns
        -------
        dict of scalar tensors
            `"loss"` is what is minimised.
        """
        codes, measures = ops.tile(targets["class_name"], 2), ops.tile(targets["measures"], (2, 1))
        terms = feature_losses(self.readers, features, codes, measures, training)
        one, other = ops.split(features, 2)
        terms["pairs"] = ops.mean((one - other) ** 2)
        loss = terms["class_head"] + terms["measures"]
        loss += self.recipe.weight_correlation * terms["correlation"]
        return terms | {"loss": loss + self._ramp() * self.recipe.weight_pairs * terms["pairs"]}

    def _features(self, brightfield, training):
        return self.encoder(self.normalise(brightfield), training=training)


def transfer_all(transfer, shares):
    """Return a function that adds every cell on another day: `change` of `Minibatches.of_cells`.

    Parameters as in `transfer_at_random`. The images are added to the targets as `"transferred"`.
    """

    def change(brightfield, targets, random):
        other = _draw_batches(shares[targets["class_name"]], random)
        moved = transfer(brightfield, targets["qpi"], targets["batch"], other)
        return brightfield, targets | {TRANSFERRED: moved}

    return change


def transfer_at_random(transfer, shares, recipe):
    """Return a function that transfers cells to other batches: `change` of `Minibatches.of_cells`.

    Parameters
    ----------
    transfer : BatchTransfer
    shares : array (classes, batches)
        p(batch | class), see `batch_shares`. Each new batch is drawn with its share of the cell's
        class, so the batches tell as much about the class as before, and no more.
    recipe : Conditional
        `transferred` is the share of the cells that get another batch.

    Returns
    -------
    callable
        Adds `"shown_batch"` to the targets, the batch that each brightfield image then shows.
    """

    def change(brightfield, targets, random):
        shown = targets["batch"].copy()
        moved = np.flatnonzero(random.random(len(shown)) < recipe.transferred)
        shown[moved] = _draw_batches(shares[targets["class_name"][moved]], random)
        brightfield = brightfield.copy()
        brightfield[moved] = transfer(
            brightfield[moved], targets["qpi"][moved], targets["batch"][moved], shown[moved]
        )
        return brightfield, targets | {SHOWN_BATCH: shown}

    return change


def _draw_batches(shares, random):
    """Draw a batch for each row of shares (n, batches)."""
    reach = np.cumsum(shares, axis=1)
    return np.argmax(reach > random.random((len(shares), 1)) * reach[:, -1:], axis=1)


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
    # More is no bias but a generator that has not learned to draw yet.
    factor = np.clip(measured / generated, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    last = [layer for layer in generator.get_layer("generator").layers if layer.weights][-1]
    last.set_weights([weight * factor for weight in last.get_weights()])


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
    return targets.get(SHOWN_BATCH, targets["batch"])
