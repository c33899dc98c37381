"""Biophysical measures of the cell in a phase image, and the features that follow them.

- `measure_cells`: size, shape, phase, dry mass and texture of each cell, in physical units;
  `measure_images` takes the optics from `CellImages`.
- `correlate_features`: how closely each feature follows each measure.
- `strongest`: the feature that encodes each measure best.

Two cautions. A measured image carries its batch effect: if the phase of one day is scaled, so is
the dry mass of that day, and a feature that encodes the batch alone correlates with it. Measure the
batch-free truth if it is known, or correlate inside one batch. And cells of several classes differ
in many measures at once: correlate inside one class to find what is encoded beyond the class.

Example
-------
>>> import numpy as np
>>> y, x = np.mgrid[-32:32, -32:32] * 0.35                     # micrometres
>>> phase = np.sqrt(np.clip(8**2 - x**2 - y**2, 0, None))[None] / 4
>>> cells = measure_cells(phase, pixel_size_um=0.35, mask=phase > 0, wavelength_um=1.06)
>>> cells[["area_um2", "volume_um3", "dry_mass_pg"]].round(-1).to_numpy().tolist()
[[200.0, 2160.0, 240.0]]
"""

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.measure import regionprops

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import REFRACTION_INCREMENT
from cytomad_lib.evaluation.image_quality import (
    ImageShapeError,
    as_stack,
    dry_mass_pg,
    foreground_mask,
)

TEXTURE_SIGMA_UM = 1.0  # the window of the local standard deviation; granules are about this big
RIM_UM = 1.0  # left out of texture and gradient, where the steep outline would dominate
ENTROPY_BIN_RAD = 0.1  # fixed, so that entropies of different cells and images can be compared

# The measures, in the order of a table, as figures name them.
MEASURE_LABELS = {
    "area_um2": "area (µm²)",
    "perimeter_um": "perimeter (µm)",
    "circularity": "circularity",
    "eccentricity": "eccentricity",
    "aspect_ratio": "aspect ratio",
    "equivalent_diameter_um": "equivalent diameter (µm)",
    "volume_um3": "volume (µm³)",
    "mean_phase_rad": "mean phase (rad)",
    "peak_phase_rad": "peak phase (rad)",
    "std_phase_rad": "standard deviation of the phase (rad)",
    "phase_skewness": "skewness of the phase",
    "phase_kurtosis": "kurtosis of the phase",
    "dry_mass_pg": "dry mass (pg)",
    "dry_mass_density_pg_per_um2": "dry mass per area (pg/µm²)",
    "dry_mass_concentration_pg_per_um3": "dry mass per volume (pg/µm³)",
    "local_std_rad": "texture: local standard deviation (rad)",
    "phase_entropy_bits": "texture: entropy of the phase (bits)",
    "phase_gradient_rad_per_um": "mean phase gradient (rad/µm)",
}
MEASURES = tuple(MEASURE_LABELS)


class MeasurementError(CytomadError):
    """Cells, features or measures that cannot be used; the message says why and what to do."""


