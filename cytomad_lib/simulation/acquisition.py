"""What the microscope of one day adds: batches, and the measured images.

Contents: ``PARAMETERS`` (what can differ between batches, with units and ranges), ``NOMINAL`` (the
reference acquisition), :func:`batch_table` (what each batch drew), :func:`cell_settings` (what each
cell was measured with), :func:`measure_brightfield`, :func:`measure_qpi`, and
:func:`simulate_cells`, which runs morphology, optics and acquisition for one group.

Example
-------
>>> table = batch_table(seed=1)                      # one row per batch
>>> cells = simulate_cells("H358", 4, batch="Batch2", seed=1, image_size=64)
>>> cells.brightfield.shape, cells.qpi.shape, cells.truth.shape
((4, 64, 64), (4, 64, 64), (4, 64, 64))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cytomad_lib.data.errors import SimulationError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.simulation.morphology import (
    FIELD_OF_VIEW_UM,
    cell_generators,
    draw_cells,
    optical_path,
)
from cytomad_lib.simulation.optics import (
    bin_pixels,
    brightfield,
    gaussian_blur,
    oversampling,
    phase_of_path,
)
from cytomad_lib.simulation.treatment import find_treatment, treat_cells

# 16 cells at 128 x 128 fit a processor's cache; larger chunks are slower, not faster.
CHUNK = 16
LARGEST_IMAGE = 1024  # pixels along each side; a pixel is then far smaller than light can resolve


@dataclass(frozen=True)
class Parameter:
    """One thing that differs between days of acquisition.

    A batch draws uniformly from ``low`` to ``high``; each group is off its batch by a normal
    deviate of ``group_jitter``, and each cell off its group by one of ``cell_jitter``.
    """

    name: str
    unit: str
    nominal: float
    low: float
    high: float
    group_jitter: float
    cell_jitter: float
    meaning: str


PARAMETERS = (
    Parameter("gain", "", 1.0, 0.85, 1.15, 0.01, 0.07, "brightness of the empty field"),
    Parameter("offset", "", 0.0, -0.05, 0.05, 0.005, 0.020, "camera offset"),
    Parameter("defocus_um", "um", 3.0, -6.0, 6.0, 0.5, 1.6, "distance of the cell from focus"),
    Parameter("na", "", 0.45, 0.38, 0.52, 0.0, 0.0, "numerical aperture of the lens"),
    Parameter("oblique_x", "", 0.0, -0.25, 0.25, 0.02, 0.10, "uneven filling of the pupil, x"),
    Parameter("oblique_y", "", 0.0, -0.25, 0.25, 0.02, 0.10, "uneven filling of the pupil, y"),
    Parameter("fringe", "", 0.008, 0.0, 0.016, 0.001, 0.002, "amplitude of the line-scan fringe"),
    Parameter("fringe_period_um", "um", 7.0, 4.5, 9.5, 0.0, 0.0, "period of that fringe"),
    Parameter("fringe_phase", "rad", 0.0, -3.14, 3.14, 0.2, 0.8, "place of that fringe"),
    Parameter("read_noise", "", 0.010, 0.006, 0.014, 0.0, 0.001, "brightfield noise, s.d."),
    Parameter("qpi_scale", "", 1.0, 0.85, 1.15, 0.01, 0.025, "calibration of the phase"),
    Parameter("qpi_blur_um", "um", 0.45, 0.25, 0.70, 0.02, 0.04, "blur of the phase, s.d."),
    Parameter("qpi_tilt_x", "rad/um", 0.0, -0.004, 0.004, 0.0004, 0.0011, "background slope, x"),
    Parameter("qpi_tilt_y", "rad/um", 0.0, -0.004, 0.004, 0.0004, 0.0011, "background slope, y"),
    Parameter("qpi_noise", "rad", 0.030, 0.018, 0.042, 0.0, 0.002, "phase noise, s.d."),
)  # fmt: skip
NAMES = tuple(parameter.name for parameter in PARAMETERS)
NOMINAL = {parameter.name: parameter.nominal for parameter in PARAMETERS}
# What cannot be negative, however the jitter falls.
NOT_NEGATIVE = ("gain", "fringe", "read_noise", "qpi_scale", "qpi_blur_um", "qpi_noise")


def _column(field):
    return np.array([getattr(parameter, field) for parameter in PARAMETERS])


def parameter_table():
    """Return ``PARAMETERS`` as a table, one row per parameter."""
    return pd.DataFrame([vars(p) for p in PARAMETERS]).set_index("name")


def batch_settings(seed, batch, batch_strength=1.0):
    """Return what a batch drew, in the order of ``PARAMETERS``; depends on seed and name only.

    ``batch_strength`` scales the deviation from the nominal acquisition: 0 makes all batches
    alike, 1 is the usual spread.
    """
    (rng,) = cell_generators(seed, "batch", batch, [0])
    low, high, nominal = _column("low"), _column("high"), _column("nominal")
    drawn = low + (high - low) * rng.random(len(PARAMETERS))
    return nominal + batch_strength * (drawn - nominal)


def batch_table(seed, layout=LUNG, batch_strength=1.0):
    """Show what every batch of a layout drew.

    Returns
    -------
    pandas.DataFrame
        One row per batch and a first row ``nominal``; one column per parameter, in the units of
        :func:`parameter_table` (also in ``.attrs["units"]``).
    """
    rows = {batch: batch_settings(seed, batch, batch_strength) for batch in layout.batches}
    rows = {"nominal": _column("nominal"), **rows}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(NAMES))
    table.index.name = "batch"
    table.attrs["units"] = {parameter.name: parameter.unit for parameter in PARAMETERS}
    return table


def cell_settings(seed, batch, group, generators, batch_strength=1.0):
    """Draw what each cell is measured with: its batch, plus jitter of its group and its own.

    Parameters
    ----------
    seed : int
        Seed of the dataset.
    batch : str or None
        Name of the batch; None is the nominal acquisition (then groups do not differ either).
    group : str
        Name of the group: its jitter depends on seed and name only.
    generators : sequence of numpy.random.Generator
        One stream per cell.
    batch_strength : float
        Scales the deviations of batch and group, not those of the single cells.

    Returns
    -------
    dict of str to numpy.ndarray
        ``(cells,)`` per parameter.
    """
    strength = 0.0 if batch is None else batch_strength
    values = _column("nominal") if batch is None else batch_settings(seed, batch, strength)
    (rng,) = cell_generators(seed, "group", group, [0])
    values = values + strength * _column("group_jitter") * rng.standard_normal(len(PARAMETERS))
    own = np.stack([g.standard_normal(len(PARAMETERS)) for g in generators])
    table = values + _column("cell_jitter") * own
    settings = dict(zip(NAMES, table.T, strict=True))
    for name in NOT_NEGATIVE:
        settings[name] = np.maximum(settings[name], 0.0)
    settings["na"] = np.clip(settings["na"], 0.2, 0.7)  # what the computed grid resolves
    return settings


def measure_brightfield(phase, settings, generators, factor=1):
    """Brightfield images as the camera gives them.

    Parameters
    ----------
    phase : numpy.ndarray
        ``(cells, n, n)`` in radians, on the fine grid.
    settings : dict
        From :func:`cell_settings`.
    generators : sequence of numpy.random.Generator
        One stream per cell, for the noise.
    factor : int
        Fine points per camera pixel.

    Returns
    -------
    numpy.ndarray
        ``(cells, n / factor, n / factor)``; the empty field is about ``gain + offset``.
    """
    pixel = FIELD_OF_VIEW_UM / phase.shape[-1]
    oblique = settings["oblique_x"], settings["oblique_y"]
    light = brightfield(phase, settings["defocus_um"], settings["na"], pixel, oblique)
    image = bin_pixels(light, factor)
    # The line scan puts a fringe along its fast axis (y); it multiplies the light.
    y = _centred_axis(image.shape[-1])
    turn = 2 * np.pi * y / settings["fringe_period_um"][:, None]
    fringe = settings["fringe"][:, None] * np.cos(turn + settings["fringe_phase"][:, None])
    image = image * (settings["gain"][:, None] * (1 + fringe))[:, :, None]
    image += settings["offset"][:, None, None]
    image += settings["read_noise"][:, None, None] * _noise(generators, image.shape[1:])
    return image


def measure_qpi(phase, settings, generators, factor=1):
    """Quantitative phase images as measured, in radians.

    Parameters and shapes as for :func:`measure_brightfield`. Blur happens in the light, before the
    camera; calibration error, background slope and noise come after it.
    """
    pixel = FIELD_OF_VIEW_UM / phase.shape[-1]
    image = bin_pixels(gaussian_blur(phase, settings["qpi_blur_um"], pixel), factor)
    image = image * settings["qpi_scale"][:, None, None]
    axis = _centred_axis(image.shape[-1])
    image += (settings["qpi_tilt_x"][:, None] * axis)[:, None, :]
    image += (settings["qpi_tilt_y"][:, None] * axis)[:, :, None]
    image += settings["qpi_noise"][:, None, None] * _noise(generators, image.shape[1:])
    return image


def _centred_axis(size):
    return ((np.arange(size) + 0.5) / size - 0.5) * FIELD_OF_VIEW_UM


def _noise(generators, shape):
    return np.stack([g.standard_normal(shape) for g in generators])


@dataclass(frozen=True)
class SimulatedCells:
    """Images of simulated cells, float64 ``(cells, height, width)``.

    ``truth`` is the phase of the same cells without blur, noise, slope or calibration error, in
    radians like ``qpi``. ``settings`` says what each cell was measured with, one row per cell.
    """

    brightfield: np.ndarray
    qpi: np.ndarray
    truth: np.ndarray
    settings: pd.DataFrame


def simulate_cells(
    class_name: str,
    cells: int | Sequence[int],
    batch: str | None = None,
    seed: int = 0,
    image_size: int = 64,
    split: str = "Test",
    seen_in: str | None = None,
    batch_strength: float = 1.0,
    dose: str | None = None,
    twins: bool = False,
) -> SimulatedCells:
    """Simulate cells of one group: what they are, and what the microscope of the day makes of them.

    Parameters
    ----------
    class_name : str
        Cell line; with `dose`: drug, or ``"DMSO"``.
    cells : int or sequence of int
        How many cells, or their indices in the group's file.
    batch : str, optional
        The batch that measures them. None = the nominal acquisition, without batch effect.
    seed, split
        With batch, class and dose, the address of the cells.
    image_size : int
        Pixels along each side of the 45 um field.
    seen_in : str, optional
        Take the cells of this batch, measured as ``batch`` does: the same cells under the
        microscope of another day. None = the cells of ``batch`` itself.
    batch_strength : float
        0 = all batches alike, 1 = the usual spread.
    dose : str, optional
        Of the drug dataset: ``"Control"`` (DMSO), ``"D1"`` to ``"G5"``.
    twins : bool
        Leave class and dose out of the cells' address: cell i of every drug and dose is then one
        and the same cell, untreated or treated, measured alike. For figures and tests; a dataset
        holds other cells in every group.

    Returns
    -------
    SimulatedCells

    Raises
    ------
    SimulationError
        For a class or dose that the simulator does not know, or an image size below 16.
    """
    check_image_size(image_size)
    treatment = find_treatment(class_name, dose)
    indices = cell_indices(cells)
    kind = ("twins",) if twins else (class_name, dose)
    group = "/".join(part for part in (seen_in or batch or "nominal", *kind) if part)
    how = (treatment, group, split, batch, seed, image_size, batch_strength)
    chunks = [
        _simulate_chunk(indices[at : at + CHUNK], *how) for at in range(0, len(indices), CHUNK)
    ]
    *stacks, settings = zip(*chunks, strict=True)
    brightfield, qpi, truth = map(np.concatenate, stacks)
    settings = pd.concat([pd.DataFrame(chunk) for chunk in settings], ignore_index=True)
    settings.index = pd.Index(indices, name="cell")
    return SimulatedCells(brightfield, qpi, truth, settings)


def cell_indices(cells):
    """Return a number of cells, or their indices, as a list of indices; refuse none at all."""
    indices = list(range(cells) if isinstance(cells, int | np.integer) else cells)
    if not indices:
        raise SimulationError("Found no cells to measure; expected at least one.")
    return indices


def check_image_size(image_size):
    """Raise SimulationError unless an image can have this many pixels along each side."""
    if int(image_size) != image_size or not 16 <= image_size <= LARGEST_IMAGE:
        raise SimulationError(
            f"image_size is {image_size!r}; it has to be a whole number from 16 to {LARGEST_IMAGE}."
        )


def _simulate_chunk(indices, treatment, group, split, batch, seed, image_size, batch_strength):
    """Simulate a few cells; returns brightfield, measured phase, true phase, settings."""
    address = f"{group}/{split}"

    def streams(purpose):
        return cell_generators(seed, purpose, address, indices)

    cells = draw_cells(treatment.line, streams("shape"))
    if treatment.drug is not None:
        cells = treat_cells(cells, treatment.drug, treatment.level, streams("response"))
    # The jitter belongs to the group on the day that measures, the noise to the single cell.
    settings = cell_settings(seed, batch, group, streams("settings"), batch_strength)
    return *measure(fine_phase(cells, image_size), image_size, settings, streams), settings


def fine_phase(cells, image_size):
    """Return the phase of cells in radians, on a grid that resolves the light."""
    return phase_of_path(
        optical_path(cells, image_size * oversampling(image_size, FIELD_OF_VIEW_UM))
    )


def measure(phase, image_size, settings, streams):
    """Return brightfield, measured phase and true phase; `streams(purpose)` gives the noise."""
    factor = phase.shape[-1] // image_size
    return (
        measure_brightfield(phase, settings, streams("brightfield noise"), factor),
        measure_qpi(phase, settings, streams("phase noise"), factor),
        bin_pixels(phase, factor),
    )
