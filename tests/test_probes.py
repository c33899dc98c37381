"""The probes must find what is there, and only what is there."""

import warnings

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.evaluation import probes

DESIGN = {"H69": (1, 3, 4), "H358": (1, 2, 5), "H520": (3, 6, 7), "H526": (2, 5, 6)}
PER_GROUP = 20


def make_labels(design=DESIGN, per_group=PER_GROUP):
    rows = [(f"Batch{b}", c) for c, bs in design.items() for b in bs for _ in range(per_group)]
    table = pd.DataFrame(rows, columns=["batch", "class_name"])
    table["class_name"] = pd.Categorical(table["class_name"], list(design))
    return table.astype({"batch": "category"})


LABELS = make_labels()
CLASS = np.eye(4)[LABELS["class_name"].cat.codes]
BATCH = np.eye(7)[LABELS["batch"].cat.codes]


def noise(columns=20, seed=0):
    return np.random.default_rng(seed).normal(size=(len(LABELS), columns))


@pytest.fixture(scope="module")
def scores():
    """Every measure for every kind of features."""
    # A class looks different in every batch: each of the 12 groups has a random look of its own.
    groups = LABELS.groupby(["class_name", "batch"], observed=True).ngroup()
    interaction = np.random.default_rng(0).normal(size=(12, 40))[groups]
    kinds = {
        "noise": noise(),
        "batch": np.hstack([5 * BATCH, noise(5)]),
        "class": np.hstack([5 * CLASS, noise(5)]),
        "interaction": interaction + noise(40),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = probes.score_table(kinds, LABELS, n_permutations=10)
    return table.set_index(["method", "measure"])


BATCH_MEASURE, CLASS_MEASURE, UNSEEN = "batch within class", "class", "class, unseen batch"


@pytest.mark.parametrize("measure", [BATCH_MEASURE, CLASS_MEASURE, UNSEEN])
def test_noise_stays_near_its_null(scores, measure):
    row = scores.loc["noise", measure]
    assert row["null_mean"] == pytest.approx(row["chance"], abs=0.06)
    # Four standard errors of 240 cells, from the mean of the null: a bias would stand out.
    assert abs(row["accuracy"] - row["null_mean"]) < 0.12
    assert row["null_95"] >= row["null_mean"]


def test_noise_is_above_the_95_percent_null_only_now_and_then():
    above = 0
    for seed in range(12):
        found = probes.within_class_batch_accuracy(
            noise(seed=seed), LABELS, seed, n_permutations=19, probes=("knn",)
        )
        above += found.accuracy > found.null_95
    assert above <= 3


def test_batch_features_are_found_and_carry_log2_3_bits(scores):
    row = scores.loc["batch", BATCH_MEASURE]
    assert row["accuracy"] > 0.97
    assert row["bits"] == pytest.approx(np.log2(3), abs=0.1)
    assert row["chance"] == pytest.approx(1 / 3)


def test_noise_carries_no_bits(scores):
    assert -0.1 < scores.loc["noise", BATCH_MEASURE]["bits"] < 0.1


def test_class_features_tell_the_class_everywhere_and_no_batch(scores):
    assert scores.loc["class", CLASS_MEASURE]["accuracy"] > 0.97
    assert scores.loc["class", UNSEEN]["accuracy"] > 0.97
    row = scores.loc["class", BATCH_MEASURE]
    assert abs(row["accuracy"] - row["null_mean"]) < 0.12


def test_class_signal_that_differs_by_batch_does_not_transfer(scores):
    assert scores.loc["interaction", CLASS_MEASURE]["accuracy"] > 0.9
    row = scores.loc["interaction", UNSEEN]
    assert row["accuracy"] < row["null_95"] + 0.1 < 0.6
    assert row["accuracy"] < scores.loc["class", UNSEEN]["accuracy"] - 0.4


def test_network_finds_what_no_straight_line_separates():
    labels = make_labels({"A": (1, 2)}, 100)
    rng = np.random.default_rng(1)
    side = rng.choice([-1, 1], 200)
    features = rng.normal(size=(200, 12))
    features[:, 0] += 3 * side
    features[:, 1] += 3 * side * np.where(labels["batch"] == "Batch1", 1, -1)
    found = probes.within_class_batch_accuracy(features, labels, n_permutations=0)
    assert found.per_probe["logistic"] < 0.65
    assert found.per_probe["mlp"] > 0.85
    assert found.accuracy == max(found.per_probe.values())
    assert np.isnan(found.null_95)


def test_a_batch_hidden_in_a_direction_of_little_spread_is_found():
    labels = make_labels({"A": (1, 2)}, 100)
    rng = np.random.default_rng(1)
    own, batch = rng.normal(size=(200, 1)), np.repeat([[-1.0], [1.0]], 100, axis=0)
    # Every column says the same, but for a five-hundredth part that is the batch.
    features = own @ rng.normal(size=(1, 12)) + 0.002 * batch @ rng.normal(size=(1, 12))
    found = probes.within_class_batch_accuracy(features, labels, n_permutations=0)
    assert max(found.per_probe[name] for name in ("logistic", "knn", "mlp")) < 0.75
    assert found.per_probe["whitened"] > 0.95
    assert found.probe == "whitened"


def test_same_seed_same_result():
    features = noise(8) + BATCH @ np.ones((7, 8)) * 0.2
    first, again, other = (
        probes.within_class_batch_accuracy(features, LABELS, seed, n_permutations=3)
        for seed in (1, 1, 2)
    )
    assert first.as_row() == again.as_row()
    assert first.as_row() != other.as_row()


def test_groups_and_confusion_agree_with_the_accuracy():
    features = np.hstack([2 * CLASS, noise(4)])
    found = probes.class_accuracy(features, LABELS, n_permutations=0)
    counts = found.confusion.to_numpy()
    assert counts.sum() == found.n_cells == len(LABELS)
    assert np.mean(np.diag(counts) / counts.sum(axis=1)) == pytest.approx(found.accuracy)
    assert found.by_group.mean() == pytest.approx(found.accuracy)
    assert list(found.confusion.index) == list(DESIGN)

    unseen = probes.unseen_batch_class_accuracy(features, LABELS, n_permutations=0)
    assert list(unseen.by_group.index) == [f"Batch{k}" for k in range(1, 8)]

    batch = probes.within_class_batch_accuracy(features, LABELS, n_permutations=0)
    assert list(batch.by_group.index) == list(DESIGN)
    assert batch.by_group.mean() == pytest.approx(batch.accuracy)
    assert batch.confusion.loc["Batch1", "Batch7"] == 0  # no class was seen in both
    assert list(batch.confusion.index) == [f"Batch{k}" for k in range(1, 8)]


def test_chance_holds_in_unbalanced_groups():
    counts = {("Batch1", "A"): 60, ("Batch2", "A"): 20, ("Batch1", "B"): 20, ("Batch2", "B"): 20}
    rows = [key for key, n in counts.items() for _ in range(n)]
    labels = pd.DataFrame(rows, columns=["batch", "class_name"])
    blind = np.ones((len(labels), 3))
    for measure in (
        probes.within_class_batch_accuracy,
        probes.class_accuracy,
        probes.unseen_batch_class_accuracy,
    ):
        found = measure(blind, labels, n_permutations=2)
        assert found.accuracy == found.chance == 0.5


def test_class_of_a_single_batch_cannot_be_predicted_when_unseen():
    labels = make_labels({"A": (1, 2), "B": (1, 2), "C": (3,)})
    features = 5 * np.eye(3)[labels["class_name"].cat.codes]
    found = probes.unseen_batch_class_accuracy(features, labels, n_permutations=2)
    assert found.accuracy == 1
    assert found.n_cells == 4 * PER_GROUP
    assert found.chance == pytest.approx(1 / 3)
    assert np.isnan(found.by_group["Batch3"])
    within = probes.within_class_batch_accuracy(features, labels, n_permutations=0)
    assert list(within.by_group.index) == ["A", "B"]


def test_one_batch_alone_can_be_left_out():
    labels = make_labels({"A": (1, 2), "B": (1, 2), "C": (1,)})
    features = 5 * np.eye(3)[labels["class_name"].cat.codes]
    features[labels["batch"] == "Batch1"] = 0  # only Batch2 can be read
    readable = probes.unseen_batch_class_accuracy(features, labels, n_permutations=0, only="Batch2")
    assert readable.accuracy < 1  # the probe is fitted on Batch1, where nothing is to be learned
    blank = probes.unseen_batch_class_accuracy(features, labels, n_permutations=2, only="Batch1")
    assert blank.accuracy == blank.chance == 0.5  # C is unknown: two classes, and no cell of it
    assert blank.n_cells == 2 * PER_GROUP
    assert np.isnan(blank.by_group["Batch2"]) and blank.confusion.to_numpy().sum() == blank.n_cells
    with pytest.raises(probes.ProbeError, match="no cells of 'Batch9'"):
        probes.unseen_batch_class_accuracy(features, labels, only="Batch9")


def test_images_are_taken_as_pixels():
    images = np.random.default_rng(0).normal(size=(len(LABELS), 6, 6, 1))
    images[:, :, 0, 0] += 4 * LABELS["class_name"].cat.codes.to_numpy()[:, None]
    assert probes.class_accuracy(images, LABELS, n_permutations=0).accuracy > 0.9


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (noise()[:-1], LABELS, r"\(239, 20\) for 240"),
        (np.where(np.arange(20) == 3, np.nan, noise()), LABELS, "240 of 240 cells"),
        (noise(), LABELS.drop(columns="batch"), "`batch` is needed"),
        (noise()[:40], make_labels({"A": (1,), "B": (2,)}), "two batches"),
        (noise()[:16], make_labels({"A": (1, 2), "B": (1, 2)}, 4), "4 cells; at least 5"),
    ],
)
def test_errors_say_what_was_found(features, labels, message):
    with pytest.raises(probes.ProbeError, match=message):
        probes.within_class_batch_accuracy(features, labels)


