"""The last step of the conditional recipe: batches alike in what is kept, classes still apart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from keras import ops

from cytomad_lib.conditional import mmd_alignment
from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.erasure import fit_leace, within_class_concept
from cytomad_lib.conditional.networks import build_conditional_generator
from cytomad_lib.config import ALIGNED_DIRECTIONS, CELLS_PER_CLASS, Conditional
from cytomad_lib.evaluation import probes

RECIPE = Conditional(alignment_steps=200, directions=2)
N_FEATURES = 32
# By class and batch, the correlation of two numbers whose mean and spread are the same everywhere.
CORRELATION = np.array([[0.95, -0.95, 0.0], [0.0, 0.95, -0.95], [-0.95, 0.0, 0.95]])


def make_features(per_group=150, seed=0):
    """Features of three classes on three days; the day turns the cloud of each class its own way.

    Nothing linear tells the days of a class apart. Of 32 features, made of two numbers with the
    class in the first and little in the second, and of noise.
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
    made = {"features": features.astype("float32"), "batch_codes": batch, "class_codes": class_name}
    labels = pd.DataFrame(
        {"batch": pd.Categorical(batch), "class_name": pd.Categorical(class_name)}
    )
    return made, labels


def new_generator():
    return build_conditional_generator(16, 4, seed=0)


def through_head(generator, features):
    return ops.convert_to_numpy(generator.get_layer("feature_head")(features))


def accuracies(features, labels):
    found = probes.score_results(features, labels, seed=0, n_permutations=0)
    return {result.measure: result.accuracy for result in found}


@pytest.fixture(scope="module")
def matched():
    generator = new_generator()
    mmd_alignment.align_features(generator, make_features()[0], RECIPE, n_classes=3, seed=0)
    return generator


def test_batches_that_differ_in_shape_alone_are_the_same_for_new_cells_afterwards(matched):
    made, labels = make_features(per_group=80, seed=1)
    linear = fit_leace(
        made["features"], within_class_concept(made["batch_codes"], made["class_codes"])
    )
    before = accuracies(linear(made["features"]), labels)
    after = accuracies(through_head(matched, made["features"]), labels)
    assert before["batch within class"] > 0.5  # a linear map cannot do it
    assert after["batch within class"] < 0.42  # chance is 0.333
    assert after["class"] > 0.9


def test_only_the_directions_asked_for_are_left(matched):
    features = through_head(matched, make_features(seed=2)[0]["features"])
    assert features.shape[1] == N_FEATURES
    spread = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    assert spread[1] > 0.1 * spread[0]
    assert spread[1] > 1e4 * spread[2]


def test_the_head_is_what_was_trained(matched):
    made = make_features()[0]
    generator = new_generator()
    model = mmd_alignment.align_features(generator, made, RECIPE, n_classes=3, seed=0)
    features = made["features"].astype(float)
    centred = features - features.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:ALIGNED_DIRECTIONS]
    seen = centred @ axes.T
    trained = ops.convert_to_numpy(model((seen / seen.std(axis=0)).astype("float32")))
    delivered = through_head(generator, made["features"])
    along = delivered @ axes[:2].T
    np.testing.assert_allclose(along, trained / trained.std(axis=0), atol=2e-3)
    # The same seed gives the same head.
    np.testing.assert_allclose(delivered, through_head(matched, made["features"]), atol=2e-3)


def test_without_weight_on_the_mmd_the_batch_stays():
    made, labels = make_features(per_group=80, seed=1)
    generator = new_generator()
    recipe = replace(RECIPE, weight_mmd=0.0, alignment_steps=50)
    mmd_alignment.align_features(generator, made, recipe, n_classes=3)
    found = accuracies(through_head(generator, made["features"]), labels)
    assert found["class"] > 0.9
    assert found["batch within class"] > 0.5  # below 0.42 with it, see above


def test_a_class_of_one_batch_and_few_cells_are_no_obstacle():
    made = make_features(per_group=9)[0]
    rows = (made["class_codes"] != 2) | (made["batch_codes"] == 0)
    made = {name: values[rows] for name, values in made.items()}
    generator = new_generator()
    model = mmd_alignment.align_features(
        generator, made, replace(RECIPE, alignment_steps=5), n_classes=4
    )
    assert model.optimizer.iterations == 5
    assert np.isfinite(through_head(generator, made["features"])).all()


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
    made, labels = make_features()
    rows = (made["batch_codes"] != 1) | (np.arange(len(labels)) % 3 == 0)
    seen = made["features"][rows, :1]
    codes = made["batch_codes"][rows], made["class_codes"][rows]
    draws = mmd_alignment._Draws(seen, *codes, steps=3, seed=0)
    cells, targets = draws[1]
    assert cells.shape == (3, CELLS_PER_CLASS, 1)
    found = targets["batch"].mean(axis=1)
    np.testing.assert_allclose(found, batch_shares(labels[rows]), atol=0.08)
    np.testing.assert_array_equal(draws[1][0], cells)
    assert (draws[2][0] != cells).any()
    draws.on_epoch_end()
    assert (draws[1][0] != cells).any()
