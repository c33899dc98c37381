"""Stage 1: pix2pix training of brightfield -> phase.

Example
-------
>>> model = Pix2Pix(build_generator(64, 16), build_discriminator(64, 16), DEMO)
>>> model.compile()
>>> model.fit(Minibatches.of_cells(cells, 10), epochs=20, shuffle=False)
"""

import keras
from keras import ops

from cytomad_lib.backend import replicas
from cytomad_lib.training import losses
from cytomad_lib.training.steps import (
    Recording,
    Step,
    adam,
    minimise,
    minimise_together,
    records,
)


class TrackedLosses(keras.Model):
    """A model around a network that reports the epoch's mean of each of its loss terms.

    Parameters
    ----------
    generator : keras.Model
        The network that is called, such as that of `build_generator`.
    terms : sequence of str
        Names of the loss terms.
    name : str
        Of the model.
    """

    def __init__(self, generator, terms, name):
        super().__init__(name=name)
        self.generator = generator
        self.trackers = {}
        self.add_trackers(*terms)

    def add_trackers(self, *terms):
        """Report these loss terms, too."""
        for term in terms:
            self.trackers[term] = keras.metrics.Mean(name=term)

    @property
    def metrics(self):
        """Running means of the losses, reset by Keras at every epoch."""
        return list(self.trackers.values())

    def call(self, brightfield, training=False):
        """Generate phase images and features; see `build_generator`."""
        return self.generator(brightfield, training=training)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Build nothing: the networks are built. Keras 3.15 fails at it on several machines."""

    def track(self, values, cells):
        """Add the terms of one minibatch of so many cells; return the means of these terms."""
        # As if this device's cells were the whole minibatch: Keras divides losses by the devices.
        values = {name: value * replicas() for name, value in values.items()}
        # Weighted by the cells of the minibatch: the last one of a validation set is smaller.
        for name, value in values.items():
            self.trackers[name].update_state(value, sample_weight=cells)
        # Only what was seen here: validation asks no adversary for its accuracy.
        means = {name: self.trackers[name].result() for name in values}
        # Keras averages over devices along an axis, and over one device there is none.
        return means if replicas() == 1 else {name: mean[None] for name, mean in means.items()}


class Pix2Pix(TrackedLosses):
    """Generator against discriminator, with a pixel-wise error to hold the two together.

    With the preset's `updates` "alternating", as published, one step updates the discriminator on
    measured pairs, then on generated pairs (each at half weight), then the generator against the
    updated discriminator. With "simultaneous", both networks are updated from the same state: the
    discriminator, by both kinds of pairs at once, and the generator by the discriminator before
    that. So the generated pairs are judged once instead of twice.

    Source: the CytoMAD publication, "pretraining", for "alternating".

    Parameters
    ----------
    generator, discriminator : keras.Model
        From `build_generator` and `build_discriminator`, of one image size.
    preset : Preset
        Gives learning rates and loss weights.
    """

    def __init__(self, generator, discriminator, preset):
        super().__init__(
            generator, ("loss", "adversarial", "mae", "discriminator_loss"), name="pix2pix"
        )
        self.discriminator = discriminator
        self.preset = preset
        self.built = True  # both networks are, so weights can be saved and loaded at once

    def compile(self, **options):
        """Make the two Adam optimizers at the preset's rates; options go to Keras.

        The optimizers are built here rather than at the first step: loading a checkpoint
        silently skips the state of an optimizer that is not built.
        """
        super().compile(optimizer=None, **options)
        self.generator_optimizer = self._adam(self.generator_rate, self.generator)
        self.discriminator_optimizer = self._adam(
            self.preset.discriminator_rate, self.discriminator
        )

    @property
    def generator_rate(self):
        """Learning rate of the generator in this stage."""
        return self.preset.generator_rate

    def train_step(self, data):
        """Update both networks on one minibatch `(brightfield, {"qpi": ...})`."""
        brightfield, targets = data
        if self.preset.updates == "simultaneous":
            terms = self._update_together(brightfield, targets)
        else:
            terms = self._update_in_turn(brightfield, targets)
        return self.track(terms, ops.shape(brightfield)[0])

    def _update_in_turn(self, brightfield, targets):
        seen = {}

        def generator_losses():
            generated, features = self.generator(brightfield, training=True)
            # One generated image serves both networks; the discriminator must not see where
            # it came from, hence the stopped gradient.
            seen["discriminator_loss"] = self.update_discriminator(
                brightfield, targets["qpi"], ops.stop_gradient(generated)
            )
            return self.generator_losses(brightfield, targets, generated, features)

        terms = minimise(
            generator_losses, self.generator.trainable_variables, self.generator_optimizer
        )
        return terms | seen

    def _update_together(self, brightfield, targets):
        def both_losses():
            generated, features = self.generator(brightfield, training=True)
            # Measured and generated pairs are normalised apart, as in the two published steps.
            measured = self._judge(brightfield, targets["qpi"], training=True)
            patches = self._judge(brightfield, generated, training=True)
            terms = self.generator_losses(brightfield, targets, generated, features, patches)
            return terms | {"discriminator_loss": discriminator_loss(measured, patches)}

        discriminator, generator = self.discriminator, self.generator
        return minimise_together(
            both_losses,
            [
                Step("loss", generator.trainable_variables, self.generator_optimizer),
                Step(
                    "discriminator_loss",
                    discriminator.trainable_variables,
                    self.discriminator_optimizer,
                ),
            ],
        )

    def make_train_function(self, force=False):
        """Make what `fit` calls for each minibatch; Keras calls this."""
        if not records(self):
            super().make_train_function(force)
        elif self.train_function is None or force:
            self.train_function = Recording(self.train_step, self.jit_compile)

    def test_step(self, data):
        """Losses on validation cells, with running statistics and without dropout."""
        brightfield, targets = data
        generated, features = self.generator(brightfield, training=False)
        measured = self._judge(brightfield, targets["qpi"], training=False)
        patches = self._judge(brightfield, generated, training=False)
        terms = self.generator_losses(brightfield, targets, generated, features, patches)
        terms["discriminator_loss"] = discriminator_loss(measured, patches)
        return self.track(terms, ops.shape(brightfield)[0])

    def update_discriminator(self, brightfield, measured, generated):
        """Take one step on measured pairs and one on generated pairs; return their mean loss."""
        half_losses = []
        for phase, real in ((measured, True), (generated, False)):
            step = minimise(
                lambda phase=phase, real=real: {
                    "loss": 0.5
                    * losses.real_or_fake(self._judge(brightfield, phase, training=True), real)
                },
                self.discriminator.trainable_variables,
                self.discriminator_optimizer,
            )
            half_losses.append(step["loss"])
        return sum(half_losses)

    def generator_losses(self, brightfield, targets, generated, features, patches=None):
        """Loss terms of the generator; `"loss"` is their weighted sum.

        Parameters
        ----------
        brightfield, generated : tensor (n, size, size, 1)
        targets : dict
            `"qpi"` (n, size, size, 1) in rad.
        features : tensor (n, n_features)
            Not used here; batch removal adds terms on them.
        patches : tensor (n, size / 8, size / 8, 1), optional
            What the discriminator says of the generated images. By default it is asked here, with
            running statistics, as in the published program.

        Returns
        -------
        dict of scalar tensors
        """
        if patches is None:
            patches = self._judge(brightfield, generated, training=False)
        adversarial = losses.real_or_fake(patches, True)
        mae = losses.mean_absolute_error(targets["qpi"], generated)
        loss = (
            self.preset.weight_adversarial * adversarial + self.preset.weight_mae_pretraining * mae
        )
        return {"loss": loss, "adversarial": adversarial, "mae": mae}

    def _adam(self, rate, network):
        optimizer = adam(rate, self.preset.beta_1, self.preset.precision)
        optimizer.build(network.trainable_variables)
        return optimizer

    def _judge(self, brightfield, phase, training):
        return self.discriminator([brightfield, phase], training=training)


def discriminator_loss(measured, generated):
    """Return the loss of the discriminator; the factor 0.5 is that of pix2pix (Isola et al. 2017).

    Parameters
    ----------
    measured, generated : tensor (n, patches, patches, 1)
        Its outputs for measured and for generated pairs.

    Returns
    -------
    Scalar tensor
        Half of the sum of both cross-entropies.
    """
    return 0.5 * (losses.real_or_fake(measured, True) + losses.real_or_fake(generated, False))
