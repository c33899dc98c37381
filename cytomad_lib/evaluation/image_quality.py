"""How good a predicted phase image is.

- `image_scores`: MAE, PSNR, SSIM and Pearson r per cell, the usual numbers.
- `structure_r`: Pearson r of the fine structure inside the cell. A smooth, cell-shaped dome already
  reaches a plain r above 0.9, and so does one with invented texture; this one does not forgive.
- `per_cell_errors`: area, dry mass and mean phase, predicted and reference.
- `foreground_mask`: where the cell is.
- `summarise`: mean and standard deviation over cells.

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

DOME_POWERS = 5  # of the thickness of an ellipsoid, from 0: what makes up the dome of a cell


class ImageShapeError(CytomadError):
    """Images that cannot be compared; the message gives both shapes."""


def foreground_mask(phase, threshold=None):
    """Find the cell in each phase image.

    The image is thresholded, and the largest connected region is kept with its holes filled.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Radians.
    threshold : float, optional
        Radians. By default half of Otsu's threshold of that image, and 0.3 rad at least. Otsu
        separates thick from thin; half of it lies nearer to the outline of the cell, and still
        follows a batch whose phase is scaled.

    Returns
    -------
    bool array, (cells, height, width)
        Empty for an image that stays below the threshold.
    """
    phase = as_stack(phase)
    masks = np.zeros(phase.shape, dtype=bool)
    for image, mask in zip(phase, masks, strict=True):
        level = max(0.3, threshold_otsu(image) / 2) if threshold is None else threshold
        regions = label(image > level)
        if regions.max() > 0:
            largest = np.bincount(regions.ravel())[1:].argmax() + 1
            mask[:] = ndimage.binary_fill_holes(regions == largest)
    return masks


def phase_range(reference):
    """Return the data range for PSNR and SSIM: the 99.9 % quantile of all pixels of the set, rad.

    One number for the whole set, so that scores of different cells and methods can be compared. A
    range per image would reward thick cells; the maximum would depend on a single noisy pixel.
    """
    return float(np.quantile(as_stack(reference), 0.999))


def image_scores(predicted, reference, mask=None, data_range=None):
    """Compare predicted with reference images, cell by cell.

    Parameters
    ----------
    predicted, reference : array, (cells, height, width[, 1])
        Radians.
    mask : bool array, (cells, height, width), optional
        Score inside the mask only. By default the whole image.
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
    predicted, reference, mask = _same_shape(predicted, reference, mask)
    data_range = phase_range(reference) if data_range is None else float(data_range)
    if not data_range > 0:
        raise ValueError(f"The data range is {data_range} rad; expected a positive number.")
    rows = []
    for image, truth, inside in zip(predicted, reference, mask, strict=True):
        error = (image - truth)[inside]
        squared = np.mean(error**2)
        similarity = structural_similarity(image, truth, data_range=data_range, full=True)[1]
        rows.append(
            {
                "mae_rad": np.mean(np.abs(error)),
                "psnr_db": 10 * np.log10(data_range**2 / squared) if squared > 0 else np.inf,
                "ssim": np.mean(similarity[inside]),
                "pearson_r": _pearson(image[inside], truth[inside]),
            }
        )
    return pd.DataFrame(rows)


