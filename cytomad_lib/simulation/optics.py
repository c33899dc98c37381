"""What light does: from the optical path of a cell to its brightfield image.

Contents: :func:`phase_of_path`, :func:`propagate` (angular spectrum inside a pupil),
:func:`brightfield` (intensity), :func:`gaussian_blur`, :func:`bin_pixels` (a camera pixel),
:func:`oversampling` (how fine the light has to be computed) and :func:`dry_mass`.

The light is one coherent plane wave, as from the laser of a line-scan cytometer. A lens then passes
the spatial frequencies up to NA / wavelength of the *field*; the intensity, being a product of two
fields, holds up to twice that.

Example
-------
>>> phase = np.zeros((1, 128, 128))
>>> float(brightfield(phase, defocus_um=5.0, na=0.45, pixel_um=0.35).max())   # empty field: 1
1.0
"""

import math
import os

import numpy as np
import scipy.fft

from cytomad_lib.data.layouts import REFRACTION_INCREMENT, WAVELENGTH_UM

MEDIUM_INDEX = 1.337  # culture medium; defocus is measured in it
FINEST_PITCH_UM = 0.36  # resolves the intensity up to 2 NA / wavelength for NA < 0.7
# Light that is scattered out of the lens or absorbed, per radian of phase: dense parts of a cell
# look a little darker even in focus.
ABSORPTION_PER_RADIAN = 0.02
DRY_MASS_ALPHA = REFRACTION_INCREMENT  # um^3 per pg

WORKERS = min(4, os.cpu_count() or 1)


def phase_of_path(path_um):
    """Phase delay in radians of an optical path difference: 2 pi / wavelength * path."""
    return (2 * np.pi / WAVELENGTH_UM) * path_um


def oversampling(image_size, field_of_view_um):
    """Smallest whole number of computed points per image pixel that resolves the light.

    Examples
    --------
    >>> oversampling(128, 45.0), oversampling(64, 45.0), oversampling(96, 45.0)
    (1, 2, 2)
    """
    return max(1, math.ceil(field_of_view_um / image_size / FINEST_PITCH_UM))


def bin_pixels(images, factor):
    """Average blocks of ``factor`` x ``factor`` points, as a camera pixel does.

    Parameters
    ----------
    images : numpy.ndarray
        ``(..., height, width)``, both divisible by ``factor``.
    """
    if factor == 1:
        return images
    *rest, height, width = images.shape
    blocks = images.reshape(*rest, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(-3, -1))


def propagate(field, distance_um, pixel_um, na=None, oblique=(0.0, 0.0)):
    """Propagate fields through the medium by their angular spectrum, and through a pupil.

    The phase is counted relative to the undisturbed plane wave, so an empty field stays 1.

    Parameters
    ----------
    field : numpy.ndarray
        complex ``(cells, height, width)`` (or one image).
    distance_um : float or numpy.ndarray
        Distance, one number or one per cell; negative goes back.
    pixel_um : float
        Grid pitch.
    na : float or numpy.ndarray, optional
        Numerical aperture: frequencies above na / wavelength are lost. None = open pupil: all
        travelling waves pass, and evanescent ones decay with the distance.
    oblique : pair of float or numpy.ndarray
        How unequally the pupil is filled, (x, y): the amplitude across it runs from ``1 - oblique``
        at one edge to ``1 + oblique`` at the other. This turns phase gradients into brightness,
        as light from the side does, and a defocused image walks sideways a little.
        Needs ``na``.

    Returns
    -------
    numpy.ndarray
        complex, as ``field``.

    Raises
    ------
    ValueError
        If ``oblique`` is given without ``na``.

    Source
    ------
    J. W. Goodman, Introduction to Fourier Optics, chapter 3 (angular spectrum), chapter 6 (pupil).
    """
    spectrum = scipy.fft.fft2(field, workers=WORKERS)
    spectrum *= transfer_function(field.shape[-2:], distance_um, pixel_um, na, oblique)
    return scipy.fft.ifft2(spectrum, overwrite_x=True, workers=WORKERS)


