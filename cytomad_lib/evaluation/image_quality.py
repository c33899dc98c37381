"""How good a predicted phase image is.

- `image_scores`: MAE, PSNR, SSIM and Pearson r per cell, the usual numbers.
- `structure_r`: Pearson r of the fine structure inside the cell. A smooth, cell-shaped dome already
  reaches a plain r above 0.9, with or without invented texture; this r is then low.
- `foreground_mask`: the pixels of the cell.

The reference matters. Against the measured QPI, keeping the batch effect *raises* every score here;
against the batch-free truth of simulated data, it lowers them.

Example
-------
>>> import numpy as np
>>> y, x = np.mgrid[-32:32, -32:32] * 0.7                      # micrometres
>>> phase = np.sqrt(np.clip(8**2 - x**2 - y**2, 0, None))[None] / 4
>>> scores = image_scores(phase + 0.1, phase)
>>> float(scores["mae_rad"].iloc[0].round(3)), float(scores["pearson_r"].iloc[0].round(3))
(0.1, 1.0)
"""

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.metrics import structural_similarity

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import REFRACTION_INCREMENT
from cytomad_lib.simulation.optics import dry_mass

# Structure of a wavelength below 5.3 times this passes at more than half its amplitude. That is
# 11 µm: nucleus, nucleoli and granules pass.
STRUCTURE_UM = 2.0
RIM_UM = 1.0  # left out, where a small error of the outline would dominate
DOME_POWERS = 5  # of the thickness of an ellipsoid, from 0: what makes up the dome of a cell


class ImageShapeError(CytomadError):
    """Images that cannot be compared; the message gives both shapes."""


def foreground_mask(phase):
    """Find the cell in each phase image.

    The image is thresholded, and the largest connected region is kept with its holes filled. The
    threshold is half of Otsu's for that image, and 0.3 rad at least. Otsu separates thick from
    thin; half of it lies nearer to the outline of the cell, and still follows a batch whose phase
    is scaled.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Radians.

    Returns
    -------
    bool array, (cells, height, width)
        Empty for an image that stays below the threshold.
    """
    phase = as_stack(phase)
    masks = np.zeros(phase.shape, dtype=bool)
    for image, mask in zip(phase, masks, strict=True):
        regions = label(image > max(0.3, threshold_otsu(image) / 2))
        if regions.max() > 0:
            largest = np.bincount(regions.ravel())[1:].argmax() + 1
            mask[:] = ndimage.binary_fill_holes(regions == largest)
    return masks


def phase_range(reference):
    """Return the data range for PSNR and SSIM: the 99.9 % quantile of all pixels of the set, rad.

    One number for the whole set makes scores of different cells and methods comparable. A range per
    image would favour thick cells; the maximum would depend on a single noisy pixel.
    """
    return float(np.quantile(as_stack(reference), 0.999))


def image_scores(predicted, reference, data_range=None):
    """Compare predicted with reference images, cell by cell.

    Parameters
    ----------
    predicted, reference : array, (cells, height, width[, 1])
        Radians.
    data_range : float, optional
        Radians, for PSNR and SSIM. By default `phase_range(reference)`. Give it when scores of
        different references are compared.

    Returns
    -------
    pandas.DataFrame
        One row per cell: `mae_rad`, `psnr_db` (infinite for equal images), `ssim` (7-pixel window)
        and `pearson_r` (NaN if an image is constant).

    Raises
    ------
    ImageShapeError
        If the shapes differ.
    """
    predicted, reference = _same_shape(predicted, reference)
    data_range = phase_range(reference) if data_range is None else float(data_range)
    if not data_range > 0:
        raise ValueError(f"The data range is {data_range} rad; expected a positive number.")
    rows = []
    for image, truth in zip(predicted, reference, strict=True):
        error = image - truth
        squared = np.mean(error**2)
        # The mean of the map: a mean without its rim is what `structural_similarity` returns.
        similarity = structural_similarity(image, truth, data_range=data_range, full=True)[1]
        rows.append(
            {
                "mae_rad": np.mean(np.abs(error)),
                "psnr_db": 10 * np.log10(data_range**2 / squared) if squared > 0 else np.inf,
                "ssim": np.mean(similarity),
                "pearson_r": _pearson(image.ravel(), truth.ravel()),
            }
        )
    return pd.DataFrame(rows)