def test_unknown_probe_and_single_class_are_errors():
    with pytest.raises(probes.ProbeError, match="choose from"):
        probes.within_class_batch_accuracy(noise(), LABELS, probes=("forest",))
    with pytest.raises(probes.ProbeError, match="at least two"):
        probes.class_accuracy(noise()[:40], make_labels({"A": (1, 2)}))
    with pytest.raises(probes.ProbeError, match="one batch only"):
        probes.unseen_batch_class_accuracy(noise()[:40], make_labels({"A": (1,), "B": (2,)}))


# --- designs of which not all can be asked ----------------------------------------------------


def of_groups(counts):
    """Return labels of so many cells of each (class, batch), and features that tell the class."""
    rows = [key for key, n in counts.items() for _ in range(n)]
    labels = pd.DataFrame(rows, columns=["class_name", "batch"]).astype("category")
    classes = pd.get_dummies(labels["class_name"]).to_numpy(float)
    return 5 * classes + np.random.default_rng(0).normal(size=classes.shape), labels


def test_classes_of_one_batch_and_small_groups_are_left_out_and_named():
    counts = {("A", "B1"): 20, ("A", "B2"): 20, ("A", "B3"): 3, ("C", "B1"): 20, ("D", "B2"): 20}
    features, labels = of_groups(counts)
    why = {(measure, what): why for measure, what, why in probes.left_out(labels)}
    assert why[BATCH_MEASURE, "C"] == "measured in one batch only, B1"
    for measure in probes.MEASURES:
        assert why[measure, "A in B3"] == "3 cells; at least 5 are needed"
    assert "measured in one batch only" in why[UNSEEN, "D in B2"]
    assert "only A can be scored" in why[UNSEEN, "classes other than A"]
    within, classes, unseen = probes.score_results(features, labels, n_permutations=2)
    assert list(within.by_group.index) == ["A"] and within.n_cells == 40
    assert within.chance == 0.5
    assert classes.n_cells == 80 and classes.chance == pytest.approx(1 / 3)
    assert unseen.n_cells == 40 and unseen.chance == 0.5  # A and one other are known elsewhere


