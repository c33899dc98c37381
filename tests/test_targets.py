"""Targets of the features: measures of the cells, without their batch."""

import numpy as np
import pytest
from training_cells import make_cells

from cytomad_lib.conditional.targets import in_stray_group, measure_targets, without_batch

PER_GROUP = 200


def make_measures(seed=0):
    """Two measures of two classes on three days; class 1 was not measured on day 0.

    Returns the measures without and with the effect of the day, and the codes.
    """
    random = np.random.default_rng(seed)
    batch = np.repeat([0, 1, 2, 1, 2], PER_GROUP)
    class_name = np.repeat([0, 0, 0, 1, 1], PER_GROUP)
    cells = random.normal(size=(len(batch), 2)) * np.array([1.0, 0.3])
    cells[class_name == 1] += np.array([2.0, -1.0])
    scale, shift = np.array([1.0, 1.5, 0.7])[batch], np.array([0.0, 4.0, -2.0])[batch]
    return cells, scale[:, None] * cells + shift[:, None], batch, class_name


def test_batches_of_a_class_get_one_mean_and_spread():
    _, measured, batch, class_name = make_measures()
    targets = without_batch(measured, batch, class_name)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=1e-5)
    for code in (0, 1):
        groups = [targets[(batch == day) & (class_name == code)] for day in (1, 2)]
        for moment in (np.mean, np.std):
            one, other = (moment(group, axis=0) for group in groups)
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_differences_between_cells_and_between_classes_stay():
    cells, measured, batch, class_name = make_measures()
    targets = without_batch(measured, batch, class_name)
    for column in (0, 1):
        assert np.corrcoef(targets[:, column], cells[:, column])[0, 1] > 0.98
    gap = targets[class_name == 1].mean(axis=0) - targets[class_name == 0].mean(axis=0)
    true = cells[class_name == 1].mean(axis=0) - cells[class_name == 0].mean(axis=0)
    np.testing.assert_allclose(gap, true / cells.std(axis=0), rtol=0.15)


def test_missing_measures_and_constant_ones_and_outliers():
    cells, _, batch, class_name = make_measures()
    measured = np.column_stack([cells, np.full(len(cells), 3.0)])
    measured[0, 0], measured[1, 1] = np.nan, 1e9
    targets = without_batch(measured, batch, class_name)
    assert targets.shape == (len(cells), 2)  # the constant one is left out
    assert np.isfinite(targets).all() and np.abs(targets).max() < 6


def test_the_spread_of_a_tiny_group_is_left_alone():
    cells, _, batch, class_name = make_measures()
    rows = (batch != 0) | (np.arange(len(batch)) < 2)
    targets = without_batch(cells[rows], batch[rows], class_name[rows])
    assert np.abs(targets[:2]).max() < 4


def test_a_stray_group_is_small_beside_its_class_and_its_batch():
    sizes = {(0, 0): 100, (0, 1): 10, (1, 0): 100, (1, 1): 100, (2, 0): 10, (2, 1): 10}
    batch, class_name = np.array([group for group, n in sizes.items() for _ in range(n)]).T
    stray = in_stray_group(batch, class_name)
    # Day 2 has few cells of any class, and is a day as every other.
    assert set(zip(batch[stray], class_name[stray], strict=True)) == {(0, 1)}
    assert stray.sum() == 10


def test_cells_of_a_wrong_label_keep_the_measures_of_their_class():
    cells, measured, batch, class_name = make_measures()
    wrong = np.flatnonzero(batch == 0)[:20]  # class 1 was not measured on day 0
    spoilt = class_name.copy()
    spoilt[wrong] = 1
    targets = without_batch(measured, batch, spoilt)
    of_class = [targets[(class_name == code) & (batch > 0)].mean(axis=0) for code in (0, 1)]
    distance = [np.abs(targets[wrong].mean(axis=0) - mean).max() for mean in of_class]
    assert distance[0] < 0.4 < 1.0 < distance[1]


def test_cells_are_measured_in_slices(monkeypatch):
    cells = make_cells(per_group=12)
    targets = measure_targets(cells)
    assert len(targets) == len(cells)
    in_slices = type(cells).in_slices
    monkeypatch.setattr(type(cells), "in_slices", lambda cells, n: in_slices(cells, 7))
    np.testing.assert_allclose(measure_targets(cells), targets, atol=1e-5)
    assert targets.std() == pytest.approx(1, rel=1e-3)
