"""Shapes and phases whose measures are known by hand."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import ellipe

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation import biophysics
from cytomad_lib.evaluation.image_quality import ImageShapeError, foreground_mask
from cytomad_lib.simulation.optics import DRY_MASS_ALPHA, WAVELENGTH_UM

FIELD = 40.0  # micrometres
PIXELS = (45 / 128, 45 / 64)
FINE, COARSE = PIXELS
RADIUS = 7.0
CONTRAST = 0.03
PHASE_PER_UM = 2 * np.pi / WAVELENGTH_UM * CONTRAST


def grid(pixel):
    n = round(FIELD / pixel)
    centres = (np.arange(n) - (n - 1) / 2) * pixel
    return np.meshgrid(centres, centres, indexing="ij")


def ellipse(major, minor, pixel, angle=0.0):
    """Return the mask of an ellipse of these semi-axes in micrometres, (1, height, width)."""
    y, x = grid(pixel)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return ((along / major) ** 2 + (across / minor) ** 2 < 1)[None]


def sphere(pixel):
    y, x = grid(pixel)
    return PHASE_PER_UM * 2 * np.sqrt(np.clip(RADIUS**2 - x**2 - y**2, 0, None))[None]


def measured(phase, pixel, mask=None):
    return biophysics.measure_cells(phase, pixel, mask, WAVELENGTH_UM).iloc[0]


@pytest.mark.parametrize("pixel", PIXELS)
def test_disc(pixel):
    mask = ellipse(RADIUS, RADIUS, pixel)
    row = measured(2.0 * mask, pixel, mask)
    assert row["area_um2"] == pytest.approx(np.pi * RADIUS**2, rel=0.025)
    assert row["perimeter_um"] == pytest.approx(2 * np.pi * RADIUS, rel=0.015)
    assert row["circularity"] == pytest.approx(1, abs=0.03)
    assert row["equivalent_diameter_um"] == pytest.approx(2 * RADIUS, rel=0.015)
    assert row["eccentricity"] == pytest.approx(0, abs=1e-6)
    assert row["aspect_ratio"] == pytest.approx(1)
    assert row["volume_um3"] == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03)


@pytest.mark.parametrize("pixel", PIXELS)
@pytest.mark.parametrize("angle", (0.0, 0.5))
def test_ellipse(pixel, angle):
    mask = ellipse(9, 6, pixel, angle)
    row = measured(2.0 * mask, pixel, mask)
    perimeter = 4 * 9 * ellipe(1 - (6 / 9) ** 2)
    assert row["area_um2"] == pytest.approx(np.pi * 9 * 6, rel=0.015)
    assert row["perimeter_um"] == pytest.approx(perimeter, rel=0.025)
    assert row["circularity"] == pytest.approx(4 * np.pi**2 * 9 * 6 / perimeter**2, rel=0.035)
    assert row["eccentricity"] == pytest.approx(np.sqrt(1 - (6 / 9) ** 2), abs=0.015)
    assert row["aspect_ratio"] == pytest.approx(9 / 6, rel=0.025)
    assert row["volume_um3"] == pytest.approx(4 / 3 * np.pi * 9 * 6 * 6, rel=0.025)


@pytest.mark.parametrize("pixel", PIXELS)
def test_phase_of_a_sphere(pixel):
    phase = sphere(pixel)
    row = measured(phase, pixel, phase > 0)
    peak = PHASE_PER_UM * 2 * RADIUS
    # With u = (r / R)^2 even over the disc, phase / peak = sqrt(1 - u): moments n are 2 / (n + 2).
    mean, variance = 2 / 3, 1 / 2 - (2 / 3) ** 2
    skewness = (2 / 5 - 3 * mean / 2 + 2 * mean**3) / variance**1.5
    assert row["peak_phase_rad"] == pytest.approx(peak, rel=0.005)
    assert row["mean_phase_rad"] == pytest.approx(mean * peak, rel=0.03)
    assert row["std_phase_rad"] == pytest.approx(np.sqrt(variance) * peak, rel=0.05)
    assert row["phase_skewness"] == pytest.approx(skewness, abs=0.05)
    assert row["phase_kurtosis"] == pytest.approx(-0.6, abs=0.1)


@pytest.mark.parametrize("pixel", PIXELS)
def test_mass_and_concentration_of_a_sphere(pixel):
    phase = sphere(pixel)
    row = measured(phase, pixel, phase > 0)
    mass = CONTRAST * 4 / 3 * np.pi * RADIUS**3 / DRY_MASS_ALPHA
    assert row["dry_mass_pg"] == pytest.approx(mass, rel=0.01)
    assert row["dry_mass_density_pg_per_um2"] == pytest.approx(mass / (np.pi * 49), rel=0.03)
    assert row["dry_mass_concentration_pg_per_um3"] == pytest.approx(
        CONTRAST / DRY_MASS_ALPHA, rel=0.03
    )


def test_dry_mass_is_in_proportion_to_wavelength_and_increment_or_left_out():
    phase = sphere(FINE)
    red = biophysics.measure_cells(phase, FINE, wavelength_um=0.633).iloc[0]
    assert red["dry_mass_pg"] == pytest.approx(0.633 / 1.06 * measured(phase, FINE)["dry_mass_pg"])
    low = biophysics.measure_cells(phase, FINE, None, 0.633, 0.18).iloc[0]
    names = [name for name in biophysics.MEASURES if name.startswith("dry_mass")]
    np.testing.assert_allclose(low[names] / red[names], 0.19 / 0.18)
    without = biophysics.measure_cells(phase, FINE)
    assert list(without) == [name for name in biophysics.MEASURES if name not in names]
    for length in (0, -1, np.nan, "0.633"):
        with pytest.raises(biophysics.MeasurementError, match="wavelength is"):
            biophysics.measure_cells(phase, FINE, wavelength_um=length)


@pytest.mark.parametrize("pixel", PIXELS)
def test_gradient_of_a_sphere_without_its_rim(pixel):
    phase = sphere(pixel)
    # The mean of 2 k r / sqrt(R^2 - r^2) over a disc of radius a.
    a = RADIUS - biophysics.RIM_UM
    area = RADIUS**2 / 2 * np.arcsin(a / RADIUS) - a / 2 * np.sqrt(RADIUS**2 - a**2)
    expected = 4 * PHASE_PER_UM / a**2 * area
    row = measured(phase, pixel, phase > 0)
    assert row["phase_gradient_rad_per_um"] == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("pixel", PIXELS)
def test_ramp_has_its_slope_and_a_local_spread_to_match(pixel):
    y, x = grid(pixel)
    slope = np.hypot(0.2, 0.1)
    row = measured((3 + 0.2 * x + 0.1 * y)[None], pixel, ellipse(18, 18, pixel))
    assert row["phase_gradient_rad_per_um"] == pytest.approx(slope)
    assert row["local_std_rad"] == pytest.approx(slope * biophysics.TEXTURE_SIGMA_UM, rel=0.02)


@pytest.mark.parametrize("pixel", (FINE, 4.0))  # the second is coarser than the rim
def test_flat_cell_has_no_texture_however_high_its_edge(pixel):
    mask = ellipse(RADIUS, RADIUS, pixel)
    row = measured(3.0 * mask, pixel, mask)
    for name in ("local_std_rad", "phase_gradient_rad_per_um", "phase_entropy_bits"):
        assert row[name] == pytest.approx(0, abs=1e-9)
    assert row["std_phase_rad"] == 0
    assert row[["phase_skewness", "phase_kurtosis"]].isna().all()


def test_texture_rises_with_granules():
    noise = np.random.default_rng(0).normal(size=sphere(FINE).shape)
    smooth, grainy = (
        measured(sphere(FINE) + level * noise, FINE, sphere(FINE) > 0) for level in (0, 0.3)
    )
    assert grainy["local_std_rad"] > smooth["local_std_rad"] + 0.08
    assert grainy["phase_gradient_rad_per_um"] > 2 * smooth["phase_gradient_rad_per_um"]
    assert grainy["phase_entropy_bits"] > smooth["phase_entropy_bits"]


def test_entropy_counts_levels_in_bits():
    levels = np.array([1.05, 1.15, 2.05, 2.15])  # four bins
    phase = np.tile(levels, (1, 20, 5))
    mask = np.ones_like(phase, dtype=bool)
    assert measured(phase, 0.5, mask)["phase_entropy_bits"] == pytest.approx(2)
    # Less than a bin apart is the same level.
    assert measured(phase + 0.02 * (phase > 2), 0.5, mask)["phase_entropy_bits"] == pytest.approx(2)
    assert measured(np.round(phase) + 0.05, 0.5, mask)["phase_entropy_bits"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("power", "names"),
    [
        (1, ["perimeter_um", "equivalent_diameter_um"]),
        (2, ["area_um2", "dry_mass_pg"]),
        (3, ["volume_um3"]),
        (0, ["circularity", "eccentricity", "aspect_ratio", "mean_phase_rad", "std_phase_rad"]),
        (0, ["peak_phase_rad", "phase_skewness", "phase_entropy_bits"]),
        (0, ["dry_mass_density_pg_per_um2"]),
        (-1, ["dry_mass_concentration_pg_per_um3"]),
    ],
)
def test_units_scale_with_the_pixel(power, names):
    phase = sphere(FINE) * ellipse(7, 5, FINE, 0.3)
    small = measured(phase, FINE, phase > 0)
    large = measured(phase, 2 * FINE, phase > 0)
    np.testing.assert_allclose(
        large[names].to_numpy(float), 2.0**power * small[names].to_numpy(float)
    )


def test_pixel_size_does_not_matter():
    fine, coarse = (measured(sphere(p), p, sphere(p) > 0) for p in PIXELS)
    sizes = [name for name in biophysics.MEASURES if name != "eccentricity"]  # 0 for a sphere
    ratio = (coarse / fine)[sizes].drop(["phase_skewness", "phase_kurtosis"])
    assert ratio.between(0.91, 1.09).all(), ratio


def test_turning_the_image_changes_nothing():
    y, x = grid(COARSE)
    phase = (sphere(COARSE) + 0.3 * np.sin(x) * np.cos(2 * y)) * ellipse(7, 5, COARSE, 0.3)
    mask = phase > 0.3
    turned = np.rot90(phase, axes=(1, 2)), np.rot90(mask, axes=(1, 2))
    pd.testing.assert_series_equal(
        measured(phase, COARSE, mask), measured(turned[0], COARSE, turned[1])
    )


def test_place_in_the_image_changes_nothing():
    phase = sphere(COARSE)[:, 18:-18, 18:-18]  # it touches all four borders
    assert np.count_nonzero(phase) == np.count_nonzero(sphere(COARSE))
    moved = np.pad(phase, ((0, 0), (0, 25), (13, 0)))
    pd.testing.assert_series_equal(
        measured(phase, COARSE, phase > 0), measured(moved, COARSE, moved > 0)
    )


def test_nothing_outside_the_mask_counts():
    phase = sphere(FINE)
    mask = phase > 0.3
    dirty = np.where(mask, phase, 50.0)
    pd.testing.assert_series_equal(measured(phase, FINE, mask), measured(dirty, FINE, mask))


def test_mask_is_found_when_none_is_given():
    phase = sphere(FINE)[..., None]
    assert phase.ndim == 4
    pd.testing.assert_series_equal(
        measured(phase, FINE), measured(phase, FINE, foreground_mask(phase)[..., None])
    )


def test_cell_without_mask_is_a_row_of_nan():
    phase = np.concatenate([sphere(COARSE), 0 * sphere(COARSE), sphere(COARSE)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = biophysics.measure_cells(phase, COARSE, wavelength_um=WAVELENGTH_UM)
    assert list(table.columns) == list(biophysics.MEASURES)
    assert table.isna().all(axis=1).tolist() == [False, True, False]
    pd.testing.assert_series_equal(table.loc[0], table.loc[2], check_names=False)
    alone = biophysics.measure_cells(phase[1:2], COARSE, wavelength_um=WAVELENGTH_UM)
    assert alone.shape == (1, len(biophysics.MEASURES))


@pytest.mark.parametrize("size", ((1, 1), (1, 9), (2, 2)))
def test_specks_and_lines_are_measured_without_warnings(size):
    mask = np.zeros((1, 12, 12), dtype=bool)
    mask[0, : size[0], : size[1]] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = measured(2.0 * mask, 1.0, mask)
    assert row["area_um2"] == np.prod(size)
    assert row["aspect_ratio"] == pytest.approx(size[1] / size[0])
    assert np.isnan(row["phase_gradient_rad_per_um"])


def test_input_errors():
    phase = sphere(COARSE)
    with pytest.raises(ImageShapeError, match=r"image\[None\]"):
        biophysics.measure_cells(phase[0], COARSE)
    for size in (0, -1, np.nan, None, "0.7", [0.7, 0.7]):
        with pytest.raises(biophysics.MeasurementError, match="micrometres"):
            biophysics.measure_cells(phase, size)
    with pytest.raises(ImageShapeError, match="mask is"):
        biophysics.measure_cells(phase, COARSE, np.ones((1, 9, 9), dtype=bool))
    with pytest.raises(biophysics.MeasurementError, match="True and False"):
        biophysics.measure_cells(phase, COARSE, phase)
    both = np.concatenate([phase, np.where(phase > 1, np.nan, phase)])
    with pytest.raises(biophysics.MeasurementError, match="1 of 2 images.*cell 1"):
        biophysics.measure_cells(both, COARSE)
    assert issubclass(biophysics.MeasurementError, CytomadError)


def measures(n=50):
    area = np.random.default_rng(0).permutation(np.linspace(60, 300, n))
    mass = np.random.default_rng(1).permutation(np.linspace(50, 500, n))
    return pd.DataFrame({"area_um2": area, "dry_mass_pg": mass})


def test_monotone_features_have_a_rank_correlation_of_one():
    cells = measures()
    features = np.column_stack([np.exp(cells["area_um2"] / 50), -(cells["dry_mass_pg"] ** 3)])
    table = biophysics.correlate_features(features, cells)
    assert table.loc["feature 0", "area_um2"] == pytest.approx(1)
    assert table.loc["feature 1", "dry_mass_pg"] == pytest.approx(-1)
    assert abs(table.loc["feature 0", "dry_mass_pg"]) < 0.4
    linear = np.corrcoef(features[:, 0], cells["area_um2"])[0, 1]
    assert 0.5 < linear < 0.95  # a rank correlation is needed to find it


def test_correlations_equal_those_of_scipy_with_missing_values():
    rng = np.random.default_rng(2)
    cells = measures()
    cells["tied"] = np.floor(cells["area_um2"] / 40)
    cells.iloc[:9, 0] = np.nan
    cells.iloc[20:23] = np.nan
    features = pd.DataFrame(rng.normal(size=(50, 4)), columns=list("abcd"))
    table = biophysics.correlate_features(features, cells)
    for feature, measure in itertools.product("abcd", cells.columns):
        known = cells[measure].notna()
        expected = stats.spearmanr(features[feature][known], cells[measure][known]).statistic
        assert table.loc[feature, measure] == pytest.approx(expected)
    assert list(table) == list(cells) and list(table.index) == list("abcd")


def test_constant_columns_are_nan_without_warnings():
    cells = measures().assign(flat=0.1, empty=np.nan)
    features = np.column_stack([cells["area_um2"], np.full(50, 0.3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = biophysics.correlate_features(features, cells)
    assert table.loc["feature 1"].isna().all()
    assert table[["flat", "empty"]].isna().all(axis=None)
    assert table.loc["feature 0", "area_um2"] == pytest.approx(1)


def test_strongest_counts_either_sign():
    cells = measures().assign(flat=1.0)
    rng = np.random.default_rng(3)
    features = pd.DataFrame(
        {
            "noise": rng.normal(size=50),
            "against mass": -cells["dry_mass_pg"],
            "about mass": cells["dry_mass_pg"] + rng.normal(0, 40, 50),
            "area": cells["area_um2"],
        }
    )
    best = biophysics.strongest(biophysics.correlate_features(features, cells))
    assert best.loc["dry_mass_pg", "feature"] == "against mass"
    assert best.loc["dry_mass_pg", "correlation"] == pytest.approx(-1)
    assert best.loc["area_um2", "feature"] == "area"
    assert best.loc["flat"].isna().all()


def test_correlation_errors():
    cells = measures()
    with pytest.raises(biophysics.MeasurementError, match="49 cells and measures of 50"):
        biophysics.correlate_features(np.zeros((49, 2)), cells)
    with pytest.raises(biophysics.MeasurementError, match=r"\(50, 8, 8, 1\)"):
        biophysics.correlate_features(np.zeros((50, 8, 8, 1)), cells)
    with pytest.raises(biophysics.MeasurementError, match="class_name"):
        biophysics.correlate_features(np.zeros((50, 2)), cells.assign(class_name="H69"))
    with pytest.raises(biophysics.MeasurementError, match="not finite"):
        biophysics.correlate_features(np.full((50, 2), np.nan), cells)
