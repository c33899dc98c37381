"""Loss terms, against values worked out by hand."""

import numpy as np
import pytest

from cytomad_lib.training import losses


def test_unsure_discriminator_costs_ln2_either_way():
    patches = np.full((2, 4, 4, 1), 0.5, "float32")
    for real in (True, False):
        assert float(losses.real_or_fake(patches, real)) == pytest.approx(np.log(2), rel=1e-5)


def test_discriminator_loss_knows_which_answer_was_right():
    patches = np.full((1, 2, 2, 1), 0.9, "float32")
    assert float(losses.real_or_fake(patches, True)) == pytest.approx(-np.log(0.9), rel=1e-5)
    assert float(losses.real_or_fake(patches, False)) == pytest.approx(-np.log(0.1), rel=1e-5)


def test_mean_absolute_error_is_in_the_images_unit():
    measured = np.zeros((2, 4, 4, 1), "float32")
    generated = measured.copy()
    generated[0] += 0.5
    assert float(losses.mean_absolute_error(measured, generated)) == pytest.approx(0.25)


def test_cross_entropies():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], "float32")
    true = float(losses.cross_entropy(np.array([0, 1]), probabilities))
    assert true == pytest.approx(-(np.log(0.7) + np.log(0.8)) / 2, rel=1e-5)
    first = float(losses.fooled(probabilities))
    assert first == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2, rel=1e-5)
    third = float(losses.fooled(probabilities, fake_code=2))
    assert third == pytest.approx(-np.log(0.1), rel=1e-5)