def measure_cells(
    phase, pixel_size_um, mask=None, wavelength_um=None, refraction_increment=REFRACTION_INCREMENT
):
    """Measure the biophysics of each cell.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Radians, about zero outside the cell.
    pixel_size_um : float
        Micrometres per pixel.
    mask : bool array, (cells, height, width[, 1]), optional
        Pixels of the cell; all pixels in the mask of an image count as one cell. By default
        `foreground_mask(phase)`.
    wavelength_um, refraction_increment : float, optional
        See `image_quality.dry_mass_pg`. Without a wavelength, the three measures of dry mass are
        left out.

    Returns
    -------
    pandas.DataFrame
        One row per cell, the columns of `MEASURES`; NaN where the mask is empty. Of a cell that
        reaches the border of the image, the visible part is measured.

        `area_um2`, `perimeter_um`
            The perimeter by the Cauchy-Crofton formula in four directions.
        `circularity`
            4 pi area / perimeter^2: 1 for a disc (on pixels, a few percent more or less).
        `eccentricity`, `aspect_ratio` (major by minor)
            Of the ellipse with the same second moments.
        `equivalent_diameter_um`
            Of the disc of the same area.
        `volume_um3`
            pi/6 * major * minor^2: the prolate ellipsoid whose outline that ellipse is, as thick
            as it is narrow. It depends on the outline only; a flattened cell is overestimated.
        `mean_phase_rad`, `peak_phase_rad` (the highest pixel), `std_phase_rad`
            Of the pixels inside the mask.
        `phase_skewness`, `phase_kurtosis`
            Kurtosis in excess of a Gaussian (0). NaN if the phase is constant.
        `dry_mass_pg`
            See `image_quality.dry_mass_pg`.
        `dry_mass_density_pg_per_um2`, `dry_mass_concentration_pg_per_um3`
            Dry mass by area and by `volume_um3`. 1 pg/um3 is 1 g/ml. The density is proportional
            to `mean_phase_rad`, so their correlations are equal.
        `local_std_rad`
            Texture: the standard deviation around each pixel, in a Gaussian window of standard
            deviation `TEXTURE_SIGMA_UM` inside the mask, averaged. A plain slope counts too: the
            slope times `TEXTURE_SIGMA_UM`.
        `phase_entropy_bits`
            Texture: Shannon entropy of the phase histogram, in bins of `ENTROPY_BIN_RAD`.
            A coarse image fills fewer bins: compare images of one pixel size.
        `phase_gradient_rad_per_um`
            Mean magnitude of the gradient, by central differences. Pixel noise raises it.

        Texture and gradient (not the entropy) are averaged without a rim of `RIM_UM`. They are NaN
        if no pixel remains.

    Raises
    ------
    ImageShapeError
        If the images are not a stack, or the mask has another shape.
    MeasurementError
        If the pixel size or the wavelength is not positive, a pixel is not finite, or the mask is
        not one of True and False.

    Source
    ------
    Dry mass: R. Barer, Nature 169, 366 (1952). Perimeter: Legland, Kieu and Devaux, Image Analysis
    & Stereology 26, 83 (2007).
    """
    phase, pixel_size_um, mask = _checked_cells(phase, pixel_size_um, mask)
    if wavelength_um is not None:
        wavelength_um = _checked_length(wavelength_um, "wavelength", "`cells.wavelength_um`")
    rows = [
        _one_cell(image, inside, pixel_size_um) if inside.any() else {}
        for image, inside in zip(phase, mask, strict=True)
    ]
    table = pd.DataFrame(rows, columns=MEASURES, index=range(len(phase)), dtype=float)
    found = mask.any(axis=(1, 2))
    if wavelength_um is None:
        return table.drop(columns=[name for name in MEASURES if name.startswith("dry_mass")])
    mass = dry_mass_pg(phase, mask, pixel_size_um, wavelength_um, refraction_increment)
    table["dry_mass_pg"] = np.where(found, mass, np.nan)
    table["dry_mass_density_pg_per_um2"] = table["dry_mass_pg"] / table["area_um2"]
    table["dry_mass_concentration_pg_per_um3"] = table["dry_mass_pg"] / table["volume_um3"]
    return table


def measure_images(phase, cells):
    """Measure phase images of cells, whose optics are those of `cells`.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Measured, true or predicted.
    cells : CellImages
        Gives pixel size, wavelength and refraction increment.

    Returns
    -------
    pandas.DataFrame
        As `measure_cells`.
    """
    return measure_cells(
        phase,
        cells.pixel_size_um,
        wavelength_um=cells.wavelength_um,
        refraction_increment=cells.refraction_increment,
    )


def correlate_features(features, measures):
    """Correlate every feature with every measure, over cells.

    Parameters
    ----------
    features : array or pandas.DataFrame, (cells, features)
        For instance the bottleneck.
    measures : pandas.DataFrame, (cells, measures)
        For instance from `measure_cells`, the same cells in the same order. Cells that lack a
        measure are left out of that column.

    Returns
    -------
    pandas.DataFrame
        (features, measures): Spearman's rho, which finds any monotone relation, -1 to 1; NaN where
        the feature or the measure is constant, or fewer than 3 cells have it. Features of an
        array are named "feature 0", "feature 1", …

    Raises
    ------
    MeasurementError
        If the numbers of cells differ or are below 3, a feature is not finite, or a measure is not
        numeric.
    """
    features, measures = _checked_tables(features, measures)
    both = pd.concat({"features": features, "measures": measures}, axis=1)
    return both.corr("spearman", min_periods=3).loc["features", "measures"]


def strongest(correlations):
    """Return which feature encodes each measure best.

    Parameters
    ----------
    correlations : pandas.DataFrame
        From `correlate_features`.

    Returns
    -------
    pandas.DataFrame
        One row per measure: `feature`, and its `correlation`, the largest in magnitude (None and
        NaN if there is none). The best of many features is biased upwards: of 500 features of pure
        noise, the best still reaches about 0.3 on 100 cells. Confirm it on other cells.
    """
    rows = {}
    for measure, column in correlations.items():
        column = column.dropna()
        best = column.abs().idxmax() if len(column) else None
        rows[measure] = {"feature": best, "correlation": column.get(best, np.nan)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["feature", "correlation"])


def _one_cell(image, inside, pixel_size_um):
    return (
        _shape(inside, pixel_size_um)
        | _phase_values(image[inside])
        | _texture(image, inside, pixel_size_um)
    )


