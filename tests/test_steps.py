"""A gradient step moves what it is told to move, and nothing else."""

import gc
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

from cytomad_lib.training import steps


def sgd(variables, rate=0.1):
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(variables)
    return optimizer


def test_one_step_of_a_parabola():
    w = keras.Variable(3.0)
    losses = steps.minimise(lambda: {"loss": w * w, "other": w + 1}, [w], sgd([w]))
    assert float(losses["loss"]) == pytest.approx(9)  # from before the step
    assert float(losses["other"]) == pytest.approx(4)
    assert float(w.value) == pytest.approx(3 - 0.1 * 6)


def test_only_the_given_variables_move():
    w, frozen = keras.Variable(1.0), keras.Variable(2.0)
    steps.minimise(lambda: {"loss": w * frozen}, [w], sgd([w]))
    assert float(w.value) == pytest.approx(1 - 0.1 * 2)
    assert float(frozen.value) == 2


def test_a_step_inside_a_step_keeps_both_gradients():
    w, v = keras.Variable(3.0), keras.Variable(1.0)
    inner, outer = sgd([v]), sgd([w])

    def losses():
        product = w * w
        steps.minimise(lambda: {"loss": v * v}, [v], inner)
        return {"loss": product}

    steps.minimise(losses, [w], outer)
    assert float(v.value) == pytest.approx(0.8)
    assert float(w.value) == pytest.approx(2.4)


def test_two_steps_from_one_computation_use_the_weights_before_both():
    w, v = keras.Variable(3.0), keras.Variable(2.0)
    calls = []

    def losses():
        calls.append(1)
        return {"of_w": w * v, "of_v": v * v + w}

    seen = steps.minimise_together(
        losses, [steps.Step("of_w", [w], sgd([w])), steps.Step("of_v", [v], sgd([v]))]
    )
    assert len(calls) == 1
    assert float(seen["of_w"]) == pytest.approx(6) and float(seen["of_v"]) == pytest.approx(7)
    assert float(w.value) == pytest.approx(3 - 0.1 * 2)
    assert float(v.value) == pytest.approx(2 - 0.1 * 2 * 2)


def test_adam_in_one_pass_is_adam():
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 4)).astype("float32")
    ends = []
    for make in (steps.adam, lambda rate, beta: keras.optimizers.Adam(rate, beta_1=beta)):
        w, optimizer = keras.Variable(start), make(0.01, 0.5)
        optimizer.build([w])
        for size in (1.0, 30.0, 1e-4, 2.0):  # steps of very different gradients
            steps.minimise(
                lambda w=w, size=size: {"loss": size * keras.ops.sum(w**3)}, [w], optimizer
            )
        ends.append([keras.ops.convert_to_numpy(part) for part in (w, *optimizer.variables)])
    assert np.abs(ends[0][0] - start).max() > 0.01
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_long_gradients_are_shortened_all_weights_together():
    v, w = keras.Variable(np.ones(1)), keras.Variable(np.ones(2))
    optimizer = steps.adam(0.01, 0.5, longest=1.0)
    optimizer.build([v, w])
    for times in (10.0, 0.01):  # gradients of 10 x (3, 4, 0) and 0.01 x (3, 4, 0)
        steps.minimise(
            lambda times=times: {"loss": times * (3 * v.value[0] + 4 * w.value[0])},
            [v, w],
            optimizer,
        )
    # The first counts as (3, 4, 0) / 5, the second as it is; Adam's first moment halves the older.
    found = [float(keras.ops.sum(moment)) for moment in optimizer._momentums]
    np.testing.assert_allclose(found, [0.6 / 4 + 0.03 / 2, 0.8 / 4 + 0.04 / 2], rtol=1e-5)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    w = keras.Variable(np.float32(1))
    with pytest.raises(RuntimeError, match="'jax'.*KERAS_BACKEND"):
        steps.minimise(lambda: {"loss": w}, [w], None)


def test_a_compiled_network_follows_its_weights_and_takes_any_number_of_cells():
    random = np.random.default_rng(0)
    network = keras.Sequential(
        [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )
    network.build((None, 3))
    infer = steps.compiled(network)
    for cells in (5, 2, 7):
        x = random.normal(size=(cells, 3)).astype("float32")
        for weight in network.weights:  # also variances: positive
            weight.assign(random.uniform(0.5, 2, weight.shape))
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(infer(x)),
            keras.ops.convert_to_numpy(network(x, training=False)),
            rtol=1e-5,
        )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow only")
def test_many_compiled_networks_bring_no_remarks_about_tracing():
    program = """
import keras, numpy as np
from cytomad_lib.training.steps import compiled
for _ in range(8):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for cells in (5, 5, 2):
        compiled(network)(np.ones((cells, 3), "float32"))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "retracing" not in done.stderr


def test_a_compiled_network_is_not_kept_in_memory():
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    assert steps.compiled(network)(np.ones((2, 3), "float32")).shape == (2, 4)
    known = weakref.ref(network)
    del network
    gc.collect()
    assert known() is None
