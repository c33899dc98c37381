"""The work of the published programs, done their way, for `python -m cytomad_lib bench`.

Networks, losses, weights, rates and minibatches are the library's own. What differs is how the work
is put together, as described in the publication's programs (own code, for today's Keras):

* `plain`: batch normalisation and convolutions are those of Keras.
* `Pretraining`, `BatchRemoval`: one call of Keras after another for each part of a step, a call of
  `predict` for the generated image, and in removal the classifiers once more for what is printed.
* `BatchRemoval.refit`: features by `predict`, one group at a time; four new batch MLPs, fitted one
  after the other; and so a new combined model.
* `predict_cells`: one group at a time, arrays grown by concatenation.
* `load_cells`: one file at a time with mat73, one image resized at a time, arrays grown likewise.

It is meant to be a fair opponent: where the published programs lose time for nothing that could
be called a way of working (plots and files written between), it does not.

Example
-------
>>> way = Pretraining(build_generator(64, 8), build_discriminator(64, 8), DEMO)
>>> losses = way.step(cells)
"""

import logging

import keras
import numpy as np
from keras import ops
from skimage.transform import resize

from cytomad_lib.data.layouts import find_layout
from cytomad_lib.networks import build_batch_mlp
from cytomad_lib.prediction import group_rows

# Each new classifier is traced, as in the published programs; TensorFlow remarks on it every time.
logging.getLogger("tensorflow").setLevel(logging.ERROR)


def plain(network):
    """Return a copy of a network, with the same weights and Keras' own layers."""

    def copied(layer):
        return getattr(keras.layers, type(layer).__name__).from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=copied)
    copy.set_weights(network.get_weights())
    return copy


def _adam(rate, preset):
    return keras.optimizers.Adam(rate, beta_1=preset.beta_1)


def _frozen(network):
    """Return a layer that runs a network in inference and hides its weights.

    In Keras 3 setting `trainable = False` between two `compile`s would freeze the network in both
    models. Hidden weights are frozen in the combined model alone, and nothing is copied.
    """
    return keras.layers.Lambda(lambda inputs: network(inputs, training=False))


class Pretraining:
    """Discriminator on real pairs, on generated pairs, then the combined model.

    Parameters
    ----------
    generator, discriminator : keras.Model
        From `build_generator` and `build_discriminator`.
    preset : Preset
        Gives learning rates, loss weights and the minibatch.
    seed : int
        Of the draw of minibatches.
    """

    def __init__(self, generator, discriminator, preset, seed=0):
        self.generator = generator
        self.discriminator = discriminator
        self.preset = preset
        self.random = np.random.default_rng(seed)
        discriminator.compile(
            _adam(preset.discriminator_rate, preset), "binary_crossentropy", loss_weights=[0.5]
        )
        self.combined = self.combine()

    def combine(self):
        """Build and compile generator and frozen discriminator as one model."""
        brightfield = keras.Input(self.generator.input_shape[1:])
        image, _ = self.generator(brightfield)
        model = keras.Model(brightfield, [_frozen(self.discriminator)([brightfield, image]), image])
        model.compile(
            _adam(self.preset.generator_rate, self.preset),
            ["binary_crossentropy", "mean_absolute_error"],
            loss_weights=[self.preset.weight_adversarial, self.preset.weight_mae_pretraining],
        )
        return model

    def step(self, cells):
        """Take one step on a minibatch drawn at random.

        Parameters
        ----------
        cells : CellImages

        Returns
        -------
        dict of float
            `loss` and `mae` of the generator, `discriminator_loss`.
        """
        rows = self.random.integers(len(cells), size=self.preset.batch_size)
        brightfield, measured = cells.brightfield[rows], cells.qpi[rows]
        image, features = self.generator.predict(brightfield, verbose=0)
        real = np.ones((len(rows), *self.discriminator.output_shape[1:]), np.float32)
        half_losses = [
            self.discriminator.train_on_batch([brightfield, measured], real),
            self.discriminator.train_on_batch([brightfield, image], np.zeros_like(real)),
        ]
        losses = self.combined.train_on_batch(brightfield, self.targets(cells, rows, real))
        self.report(cells, rows, image, features)
        found = {"loss": losses[0], "mae": losses[-1], "discriminator_loss": sum(half_losses)}
        return {name: float(value) for name, value in found.items()}

    def targets(self, cells, rows, real):
        """Return what the outputs of the combined model should be."""
        return [real, cells.qpi[rows]]

    def report(self, cells, rows, image, features):
        """Find out what is printed besides the losses: nothing here."""


