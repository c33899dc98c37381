"""Adversaries that know the class: what makes the conditional recipe forget the batch.

A `ConditionalAdversary` takes a vector per cell, a summary of the image, and predicts which batch
*of the cell's class* it comes from. It differs from the frozen classifiers of the published recipe
in three ways:

* **It is updated in every step**, on cells of the last minibatches, so it cannot be fooled once and
  for all.
* **The generator's target is p(batch | class)**, not "first batch". Batch and class are confounded.
  A target that ignores this (one batch for all, or uniform over batches) also removes the class.
* **Its inputs are whitened.** The batch may lie in a direction of little variance. A network that
  is updated slowly misses it there; an independent probe that standardises its inputs does not.

It also returns the distance between the batches of a class: the maximum mean discrepancy (MMD) with
a linear kernel on the whitened inputs. One minibatch holds few cells of each group, so they are
compared with the cells of earlier minibatches, which are kept in a replay buffer.

Sources: adversaries that are given the class, Zhao et al. 2017 (ICML, sleep stages from radio
signals) and Li et al. 2018 (ECCV, conditional invariant adversarial networks); MMD, Gretton et al.
2012 (JMLR).

Example
-------
>>> shares = batch_shares(labels)                         # p(batch | class), (classes, batches)
>>> adversary = ConditionalAdversary(64, shares, Conditional())
>>> adversary.compile()
>>> adversary.update(features, batch, class_name)         # adds the cells to the replay buffer
>>> terms = adversary.losses_of(features, batch, class_name)  # for the generator to minimise
"""

import keras
import numpy as np
from keras import layers, ops

from cytomad_lib.conditional.networks import build_leaky_mlp
from cytomad_lib.config import (
    ADVERSARY_DROPOUT,
    ADVERSARY_WIDTHS,
)
from cytomad_lib.training.steps import adam, minimise

IMPOSSIBLE = -1e9  # added to the logit of a batch that the class was never seen in


def batch_shares(labels):
    """Return p(batch | class): which part of a class's cells each batch holds.

    Parameters
    ----------
    labels : DataFrame
        Categorical columns `batch` and `class_name`.

    Returns
    -------
    array (classes, batches), float32
        Rows add up to 1; a class without cells has a row of zeros.
    """
    counts = np.zeros(
        (len(labels["class_name"].cat.categories), len(labels["batch"].cat.categories))
    )
    np.add.at(counts, (labels["class_name"].cat.codes, labels["batch"].cat.codes), 1)
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype("float32")


