"""Stages 2 and 3: classifiers of batch and class, and the generator steered by them.

Seven frozen classifiers steer the generator:

* on the bottleneck features: one cell-type MLP, and four batch MLPs that share the features;
* on the generated image: one class CNN and one batch CNN.

The **published** recipe minimises the cross-entropy of the class classifiers with the true class,
and that of the batch classifiers with the fake label "first batch" for every cell. Every few epochs
the four batch MLPs are replaced by new ones, fitted on new random quarters of the features.

Only an independent probe can tell whether that removes the batch or fools these seven: see
`cytomad_lib.evaluation.probes`.

Source: the CytoMAD publication, "batch removal".

Example
-------
>>> classifiers = Classifiers.build(n_batches=7, n_classes=7, preset=DEMO)
>>> for name in FITTED_ONCE: ...                               # stage 2: compile and fit each
>>> model = BatchRemoval(generator, discriminator, classifiers, DEMO)
>>> model.compile()
>>> feed = Minibatches.of_cells(cells, 10)
>>> model.fit(feed, epochs=10, shuffle=False, callbacks=[RefitBatchMLPs(cells)])
"""

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from cytomad_lib import networks
from cytomad_lib.prediction import generate
from cytomad_lib.training import losses
from cytomad_lib.training.minibatches import Minibatches
from cytomad_lib.training.pix2pix import Pix2Pix
from cytomad_lib.training.steps import adam

# What stage 2 fits before the generator is steered: a classifier's inputs and labels, as names in
# what `generate` returns, and its rate, as a name in the preset. (The batch MLPs are
# fitted during removal, again and again: see `RefitBatchMLPs`.)
FITTED_ONCE = {
    "class_mlp": ("features", "class_codes", "class_mlp_rate"),
    "class_cnn": ("images", "class_codes", "cnn_rate"),
    "batch_cnn": ("images", "batch_codes", "cnn_rate"),
}


@dataclass
class Classifiers:
    """The seven classifiers of the published recipe.

    Parameters
    ----------
    class_mlp : keras.Model
        All features -> class.
    class_cnn, batch_cnn : keras.Model
        Image -> class, image -> batch.
    batch_mlps : list of keras.Model
        Each a disjoint part of the features -> batch.
    """

    class_mlp: keras.Model
    class_cnn: keras.Model
    batch_cnn: keras.Model
    batch_mlps: list

    @classmethod
    def build(cls, n_batches, n_classes, preset, seed=None):
        """Build all seven for the preset's image size and width, with new weights.

        Parameters
        ----------
        n_batches, n_classes : int
            Numbers of batches and classes that the dataset's layout knows.
        preset : Preset
        seed : int, optional
            Seed of all initial weights.
        """
        seeds = np.random.default_rng(seed).integers(2**31, size=3 + preset.batch_mlps).tolist()
        part = preset.n_features // preset.batch_mlps
        return cls(
            class_mlp=networks.build_cell_type_mlp(
                n_classes, preset.n_features, seeds[0], name="class_mlp"
            ),
            class_cnn=networks.build_cnn_classifier(
                n_classes, **preset.image_network, seed=seeds[1], name="class_cnn"
            ),
            batch_cnn=networks.build_cnn_classifier(
                n_batches, **preset.image_network, seed=seeds[2], name="batch_cnn"
            ),
            batch_mlps=[
                networks.build_batch_mlp(n_batches, part, seed, name=f"batch_mlp_{number}")
                for number, seed in enumerate(seeds[3:], start=1)
            ],
        )


def compile_classifier(classifier, rate, preset):
    """Compile a classifier with Adam and cross-entropy, as published."""
    optimizer = adam(rate, preset.beta_1)
    classifier.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    # Built at once: a checkpoint silently skips the state of an optimizer that is not.
    optimizer.build(classifier.trainable_variables)