def test_a_batch_without_which_one_class_is_left_is_not_scored():
    features, labels = of_groups({("A", "B1"): 20, ("C", "B1"): 20, ("A", "B2"): 20})
    found = probes.unseen_batch_class_accuracy(features, labels, n_permutations=2)
    assert found.n_cells == 20 and np.isnan(found.by_group["B1"])  # A alone is in B2
    assert (UNSEEN, "B1", "the other batches hold one class only") in probes.left_out(labels)
    probes.check_unseen(labels, "B2")
    with pytest.raises(probes.ProbeError, match="No cell of B1 can be predicted"):
        probes.check_unseen(labels, "B1")


def test_measures_that_cannot_be_asked_say_why_and_the_others_are_scored():
    features, labels = of_groups({("A", "B1"): 20, ("C", "B1"): 20})
    (found,) = probes.score_results(features, labels, n_permutations=0)
    assert found.measure == CLASS_MEASURE and found.accuracy > 0.9
    rows = {measure: why for measure, what, why in probes.left_out(labels) if what == "all"}
    assert set(rows) == {BATCH_MEASURE, UNSEEN}
    assert "two batches" in rows[BATCH_MEASURE] and "['B1']" in rows[UNSEEN]
    features, labels = of_groups({("A", "B1"): 20})
    assert probes.score_results(features, labels) == []
    table = probes.score_table({"none": features}, labels)
    assert table.empty and {"method", "measure", "accuracy", "null_95"} <= set(table)
    with pytest.raises(probes.ProbeError, match="not finite"):
        probes.score_results(features * np.nan, labels)


def test_where_each_batch_holds_one_class_there_is_no_null():
    counts = {("A", "B1"): 20, ("A", "B2"): 20, ("C", "B3"): 20, ("C", "B4"): 20}
    features, labels = of_groups(counts)
    found = probes.unseen_batch_class_accuracy(features, labels, n_permutations=3)
    assert found.accuracy > 0.9 and np.isnan(found.null_95)
    assert any(what == "the null" for _, what, _ in probes.left_out(labels))
    assert probes.class_accuracy(features, labels, n_permutations=3).null_95 < 0.9
