"""Minibatches: every cell once, pairs kept together, an order that resuming repeats."""

import threading
import time

import keras
import numpy as np
import pytest
from keras import ops
from training_cells import TINY, make_cells, write_dataset

from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.files import StoredArray
from cytomad_lib.networks import build_generator
from cytomad_lib.training.minibatches import (
    BLOCK_BYTES,
    SLICE,
    Minibatches,
    ReseedDropout,
    StreamedMinibatches,
)


def orders(feed, epochs):
    seen = []
    for _ in range(epochs):
        seen.append(np.concatenate([feed[i][1] for i in range(len(feed))]))
        feed.on_epoch_end()
    return seen


def test_an_epoch_has_every_cell_once_in_a_new_order():
    numbers = np.arange(23)
    feed = Minibatches.of_arrays(numbers, numbers, 5, seed=0)
    first, second = orders(feed, 2)
    np.testing.assert_array_equal(np.sort(first), numbers)
    np.testing.assert_array_equal(np.sort(second), numbers)
    assert not np.array_equal(first, second)


def test_resuming_repeats_the_order_of_the_later_epochs():
    numbers = np.arange(30)
    whole = orders(Minibatches.of_arrays(numbers, numbers, 10, seed=7), 4)
    resumed = orders(Minibatches.of_arrays(numbers, numbers, 10, seed=7, first_epoch=2), 2)
    np.testing.assert_array_equal(whole[2:], resumed)
    other = orders(Minibatches.of_arrays(numbers, numbers, 10, seed=8), 4)
    assert not np.array_equal(whole, other)


def test_images_and_labels_stay_together():
    cells = make_cells()
    cells.qpi[:] = np.arange(len(cells))[:, None, None, None]
    cells.brightfield[:] = cells.qpi
    feed = Minibatches.of_cells(cells, 5, seed=3)
    assert len(feed) == len(cells) // 5  # the incomplete minibatch is left out in training
    for brightfield, targets in (feed[i] for i in range(len(feed))):
        number = brightfield[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(targets["qpi"], brightfield)
        np.testing.assert_array_equal(targets["batch"], cells.batch_codes[number])
        np.testing.assert_array_equal(targets["class_name"], cells.class_codes[number])


def test_validation_keeps_order_and_the_last_cells():
    cells = make_cells()
    feed = Minibatches.of_cells(cells, 5, shuffle=False)
    batches = np.concatenate([feed[i][1]["batch"] for i in range(len(feed))])
    np.testing.assert_array_equal(batches, cells.batch_codes)


def test_no_cells_is_an_error():
    with pytest.raises(ValueError, match="no cells"):
        Minibatches.of_arrays(np.zeros((0, 2)), np.zeros(0), 5)


GROUPS = np.repeat([3, 0, 7], [40, 20, 60])  # in minibatches of 12: 4, 2 and 6 cells


def grouped_feed(seed=0, **options):
    numbers = np.arange(len(GROUPS))
    return Minibatches.of_arrays(numbers, numbers, 12, seed=seed, groups=GROUPS, **options)


def counts_of(feed):
    seen = [GROUPS[feed[i][1]] for i in range(len(feed))]
    return np.array([[np.sum(one == group) for group in (3, 0, 7)] for one in seen])


def test_every_minibatch_has_all_groups_in_their_proportions():
    feed = grouped_feed()
    for _ in range(5):
        # The cells are spaced evenly, but for chance within a space: one or two off at most.
        assert np.abs(counts_of(feed) - [4, 2, 6]).max() <= 2
        feed.on_epoch_end()
    plain = Minibatches.of_arrays(np.arange(120), np.arange(120), 12, seed=0)
    assert counts_of(plain).std(axis=0).sum() > 2 * counts_of(grouped_feed()).std(axis=0).sum()


def test_spread_groups_keep_every_cell_once_in_an_order_of_seed_and_epoch():
    first, second, third = orders(grouped_feed(), 3)
    for order in (first, second, third):
        np.testing.assert_array_equal(np.sort(order), np.arange(120))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(orders(grouped_feed(), 3), [first, second, third])
    np.testing.assert_array_equal(orders(grouped_feed(first_epoch=2), 1)[0], third)
    assert not np.array_equal(orders(grouped_feed(seed=1), 1)[0], first)
    # Not only the groups are mixed, also the cells of each.
    own = first[GROUPS[first] == 3]
    assert not np.array_equal(own, np.sort(own))


def test_the_cells_left_out_of_an_epoch_are_of_all_groups():
    groups = np.repeat([0, 1], 50)
    cells = Minibatches.of_arrays(
        np.arange(100), np.arange(100), 80, seed=0, groups=groups, keep_last=False
    )
    assert abs(np.sum(groups[cells[0][1]] == 0) - 40) <= 2


def test_several_networks_and_seeds_are_reseeded_each_for_itself():
    networks = [
        keras.Sequential([keras.Input((200,)), keras.layers.Dropout(0.5, seed=1)]) for _ in range(2)
    ]
    networks[1] = keras.Sequential([keras.Input((200,)), networks[1]])  # one inside another
    turns = keras.random.SeedGenerator(3)
    callback = ReseedDropout([*networks, turns], seed=5)
    ones = np.ones((1, 200), "float32")

    def draws_of_epoch(epoch):
        callback.on_epoch_begin(epoch)
        draws = [network(ones, training=True) for network in networks]
        draws.append(keras.random.uniform((1, 200), seed=turns))
        return np.array([ops.convert_to_numpy(draw) for draw in draws])

    second, third = draws_of_epoch(2), draws_of_epoch(3)
    assert all(not np.array_equal(a, b) for a, b in zip(second, third, strict=True))
    np.testing.assert_array_equal(draws_of_epoch(2), second)
    # Networks of equal seed drop other units.
    assert not np.array_equal(second[0], second[1])


def test_dropout_is_the_same_in_the_same_epoch():
    generator = build_generator(TINY.image_size, TINY.base_filters, norm_momentum=1.0, seed=0)
    callback = ReseedDropout(generator, seed=5)
    cells = make_cells().brightfield

    def images_of_epoch(epoch):
        callback.on_epoch_begin(epoch)
        images = [generator(cells, training=True)[0] for _ in range(2)]
        return np.array([ops.convert_to_numpy(image) for image in images])

    fourth, fifth = images_of_epoch(4), images_of_epoch(5)
    assert not np.array_equal(fourth[0], fourth[1])  # dropout goes on within an epoch
    assert not np.array_equal(fourth, fifth)
    np.testing.assert_allclose(images_of_epoch(4), fourth, atol=1e-6)


def test_a_change_is_the_same_whenever_a_minibatch_is_read():
    def add_noise(inputs, targets, random):
        return inputs + random.normal(size=inputs.shape), targets

    def feed(**options):
        return Minibatches.of_arrays(
            np.zeros((12, 3)), np.arange(12), 4, change=add_noise, **options
        )

    first, again = feed(seed=1), feed(seed=1)
    second = first[1][0]
    assert second.std() > 0.1
    np.testing.assert_array_equal(again[1][0], second)  # without reading the one before
    assert not np.allclose(first[2][0], second) and not np.allclose(feed(seed=2)[1][0], second)
    first.on_epoch_end()
    np.testing.assert_array_equal(first[1][0], feed(seed=1, first_epoch=1)[1][0])
    assert not np.allclose(first[1][0], second)


# --- From disk ---------------------------------------------------------------------------------

FILES = np.repeat([0, 1, 2, 3], [4000, 1000, 3000, 2000])  # 2.5 cells of 10 are of the second half
NUMBERS = np.arange(len(FILES))


def streamed(batch_size=20, block=1000, read=None, files=FILES, **options):
    """Stream the cells' numbers, so many to a block."""
    return StreamedMinibatches(
        read or (lambda positions: (positions, positions)),
        len(files),
        batch_size,
        files,
        BLOCK_BYTES // block,
        **options,
    )


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "reading ahead"]