def structure_r(predicted, truth, pixel_size_um):
    """Pearson r of the fine structure inside the cell: whether the texture is real or invented.

    From each image its dome is subtracted (what follows from the thickness of an ellipsoid shaped
    as the cell, see `ellipsoid_thickness`), and then its smooth part (a Gaussian of standard
    deviation `STRUCTURE_UM`, computed inside the mask only, so that nothing leaks in from outside).
    The rest is compared inside the mask, without a rim of `RIM_UM`. Without the first step, a
    featureless dome over the right outline would count as structure, because it falls off towards
    the rim as the truth does.

    Parameters
    ----------
    predicted, truth : array, (cells, height, width[, 1])
        Radians. The cell is where `foreground_mask` finds it in the truth.
    pixel_size_um : float
        Micrometres per pixel.

    Returns
    -------
    array, (cells,)
        NaN where fewer than 10 pixels are left, or nothing varies.
    """
    predicted, truth = _same_shape(predicted, truth)
    sigma = STRUCTURE_UM / pixel_size_um
    scores = np.full(len(truth), np.nan)
    for index, inside in enumerate(foreground_mask(truth)):
        depth_um = ndimage.distance_transform_edt(inside) * pixel_size_um
        core = depth_um > RIM_UM
        if core.sum() >= 10:
            thickness = ellipsoid_thickness(inside)
            weight = np.maximum(ndimage.gaussian_filter(inside.astype(float), sigma), 1e-12)
            fine = []
            for image in (predicted[index], truth[index]):
                flat = _without_dome(image, inside, thickness)
                fine.append((flat - ndimage.gaussian_filter(flat, sigma) / weight)[core])
            scores[index] = _pearson(*fine)
    return scores


def ellipsoid_thickness(mask):
    """Return the relative thickness of an ellipsoid that has the position and shape of a cell.

    Parameters
    ----------
    mask : bool array, (height, width)
        Pixels of the cell; not empty.

    Returns
    -------
    array, (height, width)
        1 in the centre, 0 from the outline of the ellipse outwards.
    """
    y, x = np.nonzero(mask)
    # The variance of a filled ellipse along an axis is a quarter of that half-axis squared. The
    # third of a pixel gives a line of pixels a width.
    shape = 4 * np.cov(y, x, bias=True) + np.eye(2) / 3
    offset = np.stack(np.indices(mask.shape), axis=-1) - [y.mean(), x.mean()]
    squared = np.sum(offset @ np.linalg.inv(shape) * offset, axis=-1)
    return np.sqrt(np.maximum(1 - squared, 0))


def dry_mass_pg(
    phase, mask, pixel_size_um, wavelength_um, refraction_increment=REFRACTION_INCREMENT
):
    """Return the dry mass of each cell in picograms, inside its mask.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Radians.
    mask : bool array, (cells, height, width)
    pixel_size_um, wavelength_um : float
        Micrometres. The wavelength is that of the microscope's light, `cells.wavelength_um`.
    refraction_increment : float
        Of dry matter, µm³ per pg.

    Source
    ------
    See `cytomad_lib.simulation.optics.dry_mass`.
    """
    phase = as_stack(phase) * mask
    return dry_mass(phase, pixel_size_um, refraction_increment, wavelength_um)


def as_stack(images):
    """Return images (cells, height, width[, 1]) as float64 (cells, height, width).

    Raises
    ------
    ImageShapeError
        If they are of another shape.
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3:
        raise ImageShapeError(
            f"Found images of shape {images.shape}; expected (cells, height, width) or "
            "(cells, height, width, 1). For one image, pass image[None]."
        )
    return images


def _same_shape(predicted, reference):
    predicted, reference = as_stack(predicted), as_stack(reference)
    if predicted.shape != reference.shape:
        raise ImageShapeError(
            f"Predicted images are {predicted.shape}, reference {reference.shape} (cells, height, "
            "width); expected the same. Were they selected by the same cells and resized to the "
            "same size?"
        )
    return predicted, reference


def _without_dome(image, inside, thickness):
    """Subtract the polynomial of the thickness that comes nearest to the image; 0 outside."""
    powers = np.vander(thickness[inside], DOME_POWERS)
    left = np.zeros_like(image)
    left[inside] = image[inside] - powers @ np.linalg.lstsq(powers, image[inside], rcond=None)[0]
    return left


def _pearson(a, b):
    if not len(a):
        return np.nan
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return np.sum(a * b) / norm if norm > 1e-12 else np.nan
