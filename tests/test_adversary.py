"""Adversaries read the batch inside the class, wherever it hides, and nothing else."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops
from training_cells import TINY, make_cells

from cytomad_lib.conditional.adversary import ConditionalAdversary, batch_shares
from cytomad_lib.training.steps import minimise

N_FEATURES = 6
# The first class is in batches 0 and 1, the second in batches 1 and 2.
SHARES = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], "float32")
PER_GROUP = 60


def design(per_group=(PER_GROUP,) * 4):
    """Return batch and class of cells of the four groups."""
    class_name = np.repeat([0, 0, 1, 1], per_group).astype("int32")
    return np.repeat([0, 1, 1, 2], per_group).astype("int32"), class_name


BATCH, CLASS = design()


def features_of(batch=BATCH, class_name=CLASS, shift=0.0, spread=1.0, seed=0):
    """Return features with a class signal; batch 1 shifted along the first, or wider than others.

    Within its group every feature has the standard deviation 1, but for `spread`.
    """
    noise = np.random.default_rng(seed).normal(size=(len(batch), N_FEATURES))
    noise *= np.where(batch == 1, spread, 1.0)[:, None]
    noise[:, 1] += 3 * class_name
    noise[:, 0] += shift * (batch == 1)
    return noise.astype("float32")


def new_adversary(kept=4 * PER_GROUP, floor=1e-4, rate=3e-3, shares=SHARES, steps=1):
    recipe = replace(
        TINY.conditional,
        replay_buffer=kept,
        replay_sample=4 * kept,
        adversary_rate=rate,
        adversary_steps=steps,
        whitening_floor=floor,
    )
    adversary = ConditionalAdversary(N_FEATURES, shares, recipe, seed=0)
    adversary.compile()
    return adversary


def as_tensors(*arrays):
    return [ops.convert_to_tensor(array) for array in arrays]


def losses_of(adversary, features, batch=BATCH, class_name=CLASS):
    terms = adversary.losses_of(*as_tensors(features, batch, class_name))
    return {name: float(value) for name, value in terms.items()}


def guesses_of(adversary, features, class_name=CLASS):
    logits = adversary._logits(*as_tensors(features, class_name))
    return ops.convert_to_numpy(ops.argmax(logits, axis=-1))


class Loop(keras.Model):
    """Have Keras compile a step and repeat it: much faster than to call it many times."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.built = True
        self.compile()

    def train_step(self, data):
        return self.step(*data[0])

    def history(self, times, *arrays):
        """Repeat the step on the same cells; return the values of all times."""
        cells = len(arrays[0])
        return self.fit(arrays, np.zeros(cells), cells, times, verbose=0, shuffle=False).history


def teach(adversary, features, times=40):
    return Loop(adversary.update).history(times, features, BATCH, CLASS)


def whitened(adversary, features):
    return ops.convert_to_numpy(adversary._whiten(ops.convert_to_tensor(features)))


# --- p(batch | class) --------------------------------------------------------------------------


def test_shares_are_those_of_each_class():
    labels = pd.DataFrame(
        {
            "batch": pd.Categorical(["a", "a", "a", "b", "b"], categories=["a", "b", "c"]),
            "class_name": pd.Categorical(["X", "X", "Y", "X", "X"], categories=["X", "Y", "Z"]),
        }
    )
    shares = batch_shares(labels)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]])
    shares = batch_shares(make_cells().labels)
    assert shares.shape == (7, 7)
    assert sorted(shares.sum(axis=1)) == [0, 0, 0, 0, 0, 1, 1]


# --- the guessing network ----------------------------------------------------------------------


def test_it_learns_the_batch_inside_the_class_and_says_so():
    adversary = new_adversary()
    fresh = features_of(shift=3.0, seed=1)
    learned = teach(adversary, features_of(shift=3.0))
    assert learned["accuracy"][-1] > 0.85
    assert np.mean(guesses_of(adversary, fresh) == BATCH) > 0.85  # chance is 0.5
    assert losses_of(adversary, fresh)["adversary"] > 0.5


def test_it_sees_what_the_batch_does_to_each_class():
    # Batch 1 moves the first class up and the second down: no one direction tells it apart.
    def moved(seed):
        features = features_of(seed=seed)
        features[:, 0] += 3.0 * (BATCH == 1) * np.where(CLASS == 0, 1, -1)
        return features

    adversary = new_adversary()
    assert teach(adversary, moved(0))["accuracy"][-1] > 0.85
    assert np.mean(guesses_of(adversary, moved(1)) == BATCH) > 0.85


def test_from_the_class_alone_it_can_only_guess():
    adversary = new_adversary()
    teach(adversary, features_of(), times=15)
    fresh = features_of(seed=1)
    # 240 cells: three standard errors of a coin are 0.1.
    assert np.mean(guesses_of(adversary, fresh) == BATCH) == pytest.approx(0.5, abs=0.1)
    assert losses_of(adversary, fresh)["adversary"] < 0.1


