"""Predicting one group at a time hides shifts between batches, and writes the group into features.

The cells are discs whose batch is a gain of the lamp; the generator has random weights, so
whatever is found here is made by the way of predicting.
"""

import numpy as np
import pytest
from tf24_files import randomised
from training_cells import TINY, make_cells

from cytomad_lib.evaluation.inference_leak import (
    GROUPS,
    MIXED,
    RUNNING,
    leak_table,
    random_group_table,
    shuffle,
)
from cytomad_lib.networks import build_generator
from cytomad_lib.prediction import group_minibatches, predict, predict_together

MEASURES = ["batch within class", "class", "class, unseen batch"]


@pytest.fixture(scope="module")
def cells():
    return make_cells(per_group=20)


@pytest.fixture(scope="module")
def generator(cells):
    generator = randomised(build_generator(**TINY.image_network), seed=0)
    random = np.random.default_rng(0)
    for _ in range(30):  # running statistics that fit the cells
        generator(cells.brightfield[random.choice(len(cells), 20)], training=True)
    return generator


def shift_between_batches(features, labels):
    """Distance of the two batches' means within a class, in units of the spread."""
    shifts = []
    for rows in labels.groupby("class_name", observed=True).indices.values():
        one = (labels["batch"] == labels["batch"].iloc[rows[0]]).to_numpy()[rows]
        a, b = features[rows][one], features[rows][~one]
        spread = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 2)
        shifts.append(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) / np.linalg.norm(spread))
    return np.mean(shifts)


def test_the_grouping_hides_the_batch_and_batch_statistics_alone_do_not(generator, cells):
    groups = group_minibatches(cells.labels)
    running, grouped, mixed = (
        shift_between_batches(prediction.features, cells.labels)
        for prediction in (
            predict(generator, cells),
            predict(generator, cells, mode="published"),
            predict_together(generator, cells, shuffle(groups)),
        )
    )
    assert running > 3
    assert grouped < 1
    assert mixed > running / 2


def test_the_table_has_a_row_for_each_mode_and_measure(generator, cells):
    table = leak_table(generator, cells, n_permutations=2)
    assert list(zip(table["mode"], table["measure"], strict=True)) == [
        (mode, measure) for mode in (RUNNING, GROUPS, MIXED) for measure in MEASURES
    ]
    assert (table["chance"] == 0.5).all()
    found = table.set_index(["mode", "measure"])["accuracy"]
    # A gain that the probe never met no longer matters once it is normalised away.
    unseen = "class, unseen batch"
    assert found[GROUPS, unseen] > 0.9
    assert found[GROUPS, unseen] > found[RUNNING, unseen] + 0.2
    assert found[RUNNING, "batch within class"] > 0.9
    assert found[MIXED, "batch within class"] > 0.9


def test_groups_that_mean_nothing_can_be_read_when_predicted_one_at_a_time(generator, cells):
    table = random_group_table(generator, cells, n_permutations=2)
    found = table.set_index(["mode", "measure"])["accuracy"]
    for measure in ("batch within class", "class"):
        assert found[RUNNING, measure] < 0.65  # chance is 0.5
        assert found[GROUPS, measure] > 0.7


def test_dealing_keeps_sizes_and_cells(cells):
    groups = [np.arange(3), np.arange(3, 10), np.arange(10, 12)]
    dealt = shuffle(groups, seed=1)
    assert [len(part) for part in dealt] == [3, 7, 2]
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(12))
    assert any(set(a) != set(b) for a, b in zip(groups, dealt, strict=True))
    for part, again in zip(dealt, shuffle(groups, seed=1), strict=True):
        np.testing.assert_array_equal(part, again)
