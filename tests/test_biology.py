"""Features of which it is known what they keep of the cell."""

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.evaluation import biology
from cytomad_lib.evaluation.tasks import ProbeError

CLASSES, BATCHES = ("H69", "H520", "HCC827"), ("Batch1", "Batch2", "Batch3")
GROUP = 30


@pytest.fixture(scope="module")
def labels():
    rows = [(b, c) for b in BATCHES for c in CLASSES for _ in range(GROUP)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


@pytest.fixture(scope="module")
def truth(labels):
    """Six measures: three independent ones, three that follow them, and a shift by class."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(len(labels), 3))
    measures = np.hstack([free, free @ rng.normal(size=(3, 3))])
    measures += 3 * labels["class_name"].cat.codes.to_numpy()[:, None]
    return pd.DataFrame(measures, columns=[f"measure {k}" for k in range(6)])


def test_the_truth_keeps_all(truth, labels):
    for unseen_batch in (False, True):
        kept = biology.biology_kept(truth, truth, labels, unseen_batch=unseen_batch)
        assert kept.index.tolist() == truth.columns.tolist()
        assert kept.min() > 0.99


def test_an_invertible_linear_map_keeps_all(truth, labels):
    turned = truth.to_numpy() @ np.random.default_rng(1).normal(size=(6, 6)) + 5
    assert biology.biology_kept(turned, truth, labels).min() > 0.98


def test_noise_and_the_class_alone_keep_nothing(truth, labels):
    noise = np.random.default_rng(2).normal(size=(len(labels), 20))
    code = np.eye(3)[labels["class_name"].cat.codes]
    for features in (noise, code, np.zeros((len(labels), 2))):
        assert biology.biology_kept(features, truth, labels).mean() < 0.03


def test_two_numbers_keep_what_they_are_and_little_else(truth, labels):
    kept = biology.biology_kept(truth.iloc[:, :2], truth, labels)
    assert kept.iloc[:2].min() > 0.99
    assert kept.iloc[2] < 0.05


def test_a_curved_relation_is_found(truth, labels):
    centred = truth - truth.groupby(labels["class_name"].to_numpy()).transform("mean")
    size = centred[["measure 0"]].abs()
    assert biology.biology_kept(centred[["measure 0"]], size, labels).iloc[0] > 0.5


def test_a_batch_shift_hurts_in_an_unseen_batch(truth, labels):
    own = truth.iloc[:, :3]  # independent of each other: no combination of them lacks the shift
    shifts = np.random.default_rng(5).normal(0, 4, size=(3, 3))
    shifted = own + shifts[labels["batch"].cat.codes]
    seen = biology.biology_kept(shifted, own, labels).mean()
    unseen = biology.biology_kept(shifted, own, labels, unseen_batch=True).mean()
    assert seen > 0.35
    assert unseen < seen - 0.3


def test_unseen_batches_need_two(truth, labels):
    one = (labels["batch"] == "Batch1").to_numpy()
    with pytest.raises(ProbeError, match="at least two"):
        biology.biology_kept(truth[one], truth[one], labels[one], unseen_batch=True)


def test_cells_without_a_measure_are_left_out(truth, labels):
    gaps = truth.copy()
    gaps.iloc[::10, 2] = np.nan
    gaps["nowhere"], gaps["constant"] = np.nan, 1.0
    kept = biology.biology_kept(truth, gaps, labels)
    assert kept.index.tolist() == truth.columns.tolist()
    assert kept.min() > 0.99


def test_standardised_groups_hold_no_batch(truth, labels):
    batch = labels["batch"].cat.codes.to_numpy()[:, None]
    measured = (truth + 4 * batch) * (1 + batch)
    targets = biology.standardise_groups(measured, labels)
    means = targets.groupby([labels["batch"], labels["class_name"]], observed=True).mean()
    assert np.abs(means.to_numpy()).max() < 1e-9
    # What they hold of the cell is what the truth holds, up to the estimate of 30 cells.
    assert biology.biology_kept(truth, targets, labels).mean() > 0.9
    single = measured.assign(constant=1.0)
    assert biology.standardise_groups(single, labels)["constant"].isna().all()


def test_participation_ratio_counts_independent_directions(truth):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2000, 5))
    assert biology.participation_ratio(noise) == pytest.approx(5, abs=0.1)
    assert biology.participation_ratio(np.repeat(noise[:, :1], 7, axis=1)) == pytest.approx(1)
    # Units do not matter, nor features that never vary.
    scaled = np.hstack([noise * [1, 10, 100, 1e3, 1e4], np.ones((2000, 3))])
    assert biology.participation_ratio(scaled) == pytest.approx(biology.participation_ratio(noise))
    assert biology.participation_ratio(np.ones((10, 3))) == 0


def test_directions_hold_the_variance():
    noise = np.random.default_rng(4).normal(size=(500, 3))
    assert biology.n_directions(np.hstack([noise, noise])) == 3
    assert biology.n_directions(np.ones((10, 3))) == 0


def test_neighbours_of_the_truth_are_kept_and_those_of_noise_are_chance(truth, labels):
    overlap, chance = biology.neighbour_overlap(truth * [1, 2, 3, 4, 5, 6], truth, labels)
    assert overlap == pytest.approx(1) and chance == pytest.approx(10 / 89)
    noise = np.random.default_rng(6).normal(size=truth.shape)
    assert biology.neighbour_overlap(noise, truth, labels)[0] == pytest.approx(chance, abs=0.03)
    few = labels.groupby("class_name", observed=True).head(8).index
    assert np.isnan(biology.neighbour_overlap(truth.loc[few], truth.loc[few], labels.loc[few])[0])


def test_average_precision_by_hand():
    # One feature away from the others' mean: the cosine is the sign. Two classes, two batches.
    labels = pd.DataFrame(
        [("B1", "X"), ("B2", "X"), ("B1", "Y"), ("B2", "Y")], columns=["batch", "class_name"]
    ).astype("category")
    by_class, by_batch = [[1], [1], [-1], [-1]], [[1], [-1], [1], [-1]]
    # Each cell has one positive and one negative: the positive is first, or second.
    assert biology.class_retrieval(by_class, labels) == pytest.approx((1, 0.75))
    assert biology.class_retrieval(by_batch, labels) == pytest.approx((0.5, 0.75))
    assert np.isnan(biology.class_retrieval(by_class, labels.assign(batch="B1"))[0])


def test_retrieval_of_noise_is_at_chance(labels):
    noise = np.random.default_rng(7).normal(size=(len(labels), 10))
    found, chance = biology.class_retrieval(noise, labels)
    assert found == pytest.approx(chance, abs=0.03)


def test_a_method_is_scored_by_all_measures_with_their_chance(truth, labels):
    table = biology.score_biology(truth, truth, labels).set_index("measure")
    assert list(table.index) == list(biology.KEPT[:6])
    assert table.loc[biology.BIOLOGY, "value"] > 0.99 and table.loc[biology.BIOLOGY, "chance"] == 0
    assert table.loc["directions for 95 %", "value"] == biology.n_directions(truth)
