"""Erasure does what the theorem says, and says what it cannot do."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_baselines import COLUMNS, LABELS, SHIFTED, crossed_labels, one_hot

from cytomad_lib.evaluation.erasure import fit_leace, spread_of, within_class_concept


def codes(labels):
    return tuple(labels[name].cat.codes.to_numpy() for name in ("batch", "class_name"))


def planted(class_signal, batch_shift, per_group=60, seed=0):
    """Return features of the crossed design: 2 classes x 3 batches, equally many cells each."""
    labels = crossed_labels(per_group)
    batch, class_name = codes(labels)
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(class_signal)))
    one = (class_name[:, None] - 0.5) * class_signal + (batch[:, None] - 1.0) * batch_shift
    return labels, one + noise


def means_of(features, *groups):
    return np.array([features[own].mean(axis=0) for own in groups])


def test_leace_leaves_no_covariance_and_nothing_for_a_linear_classifier():
    concept = one_hot(LABELS["batch"])
    erased = fit_leace(SHIFTED, concept)(SHIFTED).astype(float)
    centred = concept - concept.mean(axis=0)
    assert np.abs(SHIFTED.T @ centred / len(centred)).max() > 0.05
    assert np.abs(erased.T @ centred / len(centred)).max() < 1e-6
    model = LogisticRegression(C=1e4, max_iter=2000).fit(erased, LABELS["batch"])
    probabilities = model.predict_proba(erased)
    np.testing.assert_allclose(probabilities, probabilities[:1].repeat(len(erased), 0), atol=1e-3)
    before = LogisticRegression(max_iter=2000).fit(SHIFTED, LABELS["batch"])
    assert before.score(SHIFTED, LABELS["batch"]) > 0.9


def test_leace_is_a_projection_of_as_few_directions_as_needed():
    erase = fit_leace(SHIFTED, one_hot(LABELS["batch"]))
    once = erase(SHIFTED)
    np.testing.assert_allclose(erase(once), once, atol=1e-5)
    changes = np.linalg.svd(SHIFTED - once, compute_uv=False)
    assert (changes > 1e-4 * changes[0]).sum() == 6  # seven batches differ in six directions
    np.testing.assert_allclose(once.mean(axis=0), SHIFTED.mean(axis=0), atol=1e-5)


def test_leace_changes_less_than_subtracting_batch_means_affinely_could():
    # Two columns carry the same shift; one of them is noisy. The orthogonal projection along the
    # shift is another affine map that erases the batch, so LEACE must not change more than it.
    labels = crossed_labels(200)
    shift = labels["batch"].cat.codes.to_numpy()[:, None] == 0
    noise = np.random.default_rng(0).normal(size=(len(labels), 2)) * (0.2, 3)
    features = noise + shift * np.ones(2)
    means = features[shift[:, 0]].mean(axis=0) - features[~shift[:, 0]].mean(axis=0)
    unit = means / np.linalg.norm(means)
    plain = np.outer((features - features.mean(axis=0)) @ unit, unit)
    change = features - fit_leace(features, shift.astype(float))(features)
    assert np.mean(change**2) < 0.5 * np.mean(plain**2)


def test_leace_does_not_depend_on_units():
    units = np.logspace(-3, 3, COLUMNS)
    concept = one_hot(LABELS["batch"])
    plain = fit_leace(SHIFTED, concept)(SHIFTED)
    scaled = fit_leace(SHIFTED * units, concept)(SHIFTED * units)
    np.testing.assert_allclose(scaled / units, plain, atol=1e-4)


def test_the_concept_is_the_batch_less_what_the_class_says_of_it():
    batch, class_name = codes(LABELS)
    concept = within_class_concept(batch, class_name)
    assert concept.shape == (len(LABELS), 7)
    for code in range(class_name.max() + 1):
        np.testing.assert_allclose(concept[class_name == code].mean(axis=0), 0, atol=1e-12)
    # A class in three batches, equally many cells each: 1 - 1/3 for the own one, -1/3 for others.
    assert set(np.round(np.unique(concept), 6)) == {-0.333333, 0, 0.666667}


def test_within_class_erasure_leaves_no_covariance_with_the_batch_inside_the_classes():
    concept = within_class_concept(*codes(LABELS))
    erased = fit_leace(SHIFTED, concept)(SHIFTED).astype(float)
    assert np.abs(SHIFTED.T @ concept / len(concept)).max() > 0.05
    assert np.abs(erased.T @ concept / len(concept)).max() < 1e-6


def test_batches_that_shift_all_classes_alike_coincide_and_classes_stay():
    # The batch lives in the second half of the columns, the classes in the first.
    signal = np.repeat([3.0, 0.0], 4)
    labels, features = planted(signal, batch_shift=2.0 - signal / 1.5)
    batch, class_name = codes(labels)
    erased = fit_leace(features, within_class_concept(batch, class_name))(features)
    gaps = np.ptp(means_of(features, *(batch == b for b in range(3))), axis=0)
    assert gaps.max() > 3
    left = np.ptp(means_of(erased, *(batch == b for b in range(3))), axis=0)
    assert left.max() < 1e-5
    classes = [class_name == c for c in range(2)]
    before, after = means_of(features, *classes), means_of(erased, *classes)
    np.testing.assert_allclose(after, before, atol=0.2)  # of a difference of 3
    np.testing.assert_allclose(erased.mean(axis=0), features.mean(axis=0), atol=1e-5)


def test_a_shift_of_each_class_its_own_way_is_left():
    # What a batch does to all classes together is erased. Here it does the opposite to each.
    labels, features = planted(np.zeros(4), np.zeros(4))
    batch, class_name = codes(labels)
    features += ((batch == 0) * (2.0 * class_name - 1.0))[:, None]
    erased = fit_leace(features, within_class_concept(batch, class_name))(features)
    own = class_name == 1
    gap = np.diff(means_of(erased, own & (batch == 0), own & (batch == 1)), axis=0)
    assert np.abs(gap).mean() > 0.5  # 1 before


def test_features_that_never_vary_stay_and_nothing_is_nan():
    features = SHIFTED.copy()
    features[:, 3] = 0.1  # whose mean over the cells is not 0.1 to the last digit
    assert spread_of(features)[3] == 0
    erased = fit_leace(features, one_hot(LABELS["batch"]))(features)
    assert np.isfinite(erased).all()
    assert erased[:, 3] == pytest.approx(0.1)
