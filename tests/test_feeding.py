"""Minibatches: every cell once, pairs kept together, an order that resuming repeats."""

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
