"""The last step of the conditional recipe: the features of all batches of a class are aligned.

The encoder does not change any more. The features of all training cells are computed once, as they
will be delivered. A small network (the layer "feature_head") maps their leading directions to a few
numbers, so that

* the class and the cell's measures can be predicted from them,
* the batches of a class have the same distribution: place, width and shape. That is measured by
  maximum mean discrepancy (MMD) with Gaussian kernels of several widths, among hundreds of cells of
  each class at once. In so few dimensions, kernels miss little and need no training, and
* they are not copies of one another: their squared correlations are small.

It takes seconds. Neither batch nor class of a cell is needed afterwards.

Sources: MMD, Gretton et al. 2012 (JMLR); the term of correlations, Bardes et al. 2022 (ICLR,
VICReg).

Example
-------
>>> align_features(generator, cells, measure_targets(cells), Conditional())  # after FeatureRemoval
>>> prediction = predict(generator, others)                                  # features are aligned
"""

import keras
import numpy as np
from keras import ops

from cytomad_lib.conditional.losses import feature_losses, ramp
from cytomad_lib.conditional.networks import build_readers
from cytomad_lib.conditional.targets import in_stray_group
from cytomad_lib.config import (
    ALIGNMENT_RAMP,
    ALIGNMENT_RATE,
    ALIGNMENT_STEPS_PER_EPOCH,
    CELLS_PER_CLASS,
    MMD_WIDTHS,
)
from cytomad_lib.training.pix2pix import TrackedLosses
from cytomad_lib.training.steps import adam, compiled, minimise

TERMS = ("class_head", "measures", "mmd", "correlation")


class MMDAlignment(TrackedLosses):
    """Train a feature head, beside the readers of its features.

    Parameters
    ----------
    head : keras.Model
        `(n, n_encoded)` -> `(n, n_features)`, from `networks.build_feature_head`.
    n_classes, n_measures : int
    recipe : Conditional
        Its `alignment_steps` and weights.
    seed : int, optional
        Of the initial weights of the readers, and of their dropout.
    """

    def __init__(self, head, n_classes, n_measures, recipe, seed=None):
        super().__init__(head, TERMS, name="mmd_alignment")
        self.head, self.recipe = head, recipe
        self.readers = build_readers(head.output_shape[1], n_classes, n_measures, seed)
        self.built = True

    @property
    def trained_weights(self):
        """The weights that are trained."""
        return self.head.trainable_variables + self.readers.trainable_variables

    def compile(self, **options):
        """Make the optimizer; its rate falls to zero."""
        super().compile(optimizer=None, **options)
        rate = keras.optimizers.schedules.CosineDecay(ALIGNMENT_RATE, self.recipe.alignment_steps)
        self.optimizer = adam(rate, 0.5)
        self.optimizer.build(self.trained_weights)

    def train_step(self, data):
        """Take one step on cells (classes, cells, n_encoded) and their targets."""
        encoded, targets = data
        terms = minimise(
            lambda: self.losses_of(encoded, targets), self.trained_weights, self.optimizer
        )
        return self.track({name: terms[name] for name in TERMS}, 1)

    def losses_of(self, encoded, targets):
        """Return the loss terms.

        Parameters
        ----------
        encoded : tensor (classes, n, n_encoded)
        targets : dict
            `"batch"` (classes, n, batches), one-hot, `"class_name"` (classes,) codes, and
            `"measures"` (classes, n, measures).

        Returns
        -------
        dict of scalar tensors
            `"loss"` is what is minimised.
        """
        n_cells, n_encoded = encoded.shape[1:]
        features = self.head(ops.reshape(encoded, (-1, n_encoded)), training=True)
        codes = ops.repeat(targets["class_name"], n_cells)
        measures = ops.reshape(targets["measures"], (-1, targets["measures"].shape[2]))
        terms = feature_losses(self.readers, features, codes, measures, training=True)
        of_class = ops.reshape(features, (-1, n_cells, features.shape[1]))
        terms["mmd"] = mmd(of_class, targets["batch"])
        recipe = self.recipe
        loss = terms["class_head"] + recipe.aligned_measures * terms["measures"]
        grown = ramp(self.optimizer, ALIGNMENT_RAMP * recipe.alignment_steps)
        loss += grown * recipe.aligned_mmd * terms["mmd"]
        return terms | {"loss": loss + recipe.aligned_correlation * terms["correlation"]}