def structure_r(predicted, truth, mask=None, *, pixel_size_um, cutoff_um=2.0, rim_um=1.0):
    """Pearson r of the fine structure inside the cell: whether the texture is real or invented.

    From each image its dome is subtracted (what follows from the thickness of an ellipsoid shaped
    as the cell, see `ellipsoid_thickness`), and then its smooth part (a Gaussian of standard
    deviation `cutoff_um`, computed inside the mask only, so that nothing leaks in from outside).
    What is left is compared inside the mask, without a rim of `rim_um`. Without the first step a
    featureless dome over the right outline would pass for structure, because it falls off towards
    the rim as the truth does.

    Parameters
    ----------
    predicted, truth : array, (cells, height, width[, 1])
        Radians.
    mask : bool array, (cells, height, width), optional
        By default `foreground_mask(truth)`.
    pixel_size_um : float
        Micrometres per pixel.
    cutoff_um : float
        Structure of a wavelength below 5.3 times this passes at more than half its amplitude. At
        2 um that is 11 um: nucleus, nucleoli and granules pass.
    rim_um : float
        Width of the rim that is left out, where a small error of the outline would dominate.

    Returns
    -------
    array, (cells,)
        NaN where fewer than 10 pixels are left, or nothing varies.
    """
    mask = foreground_mask(truth) if mask is None else mask
    predicted, truth, mask = _same_shape(predicted, truth, mask)
    sigma = cutoff_um / pixel_size_um
    scores = np.full(len(truth), np.nan)
    for index, inside in enumerate(mask):
        depth_um = ndimage.distance_transform_edt(inside) * pixel_size_um
        core = depth_um > rim_um
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
        Where the cell is; not empty.

    Returns
    -------
    array, (height, width)
        1 in the centre, 0 from the outline of the ellipse outwards.
    """
    y, x = np.nonzero(mask)
    # Of a filled ellipse the variance along an axis is a quarter of that half-axis squared; the
    # third of a pixel keeps a line of pixels from having no width.
    shape = 4 * np.cov(y, x, bias=True) + np.eye(2) / 3
    offset = np.stack(np.indices(mask.shape), axis=-1) - [y.mean(), x.mean()]
    squared = np.sum(offset @ np.linalg.inv(shape) * offset, axis=-1)
    return np.sqrt(np.maximum(1 - squared, 0))


def dry_mass_pg(
    phase, mask, pixel_size_um, wavelength_um, refraction_increment=REFRACTION_INCREMENT
):
    """Return the dry mass of each cell in picograms, of what lies inside its mask.

    Parameters
    ----------
    phase : array, (cells, height, width[, 1])
        Radians.
    mask : bool array, (cells, height, width)
    pixel_size_um, wavelength_um : float
        Micrometres. The wavelength is that of the microscope's light, `cells.wavelength_um`.
    refraction_increment : float
        µm³ per pg: by how much dry matter raises the index of refraction.

    Source
    ------
    See `cytomad_lib.simulation.optics.dry_mass`.
    """
    phase = as_stack(phase) * mask
    return dry_mass(phase, pixel_size_um, refraction_increment, wavelength_um)


def per_cell_errors(
    predicted,
    reference,
    pixel_size_um,
    threshold=None,
    wavelength_um=None,
    refraction_increment=REFRACTION_INCREMENT,
):
    """Compare what a biologist would measure on the predicted and on the reference image.

    Each image is measured inside its own mask (`foreground_mask`), as if it were alone.

    Parameters
    ----------
    predicted, reference : array, (cells, height, width[, 1])
        Radians.
    pixel_size_um : float
        Micrometres per pixel.
    threshold : float, optional
        Of `foreground_mask`, radians.
    wavelength_um, refraction_increment : float
        As in `dry_mass_pg`; without a wavelength, dry mass is left out.

    Returns
    -------
    pandas.DataFrame
        One row per cell; `area_um2`, `mean_phase_rad` and `dry_mass_pg`, each as
        `<name>_predicted`, `<name>_reference` and `<name>_error` (predicted minus reference).
    """
    predicted, reference, _ = _same_shape(predicted, reference, None)
    measured = {}
    for kind, images in (("predicted", predicted), ("reference", reference)):
        mask = foreground_mask(images, threshold)
        pixels = mask.sum(axis=(1, 2))
        total = np.sum(images * mask, axis=(1, 2))
        measured["area_um2", kind] = pixels * pixel_size_um**2
        empty = np.full(len(images), np.nan)
        measured["mean_phase_rad", kind] = np.divide(total, pixels, out=empty, where=pixels > 0)
        if wavelength_um is not None:
            mass = dry_mass_pg(images, mask, pixel_size_um, wavelength_um, refraction_increment)
            measured["dry_mass_pg", kind] = mass
    table = pd.DataFrame()
    for name in dict.fromkeys(name for name, _ in measured):
        for kind in ("predicted", "reference"):
            table[f"{name}_{kind}"] = measured[name, kind]
        table[f"{name}_error"] = measured[name, "predicted"] - measured[name, "reference"]
    return table


def summarise(scores):
    """Return mean, standard deviation (`sd`) and number (`n`) of each numeric column over cells.

    NaNs are left out and so not counted in `n`.
    """
    numbers = scores.select_dtypes("number")
    with np.errstate(invalid="ignore"):  # the spread of infinite PSNRs is undefined: NaN
        return pd.DataFrame({"mean": numbers.mean(), "sd": numbers.std(), "n": numbers.count()})


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


def _same_shape(predicted, reference, mask):
    predicted, reference = as_stack(predicted), as_stack(reference)
    mask = np.ones(reference.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if predicted.shape != reference.shape or mask.shape != reference.shape:
        raise ImageShapeError(
            f"Predicted images are {predicted.shape}, reference {reference.shape}, mask "
            f"{mask.shape} (cells, height, width); expected the same. Were they selected by the "
            "same cells and resized to the same size?"
        )
    return predicted, reference, mask


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
