"""Loss terms, against values worked out by hand."""

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter

from cytomad_lib.models import losses


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


def textured_cells(n=3, size=32):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    dome = np.sqrt(np.clip(1 - (x**2 + y**2) / 11**2, 0, None)) * 2
    grain = np.random.default_rng(0).normal(0, 0.1, (n, size, size)) * (dome > 0)
    return (dome + grain)[..., None].astype("float32"), dome[None, ..., None].astype("float32")


def test_a_batch_that_scales_shifts_and_tilts_loses_no_structure():
    cells, _ = textured_cells()
    slope = np.linspace(-0.1, 0.1, 32, dtype="float32")[None, :, None, None]
    assert float(losses.lost_structure(cells, cells, 3.0)) == pytest.approx(0, abs=1e-3)
    assert float(losses.lost_structure(cells, 1.2 * cells + 0.3 + slope, 3.0)) < 0.01


def test_other_structure_and_no_structure_are_lost_structure():
    cells, dome = textured_cells()
    others = cells[::-1][[1, 0, 2]]  # each with the grain of another cell
    assert float(losses.lost_structure(cells, others, 3.0)) > 0.5
    assert float(losses.lost_structure(cells, np.repeat(dome, 3, axis=0), 3.0)) > 0.3


def test_a_featureless_dome_keeps_nothing_of_an_eccentric_nucleus():
    y, x = np.mgrid[:64, :64] - 31.5
    dome = 2 * np.sqrt(np.clip(1 - (x**2 / 18**2 + y**2 / 14**2), 0, None))
    nucleus = 0.4 * np.exp(-((x - 5) ** 2 + y**2) / 20) * (dome > 0)
    truth, dome = (image[None, ..., None].astype("float32") for image in (dome + nucleus, dome))
    assert float(losses.lost_structure(truth, dome, 3.0)) > 0.75
    assert float(losses.lost_structure(truth, 0.2 * truth + 0.8 * dome, 3.0)) < 0.1


@pytest.mark.parametrize("sigma", [0.7, 2.0, 9.6])
def test_blurring_is_that_of_scipy(sigma):
    images = np.random.default_rng(0).normal(size=(3, 32, 32)).astype("float32")
    found = ops.convert_to_numpy(losses.blur(images, sigma))
    for image, blurred in zip(images, found, strict=True):
        wanted = gaussian_filter(image, sigma, mode="constant", truncate=2.0)
        np.testing.assert_allclose(blurred, wanted, atol=1e-5)
