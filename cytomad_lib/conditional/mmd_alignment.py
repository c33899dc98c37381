"""The last step of the conditional recipe: the features of all batches of a class are aligned.

The encoder does not change any more. The features of all training cells are computed once, as they
will be delivered. A small network (the layer "feature_head") maps the leading directions to a few
numbers, so that

* the class can be predicted from them (cross-entropy of a class head), and
* the batches of a class have the same distribution: place, width and shape. That is measured by
  maximum mean discrepancy (MMD) with Gaussian kernels of several widths, among hundreds of cells of
  each class at once. In two or three dimensions, kernels miss little and need no training.

It takes seconds. Neither batch nor class of a cell is needed afterwards.

Source of MMD: Gretton et al. 2012 (JMLR).

Example
-------
>>> made = generate(generator, cells, images=False)         # features from `FeatureRemoval`
>>> align_features(generator, made, Conditional(), n_classes=7, seed=0)
>>> prediction = predict(generator, others)                 # features are aligned now
"""

import keras
import numpy as np
from keras import layers, ops

from cytomad_lib.conditional.networks import build_leaky_mlp, build_residual_mlp
from cytomad_lib.config import (
    ALIGNED_DIRECTIONS,
    ALIGNMENT_RAMP,
    ALIGNMENT_RATE,
    ALIGNMENT_STEPS_PER_EPOCH,
    CELLS_PER_CLASS,
    CONSTANT,
    MMD_WIDTHS,
)
from cytomad_lib.training.steps import adam, minimise


class MMDAlignment(keras.Model):
    """Train a map from a few directions of the features to fewer numbers, the same in all batches.

    Parameters
    ----------
    n_seen : int
        Numbers per cell that go in.
    n_kept : int
        Numbers that come out, of variance 1.
    n_classes : int
    recipe : Conditional
        Its `alignment_steps` and `weight_mmd`.
    seed : int, optional
        Of the initial weights, and of the class head's dropout.
    """

    def __init__(self, n_seen, n_kept, n_classes, recipe, seed=None):
        super().__init__(name="mmd_alignment")
        seeds = np.random.default_rng(seed).integers(2**31, size=3).tolist()
        self.recipe = recipe
        # At first the leading directions go through, and nothing else.
        linear = np.eye(n_seen, n_kept, dtype="float32")
        self.linear = layers.Dense(n_kept, use_bias=False)
        self.linear.build((None, n_seen))
        self.linear.set_weights([linear])
        self.residual_mlp = build_residual_mlp(n_seen, n_kept, seeds[0])
        self.class_head = build_leaky_mlp(
            n_kept, (64, 64), n_classes, 0.1, seeds[1], "softmax", name="class_head"
        )
        self.trackers = {name: keras.metrics.Mean(name=name) for name in ("class_head", "mmd")}
        self.built = True

    @property
    def metrics(self):
        """Running means of the losses, reset by Keras at every epoch."""
        return list(self.trackers.values())

    @property
    def trained_weights(self):
        """The weights that are trained."""
        return [
            *self.linear.trainable_variables,
            *self.residual_mlp.trainable_variables,
            *self.class_head.trainable_variables,
        ]

    def compile(self, **options):
        """Make the optimizer; its rate falls to zero."""
        super().compile(optimizer=None, **options)
        rate = keras.optimizers.schedules.CosineDecay(ALIGNMENT_RATE, self.recipe.alignment_steps)
        self.optimizer = adam(rate, 0.5)
        self.optimizer.build(self.trained_weights)

    def call(self, seen):
        """Map (n, n_seen) to (n, n_kept), not yet standardised."""
        return self.linear(seen) + self.residual_mlp(seen)

    def train_step(self, data):
        """Take one step on cells (classes, cells, n_seen), with one-hot batches of the cells."""
        seen, targets = data
        n_cells, n_seen = seen.shape[1:]

        def losses():
            kept = self(ops.reshape(seen, (-1, n_seen)))
            kept = kept - ops.mean(kept, axis=0)
            kept = kept / ops.sqrt(ops.mean(kept**2, axis=0) + 1e-6)
            guess = self.class_head(kept, training=True)
            code = ops.repeat(targets["class_name"], n_cells)
            told = keras.losses.sparse_categorical_crossentropy(code, guess)
            of_class = ops.reshape(kept, (-1, n_cells, kept.shape[1]))
            found = {"class_head": ops.mean(told), "mmd": mmd(of_class, targets["batch"])}
            weight = self._ramp() * self.recipe.weight_mmd
            return found | {"loss": found["class_head"] + weight * found["mmd"]}

        found = minimise(losses, self.trained_weights, self.optimizer)
        for name, tracker in self.trackers.items():
            tracker.update_state(found[name])
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def _ramp(self):
        done = ops.cast(self.optimizer.iterations, "float32")
        return ops.minimum(done / max(ALIGNMENT_RAMP * self.recipe.alignment_steps, 1.0), 1.0)


