"""The loss of structure, against images whose structure is known."""

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter

from cytomad_lib.conditional.losses import blur, lost_structure


def textured_cells(n=3, size=32):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    dome = np.sqrt(np.clip(1 - (x**2 + y**2) / 11**2, 0, None)) * 2
    grain = np.random.default_rng(0).normal(0, 0.1, (n, size, size)) * (dome > 0)
    return (dome + grain)[..., None].astype("float32"), dome[None, ..., None].astype("float32")


def test_a_batch_that_scales_shifts_and_tilts_loses_no_structure():
    cells, _ = textured_cells()
    slope = np.linspace(-0.1, 0.1, 32, dtype="float32")[None, :, None, None]
    assert float(lost_structure(cells, cells, 3.0)) == pytest.approx(0, abs=1e-3)
    assert float(lost_structure(cells, 1.2 * cells + 0.3 + slope, 3.0)) < 0.01


def test_other_structure_and_no_structure_are_lost_structure():
    cells, dome = textured_cells()
    others = cells[::-1][[1, 0, 2]]  # each with the grain of another cell
    assert float(lost_structure(cells, others, 3.0)) > 0.5
    assert float(lost_structure(cells, np.repeat(dome, 3, axis=0), 3.0)) > 0.3


def test_a_featureless_dome_keeps_nothing_of_an_eccentric_nucleus():
    y, x = np.mgrid[:64, :64] - 31.5
    dome = 2 * np.sqrt(np.clip(1 - (x**2 / 18**2 + y**2 / 14**2), 0, None))
    nucleus = 0.4 * np.exp(-((x - 5) ** 2 + y**2) / 20) * (dome > 0)
    truth, dome = (image[None, ..., None].astype("float32") for image in (dome + nucleus, dome))
    assert float(lost_structure(truth, dome, 3.0)) > 0.75
    assert float(lost_structure(truth, 0.2 * truth + 0.8 * dome, 3.0)) < 0.1


@pytest.mark.parametrize("sigma", [0.7, 2.0, 9.6])
def test_blurring_is_that_of_scipy(sigma):
    images = np.random.default_rng(0).normal(size=(3, 32, 32)).astype("float32")
    found = ops.convert_to_numpy(blur(images, sigma))
    for image, blurred in zip(images, found, strict=True):
        wanted = gaussian_filter(image, sigma, mode="constant", truncate=2.0)
        np.testing.assert_allclose(blurred, wanted, atol=1e-5)
