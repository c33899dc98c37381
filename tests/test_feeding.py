"""Minibatches: every cell once, pairs kept together, an order that resuming repeats."""

import keras
import numpy as np
import pytest
from keras import ops
from training_cells import TINY, make_cells

from cytomad_lib.models.feeding import Minibatches, ReseedDropout
from cytomad_lib.models.networks import build_generator


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
    networks = [keras.Sequential([keras.layers.Dropout(0.5, seed=1)]) for _ in range(2)]
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