def mmd(cells, batch):
    """Return the maximum mean discrepancy of the batches of each class from the whole class.

    Parameters
    ----------
    cells : tensor or array (classes, n, numbers)
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
    squared = ops.sum((cells[:, :, None] - cells[:, None]) ** 2, axis=-1)
    kernel = sum(ops.exp(-squared / (2.0 * width)) for width in MMD_WIDTHS) / len(MMD_WIDTHS)
    count = ops.sum(batch, axis=1, keepdims=True)
    share = count / ops.cast(batch.shape[1], count.dtype)
    like_batch = ops.matmul(kernel, batch) / ops.maximum(count, 1.0)
    return 2.0 * ops.mean(ops.sum(like_batch * (batch - share), axis=-1))


class _Draws(keras.utils.PyDataset):
    """So many random cells of each class, for every step anew."""

    def __init__(self, seen, batch_codes, class_codes, steps, seed):
        super().__init__()
        self.seen, self.steps, self.seed = seen, steps, seed
        self.member = np.eye(int(batch_codes.max()) + 1, dtype="float32")[batch_codes]
        self.classes = np.unique(class_codes).astype("int32")
        self.own = [np.flatnonzero(class_codes == code) for code in self.classes]
        self.epoch = 0

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        random = np.random.default_rng([self.seed, self.epoch, step])
        # With few cells of a class some are drawn twice: all classes need the same number.
        rows = np.stack(
            [
                random.choice(own, CELLS_PER_CLASS, replace=len(own) < CELLS_PER_CLASS)
                for own in self.own
            ]
        )
        return self.seen[rows], {"batch": self.member[rows], "class_name": self.classes}

    def on_epoch_end(self):
        self.epoch += 1


def align_features(generator, made, recipe, n_classes, seed=0, verbose=0):
    """Fit the generator's feature head, once; the images do not change.

    Parameters
    ----------
    generator : keras.Model
        From `build_conditional_generator`, with a head that does nothing yet.
    made : dict
        What `generate` returns for the training cells.
    recipe : Conditional
        `directions`: how many numbers are kept per cell; the features are as many as before, but
        vary in so many directions only. `alignment_steps` and `weight_mmd`.
    n_classes : int
    seed : int
    verbose : int
        As for Keras' `fit`.

    Returns
    -------
    MMDAlignment
        As it was trained.
    """
    features = made["features"].astype(float)
    mean = features.mean(axis=0)
    axes = np.linalg.svd(features - mean, full_matrices=False)[2][:ALIGNED_DIRECTIONS]
    seen = (features - mean) @ axes.T
    # What varies by less than a thousandth is rounding, and is not made large.
    spread = seen.std(axis=0)
    scale = np.maximum(spread, CONSTANT * spread[0] + 1e-12)
    seen = (seen / scale).astype("float32")
    model = MMDAlignment(len(axes), recipe.directions, n_classes, recipe, seed)
    model.compile()
    epochs = max(round(recipe.alignment_steps / ALIGNMENT_STEPS_PER_EPOCH), 1)
    steps = -(-recipe.alignment_steps // epochs)
    draws = _Draws(seen, made["batch_codes"], made["class_codes"], steps, seed)
    model.fit(draws, epochs=epochs, shuffle=False, verbose=verbose)
    spread = keras.ops.convert_to_numpy(model(seen)).std(axis=0)
    _fold(model, generator.get_layer("feature_head"), mean, axes / scale[:, None], axes, spread)
    return model


def _fold(model, head, mean, reads, axes, spread):
    """Put what was trained on coordinates into the head, which takes features and returns such.

    The numbers kept are laid along the leading axes, each with variance 1.
    """
    writes = axes[: len(spread)] / spread[:, None]
    offset = -mean @ reads.T
    (linear,) = model.linear.get_weights()
    first, bias, *middle, last, last_bias = model.residual_mlp.get_weights()
    head.get_layer("linear").set_weights([reads.T @ linear @ writes])
    head.get_layer("residual_mlp").set_weights(
        [
            reads.T @ first,
            bias + offset @ first,
            *middle,
            last @ writes,
            (last_bias + offset @ linear) @ writes,
        ]
    )