def _shape(inside, pixel_size_um):
    (region,) = regionprops(inside.astype(np.uint8), spacing=(pixel_size_um, pixel_size_um))
    area, perimeter = region.area, region.perimeter_crofton
    # Second moments of the pixel centres lack those of the pixels themselves, squares of p^2 / 12.
    moments = np.asarray(region.inertia_tensor_eigvals) + pixel_size_um**2 / 12
    major, minor = 4 * np.sqrt(moments)
    return {
        "area_um2": area,
        "perimeter_um": perimeter,
        "circularity": 4 * np.pi * area / perimeter**2,
        "eccentricity": np.sqrt(1 - (minor / major) ** 2),
        "aspect_ratio": major / minor,
        "equivalent_diameter_um": 2 * np.sqrt(area / np.pi),
        "volume_um3": np.pi / 6 * major * minor**2,
    }


def _phase_values(values):
    mean, std = values.mean(), values.std()
    # Below this, the variation is rounding.
    varies = std > 1e-9 * np.abs(values).max()
    z = (values - mean) / std if varies else np.full(len(values), np.nan)
    share = np.unique(np.floor(values / ENTROPY_BIN_RAD), return_counts=True)[1] / len(values)
    return {
        "mean_phase_rad": mean,
        "peak_phase_rad": values.max(),
        "std_phase_rad": std,
        "phase_skewness": np.mean(z**3),
        "phase_kurtosis": np.mean(z**4) - 3,
        "phase_entropy_bits": np.sum(share * np.log2(1 / share)),
    }


def _texture(image, inside, pixel_size_um):
    # A border of one pixel, because the cell ends where the image ends.
    image, inside = np.pad(image, 1), np.pad(inside, 1)
    # Half a pixel less than the distance between centres is the distance to the outline.
    depth_um = (ndimage.distance_transform_edt(inside) - 0.5) * pixel_size_um
    # Deeper than half a pixel: all four neighbours, which the gradient needs, are in the cell.
    core = depth_um > max(RIM_UM, pixel_size_um / 2)
    if not core.any():
        return {"local_std_rad": np.nan, "phase_gradient_rad_per_um": np.nan}

    def smooth(values):
        return ndimage.gaussian_filter(values, TEXTURE_SIGMA_UM / pixel_size_um, mode="constant")

    weight = smooth(inside.astype(float))[core]
    # Counted from the mean of the cell: small differences of large squares would lose digits.
    fluctuation = (image - image[inside].mean()) * inside
    mean, square = smooth(fluctuation)[core] / weight, smooth(fluctuation**2)[core] / weight
    slope = np.hypot(*np.gradient(image, pixel_size_um))[core]
    return {
        "local_std_rad": np.mean(np.sqrt(np.maximum(square - mean**2, 0))),
        "phase_gradient_rad_per_um": np.mean(slope),
    }


def _checked_cells(phase, pixel_size_um, mask):
    phase = as_stack(phase)
    size = _checked_length(pixel_size_um, "pixel size", "`cells.pixel_size_um`")
    broken = np.flatnonzero(~np.isfinite(phase).all(axis=(1, 2)))
    if len(broken):
        raise MeasurementError(
            f"{len(broken)} of {len(phase)} images hold pixels that are not finite numbers, cell "
            f"{broken[0]} the first. Leave those cells out."
        )
    if mask is None:
        return phase, size, foreground_mask(phase)
    mask = np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 4 and mask.shape[-1] == 1 else mask
    if mask.shape != phase.shape:
        raise ImageShapeError(
            f"The mask is {mask.shape}, the images are {phase.shape} (cells, height, width); "
            "expected the same."
        )
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise MeasurementError(
            f"The mask holds values from {mask.min()} to {mask.max()}; expected True and False. "
            "Compare it first, for instance `labels == 1` or `phase > 0.3`."
        )
    return phase, size, mask.astype(bool)


def _checked_length(length, what, example):
    size = np.asarray(length)
    if size.ndim or not np.issubdtype(size.dtype, np.number) or not 0 < size < np.inf:
        raise MeasurementError(
            f"The {what} is {length!r}; expected a positive number of micrometres, for instance "
            f"{example}."
        )
    return float(size)


def _checked_tables(features, measures):
    if not isinstance(features, pd.DataFrame):
        features = np.asarray(features)
        if features.ndim != 2:
            raise MeasurementError(
                f"Found features of shape {features.shape}; expected (cells, features)."
            )
        features = pd.DataFrame(features, columns=[f"feature {k}" for k in range(len(features.T))])
    measures = pd.DataFrame(measures)
    for what, table in (("Features", features), ("Measures", measures)):
        words = [c for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])]
        if words:
            raise MeasurementError(f"{what} {words} are not numeric. Leave those columns out.")
    if len(features) != len(measures) or len(features) < 3:
        raise MeasurementError(
            f"Found features of {len(features)} cells and measures of {len(measures)}; expected "
            "the same cells, 3 at least."
        )
    if not np.isfinite(features.to_numpy(dtype=float)).all():
        raise MeasurementError("Some features are not finite numbers. Leave those cells out.")
    return features, measures.set_axis(features.index)
