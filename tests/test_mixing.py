"""Mixing scores must be high for mixed batches, low for separate ones, and blind to the class."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_samples
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

from cytomad_lib.data.layouts import LUNG
from cytomad_lib.evaluation import mixing
from cytomad_lib.evaluation.probes import ProbeError


def lung_labels(per_group=40):
    rows = [(g.batch, g.class_name) for g in LUNG.groups for _ in range(per_group)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


def one_class(per_batch, batches=3):
    rows = [(f"B{b}", "X") for b in range(batches) for _ in range(per_batch)]
    return pd.DataFrame(rows, columns=["batch", "class_name"])


LABELS = lung_labels()
CLASS = np.eye(7)[LABELS["class_name"].cat.codes]
BATCH = np.eye(7)[LABELS["batch"].cat.codes]


def noise(n=None, columns=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n or len(LABELS), columns))


def test_noise_is_mixed():
    labels = one_class(400)
    found = mixing.mixing_scores(noise(1200), labels, perplexity=100).loc["mean"]
    small = mixing.mixing_scores(noise(1200), labels, perplexity=10).loc["mean"]
    assert found["kbet"] == pytest.approx(0.95, abs=0.03)
    assert found["ilisi"] > 0.9 > small["ilisi"]
    assert found["bras"] > 0.9


def test_separate_batches_are_not():
    features = noise() + 50 * np.hstack([BATCH, np.zeros((len(LABELS), 1))])
    found = mixing.mixing_scores(features, LABELS)
    assert found["kbet"].max() == 0
    assert found["ilisi"].max() < 0.01
    assert found["bras"].max() < 0.35


def test_clean_features_of_the_confounded_design_score_as_shuffled_batches_do():
    clean = 10 * CLASS + noise(columns=7)
    table = mixing.mixing_table({"clean": clean}, LABELS, shuffled=True).set_index("method")
    assert list(table.index) == ["clean", "batches shuffled"]
    assert table.loc["clean", "kbet"] > 0.9
    gap = (table.loc["clean"] - table.loc["batches shuffled"]).abs()
    assert gap["kbet"] < 0.05 and gap["ilisi"] < 0.03 and gap["bras"] < 0.03
    # Over all cells (one "class") the same features look badly mixed: hence class by class.
    together = mixing.mixing_scores(clean, LABELS.assign(class_name="any")).loc["mean"]
    assert together["kbet"] < 0.1
    assert together["ilisi"] < 0.5 < table.loc["clean", "ilisi"]


def test_scores_fall_as_the_shift_grows():
    direction = np.random.default_rng(1).normal(size=(7, 8))
    strengths = (0, 0.3, 0.6, 1.2, 2.4)
    methods = {s: noise() + s * BATCH @ direction for s in strengths}
    table = mixing.mixing_table(methods, LABELS)
    assert list(table["method"]) == list(strengths)
    for score in mixing.SCORES:
        assert (np.diff(table[score]) < 0).all(), score


def test_units_do_not_matter():
    features = noise() + 0.5 * np.hstack([BATCH, BATCH[:, :1]])
    scaled = features * np.logspace(-3, 3, 8) + 5
    pd.testing.assert_frame_equal(
        mixing.mixing_scores(features, LABELS), mixing.mixing_scores(scaled, LABELS), atol=0.01
    )


def test_features_that_never_vary_are_dropped():
    features = noise().astype(np.float32)
    dead = np.hstack([features, np.full((len(LABELS), 3), 0.1, dtype=np.float32)])
    pd.testing.assert_frame_equal(
        mixing.mixing_scores(features, LABELS), mixing.mixing_scores(dead, LABELS)
    )


def test_collapsed_features_say_nothing_about_the_batch():
    # Every cell is at the same place; the order of the table must not decide who is near.
    found = mixing.mixing_scores(np.ones((len(LABELS), 5)), LABELS).loc["mean"]
    assert found["kbet"] > 0.9
    assert found["ilisi"] > 0.6


def test_one_row_per_class_and_their_mean():
    labels = pd.concat([one_class(20), one_class(20, 1).assign(class_name="alone")])
    labels = pd.concat([labels, one_class(20, 2).assign(class_name="Y")], ignore_index=True)
    features = noise(len(labels))
    features[(labels["class_name"] == "Y") & (labels["batch"] == "B1")] += 30
    found = mixing.mixing_scores(features, labels)
    assert list(found.index) == ["X", "Y", "mean"]
    assert found.loc["Y", "kbet"] == 0 and found.loc["X", "kbet"] > 0.8
    np.testing.assert_allclose(found.loc["mean"], found.loc[["X", "Y"]].mean())


def test_kbet_tests_against_the_composition_of_the_class():
    # 9 : 1 is mixed when the class is 9 : 1; equal shares are not what is expected.
    codes = np.repeat([0, 1], (900, 100))
    points = noise(1000, 3)
    distances = euclidean_distances(points)
    np.fill_diagonal(distances, np.inf)
    assert mixing.kbet_acceptance(distances, codes, 50) > 0.9


@pytest.mark.parametrize("perplexity", [20, 60])
def test_ilisi_counts_the_batches_of_the_neighbourhood(perplexity):
    # Two of three batches share a place, the third is far away: 2, 2 and 1 batches effectively.
    codes = np.repeat([0, 1, 2], 300)
    points = noise(900, 3) + 100 * (codes == 2)[:, None]
    distances = euclidean_distances(points)
    np.fill_diagonal(distances, np.inf)
    # Among n equally likely neighbours of two batches Σ p² is on average 1/2 + 1/(2 n).
    effective = 1 / (0.5 + 0.5 / perplexity)
    wanted = (2 * effective + 1) / 3
    assert 1 + 2 * mixing.ilisi(distances, codes, perplexity) == pytest.approx(wanted, abs=0.06)


def test_weights_have_the_perplexity_asked_for():
    distances = np.sort(np.random.default_rng(0).gamma(5, 7, size=(20, 60)), axis=1)
    weights = mixing._weights(distances, 20)
    entropy = -(weights * np.log(weights)).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), 20, rtol=1e-6)
    assert (np.diff(weights, axis=1) <= 0).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_bras_is_its_definition(metric):
    codes = np.repeat([0, 1, 2], (10, 15, 20))
    points = noise(45, 4) + 2 * np.eye(4)[codes]
    distances = {"cosine": cosine_distances, "euclidean": euclidean_distances}[metric](points)
    wanted = []
    for i in range(45):
        others = [j for j in range(45) if codes[j] == codes[i] and j != i]
        a = distances[i, others].mean()
        b = distances[i, codes != codes[i]].mean()
        wanted.append(1 - abs(b - a) / max(a, b))
    assert mixing.bras(points, codes, metric) == pytest.approx(np.mean(wanted))


def test_bras_is_the_usual_silhouette_for_two_batches_only():
    codes = np.repeat([0, 1], (20, 30))
    points = noise(50, 4) + np.eye(4)[codes]
    usual = np.mean(1 - np.abs(silhouette_samples(points, codes)))
    assert mixing.bras(points, codes, "euclidean") == pytest.approx(usual)
    # Batches mixed in pairs, the pairs far apart: the nearest batch is near, so the usual
    # silhouette sees nothing wrong; this is why BRAS looks at all of them.
    codes = np.repeat([0, 1, 2, 3], 25)
    points = noise(100, 4) + 40 * (codes >= 2)[:, None]
    usual = np.mean(1 - np.abs(silhouette_samples(points, codes)))
    assert usual > 0.85 and mixing.bras(points, codes, "euclidean") < 0.5


def test_images_are_taken_as_pixels():
    images = noise(columns=36).reshape(-1, 6, 6, 1)
    pd.testing.assert_frame_equal(
        mixing.mixing_scores(images, LABELS), mixing.mixing_scores(images.reshape(-1, 36), LABELS)
    )


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (noise()[:-1], LABELS, "one row per label"),
        (noise() * np.nan, LABELS, "not finite"),
        (noise(), LABELS.drop(columns="batch"), "`batch` is needed"),
        (noise(20), one_class(20, 1), "two batches"),
        (noise(8), one_class(4, 2), "X in B0: 4 cells; at least 5"),
    ],
)
def test_errors_say_what_was_found(features, labels, message):
    with pytest.raises(ProbeError, match=message):
        mixing.mixing_scores(features, labels)