def wait_for_readers():
    for thread in reading_threads():
        thread.join(10)
    assert not reading_threads()


def test_a_streamed_epoch_has_every_cell_once_in_a_new_order():
    first, second = orders(streamed(seed=1), 2)
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), NUMBERS)
    assert not np.array_equal(first, second)
    short = streamed(batch_size=64, seed=1, keep_last=False)
    (order,) = orders(short, 1)
    assert len(order) == len(np.unique(order)) == 10000 // 64 * 64


def test_a_streamed_order_depends_on_seed_and_epoch_alone():
    whole = orders(streamed(seed=7), 3)
    np.testing.assert_array_equal(whole[2], orders(streamed(seed=7, first_epoch=2), 1)[0])
    assert not np.array_equal(whole[0], orders(streamed(seed=8), 1)[0])
    feed = streamed(seed=7)  # a minibatch by itself, from the middle of another block
    np.testing.assert_array_equal(feed[170][1], whole[0][170 * 20 : 171 * 20])


def test_streamed_minibatches_are_mixed_nearly_as_by_a_full_shuffle():
    def counts(feed):
        seen = [np.bincount(FILES[feed[i][1]], minlength=4) for i in range(len(feed))]
        return np.array(seen)

    ours = counts(streamed(seed=3))
    full = counts(Minibatches.of_arrays(NUMBERS, NUMBERS, 20, seed=3))
    np.testing.assert_array_equal(ours.mean(axis=0), full.mean(axis=0))
    # The spread over 500 minibatches: known to 3 %.
    np.testing.assert_allclose(ours.std(axis=0), full.std(axis=0), rtol=0.12)
    # And over time: each tenth of the epoch has every file in its share.
    tenths = ours.reshape(10, 50, 4).sum(axis=1)
    np.testing.assert_allclose(tenths, np.tile([400, 100, 300, 200], (10, 1)), atol=2)
    # In a block, the cells are from all over their file.
    order = np.concatenate([feed_part[1] for feed_part in (streamed(seed=3)[i] for i in range(50))])
    own = order[FILES[order] == 0]
    assert own.min() < 600 and own.max() > 3400 and np.diff(np.sort(own)).max() > 10 * SLICE


