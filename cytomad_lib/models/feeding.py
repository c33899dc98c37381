"""Minibatches for `fit`: shuffled by seed and epoch, from memory or from disk.

The order of epoch 7 depends on the seed and on the number 7 alone, so that a run that was
interrupted and resumed sees the same minibatches as one that was not.

Example
-------
>>> feed = Minibatches.of_cells(cells, batch_size=10, seed=0)  # CellImages or CellFiles
>>> model.fit(feed, epochs=20, shuffle=False)
>>> brightfield, targets = feed[0]
>>> targets["qpi"].shape, targets["batch"].shape
((10, 64, 64, 1), (10,))
"""

import keras
import numpy as np


class Minibatches(keras.utils.PyDataset):
    """Feed `fit` in an order that depends on the seed and on the number of the epoch.

    Usually made by `Minibatches.of_cells` or `Minibatches.of_arrays`. Call
    `fit(..., shuffle=False)` with it: Keras would else shuffle the minibatches once more, and
    not by this seed.

    Parameters
    ----------
    read : callable
        Takes an int array of positions and returns one minibatch `(inputs, targets)`.
    n : int
        Number of cells.
    batch_size : int
        Cells per minibatch. (A minibatch is not an acquisition batch.)
    seed : int
    first_epoch : int
        Number of epochs already done, when resuming.
    shuffle : bool
        `False` keeps the cells in their own order: for validation.
    keep_last : bool
        Whether a last, incomplete minibatch is used.
    groups : int array (n,), optional
        Group of each cell. Every minibatch then holds cells of all groups in the proportions of
        the whole, as nearly as can be: terms that compare groups need that.
    change : callable, optional
        Takes inputs and targets of a minibatch and a `numpy.random.Generator`, which is the same
        whenever this minibatch of this epoch is read; returns them changed.

    Raises
    ------
    ValueError
        If there are no cells.
    """

    def __init__(
        self,
        read,
        n,
        batch_size,
        seed=0,
        first_epoch=0,
        shuffle=True,
        keep_last=True,
        groups=None,
        change=None,
    ):
        super().__init__()
        if n == 0:
            raise ValueError("There are no cells to make minibatches of; load at least one cell.")
        self.read = read
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed
        self.epoch = first_epoch
        self.shuffle = shuffle
        self.keep_last = keep_last
        self.groups = groups
        self.change = change
        self._arrange()

    @classmethod
    def of_cells(cls, cells, batch_size, **options):
        """Minibatches `(brightfield, {"qpi", "batch", "class_name"})` of cells.

        The images are float32 `(n, size, size, 1)`, the batch and class int32 codes `(n,)`.
        Nothing is copied but the minibatch.

        Parameters
        ----------
        cells : CellImages or CellFiles
            Anything with `len()` and `read(indices)`.
        batch_size : int
        **options
            As for `Minibatches`. In training (`shuffle`) an incomplete last minibatch is left
            out, as batch normalisation on very few cells is erratic; which cells these are
            changes with every shuffle.
        """

        def read(positions):
            some = cells.read(positions)
            targets = {
                "qpi": some.qpi,
                "batch": some.batch_codes,
                "class_name": some.class_codes,
            }
            return some.brightfield, targets

        return cls(
            read, len(cells), batch_size, keep_last=not options.get("shuffle", True), **options
        )

    @classmethod
    def of_arrays(cls, inputs, targets, batch_size, **options):
        """Minibatches of one input array, or a list of them, and one target array."""

        def read(positions):
            if isinstance(inputs, list):
                return tuple(part[positions] for part in inputs), targets[positions]
            return inputs[positions], targets[positions]

        return cls(read, len(targets), batch_size, **options)

    def __len__(self):
        """Count the minibatches of an epoch."""
        whole, rest = divmod(self.n, self.batch_size)
        return whole + (rest > 0 and self.keep_last)

    def __getitem__(self, index):
        """Read one minibatch."""
        start = index * self.batch_size
        inputs, targets = self.read(self._order[start : start + self.batch_size])
        if self.change is None:
            return inputs, targets
        return self.change(inputs, targets, np.random.default_rng([self.seed, self.epoch, index]))

    def on_epoch_end(self):
        """Arrange the cells anew for the next epoch; Keras calls this."""
        self.epoch += 1
        self._arrange()

    def _arrange(self):
        self._order = np.arange(self.n)
        if self.shuffle:
            random = np.random.default_rng([self.seed, self.epoch])
            random.shuffle(self._order)
            if self.groups is not None:
                self._order = _spread_groups(self._order, self.groups, random)


def _spread_groups(order, groups, random):
    """Give each group's cells evenly spaced places from 0 to 1, off by chance, and sort by them."""
    place = np.empty(len(order))
    groups = np.asarray(groups)[order]
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        place[own] = (np.arange(len(own)) + random.random(len(own))) / len(own)
    return order[np.argsort(place)]


class ReseedDropout(keras.callbacks.Callback):
    """Start every epoch's dropout from the seed and the epoch's number.

    Dropout counts its draws, and weight files do not hold that count: without this, a resumed
    run would drop other units than an uninterrupted one.

    Parameters
    ----------
    networks : keras.Model or list
        The networks with the dropout layers; also single `keras.random.SeedGenerator`s.
    seed : int
    """

    def __init__(self, networks, seed):
        super().__init__()
        networks = networks if isinstance(networks, list) else [networks]
        self.generators = [own for network in networks for own in _seed_generators(network)]
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        """Set the state of each seed generator; Keras calls this."""
        for position, generator in enumerate(self.generators):
            draw = np.random.default_rng([self.seed, epoch, position])
            generator.state.assign(draw.integers(2**31, size=2).astype("uint32"))


def _seed_generators(network):
    if isinstance(network, keras.random.SeedGenerator):
        return [network]
    return [layer.seed_generator for layer in network.layers if hasattr(layer, "seed_generator")]
