"""Minibatches for `fit`: shuffled by seed and epoch, from memory or from disk.

The order of epoch 7 depends on the seed and on the number 7 alone, so that a run that was
interrupted and resumed sees the same minibatches as one that was not.

Cells on disk need not fit into memory: `StreamedMinibatches` reads them a block at a time, while
the training is busy with the block before.

Example
-------
>>> feed = Minibatches.of_cells(cells, batch_size=10, seed=0)  # CellImages or CellFiles
>>> model.fit(feed, epochs=20, shuffle=False)
>>> brightfield, targets = feed[0]
>>> targets["qpi"].shape, targets["batch"].shape
((10, 64, 64, 1), (10,))
"""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.files import StoredArray
from cytomad_lib.networks import seed_generators
from cytomad_lib.training.steps import seed_engine

# Images in the block that is dealt from; another one is being read. 4096 pairs of 64 x 64 pixels.
BLOCK_BYTES = 128 * 2**20
# Neighbours in a file that are read together. Longer slices are no faster, and mix less.
SLICE = 32


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
        self.error = None  # TensorFlow passes on the text of what went wrong, and not its kind
        self._arrange()

    @classmethod
    def of_cells(cls, cells, batch_size, measures=None, **options):
        """Minibatches `(brightfield, {"qpi", "batch", "class_name"})` of cells.

        The images are float32 `(n, size, size, 1)`, the batch and class int32 codes `(n,)`.
        Of cells in memory nothing is copied but the minibatch; cells in files are streamed, see
        `StreamedMinibatches`.

        Parameters
        ----------
        cells : CellImages or CellFiles
            Anything with `len()` and `read(indices)`.
        batch_size : int
        measures : array (cells, measures), optional
            Is added to the targets as `"measures"`.
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
            if measures is not None:
                targets["measures"] = measures[positions]
            return some.brightfield, targets

        options = {"keep_last": not options.get("shuffle", True)} | options
        if isinstance(cells, CellFiles):
            cells.check_streams()
            cell_bytes = 4 * cells.image_size**2 * (cells.channels + 1)
            return StreamedMinibatches(
                read, len(cells), batch_size, cells.file_codes, cell_bytes, **options
            )
        return cls(read, len(cells), batch_size, **options)

    @classmethod
    def of_arrays(cls, inputs, targets, batch_size, files=None, **options):
        """Minibatches of one input array, or a list of them, and one target array.

        Inputs in a file, a `StoredArray`, are streamed: `files` as for `StreamedMinibatches`.
        """

        def read(positions):
            if isinstance(inputs, list):
                return tuple(part[positions] for part in inputs), targets[positions]
            return inputs[positions], targets[positions]

        if isinstance(inputs, StoredArray):
            return StreamedMinibatches(
                read, len(targets), batch_size, files, inputs.row_bytes, **options
            )
        return cls(read, len(targets), batch_size, **options)

    def __len__(self):
        """Count the minibatches of an epoch."""
        whole, rest = divmod(self.n, self.batch_size)
        return whole + (rest > 0 and self.keep_last)

    def __getitem__(self, index):
        """Read one minibatch. What goes wrong is kept in `error`."""
        try:
            return self._minibatch(index)
        except Exception as error:
            self.error = error
            raise

    def _minibatch(self, index):
        start = index * self.batch_size
        inputs, targets = self._take(start, start + self.batch_size)
        if self.change is None:
            return inputs, targets
        return self.change(inputs, targets, np.random.default_rng([self.seed, self.epoch, index]))

    def on_epoch_end(self):
        """Arrange the cells anew for the next epoch; Keras calls this."""
        self.epoch += 1
        self._arrange()

    def _take(self, start, end):
        return self.read(self._order[start:end])

    def _arrange(self):
        self._order = np.arange(self.n)
        if self.shuffle:
            self._order = self._shuffled(np.random.default_rng([self.seed, self.epoch]))

    def _shuffled(self, random):
        order = random.permutation(self.n)
        return order if self.groups is None else _spread_groups(order, self.groups, random)


class StreamedMinibatches(Minibatches):
    """Minibatches of cells that do not fit into memory, in an order that suits the disk.

    To shuffle all cells, each would have to be looked up by itself. Instead, short slices of every
    file are shuffled, and the files are dealt out evenly: each block of the epoch has its share of
    every file, from slices all over the file. The cells of a block are read together, shuffled, and
    dealt into minibatches. So their mix of files is nearly that of a full shuffle; but cells that
    are neighbours in their file often come in the same block.

    Two blocks are in memory at most. While one is dealt from, a thread reads the next; it ends with
    its block. Its errors are raised when the block is used.
    (The workers of `keras.utils.PyDataset` read minibatch by minibatch: an epoch of the demo preset
    then took a fifth longer.)

    Usually made by `Minibatches.of_cells`.

    Parameters
    ----------
    read, n, batch_size
        As for `Minibatches`; `read` gets a block's positions, in rising order.
    files : int array (n,)
        File of each cell. Cells of one file have neighbouring positions.
    cell_bytes : int
        Memory for one cell. It decides, with `BLOCK_BYTES`, the cells in a block, and so the order.
    **options
        As for `Minibatches`.

    Source
    ------
    Blocks of neighbours, mixed in memory: D'Ascenzo and Cultrera di Montesano 2025, scDataset
    (arXiv 2506.01883). Shares of every file, instead of blocks drawn by chance, are ours.
    """

    def __init__(self, read, n, batch_size, files, cell_bytes, **options):
        self.files = np.asarray(files)
        self.block = batch_size * max(1, BLOCK_BYTES // (cell_bytes * batch_size))
        self._blocks = {}  # by number: positions, and what is or will be read there
        super().__init__(read, n, batch_size, **options)

    def on_epoch_end(self):
        """Arrange the cells anew and begin to read them, while Keras validates."""
        super().on_epoch_end()
        if self.shuffle and self.n > self.block:  # else each block has the cells that it had
            self._blocks = {}
        self._begin(0)

    def _take(self, start, end):
        number = start // self.block
        self._begin(number)
        self._blocks = {k: self._blocks[k] for k in self._blocks if k in (number, number + 1)}
        positions, block = self._blocks[number]
        inputs, targets = block.result()
        self._begin(number + 1)
        rows = np.searchsorted(positions, self._order[start:end])
        return inputs[rows], keras.tree.map_structure(lambda values: values[rows], targets)

    def _begin(self, number):
        """Begin to read a block, if there is one of this number and it was not begun before."""
        positions = self._order[number * self.block : (number + 1) * self.block]
        if number not in self._blocks and len(positions):
            positions, reader = np.sort(positions), ThreadPoolExecutor(1, "reading ahead")
            self._blocks[number] = positions, reader.submit(self.read, positions)
            reader.shutdown(wait=False)  # the thread ends with its block

    def _shuffled(self, random):
        # Slices of another cut in every epoch, so that neighbours part.
        place = np.arange(self.n) + random.integers(SLICE)
        new = (place % SLICE == 0) | (np.diff(self.files, prepend=-1) != 0)
        slices = np.cumsum(new) - 1
        order = np.argsort(random.random(slices[-1] + 1)[slices], kind="stable")
        order = _spread_groups(order, self.files, random)
        for start in range(0, self.n, self.block):
            block = order[start : start + self.block]
            random.shuffle(block)
            if self.groups is not None:
                block[:] = _spread_groups(block, self.groups, random)
        return order


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
        self.generators = [own for network in networks for own in _own_generators(network)]
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        """Set the state of each seed generator; Keras calls this."""
        for position, generator in enumerate(self.generators):
            draw = np.random.default_rng([self.seed, epoch, position])
            generator.state.assign(draw.integers(2**31, size=2).astype("uint32"))
        seed_engine(int(np.random.default_rng([self.seed, epoch]).integers(2**31)))


def _own_generators(network):
    alone = isinstance(network, keras.random.SeedGenerator)
    return [network] if alone else seed_generators(network)