class BatchRemoval(Pix2Pix):
    """Stage 3: go on training the generator, now steered by frozen classifiers.

    Parameters
    ----------
    generator, discriminator : keras.Model
        Pretrained.
    classifiers : Classifiers
        Frozen here: a step changes the generator and the discriminator alone, and the
        classifiers run in inference mode.
    preset : Preset
    fake_batch : int
        Code of the target batch of the batch classifiers: the first one, as published.
    """

    def __init__(self, generator, discriminator, classifiers, preset, fake_batch=0):
        super().__init__(generator, discriminator, preset)
        self.class_mlp = classifiers.class_mlp
        self.class_cnn = classifiers.class_cnn
        self.batch_cnn = classifiers.batch_cnn
        self.batch_mlps = classifiers.batch_mlps
        self.fake_batch = fake_batch
        # Which features each batch MLP sees: a variable, so that a new draw reaches the traced
        # training step and is saved with the weights.
        self.subsets = self.add_weight(
            shape=(preset.batch_mlps, preset.n_features // preset.batch_mlps),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            name="feature_subsets",
        )
        self.draw_subsets(np.random.default_rng(0))
        self.add_trackers("class_mlp", "class_cnn", "batch_mlps", "batch_cnn")

    @property
    def generator_rate(self):
        """Learning rate of the generator in this stage."""
        return self.preset.removal_rate

    def draw_subsets(self, random):
        """Draw new disjoint subsets of the features for the batch MLPs.

        Parameters
        ----------
        random : numpy.random.Generator
        """
        drawn = random.permutation(self.preset.n_features)[: np.prod(self.subsets.shape)]
        self.subsets.assign(drawn.reshape(self.subsets.shape).astype("int32"))

    def features_of_mlp(self, features, number):
        """Return the features (n, n_features / 4) that batch MLP `number` (0 to 3) sees."""
        return ops.take(features, self.subsets[number], axis=1)

    def generator_losses(self, brightfield, targets, generated, features, patches=None):
        """Loss terms of the generator; see `Pix2Pix.generator_losses`.

        Parameters
        ----------
        brightfield, generated : tensor (n, size, size, 1)
        targets : dict
            `"qpi"` (n, size, size, 1) in rad, `"batch"` and `"class_name"` (n,) codes.
        features : tensor (n, n_features)
        patches : tensor (n, size / 8, size / 8, 1), optional

        Returns
        -------
        dict of scalar tensors
        """
        terms = super().generator_losses(brightfield, targets, generated, features, patches)
        steering = {
            "class_mlp": losses.cross_entropy(
                targets["class_name"], self.class_mlp(features, training=False)
            ),
            "class_cnn": losses.cross_entropy(
                targets["class_name"], self.class_cnn(generated, training=False)
            ),
            "batch_cnn": losses.fooled(self.batch_cnn(generated, training=False), self.fake_batch),
            # The sum of four cross-entropies, each at full weight.
            "batch_mlps": sum(
                losses.fooled(
                    mlp(self.features_of_mlp(features, number), training=False), self.fake_batch
                )
                for number, mlp in enumerate(self.batch_mlps)
            ),
        }
        terms["loss"] = (
            self.preset.weight_adversarial * terms["adversarial"]
            + self.preset.weight_classifier * sum(steering.values())
            + self.preset.weight_mae_removal * terms["mae"]
        )
        return terms | steering


class RefitBatchMLPs(keras.callbacks.Callback):
    """Every few epochs, replace the batch MLPs by new ones, fitted on new feature subsets.

    The generator has learned to fool the old ones; the new ones start from scratch.

    Parameters
    ----------
    cells : CellImages or CellFiles
        The training cells.
    seed : int
        With the epoch's number, it decides subsets, initial weights and shuffles.
    verbose : int
        1 prints a line per refit.
    """

    def __init__(self, cells, seed=0, verbose=0):
        super().__init__()
        self.cells = cells
        self.seed = seed
        self.verbose = verbose
        self._panel = None

    def on_epoch_begin(self, epoch, logs=None):
        """Refit at epochs 0, 5, 10, ... of the published schedule; Keras calls this."""
        if epoch % self.model.preset.refit_every == 0:
            self.refit(epoch)

    def refit(self, epoch):
        """Draw subsets, start the MLPs anew and fit each on the present features.

        Returns
        -------
        list of float
            Accuracy of each MLP on the training cells: how well it reads the batch.
        """
        model, preset = self.model, self.model.preset
        if self._panel is None:
            self._panel = _Panel(model.batch_mlps, preset)
        random = np.random.default_rng([self.seed, epoch])
        model.draw_subsets(random)
        made = generate(model.generator, self.cells, images=False)
        seen = [
            ops.convert_to_numpy(model.features_of_mlp(made["features"], number))
            for number in range(preset.batch_mlps)
        ]
        accuracies = self._panel.fit_anew(seen, made["batch_codes"], random)
        if self.verbose:
            read = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
            print(f"New batch MLPs read the batch of the training cells with accuracy {read}.")
        return accuracies


class _Panel:
    """The batch MLPs, fitted side by side in one compiled step.

    They share no weight and Adam treats every weight by itself, so this gives what fitting one
    after the other gives, with a single trace instead of one per MLP and round.
    """

    def __init__(self, mlps, preset):
        self.mlps = mlps
        # Copies are fitted: the MLPs themselves may be spread over several devices.
        self.copies = [keras.models.clone_model(mlp) for mlp in mlps]
        self.preset = preset
        inputs = [keras.Input(mlp.input_shape[1:]) for mlp in mlps]
        self.together = keras.Model(
            inputs,
            ops.stack([mlp(x) for mlp, x in zip(self.copies, inputs, strict=True)], axis=1),
        )
        optimizer = adam(preset.batch_mlp_rate, preset.beta_1)
        optimizer.build(self.together.trainable_variables)
        # Copies: an array from PyTorch would else follow its variable.
        self._fresh = [np.array(ops.convert_to_numpy(own)) for own in optimizer.variables]
        self.together.compile(optimizer=optimizer, loss=_sum_of_cross_entropies)

    def fit_anew(self, seen, batch_codes, random):
        for copy in self.copies:
            _start_anew(copy, random)
        optimizer = self.together.optimizer
        for variable, value in zip(optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        targets = np.repeat(batch_codes[:, None], len(self.mlps), axis=1)
        feed = Minibatches.of_arrays(
            seen, targets, self.preset.classifier_batch_size, seed=int(random.integers(2**31))
        )
        self.together.fit(feed, epochs=self.preset.refit_epochs, shuffle=False, verbose=0)
        for mlp, copy in zip(self.mlps, self.copies, strict=True):
            mlp.set_weights(copy.get_weights())
        guesses = self.together.predict(seen, batch_size=1000, verbose=0).argmax(axis=-1)
        return np.mean(guesses == targets, axis=0).tolist()


def _sum_of_cross_entropies(codes, probabilities):
    # (n, mlps): Keras averages over the cells, the MLPs are summed.
    return ops.sum(keras.losses.sparse_categorical_crossentropy(codes, probabilities), axis=-1)


def _start_anew(mlp, random):
    for layer in mlp.layers:
        if layer.weights:
            kernel, bias = layer.weights
            limit = np.sqrt(6.0 / sum(kernel.shape))  # Glorot's uniform distribution
            kernel.assign(random.uniform(-limit, limit, kernel.shape).astype("float32"))
            bias.assign(np.zeros(bias.shape, "float32"))
