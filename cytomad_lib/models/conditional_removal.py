"""Stage 3, the conditional recipe: features and images from which the batch is really gone.

The generator goes on training, and in the same step so do adversaries that know the class and
guess the batch (`cytomad_lib.models.adversaries`). What differs from the published recipe:

* brightness and contrast of each brightfield image are normalised, features are standardised
  (`build_generator(standardised=True)`);
* the image is compared with the measured phase *through the eyes of the cell's own batch*
  (`cytomad_lib.models.calibration`), so that it can be free of batch and yet fit the measurement;
* a class head on the features is trained along, and keeps the class in them;
* cells are turned and mirrored at random, as a cell has no up or down but many batches have;
* features need many more steps than images and cost a fifth of them: for every step on images and
  features there are some on features alone, with the encoder only.

There is no discriminator any more: what it demands is that images look measured, batch included.

Example
-------
>>> generator = build_generator(64, 8, standardised=True)
>>> adopt_weights(generator, pretrained, *image_statistics(cells))
>>> model = ConditionalRemoval(generator, batch_shares(cells.labels), DEMO, steps=2000)
>>> model.view.start_from_scales(batch_scales(cells))
>>> model.compile()
>>> model.fit(feed, epochs=DEMO.conditional.epochs, shuffle=False)
"""

import keras
import numpy as np
from keras import ops

from cytomad_lib.models import losses
from cytomad_lib.models.adversaries import ConditionalAdversary
from cytomad_lib.models.autodiff import minimise
from cytomad_lib.models.calibration import BatchView
from cytomad_lib.models.erasure import fit_leace, within_class_concept
from cytomad_lib.models.image_summary import ImageSummary
from cytomad_lib.models.networks import build_leaky_mlp
from cytomad_lib.models.pretraining import TrackedLosses

STRUCTURE = 2 / 45  # of the image's side, 2 um of the published field: finer counts as structure
_TERMS = (
    *("loss", "mae", "structure", "class_head", "adversary", "mmd", "linear_mmd"),
    *("image_adversary", "image_mmd", "image_linear_mmd"),
)
_LEARNED = ("adversary_accuracy", "image_adversary_accuracy")


