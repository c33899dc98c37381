"""A gradient step moves what it is told to move, and nothing else."""

import keras
import numpy as np
import pytest

from cytomad_lib.models import autodiff


def sgd(variables, rate=0.1):
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(variables)
    return optimizer


def test_one_step_of_a_parabola():
    w = keras.Variable(3.0)
    losses = autodiff.minimise(lambda: {"loss": w * w, "other": w + 1}, [w], sgd([w]))
    assert float(losses["loss"]) == pytest.approx(9)  # from before the step
    assert float(losses["other"]) == pytest.approx(4)
    assert float(w.value) == pytest.approx(3 - 0.1 * 6)


def test_only_the_given_variables_move():
    w, frozen = keras.Variable(1.0), keras.Variable(2.0)
    autodiff.minimise(lambda: {"loss": w * frozen}, [w], sgd([w]))
    assert float(w.value) == pytest.approx(1 - 0.1 * 2)
    assert float(frozen.value) == 2


def test_a_step_inside_a_step_keeps_both_gradients():
    w, v = keras.Variable(3.0), keras.Variable(1.0)
    inner, outer = sgd([v]), sgd([w])

    def losses():
        product = w * w
        autodiff.minimise(lambda: {"loss": v * v}, [v], inner)
        return {"loss": product}

    autodiff.minimise(losses, [w], outer)
    assert float(v.value) == pytest.approx(0.8)
    assert float(w.value) == pytest.approx(2.4)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    w = keras.Variable(np.float32(1))
    with pytest.raises(RuntimeError, match="'jax'.*KERAS_BACKEND"):
        autodiff.minimise(lambda: {"loss": w}, [w], None)