def transfer_function(shape, distance_um, pixel_um, na=None, oblique=(0.0, 0.0)):
    """Factor that each spatial frequency of the field takes; see :func:`propagate`."""
    fy = scipy.fft.fftfreq(shape[0], pixel_um)[:, None]
    fx = scipy.fft.fftfreq(shape[1], pixel_um)[None, :]
    radius2 = fx**2 + fy**2
    axial2 = (MEDIUM_INDEX / WAVELENGTH_UM) ** 2 - radius2
    # Minus the plane wave's own phase, so that only the delay against it is left.
    advance = 2 * np.pi * (np.sqrt(np.maximum(axial2, 0)) - MEDIUM_INDEX / WAVELENGTH_UM)
    decay = 2 * np.pi * np.sqrt(np.maximum(-axial2, 0))
    distance = _per_cell(distance_um)
    sx, sy = _per_cell(oblique[0]), _per_cell(oblique[1])
    if na is None:
        if np.any(sx) or np.any(sy):
            raise ValueError(
                "oblique was given with an open pupil (na=None). It is a slope across the pupil: "
                "give na too."
            )
        return np.exp(1j * distance * advance - np.abs(distance) * decay)
    na = _per_cell(na)
    cutoff = na / WAVELENGTH_UM
    # Nothing passes outside the widest pupil: leave zeros there and compute the rest.
    rows = np.flatnonzero(np.abs(fy[:, 0]) <= cutoff.max())
    columns = np.flatnonzero(np.abs(fx[0]) <= cutoff.max())
    inside = np.ix_(rows, columns)
    slope = sx * fx[:, columns] + sy * fy[rows]
    # Light from the side, at a quarter of the slope times NA: the image walks with the distance.
    turn = distance * (advance[inside] + 0.5 * np.pi * na * slope)
    factor = (1 + slope / cutoff) * np.exp(1j * turn) * (radius2[inside] <= cutoff**2)
    whole = np.zeros((*factor.shape[:-2], *shape), complex)
    whole[(..., *inside)] = factor
    return whole


def _per_cell(value):
    """Give numbers, or one number per cell, the axes of an image stack."""
    value = np.asarray(value, float)
    return value if value.ndim == 0 else value[:, None, None]


def brightfield(
    phase, defocus_um, na, pixel_um, oblique=(0.0, 0.0), absorption_per_radian=ABSORPTION_PER_RADIAN
):
    """Brightfield intensity of thin cells, the empty field being 1.

    Parameters
    ----------
    phase : numpy.ndarray
        ``(cells, height, width)`` in radians.
    defocus_um, na, oblique
        See :func:`propagate`; one number, or one per cell.
    absorption_per_radian : float
        Amplitude lost per radian of phase.

    Returns
    -------
    numpy.ndarray
        float64 ``(cells, height, width)``.
    """
    loss = np.exp(-absorption_per_radian * phase)
    field = np.empty(phase.shape, complex)
    np.multiply(loss, np.cos(phase), out=field.real)
    np.multiply(loss, np.sin(phase), out=field.imag)
    field = propagate(field, defocus_um, pixel_um, na, oblique)
    return field.real**2 + field.imag**2


def gaussian_blur(images, sigma_um, pixel_um):
    """Blur each image by a Gaussian of its own width (periodic at the borders).

    Parameters
    ----------
    images : numpy.ndarray
        float ``(cells, height, width)``.
    sigma_um : float or numpy.ndarray
        Standard deviation, one number or one per cell.
    """
    height, width = images.shape[-2:]
    fy = scipy.fft.fftfreq(height, pixel_um)
    fx = scipy.fft.rfftfreq(width, pixel_um)
    sigma = np.asarray(sigma_um, float).reshape(-1, 1)
    # A Gaussian is a product of x and y; so is its transform.
    along_y = np.exp(-2 * (np.pi * sigma * fy) ** 2)[:, :, None]
    along_x = np.exp(-2 * (np.pi * sigma * fx) ** 2)[:, None, :]
    spectrum = scipy.fft.rfft2(images, workers=WORKERS)
    spectrum *= along_y * along_x
    return scipy.fft.irfft2(spectrum, s=(height, width), overwrite_x=True, workers=WORKERS)


def dry_mass(phase, pixel_um, alpha=DRY_MASS_ALPHA, wavelength_um=WAVELENGTH_UM):
    """Dry mass in pg of each image: wavelength / (2 pi alpha) times the integral of the phase.

    Source
    ------
    R. Barer, Nature 169, 366 (1952).
    """
    return wavelength_um / (2 * np.pi * alpha) * phase.sum(axis=(-2, -1)) * pixel_um**2