class BatchRemoval(Pretraining):
    """The combined model also holds the seven frozen classifiers, which are asked again to print.

    Parameters
    ----------
    generator, discriminator, preset, seed
        As in `Pretraining`.
    classifiers : cytomad_lib.training.batch_removal.Classifiers
    """

    def __init__(self, generator, discriminator, classifiers, preset, seed=0):
        self.classifiers = classifiers
        self.subsets = np.arange(preset.n_features).reshape(preset.batch_mlps, -1)
        super().__init__(generator, discriminator, preset, seed)

    def combine(self):
        """Build and compile the generator with all that judges it, frozen."""
        preset, judges = self.preset, self.classifiers
        brightfield = keras.Input(self.generator.input_shape[1:])
        image, features = self.generator(brightfield)
        quarters = [_part(subset)(features) for subset in self.subsets]
        mlps = zip(judges.batch_mlps, quarters, strict=True)
        outputs = [
            _frozen(self.discriminator)([brightfield, image]),
            _frozen(judges.class_mlp)(features),
            _frozen(judges.class_cnn)(image),
            _frozen(judges.batch_cnn)(image),
            *(_frozen(mlp)(quarter) for mlp, quarter in mlps),
            image,
        ]
        n_classifiers = len(outputs) - 2
        model = keras.Model(brightfield, outputs)
        model.compile(
            _adam(preset.removal_rate, preset),
            [
                "binary_crossentropy",
                *["sparse_categorical_crossentropy"] * n_classifiers,
                "mean_absolute_error",
            ],
            loss_weights=[
                preset.weight_adversarial,
                *[preset.weight_classifier] * n_classifiers,
                preset.weight_mae_removal,
            ],
        )
        return model

    def targets(self, cells, rows, real):
        """Return what the outputs should be: the true class, the first batch for every cell."""
        true, fake = cells.class_codes[rows], np.zeros(len(rows), np.int32)
        fakes = [fake] * (1 + self.preset.batch_mlps)
        return [real, true, true, *fakes, cells.qpi[rows]]

    def report(self, cells, rows, image, features):
        """Predict by every classifier once more and return its accuracy."""
        judges = self.classifiers
        asked = [
            (judges.class_mlp, features, cells.class_codes),
            (judges.class_cnn, image, cells.class_codes),
            (judges.batch_cnn, image, cells.batch_codes),
            *(
                (mlp, features[:, subset], cells.batch_codes)
                for mlp, subset in zip(judges.batch_mlps, self.subsets, strict=True)
            ),
        ]
        return [
            float(np.mean(network.predict(seen, verbose=0).argmax(axis=1) == codes[rows]))
            for network, seen, codes in asked
        ]

    def refit(self, cells):
        """Replace the batch MLPs by new ones, fitted on the features as they are now.

        Parameters
        ----------
        cells : CellImages

        Returns
        -------
        list of float
            Accuracy of each on the cells that it was fitted on.
        """
        preset = self.preset
        _, features = predict_cells(self.generator, cells)
        self.subsets = self.random.permutation(preset.n_features).reshape(preset.batch_mlps, -1)
        n_batches = self.classifiers.batch_mlps[0].output_shape[-1]
        # `predict_cells` gives the cells group by group, as they are in the files.
        codes = np.concatenate([cells.batch_codes[rows] for rows in group_rows(cells.labels)])
        self.classifiers.batch_mlps, accuracies = [], []
        for subset in self.subsets:
            mlp = build_batch_mlp(n_batches, len(subset), seed=int(self.random.integers(2**31)))
            mlp.compile(
                _adam(preset.batch_mlp_rate, preset),
                "sparse_categorical_crossentropy",
                metrics=["accuracy"],
            )
            history = mlp.fit(
                features[:, subset],
                codes,
                batch_size=preset.classifier_batch_size,
                epochs=preset.refit_epochs,
                verbose=0,
            )
            self.classifiers.batch_mlps.append(mlp)
            accuracies.append(history.history["accuracy"][-1])
        self.combined = self.combine()
        return accuracies

    def round(self, cells):
        """Fit new batch MLPs, then train for as many epochs as they are kept; return all losses."""
        self.refit(cells)
        steps = self.preset.refit_every * (len(cells) // self.preset.batch_size)
        return [self.step(cells) for _ in range(steps)]


def _part(subset):
    return keras.layers.Lambda(lambda features: ops.take(features, subset, axis=1))


def predict_cells(generator, cells):
    """Predict one group after the other.

    Parameters
    ----------
    generator : keras.Model
    cells : CellImages

    Returns
    -------
    images : float32 array (n, size, size, 1)
    features : float32 array (n, n_features)
        Group by group.
    """
    images = np.empty((0, *generator.output_shape[0][1:]), np.float32)
    features = np.empty((0, *generator.output_shape[1][1:]), np.float32)
    for rows in group_rows(cells.labels):
        image, feature = generator.predict(cells.brightfield[rows], verbose=0)
        images = np.concatenate([images, image])
        features = np.concatenate([features, feature])
    return images, features


def load_cells(folder, split, image_size):
    """Load a split of a dataset: brightfield and phase images, and the codes of batch and class.

    Parameters
    ----------
    folder : path
        The dataset's, or the one above it.
    split : {"Train", "Valid", "Test"}
    image_size : int
        Images of another size are resized.

    Returns
    -------
    brightfield, qpi : float32 array (n, image_size, image_size, 1)
    batch_codes, class_codes : int array (n,)
    """
    import mat73  # for loading only: speed is also measured where it is missing

    layout, root = find_layout(folder)
    stacks = {kind: np.empty((0, image_size, image_size, 1), np.float32) for kind in ("BF", "QPI")}
    batch_codes, class_codes = np.empty(0, int), np.empty(0, int)
    for group in layout.groups:
        if not (root / group.file(split, "BF")).exists():
            continue
        for kind in stacks:
            images = mat73.loadmat(root / group.file(split, kind))[kind]
            images = _resized(np.transpose(images, (2, 0, 1)), image_size)
            stacks[kind] = np.concatenate([stacks[kind], images[..., None]])
        n = len(images)
        batch_codes = np.concatenate([batch_codes, np.full(n, layout.batches.index(group.batch))])
        class_codes = np.concatenate(
            [class_codes, np.full(n, layout.classes.index(group.class_name))]
        )
    return stacks["BF"], stacks["QPI"], batch_codes, class_codes


def _resized(images, size):
    if images.shape[1:] == (size, size):
        return images
    return np.stack([resize(image, (size, size), order=3, clip=False) for image in images])