def mmd(cells, batch):
    """Return the maximum mean discrepancy of the batches of each class from the whole class.

    Parameters
    ----------
    cells : tensor or array (classes, n, features)
        Standardised.
    batch : tensor or array (classes, n, batches)
        One-hot.

    Returns
    -------
    scalar tensor
        By how much a cell is nearer to cells of its own batch than to cells of its class, by
        Gaussian kernels of several widths, twice, averaged over the cells. 0: the batches have
        the same distribution.
    """
    cells, batch = ops.convert_to_tensor(cells), ops.convert_to_tensor(batch)
    # Per feature, so that the kernels fit any number of them.
    squared = 2.0 * ops.mean((cells[:, :, None] - cells[:, None]) ** 2, axis=-1)
    kernel = sum(ops.exp(-squared / (2.0 * width)) for width in MMD_WIDTHS) / len(MMD_WIDTHS)
    count = ops.sum(batch, axis=1, keepdims=True)
    share = count / ops.cast(batch.shape[1], count.dtype)
    like_batch = ops.matmul(kernel, batch) / ops.maximum(count, 1.0)
    return 2.0 * ops.mean(ops.sum(like_batch * (batch - share), axis=-1))


class _Draws(keras.utils.PyDataset):
    """Draw the same number of random cells of each class for every step."""

    def __init__(self, encoded, measures, batch_codes, class_codes, steps, seed):
        super().__init__()
        self.encoded, self.measures, self.steps, self.seed = encoded, measures, steps, seed
        self.batch = np.eye(int(batch_codes.max()) + 1, dtype="float32")[batch_codes]
        self.classes = np.unique(class_codes).astype("int32")
        kept = ~in_stray_group(batch_codes, class_codes)
        self.rows = [np.flatnonzero((class_codes == code) & kept) for code in self.classes]
        self.epoch = 0

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        random = np.random.default_rng([self.seed, self.epoch, step])
        # With few cells of a class some are drawn twice: all classes need the same number.
        rows = np.stack(
            [
                random.choice(rows, CELLS_PER_CLASS, replace=len(rows) < CELLS_PER_CLASS)
                for rows in self.rows
            ]
        )
        targets = {"batch": self.batch[rows], "class_name": self.classes}
        return self.encoded[rows], targets | {"measures": self.measures[rows]}

    def on_epoch_end(self):
        self.epoch += 1


def align_features(generator, cells, measures, recipe, seed=0, verbose=0):
    """Fit the generator's feature head, once; encoder and images do not change.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`.
    cells : CellImages or CellFiles
        The training cells; read in slices.
    measures : float32 array (cells, measures)
        From `measure_targets`, of the same cells.
    recipe : Conditional
    seed : int
    verbose : int
        As for Keras' `fit`.

    Returns
    -------
    MMDAlignment
        As it was trained.
    """
    encoded = encode_cells(generator, cells)
    n_classes, n_measures = len(cells.classes), measures.shape[1]
    head = generator.get_layer("feature_head")
    model = MMDAlignment(head, n_classes, n_measures, recipe, seed)
    model.compile()
    epochs = max(round(recipe.alignment_steps / ALIGNMENT_STEPS_PER_EPOCH), 1)
    steps = -(-recipe.alignment_steps // epochs)
    draws = _Draws(encoded, measures, cells.batch_codes, cells.class_codes, steps, seed)
    model.fit(draws, epochs=epochs, shuffle=False, verbose=verbose)
    return model


def encode_cells(generator, cells):
    """Return the features (cells, n) of cells before the head."""
    parts = [generator.get_layer(name) for name in ("normalise_image", "feature_encoder")]
    encoder = keras.Sequential(parts)
    encode = compiled(encoder)
    slices = (encode(part.brightfield) for part in cells.in_slices(100))
    return np.concatenate([ops.convert_to_numpy(encoded) for encoded in slices])