class ConditionalRemoval(TrackedLosses):
    """Train a generator that forgets the batch, against adversaries that know the class.

    Parameters
    ----------
    generator : keras.Model
        Standardised, with the weights of the pretrained one.
    shares : array (classes, batches)
        p(batch | class) of the training cells, see `batch_shares`.
    preset : Preset
        Its `conditional` part gives weights, rates and schedule.
    steps : int
        Steps of the whole training. Over the first part of them the batch terms grow to their
        full weight; towards the end the learning rate falls.
    seed : int, optional
        Of the initial weights of all networks but the generator, and of the turns.
    """

    def __init__(self, generator, shares, preset, steps, seed=None):
        super().__init__(generator, (*_TERMS, *_LEARNED), name="conditional_removal")
        self.encoder = keras.Model(generator.input, generator.outputs[1], name="encoder")
        self.recipe = recipe = preset.conditional
        if recipe.recent_cells < max(recipe.image_cells, recipe.feature_cells):
            raise ValueError(
                f"recent_cells is {recipe.recent_cells}, expected at least the cells of one step "
                f"({recipe.image_cells} with images, {recipe.feature_cells} on features alone)."
            )
        self.steps = steps
        n_classes, n_batches = shares.shape
        seeds = np.random.default_rng(seed).integers(2**31, size=4).tolist()
        self.view = BatchView(n_batches)
        self.class_head = build_leaky_mlp(
            preset.n_features, (64,), n_classes, 0.3, seeds[0], "softmax", name="class_head"
        )
        self.feature_adversary = ConditionalAdversary(
            preset.n_features,
            shares,
            recipe,
            recipe.adversary_steps,
            recipe.whitening_floor,
            seed=seeds[1],
        )
        self.summary = ImageSummary(preset.image_size)
        self.image_adversary = ConditionalAdversary(
            self.summary.length,
            shares,
            recipe,
            recipe.image_adversary_steps,
            recipe.image_whitening_floor,
            seed=seeds[2],
        )
        self.coarse = STRUCTURE * preset.image_size
        self.turn_seed = keras.random.SeedGenerator(seeds[3])
        self.built = True

    def compile(self, **options):
        """Make all optimizers, at once, so that a checkpoint holds their states."""
        super().compile(optimizer=None, **options)
        features = self.encoder.trainable_variables + self.class_head.trainable_variables
        everything = (
            self.generator.trainable_variables
            + self.class_head.trainable_variables
            + self.view.trainable_variables
        )
        # Two optimizers: the steps on features alone have gradients of quite another size.
        self.all_weights, self.feature_weights = everything, features
        self.optimizer_of_all = self._adam(everything, self.steps)
        self.feature_optimizer = self._adam(features, self.steps * self.recipe.feature_steps)
        self.feature_adversary.compile()
        self.image_adversary.compile()

    def _adam(self, weights, steps):
        optimizer = keras.optimizers.Adam(_LateFall(self.recipe.generator_rate, steps), beta_1=0.5)
        optimizer.build(weights)
        return optimizer

    @property
    def chance(self):
        """Everything here that draws at random, for `ReseedDropout`."""
        return [
            self.generator,
            self.class_head,
            self.feature_adversary.mlp,
            self.image_adversary.mlp,
            self.turn_seed,
        ]

    def train_step(self, data):
        """Take one step on images and features, then some on features of other cells."""
        brightfield, targets = data
        seen = self.step_on_images(*_part(brightfield, targets, 0, self.recipe.image_cells))
        for number in range(self.recipe.feature_steps):
            start = self.recipe.image_cells + number * self.recipe.feature_cells
            seen |= self.step_on_features(
                *_part(brightfield, targets, start, self.recipe.feature_cells)
            )
        return self.track(seen, 1)

    def step_on_images(self, brightfield, targets):
        """Update everything on one part of the minibatch; return the loss terms."""
        batch, class_name = targets["batch"], targets["class_name"]
        made = {}

        def all_losses():
            turn = self._draw_turns(brightfield)
            image, features = self.generator(_turned(brightfield, turn), training=True)
            image = _turned_back(image, turn)
            numbers = self.summary(image, training=True)
            made["features"] = ops.stop_gradient(features)
            made["numbers"] = ops.stop_gradient(numbers)
            return self.losses_of(image, features, numbers, targets, training=True)

        terms = minimise(all_losses, self.all_weights, self.optimizer_of_all)
        learned = self.feature_adversary.update(made["features"], batch, class_name)
        terms["adversary_accuracy"] = learned["accuracy"]
        if self._looks_at_images:
            learned = self.image_adversary.update(made["numbers"], batch, class_name)
            terms["image_adversary_accuracy"] = learned["accuracy"]
        return terms

    def step_on_features(self, brightfield, targets):
        """Update encoder and class head on features alone; return the loss terms."""
        batch, class_name = targets["batch"], targets["class_name"]
        made = {}

        def feature_losses():
            turned = _turned(brightfield, self._draw_turns(brightfield))
            features = self.encoder(turned, training=True)
            made["features"] = ops.stop_gradient(features)
            return self.feature_losses_of(features, targets, training=True)

        terms = minimise(feature_losses, self.feature_weights, self.feature_optimizer)
        learned = self.feature_adversary.update(made["features"], batch, class_name)
        del terms["loss"]  # of another kind than the loss with images
        return terms | {"adversary_accuracy": learned["accuracy"]}

    def losses_of(self, image, features, numbers, targets, training):
        """Return all loss terms.

        Parameters
        ----------
        image : tensor (n, size, size, 1)
            Generated, in rad, free of batch.
        features : tensor (n, n_features)
        numbers : tensor (n, length)
            The summary of the images.
        targets : dict
            `"qpi"` (n, size, size, 1) in rad, `"batch"` and `"class_name"` (n,) codes.
        training : bool

        Returns
        -------
        dict of scalar tensors
            `"loss"` is what is minimised.
        """
        recipe = self.recipe
        terms = self.feature_losses_of(features, targets, training)
        as_measured = self.view(image, targets["batch"])
        terms["mae"] = losses.mean_absolute_error(targets["qpi"], as_measured)
        terms["structure"] = losses.lost_structure(targets["qpi"], image, self.coarse)
        terms["loss"] += recipe.weight_mae * terms["mae"]
        terms["loss"] += recipe.weight_structure * terms["structure"]
        if self._looks_at_images:
            found = self.image_adversary.losses_of(numbers, targets["batch"], targets["class_name"])
            terms["loss"] += self._weight_of_batch_terms() * (
                recipe.weight_image_adversary * found["adversary"]
                + recipe.weight_image_mmd * found["mmd"]
                + recipe.weight_image_linear_mmd * found["linear_mmd"]
            )
            terms |= {f"image_{name}": value for name, value in found.items()}
        return terms

    def feature_losses_of(self, features, targets, training):
        """Return the loss terms on features alone; see `losses_of`."""
        recipe = self.recipe
        found = self.feature_adversary.losses_of(features, targets["batch"], targets["class_name"])
        guess = self.class_head(features, training=training)
        class_head = losses.cross_entropy(targets["class_name"], guess)
        batch_terms = (
            recipe.weight_adversary * found["adversary"]
            + recipe.weight_mmd * found["mmd"]
            + recipe.weight_linear_mmd * found["linear_mmd"]
        )
        loss = recipe.weight_class * class_head + self._weight_of_batch_terms() * batch_terms
        return {"loss": loss, "class_head": class_head} | found

    def test_step(self, data):
        """Losses on validation cells, with running statistics, batch terms weighted as by now."""
        brightfield, targets = data
        image, features = self.generator(brightfield, training=False)
        numbers = self.summary(image, training=False)
        terms = self.losses_of(image, features, numbers, targets, training=False)
        return self.track(terms, ops.shape(brightfield)[0])

    @property
    def _looks_at_images(self):
        recipe = self.recipe
        return any(
            (
                recipe.weight_image_adversary,
                recipe.weight_image_mmd,
                recipe.weight_image_linear_mmd,
            )
        )

    def _weight_of_batch_terms(self):
        """Return what grows from 0 to 1: the adversaries must have learned something first."""
        done = ops.cast(self.optimizer_of_all.iterations, "float32")
        return ops.minimum(done / max(self.recipe.ramp * self.steps, 1.0), 1.0)

    def _draw_turns(self, images):
        """Draw for each cell whether it is mirrored, upside down, and turned by 90 degrees."""
        shape = (3, ops.shape(images)[0], 1, 1, 1)
        return keras.random.uniform(shape, seed=self.turn_seed) < 0.5


def image_statistics(cells):
    """Return the mean brightness of the training cells' images, and their mean contrast.

    Parameters
    ----------
    cells : CellImages or CellFiles
        Read in slices.

    Returns
    -------
    tuple of float
        Means over the cells of each brightfield image's mean and standard deviation.
    """
    means, spreads = [], []
    for part in cells.in_slices():
        means.append(part.brightfield.mean(axis=(1, 2, 3)))
        spreads.append(part.brightfield.std(axis=(1, 2, 3)))
    return float(np.concatenate(means).mean()), float(np.concatenate(spreads).mean())


def erase_linear_trace(generator, made):
    """Project out of the features what a linear probe could still find (LEACE within class).

    Parameters
    ----------
    generator : keras.Model
        Standardised; its last linear map is set, once. The images do not change.
    made : dict
        What `generate` returns for the training cells.
    """
    concept = within_class_concept(made["batch_codes"], made["class_codes"])
    matrix, offset = fit_leace(made["features"], concept).as_affine()
    generator.get_layer("features").set_weights([matrix, offset])


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


def _part(brightfield, targets, start, n):
    some = {name: values[start : start + n] for name, values in targets.items()}
    return brightfield[start : start + n], some
