"""The last step of the conditional recipe: batches alike in what is kept, classes still apart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from keras import ops
from sklearn.linear_model import LinearRegression

from cytomad_lib.conditional import mmd_alignment
from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.losses import squared_correlations
from cytomad_lib.conditional.networks import build_feature_head
from cytomad_lib.config import CELLS_PER_CLASS, Conditional
from cytomad_lib.evaluation import probes
from cytomad_lib.evaluation.erasure import fit_leace, within_class_concept

RECIPE = Conditional(alignment_steps=200, n_features=2, aligned_mmd=15.0, aligned_correlation=0.1)
N_FEATURES = 32
# By class and batch, the correlation of two numbers whose mean and spread are the same everywhere.
CORRELATION = np.array([[0.95, -0.95, 0.0], [0.0, 0.95, -0.95], [-0.95, 0.0, 0.95]])


def make_features(per_group=150, seed=0):
    """Features of three classes on three days; the day turns the cloud of each class its own way.

    Nothing linear tells the days of a class apart. Of 32 features, made of two numbers with the
    class in the first and little in the second, and of noise. The measure is the first number.
    """
    random = np.random.default_rng(seed)
    class_name = np.repeat(np.arange(3), 3 * per_group)
    batch = np.tile(np.repeat(np.arange(3), per_group), 3)
    r = CORRELATION[class_name, batch]
    one, two = random.normal(size=(2, len(r)))
    two = r * one + np.sqrt(1 - r**2) * two
    place = np.stack([one + 4.0 * class_name, two], axis=1)
    mixing = np.linalg.qr(np.random.default_rng(7).normal(size=(N_FEATURES, N_FEATURES)))[0]
    features = place @ mixing[:2] + 0.01 * random.normal(size=(len(r), N_FEATURES))
    labels = pd.DataFrame(
        {"batch": pd.Categorical(batch), "class_name": pd.Categorical(class_name)}
    )
    return features.astype("float32"), one[:, None].astype("float32"), labels


class EncodedCells:
    """Cells of which only features are known, for `align_features`."""

    def __init__(self, features, labels):
        self.features, self.labels = features, labels
        self.batch_codes = labels["batch"].cat.codes.to_numpy()
        self.class_codes = labels["class_name"].cat.codes.to_numpy()
        self.classes = labels["class_name"].cat.categories


class HeadAlone:
    """A generator of which there is only the head."""

    def __init__(self, n_features=2):
        self.head = build_feature_head(N_FEATURES, n_features, seed=0)

    def get_layer(self, name):
        assert name == "feature_head"
        return self.head


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch):
    monkeypatch.setattr(mmd_alignment, "encode_cells", lambda generator, cells: cells.features)


def aligned(recipe, features, measures, labels, seed=0):
    """Return a function of features: the head, aligned on these cells."""
    generator = HeadAlone(recipe.n_features)
    mmd_alignment.align_features(
        generator, EncodedCells(features, labels), measures, recipe, seed=seed
    )
    return lambda new: ops.convert_to_numpy(generator.head(new))


def accuracies(features, labels):
    found = probes.score_results(features, labels, seed=0, n_permutations=0)
    return {result.measure: result.accuracy for result in found}


@pytest.fixture(scope="module")
def matched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmd_alignment, "encode_cells", lambda generator, cells: cells.features)
        return aligned(RECIPE, *make_features())


def test_batches_that_differ_in_shape_alone_are_the_same_for_new_cells_afterwards(matched):
    features, _, labels = make_features(per_group=80, seed=1)
    codes = (labels[name].cat.codes.to_numpy() for name in ("batch", "class_name"))
    linear = fit_leace(features, within_class_concept(*codes))
    before, after = (accuracies(f(features), labels) for f in (linear, matched))
    assert before["batch within class"] > 0.5  # a linear map cannot do it
    assert after["batch within class"] < 0.42  # chance is 0.333
    assert after["class"] > 0.9


def test_delivered_features_are_standardised_and_differ(matched):
    features = matched(make_features(seed=2)[0])
    assert features.shape[1] == RECIPE.n_features
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=0.15)
    assert abs(np.corrcoef(features.T)[0, 1]) < 0.9


def test_the_same_seed_gives_the_same_head(matched):
    features, *targets = make_features()
    again = aligned(RECIPE, features, *targets)
    np.testing.assert_allclose(again(features), matched(features), atol=2e-3)


def test_without_weight_on_the_mmd_the_batch_stays():
    features, measures, labels = make_features(per_group=80, seed=1)
    recipe = replace(RECIPE, aligned_mmd=0.0, alignment_steps=50)
    found = accuracies(aligned(recipe, features, measures, labels)(features), labels)
    assert found["class"] > 0.9
    assert found["batch within class"] > 0.5  # below 0.42 with it, see above


def test_what_is_kept_within_a_class_depends_on_the_weight_of_the_measures():
    features, measures, labels = make_features()
    new, wanted, new_labels = make_features(per_group=80, seed=1)

    def kept(weight):
        recipe = replace(RECIPE, aligned_measures=weight, aligned_mmd=0.0, alignment_steps=100)
        delivered = aligned(recipe, features, measures, labels)(new)
        rows = (new_labels["class_name"] == 0).to_numpy()
        return (
            LinearRegression()
            .fit(delivered[rows], wanted[rows])
            .score(delivered[rows], wanted[rows])
        )

    assert kept(30.0) > 0.9
    assert kept(30.0) > kept(0.0) + 0.02  # 0.04 to more than 0.05, depending on the processor


def test_a_class_of_one_batch_and_few_cells_are_no_obstacle():
    features, measures, labels = make_features(per_group=9)
    rows = ((labels["class_name"] != 2) | (labels["batch"] == 0)).to_numpy()
    recipe = replace(RECIPE, alignment_steps=5)
    delivered = aligned(recipe, features[rows], measures[rows], labels[rows])
    assert np.isfinite(delivered(features)).all()


def test_copies_of_a_feature_are_correlated_and_independent_features_are_not():
    random = np.random.default_rng(0)
    features = random.normal(size=(4000, 3)).astype("float32")
    copies = np.repeat(features[:, :1], 3, axis=1)
    for values, expected in ((features, 0.0), (copies, 2.0), (-copies, 2.0)):
        values = (values - values.mean(axis=0)) / values.std(axis=0)
        found = float(squared_correlations(ops.convert_to_tensor(values)))
        assert found == pytest.approx(expected, abs=0.01)


# --- the mmd ---------------------------------------------------------------------------


def mmd(cells, batch):
    one_hot = np.eye(batch.max() + 1, dtype="float32")[batch]
    return float(mmd_alignment.mmd(ops.convert_to_tensor(cells, "float32"), one_hot))


def two_batches(change, n=300, seed=0):
    """Cells (1, 2 n, 2) of one class, those of the second batch changed."""
    cells = np.random.default_rng(seed).normal(size=(2 * n, 2)) / 2
    cells[n:] = change(cells[n:])
    return cells[None], np.repeat([0, 1], n)[None]


def test_mmd_of_batches_far_apart_is_one():
    # Own batch: kernel 1, other batch: 0. Twice 1 less the mean of both.
    cells = np.zeros((1, 6, 2))
    cells[0, 3:] = 100.0
    assert mmd(cells, np.array([[0, 0, 0, 1, 1, 1]])) == pytest.approx(1.0)
    assert mmd(np.zeros((1, 6, 2)), np.array([[0, 0, 0, 1, 1, 1]])) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells + 0.5,
        lambda cells: 2 * cells,
        lambda cells: cells @ np.array([[1.0, 0.9], [0.0, 0.44]]),
    ],
    ids=["place", "width", "correlation"],
)
def test_mmd_sees_place_width_and_shape(change):
    same = mmd(*two_batches(lambda cells: cells))
    assert 0 < same < 0.01  # what two samples of one cloud differ by
    assert mmd(*two_batches(change)) > 3 * same


def test_mmd_compares_within_classes_only():
    cells, batch = two_batches(lambda cells: cells)
    apart = np.concatenate([cells, cells + 50.0])
    both = mmd(apart, np.concatenate([batch, batch]))
    assert both == pytest.approx(mmd(cells, batch), abs=1e-6)


def test_steps_draw_as_many_cells_of_each_class_in_the_shares_of_its_batches():
    features, measures, labels = make_features()
    rows = ((labels["batch"] != 1) | (np.arange(len(labels)) % 3 == 0)).to_numpy()
    cells = EncodedCells(features[rows], labels[rows])
    codes = cells.batch_codes, cells.class_codes
    draws = mmd_alignment._Draws(cells.features[:, :1], measures[rows], *codes, steps=3, seed=0)
    drawn, targets = draws[1]
    assert drawn.shape == targets["measures"].shape == (3, CELLS_PER_CLASS, 1)
    found = targets["batch"].mean(axis=1)
    np.testing.assert_allclose(found, batch_shares(labels[rows]), atol=0.08)
    np.testing.assert_array_equal(draws[1][0], drawn)
    assert (draws[2][0] != drawn).any()
    draws.on_epoch_end()
    assert (draws[1][0] != drawn).any()


def test_a_stray_group_is_not_drawn():
    batch, class_name = np.array([(0, 0)] * 50 + [(1, 0)] * 50 + [(0, 1)] * 5 + [(1, 1)] * 50).T
    encoded = batch[:, None].astype("float32")
    draws = mmd_alignment._Draws(encoded, encoded, batch, class_name, steps=1, seed=0)
    drawn, _ = draws[0]
    assert set(drawn[0].ravel()) == {0, 1} and set(drawn[1].ravel()) == {1}
