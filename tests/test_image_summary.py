"""Each mark that a batch can leave in an image shows in its own part of the summary."""

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter

from cytomad_lib.conditional.image_summary import ImageSummary
from cytomad_lib.conditional.losses import blur
from cytomad_lib.config import AREA_LEVELS, BANDS, DETAIL_SIGMA

SIZE = 64


def textured_cell(size=SIZE, seed=0):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.clip(size / 4 - np.hypot(x, y), 0, 4) / 2
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 0.7)
    return disc + 0.1 * texture


def parts_of(image):
    """Return the parts of one image's summary by name; not yet standardised by any cells."""
    summary = ImageSummary(image.shape[0])
    numbers = summary(image[None, ..., None].astype("float32"), training=False)
    numbers = ops.convert_to_numpy(numbers)[0]
    ends = np.cumsum([summary.coarse_side**2, summary.places_side**2, BANDS])
    ends = [*ends, ends[-1] + 2]
    names = ("coarse", "detail", "bands", "slopes", "areas")
    parts = dict(zip(names, np.split(numbers, ends), strict=True))
    assert len(parts["areas"]) == len(AREA_LEVELS)
    return parts


def changes(before, after):
    return {name: after[name] - before[name] for name in before}


CELL = textured_cell()
PARTS = parts_of(CELL)
INSIDE = np.zeros((8, 8), bool)
INSIDE[1:-1, 1:-1] = True
INSIDE = INSIDE.ravel()


@pytest.mark.parametrize("size", [16, 64])
def test_every_number_is_standardised_over_the_cells(size):
    images = np.stack([textured_cell(size, seed) for seed in range(30)])[..., None]
    summary = ImageSummary(size)
    numbers = ops.convert_to_numpy(summary(images.astype("float32"), training=True))
    assert numbers.shape == (30, summary.length)
    np.testing.assert_allclose(numbers.mean(axis=0), 0, atol=1e-3)
    spread = numbers.std(axis=0)
    assert spread.max() < 1.01
    # At 16 pixels some rings hold no frequency; at 64 every number varies.
    assert (spread > 0.5).mean() > (0.85 if size == 16 else 0.95)


def test_running_statistics_make_a_cell_independent_of_the_others():
    images = np.stack([textured_cell(16, seed) for seed in range(6)])[..., None].astype("float32")
    summary = ImageSummary(16)
    for _ in range(3):
        summary(images, training=True)
    together = ops.convert_to_numpy(summary(images))
    alone = ops.convert_to_numpy(summary(images[2:3]))
    np.testing.assert_allclose(alone[0], together[2], atol=1e-3)


def test_a_larger_scale_raises_everything_alike():
    change = changes(PARTS, parts_of(1.2 * CELL))
    np.testing.assert_allclose(change["coarse"], 0.2 * PARTS["coarse"], atol=1e-3)
    # Powers go with the square; the floor of the logarithm holds the weakest back a little.
    np.testing.assert_allclose(change["bands"], 2 * np.log(1.2), atol=0.05)
    np.testing.assert_allclose(change["slopes"], 2 * np.log(1.2), atol=0.01)
    assert np.median(change["detail"]) == pytest.approx(2 * np.log(1.2), abs=0.02)


def disc(radius, rim):
    """Return a flat disc of 2 rad whose rim falls over so many pixels."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return 2 * np.clip((radius - np.hypot(x, y)) / rim + 0.5, 0, 1)


def test_areas_are_those_above_the_levels_of_the_peak():
    areas = np.exp(parts_of(disc(16, 1))["areas"])
    # Softly counted, the background adds a little to the lowest; to the highest, the inside lacks.
    np.testing.assert_allclose(areas[2:7], np.pi * 16**2 / SIZE**2, rtol=0.1)
    scaled = np.exp(parts_of(1.5 * disc(16, 1))["areas"])
    np.testing.assert_allclose(scaled, areas, rtol=0.03)
    larger = np.exp(parts_of(disc(20, 1))["areas"])
    np.testing.assert_allclose(larger / areas, (20 / 16) ** 2, rtol=0.05)


def test_a_softer_rim_widens_the_areas_above_low_levels_and_narrows_those_above_high_ones():
    change = changes(parts_of(disc(16, 1)), parts_of(disc(16, 8)))["areas"]
    assert (np.diff(change) < 0.03).all()
    assert change[0] > 0.15 and change[-1] < -0.15 and abs(change[AREA_LEVELS.index(0.5)]) < 0.1


def test_blur_takes_fine_detail_and_high_bands_and_leaves_the_coarse_copy():
    change = changes(PARTS, parts_of(gaussian_filter(CELL, 1.0)))
    assert np.abs(change["coarse"]).max() < 0.1  # of 2 rad
    assert change["detail"][INSIDE].max() < 0.1
    assert change["detail"][INSIDE].mean() < -0.5
    assert np.abs(change["bands"][:3]).max() < 0.2
    assert change["bands"][12:].max() < -1.5
    assert (change["slopes"] < -0.3).all()


def test_fringes_show_in_the_band_of_their_frequency_and_across_their_direction():
    x = np.arange(SIZE)
    fringes = 0.2 * np.sin(2 * np.pi * 20 * x / SIZE)[None]  # along the width
    change = changes(PARTS, parts_of(CELL + fringes))
    own = int(20 / SIZE / 0.5 * BANDS)
    assert np.argmax(change["bands"]) == own
    assert change["bands"][own] > 1
    assert np.abs(np.delete(change["bands"], own)).max() < 0.1
    along_height, along_width = change["slopes"]
    assert along_width > 0.5 and abs(along_height) < 0.02


def test_a_tilt_shows_in_the_coarse_copy_and_not_in_the_detail():
    tilt = np.linspace(-0.2, 0.2, SIZE)[:, None] * np.ones(SIZE)
    change = changes(PARTS, parts_of(CELL + tilt))
    coarse = change["coarse"].reshape(16, 16)
    pooled = tilt.reshape(16, 4, SIZE).mean(axis=1)[:, :1]
    np.testing.assert_allclose(coarse, np.repeat(pooled, 16, axis=1), atol=1e-3)
    assert np.abs(change["detail"][INSIDE]).max() < 0.05
    assert np.abs(change["slopes"]).max() < 0.02


@pytest.mark.parametrize("cycles", [3, 9, 16, 30])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_pure_sinusoid_peaks_in_its_band(cycles, axis):
    wave = np.sin(2 * np.pi * cycles * np.arange(SIZE) / SIZE)
    image = np.broadcast_to(wave[:, None] if axis == 0 else wave, (SIZE, SIZE))
    parts = parts_of(image)
    assert np.argmax(parts["bands"]) == int(cycles / SIZE / 0.5 * BANDS)
    assert np.argmax(parts["slopes"]) == axis


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_images_of_one_value_give_numbers(size, value):
    images = np.full((4, size, size, 1), value, "float32")
    for training in (True, False):
        numbers = ImageSummary(size)(images, training=training)
        assert np.isfinite(ops.convert_to_numpy(numbers)).all()


def test_detail_is_what_blurring_takes_away():
    smooth = gaussian_filter(np.random.default_rng(0).normal(size=(SIZE, SIZE)), 8)
    checks = np.indices((SIZE, SIZE)).sum(axis=0) % 2 - 0.5
    image = (smooth / smooth.std() + checks)[None].astype("float32")
    blurred = blur(image, DETAIL_SIGMA)
    detail = (image - ops.convert_to_numpy(blurred))[0, 10:-10, 10:-10]
    np.testing.assert_allclose(detail, checks[10:-10, 10:-10], atol=0.2)
