"""Scores with known answers."""

import numpy as np
import pytest
from scipy import ndimage

from cytomad_lib.evaluation import image_quality as quality
from cytomad_lib.simulation.optics import DRY_MASS_ALPHA, WAVELENGTH_UM

PIXEL = 0.25
Y, X = np.mgrid[-40:40, -40:40] * PIXEL + PIXEL / 2
RADIUS2 = X**2 + Y**2


def sphere(radius_um=7.0, contrast=0.03):
    thickness = 2 * np.sqrt(np.clip(radius_um**2 - RADIUS2, 0, None))
    return 2 * np.pi / WAVELENGTH_UM * contrast * thickness


def texture(seed, amplitude=0.3):
    spots = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=X.shape), 2)
    return amplitude * spots / spots.std() * (RADIUS2 < 6.5**2)


def test_equal_images_are_perfect():
    image = (sphere() + texture(0))[None]
    row = quality.image_scores(image, image).iloc[0]
    assert row["mae_rad"] == 0
    assert row["psnr_db"] == np.inf
    assert row["ssim"] == pytest.approx(1)
    assert row["pearson_r"] == pytest.approx(1)


def test_offset_is_the_mae_and_gives_the_psnr_by_hand():
    image = sphere()[None, :, :, None]
    row = quality.image_scores(image - 0.2, image, data_range=2.0).iloc[0]
    assert row["mae_rad"] == pytest.approx(0.2)
    assert row["psnr_db"] == pytest.approx(20)  # 20 log10(2 / 0.2)
    assert row["pearson_r"] == pytest.approx(1)


def test_data_range_is_one_number_for_the_set():
    thin, thick = sphere(contrast=0.01), sphere(contrast=0.03)
    both = np.stack([thin, thick])
    scores = quality.image_scores(both + 0.1, both)
    assert scores["psnr_db"][0] == pytest.approx(scores["psnr_db"][1])
    assert quality.phase_range(both) == pytest.approx(thick.max(), rel=0.02)


def test_constant_image_has_no_correlation():
    image = sphere()[None]
    assert np.isnan(quality.image_scores(np.zeros_like(image), image)["pearson_r"][0])


def test_mask_of_a_disc_has_its_area():
    disc = np.where(RADIUS2 < 6**2, 2.0, 0.0)[None]
    area = quality.foreground_mask(disc).sum() * PIXEL**2
    assert area == pytest.approx(np.pi * 6**2, rel=0.03)


def test_mask_keeps_the_largest_region_without_holes():
    image = np.where(RADIUS2 < 6**2, 2.0, 0.0)
    image[RADIUS2 < 1.5**2] = 0
    image[:8, :8] = 2
    mask = quality.foreground_mask(image[None])[0]
    assert mask[40, 40]
    assert not mask[:8, :8].any()
    assert not quality.foreground_mask(np.zeros((1, 20, 20))).any()


def test_mask_follows_a_scaled_phase():
    areas = quality.foreground_mask(np.stack([sphere(), 0.85 * sphere(), 1.15 * sphere()]))
    areas = areas.sum(axis=(1, 2))
    assert np.ptp(areas) / areas[0] < 0.02


def test_dry_mass_of_a_sphere_is_contrast_times_volume():
    expected = 0.03 * 4 / 3 * np.pi * 7**3 / DRY_MASS_ALPHA
    phase = sphere()[None]
    found = quality.dry_mass_pg(phase, phase > 0, PIXEL, WAVELENGTH_UM)[0]
    assert found == pytest.approx(expected, rel=0.01)


def test_invented_texture_fools_r_but_not_structure_r():
    truth = np.stack([sphere() + texture(seed) for seed in range(6)])
    invented = np.stack([sphere() + texture(99)] * 6)  # the same texture in every cell
    faithful = ndimage.gaussian_filter(truth, (0, 1, 1))
    assert quality.image_scores(invented, truth)["pearson_r"].min() > 0.9
    assert np.abs(quality.structure_r(invented, truth, pixel_size_um=PIXEL).mean()) < 0.3
    assert quality.structure_r(faithful, truth, pixel_size_um=PIXEL).min() > 0.8


def test_a_featureless_dome_over_the_right_outline_has_no_structure():
    outline = np.hypot(X / 8, Y / 5.5)  # um; not round, as few cells are
    dome = 2 * np.sqrt(np.clip(1 - outline**2, 0, None))
    nucleus = 0.4 * np.exp(-((X - 2.5) ** 2 + Y**2) / 4) * (dome > 0)
    truth = (dome + nucleus)[None]
    assert quality.image_scores(dome[None], truth)["pearson_r"][0] > 0.95
    assert abs(quality.structure_r(dome[None], truth, pixel_size_um=PIXEL)[0]) < 0.25
    with_it = (0.9 * dome + 0.5 * nucleus)[None]
    assert quality.structure_r(with_it, truth, pixel_size_um=PIXEL)[0] > 0.9


def test_structure_r_ignores_smooth_changes_and_scale():
    truth = (sphere() + texture(0))[None]
    tilted = 0.8 * truth + 0.02 * X + 0.3
    assert quality.structure_r(tilted, truth, pixel_size_um=PIXEL)[0] > 0.97


def test_structure_r_without_a_cell_is_nan():
    nothing = np.zeros((1, 30, 30))
    assert np.isnan(quality.structure_r(nothing, nothing, pixel_size_um=PIXEL)[0])


def test_errors_give_both_shapes():
    with pytest.raises(quality.ImageShapeError, match=r"\(2, 9, 9\).*\(3, 9, 9\)"):
        quality.image_scores(np.zeros((2, 9, 9)), np.zeros((3, 9, 9)))
    with pytest.raises(quality.ImageShapeError, match=r"image\[None\]"):
        quality.foreground_mask(np.zeros((9, 9)))
    with pytest.raises(ValueError, match="positive"):
        quality.image_scores(np.zeros((1, 9, 9)), np.zeros((1, 9, 9)))