class ConditionalAdversary(layers.Layer):
    """Predict the batch of a cell within its class; its losses train the generator.

    Parameters
    ----------
    n_features : int
        Length of the vector per cell.
    shares : array (classes, batches)
        p(batch | class), see `batch_shares`.
    recipe : Conditional
        Its rate, replay buffer, whitening floor, and `adversary_steps` per `update`. With many
        steps the network overfits the buffer, and its gradient is of no more use.
    seed : int, optional
        Seed of the initial weights.
    """

    def __init__(self, n_features, shares, recipe, seed=None, **options):
        super().__init__(**options)
        self.recipe = recipe
        self.shares = shares
        n_classes, n_batches = shares.shape
        kept = recipe.replay_buffer
        self.buffer = self._memory((kept, n_features), "buffer")
        self.buffer_batch = self._memory((kept,), "buffer_batch", "int32")
        self.buffer_class = self._memory((kept,), "buffer_class", "int32")
        self.buffer_filled = self._memory((kept,), "buffer_filled")  # 1: holds a cell, 0: not yet
        self.whitening = self.add_weight(
            shape=(n_features, n_features), initializer="identity", trainable=False
        )
        seeds = np.random.default_rng(seed).integers(2**31, size=2).tolist()
        self.mlp = _build_guesser(n_features, n_classes, n_batches, seeds[0])
        self.draw_seed = keras.random.SeedGenerator(seeds[1])
        self.built = True

    def _memory(self, shape, name, dtype="float32"):
        return self.add_weight(
            shape=shape, initializer="zeros", trainable=False, dtype=dtype, name=name
        )

    def compile(self):
        """Make the optimizer; at once, so that a checkpoint holds its state."""
        self.optimizer = adam(self.recipe.adversary_rate, 0.5)
        self.optimizer.build(self.mlp.trainable_variables)

    @property
    def seed_generators(self):
        """What draws at random here, for `ReseedDropout`."""
        return [self.mlp, self.draw_seed]

    def losses_of(self, features, batch, class_name):
        """Say how readable the batch is: zero, or as good as, when nothing can be read.

        Parameters
        ----------
        features : tensor (n, n_features)
        batch, class_name : int tensor (n,)

        Returns
        -------
        dict of scalar tensors
            `"adversary"`: divergence of its guesses from p(batch | class), in nats. `"linear_mmd"`:
            squared distance between the means, in whitened units, of the batches of two cells of
            one class, on average over such pairs. The value is an unbiased estimate, and so may
            fall below zero. The gradient is half that of the distance, as the remembered cells
            stay where they are.
        """
        recent = ops.stop_gradient(self.buffer.value)
        # Whitened twice, the few new cells meet the many remembered ones as these are.
        whitened = ops.matmul(self._whiten(features), ops.transpose(self.whitening.value))
        linear = ops.matmul(whitened, ops.transpose(recent))
        return {
            "adversary": self._divergence(self._logits(features, class_name), class_name),
            "linear_mmd": self._discrepancy(linear, batch, class_name),
        }

    def update(self, features, batch, class_name):
        """Remember these cells, forget the oldest, and learn from some that are remembered.

        Parameters
        ----------
        features : tensor (n, n_features)
            Without gradient.
        batch, class_name : int tensor (n,)

        Returns
        -------
        dict of scalar tensors
            `"loss"` in nats and `"accuracy"` of the MLP on what it has learned from last.
        """
        self._remember(features, batch, class_name)
        self.whitening.assign(self._find_whitening())
        for _ in range(self.recipe.adversary_steps):
            seen = minimise(self._guessing_losses, self.mlp.trainable_variables, self.optimizer)
        return seen

    def _guessing_losses(self):
        kept = self.buffer_filled.shape[0]
        shown = keras.random.randint((self.recipe.replay_sample,), 0, kept, seed=self.draw_seed)
        features, class_name, truth, filled = (
            ops.take(memory.value, shown, axis=0)
            for memory in (self.buffer, self.buffer_class, self.buffer_batch, self.buffer_filled)
        )
        logits = self._logits(features, class_name, training=True)
        entropy = keras.losses.sparse_categorical_crossentropy(truth, logits, from_logits=True)
        right = ops.cast(ops.equal(ops.cast(ops.argmax(logits, -1), "int32"), truth), "float32")
        cells = ops.maximum(ops.sum(filled), 1.0)
        return {
            "loss": ops.sum(entropy * filled) / cells,
            "accuracy": ops.sum(right * filled) / cells,
        }

    def _logits(self, features, class_name, training=False):
        """Return what the network says, batches that the class was never seen in ruled out."""
        known = ops.one_hot(class_name, self.shares.shape[0], dtype=features.dtype)
        allowed = np.where(self.shares > 0, 0.0, IMPOSSIBLE).astype("float32")
        seen = [self._whiten(features), known]
        return self.mlp(seen, training=training) + ops.matmul(known, allowed)

    def _divergence(self, logits, class_name):
        share = ops.take(ops.convert_to_tensor(self.shares), class_name, axis=0)
        log_ratio = ops.log(ops.maximum(share, 1e-9)) - ops.log_softmax(logits)
        return ops.mean(ops.sum(ops.where(share > 0, share * log_ratio, 0.0), axis=-1))

    def _discrepancy(self, kernel, batch, class_name):
        """Twice the squared MMD of the batches from their class, from a kernel (n, remembered).

        A cell is too close to its own batch, if that is closer than the batches on average.
        """
        same_class = ops.cast(class_name[:, None] == self.buffer_class.value[None], kernel.dtype)
        n_batches = self.shares.shape[1]
        member = ops.one_hot(self.buffer_batch.value, n_batches, dtype=kernel.dtype)
        member = member * self.buffer_filled.value[:, None]
        cells = ops.matmul(same_class, member)
        to_batch = ops.matmul(kernel * same_class, member) / ops.maximum(cells, 1.0)
        own = ops.one_hot(batch, n_batches, dtype=kernel.dtype)
        share = ops.take(ops.convert_to_tensor(self.shares), class_name, axis=0)
        return 2.0 * ops.mean(ops.sum(to_batch * (own - share), axis=-1))

    def _whiten(self, features):
        return ops.matmul(features, self.whitening.value)

    def _find_whitening(self):
        """Return the matrix that gives the spread inside the groups the same size everywhere."""
        features, filled = self.buffer.value, self.buffer_filled.value[:, None]
        n_classes, n_batches = self.shares.shape
        group = self.buffer_class.value * n_batches + self.buffer_batch.value
        member = ops.one_hot(group, n_classes * n_batches, dtype=features.dtype) * filled
        cells = ops.maximum(ops.sum(member, axis=0), 1.0)[:, None]
        means = ops.matmul(ops.transpose(member), features) / cells
        spread = (features - ops.matmul(member, means)) * filled
        identity = ops.eye(features.shape[1])
        covariance = ops.matmul(ops.transpose(spread), spread) / ops.sum(filled)
        # The floor keeps directions without any spread (silent features) from blowing up.
        root = ops.cholesky(covariance + self.recipe.whitening_floor * identity)
        return ops.transpose(ops.solve_triangular(root, identity, lower=True))

    def _remember(self, features, batch, class_name):
        new = {
            "buffer": features,
            "buffer_batch": ops.cast(batch, "int32"),
            "buffer_class": ops.cast(class_name, "int32"),
            "buffer_filled": ops.ones_like(features[:, 0]),
        }
        for name, values in new.items():
            memory = getattr(self, name)
            memory.assign(ops.concatenate([memory.value[ops.shape(values)[0] :], values]))


def _build_guesser(n_features, n_classes, n_batches, seed):
    """Build [features, class] -> logits of the batches."""
    (seed,) = np.random.default_rng(seed).integers(2**31, size=1).tolist()
    inputs = layers.Input((n_features,)), layers.Input((n_classes,))
    joined = layers.Concatenate()(inputs)
    mlp = build_leaky_mlp(joined.shape[1], ADVERSARY_WIDTHS, n_batches, ADVERSARY_DROPOUT, seed)
    return keras.Model(inputs, mlp(joined), name="adversary_mlp")