def test_a_guess_of_the_shares_costs_nothing():
    # With no weights at all, the network says "equally likely" of the batches of the class.
    adversary = new_adversary()
    for weight in adversary.mlp.weights:
        weight.assign(ops.zeros_like(weight))
    assert losses_of(adversary, features_of())["adversary"] == pytest.approx(0, abs=1e-5)
    uneven = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]], "float32")
    adversary = new_adversary(shares=uneven)
    for weight in adversary.mlp.weights:
        weight.assign(ops.zeros_like(weight))
    # Half of the cells are of the first class: relative entropy of its shares from 1/2 each.
    expected = 0.5 * (0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))
    found = losses_of(adversary, features_of())["adversary"]
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_batch_that_the_class_was_never_seen_in_is_never_guessed():
    adversary = new_adversary()
    wild = (100 * np.random.default_rng(0).normal(size=(len(BATCH), N_FEATURES))).astype("float32")
    guesses = guesses_of(adversary, wild)
    assert (SHARES[CLASS, guesses] > 0).all()
    assert len(set(guesses)) == 3  # all others are
    assert np.isfinite(losses_of(adversary, wild)["adversary"])


# --- distances without learning ----------------------------------------------------------------


def remembering(features, **options):
    """Return an adversary that has seen the features of all cells, and hardly learned."""
    adversary = new_adversary(**options)
    adversary.update(*as_tensors(features, BATCH, CLASS))
    return adversary


def test_the_linear_distance_is_that_of_the_batches_means():
    adversary = remembering(features_of(shift=3.0))
    found = losses_of(adversary, features_of(shift=3.0, seed=1))["linear_mmd"]
    # Of two cells of a class half are of two batches, and those are 3 standard deviations apart.
    assert found == pytest.approx(3.0**2 / 2, rel=0.3)
    adversary = remembering(features_of())
    assert losses_of(adversary, features_of(seed=1))["linear_mmd"] == pytest.approx(0, abs=0.2)


def test_before_the_first_cells_there_is_no_distance():
    terms = losses_of(new_adversary(), features_of(shift=3.0))
    assert terms["linear_mmd"] == 0


def test_classes_that_lie_far_apart_are_no_difference_of_batches():
    # Batch 0 has only cells of the first class, batch 2 only of the second.
    far = features_of() + 20 * CLASS[:, None].astype("float32")
    fresh = features_of(seed=1) + 20 * CLASS[:, None].astype("float32")
    found = losses_of(remembering(far), fresh)
    assert abs(found["linear_mmd"]) < 0.5


def test_whitening_gives_every_direction_inside_the_groups_the_same_spread():
    random = np.random.default_rng(4)
    mixing = random.normal(size=(N_FEATURES, N_FEATURES))
    features = (features_of(shift=5.0) @ mixing).astype("float32")
    found = whitened(remembering(features, floor=1e-6), features)
    groups = BATCH * 2 + CLASS
    own = [found[groups == group] for group in np.unique(groups)]
    inside = np.concatenate([group - group.mean(axis=0) for group in own])
    covariance = inside.T @ inside / len(inside)
    np.testing.assert_allclose(covariance, np.eye(N_FEATURES), atol=0.02)


def test_a_silent_feature_is_not_blown_up():
    features = features_of()
    features[:, 3] = 0.2
    found = whitened(remembering(features, floor=0.01), features)
    assert np.isfinite(found).all()
    assert np.abs(found[:, 3].std()) < 0.01


def test_a_batch_in_a_direction_of_tiny_spread_is_found_by_whitening():
    tiny = np.array([0.03, 1, 1, 1, 1, 1], "float32")  # batch 1 is shifted along the first
    hidden, fresh = features_of(shift=3.0) * tiny, features_of(shift=3.0, seed=1) * tiny
    assert losses_of(remembering(hidden), fresh)["linear_mmd"] > 3
    # With a floor far above its variance the direction counts as silent.
    assert losses_of(remembering(hidden, floor=10.0), fresh)["linear_mmd"] < 0.1


def test_the_memory_keeps_the_last_cells():
    adversary = new_adversary(kept=10)
    features = np.arange(12 * N_FEATURES, dtype="float32").reshape(12, N_FEATURES) / 100
    batch, class_name = np.resize([0, 1], 12).astype("int32"), np.zeros(12, "int32")
    for start in range(0, 12, 4):
        own = slice(start, start + 4)
        adversary.update(*as_tensors(features[own], batch[own], class_name[own]))
        filled = ops.convert_to_numpy(adversary.buffer_filled)
        assert filled.sum() == min(start + 4, 10)
    np.testing.assert_allclose(ops.convert_to_numpy(adversary.buffer), features[2:])
    np.testing.assert_array_equal(ops.convert_to_numpy(adversary.buffer_batch), batch[2:])
    np.testing.assert_array_equal(ops.convert_to_numpy(adversary.buffer_class), class_name[2:])


def test_descent_on_the_linear_distance_moves_the_batches_together():
    start = features_of(shift=3.0)
    free = keras.Variable(start)
    adversary = new_adversary()
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([free])

    def step(batch, class_name):
        def distance():
            return {"loss": adversary.losses_of(free.value, batch, class_name)["linear_mmd"]}

        terms = minimise(distance, [free], optimizer)
        adversary.update(ops.stop_gradient(free.value), batch, class_name)
        return terms

    Loop(step).history(40, BATCH, CLASS)
    end = ops.convert_to_numpy(free)

    def gap(features, class_name, first, second):
        means = [
            features[(CLASS == class_name) & (BATCH == b)].mean(axis=0) for b in (first, second)
        ]
        return np.linalg.norm(means[1] - means[0])

    for own in ((0, 0, 1), (1, 1, 2)):
        assert gap(start, *own) > 2.5
        assert gap(end, *own) < 0.6
    # The classes lie 3 apart along the second feature, and shall.
    assert end[CLASS == 1, 1].mean() - end[CLASS == 0, 1].mean() > 2.5