def test_what_is_streamed_is_read_in_slices():
    asked = []

    def read(positions):
        asked.append(positions)
        return positions, positions

    orders(streamed(read=read, seed=0), 1)
    wait_for_readers()
    for positions in asked[:10]:
        assert len(positions) <= 1000 and (np.diff(positions) > 0).all()
        pieces = 1 + np.count_nonzero(np.diff(positions) > 1)
        assert pieces <= 2 * (1000 / SLICE + 4)


def test_streamed_groups_are_in_every_minibatch():
    groups = FILES // 2
    feed = streamed(seed=0, groups=groups)
    counts = np.array([np.sum(groups[feed[i][1]]) for i in range(len(feed))])
    assert np.abs(counts - 10).max() <= 2
    (order,) = orders(streamed(seed=0, groups=groups), 1)
    np.testing.assert_array_equal(np.sort(order), NUMBERS)


def test_a_stream_holds_two_blocks_and_reads_while_one_is_dealt():
    begun, alive = [], []

    def read(positions):
        begun.append(len(positions))
        return positions, positions

    feed = streamed(read=read, seed=0)
    feed[0]
    wait_for_readers()
    assert len(begun) == 2  # the next block came without being asked for
    for index in range(len(feed)):
        feed[index]
        alive.append(len(feed._blocks))
    assert max(alive) == 2 and len(begun) == 10
    wait_for_readers()


def test_few_cells_are_read_once_for_all_epochs():
    begun = []

    def read(positions):
        begun.append(len(positions))
        return positions, positions

    few = streamed(read=read, files=FILES[:900], seed=0)
    first, second, _ = orders(few, 3)
    assert begun == [900] and not np.array_equal(first, second)
    ordered = streamed(read=read, files=FILES[:900], shuffle=False)
    np.testing.assert_array_equal(orders(ordered, 2), [NUMBERS[:900]] * 2)
    assert begun == [900, 900]


def test_what_goes_wrong_in_the_reader_is_raised_in_its_turn():
    def read(positions):
        if 9999 in positions:
            raise OSError("the disk is gone")
        return positions, positions

    feed = streamed(read=read, shuffle=False)
    for index in range(450):
        feed[index]
    with pytest.raises(OSError, match="the disk is gone"):
        feed[450]
    assert isinstance(feed.error, OSError)
    wait_for_readers()


def test_interrupting_a_stream_leaves_no_thread():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    def read(positions):
        time.sleep(0.05)
        return np.ones((len(positions), 1), "float32"), np.ones((len(positions), 1), "float32")

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(KeyboardInterrupt):
        model.fit(streamed(read=read), shuffle=False, verbose=0, callbacks=[Interrupt()])
    wait_for_readers()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def test_cells_in_files_are_streamed_with_their_labels_and_resized(dataset):
    files, cells = CellFiles(dataset, "Train", image_size=8), load_cells(dataset, "Train", None, 8)
    streams = [Minibatches.of_cells(files, 5, seed=2, shuffle=shuffle) for shuffle in (True, False)]
    assert all(isinstance(feed, StreamedMinibatches) for feed in streams)
    assert [len(feed) for feed in streams] == [len(cells) // 5, -(-len(cells) // 5)]
    feed = streams[0]
    for index in range(len(feed)):
        brightfield, targets = feed[index]
        rows = feed._order[5 * index : 5 * index + 5]
        np.testing.assert_allclose(brightfield, cells.brightfield[rows], atol=1e-6)
        np.testing.assert_allclose(targets["qpi"], cells.qpi[rows], atol=1e-6)
        np.testing.assert_array_equal(targets["batch"], cells.batch_codes[rows])
        np.testing.assert_array_equal(targets["class_name"], cells.class_codes[rows])


def test_arrays_in_a_file_are_streamed(tmp_path):
    images = np.arange(24, dtype="float32").reshape(12, 2)
    stored = StoredArray.write(tmp_path / "images.npy", [images[:5], images[5:]], images.shape)
    feed = Minibatches.of_arrays(stored, np.arange(12), 5, files=np.repeat([0, 1], 6), seed=0)
    assert isinstance(feed, StreamedMinibatches)
    for inputs, codes in (feed[i] for i in range(len(feed))):
        np.testing.assert_array_equal(inputs, images[codes])
