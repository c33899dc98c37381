"""What a suspended cell is: its shape, its inside, and the optical path through it.

Contents: :class:`CellLine` (how the cells of one line look on average), ``LUNG_LINES`` (the seven
lines of the lung dataset), :func:`cell_generators` (one random stream per cell),
:func:`draw_cells` (random cells of a line) and :func:`optical_path` (their maps).

The size, shape and spread of H1975 and H2170 follow those of real cells, which
`tests/test_simulated_and_real_cells.py` names. All other numbers are plausible, not measured: lines
differ in size, density, nucleus and roughness about as much as real ones, with a wide overlap.

Example
-------
>>> streams = cell_generators(seed=1, purpose="shape", name="H358/Test", cells=range(4))
>>> cells = draw_cells(LUNG_LINES["H358"], streams)
>>> optical_path(cells, grid_size=128).shape   # micrometres of extra optical path
(4, 128, 128)
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import scipy.fft

from cytomad_lib.data.errors import SimulationError

FIELD_OF_VIEW_UM = 45.0

# Outline: Fourier modes 2..9 (mode 0 is the size and mode 1 only moves the cell).
OUTLINE_MODES = np.arange(2, 10)
# Texture: no detail finer than about 1.6 um, which a lens of NA 0.4 to 0.5 still half resolves.
TEXTURE_CUTOFF_PER_UM = 0.6
TEXTURE_MODES = int(TEXTURE_CUTOFF_PER_UM * FIELD_OF_VIEW_UM)
BALLS = ("lobe_x", "lobe_y", "lobe_diameter", "bleb_x", "bleb_y", "bleb_diameter")
MAX_GRANULES = 48
# Thickness over diameter of an average cell. The large cells of a line are flatter.
FLATTENING = 0.90
MAX_NUCLEOLI = 3


@dataclass(frozen=True)
class CellLine:
    """Average look of one kind of cell; single cells vary around it.

    Attributes
    ----------
    diameter_um, diameter_spread : float
        Mean diameter in micrometres and its relative standard deviation.
    aspect, aspect_spread : float
        Median ratio of the longer to the shorter axis (1 = round), and the standard deviation of
        the logarithm of ``aspect - 1``.
    nucleus_ratio : float
        Diameter of the nucleus over that of the cell.
    delta_n, delta_n_spread : float
        Mean refractive index of the cytoplasm minus that of the medium, and its relative standard
        deviation.
    nucleus_delta_n : float
        What the nucleus adds to ``delta_n``.
    granules : float
        Mean number of granules.
    texture : float
        Relative standard deviation of the index inside the cell.
    roughness : float
        Relative standard deviation of the radius along the outline.
    """

    diameter_um: float
    diameter_spread: float
    aspect: float
    aspect_spread: float
    nucleus_ratio: float
    delta_n: float
    delta_n_spread: float
    nucleus_delta_n: float
    granules: float
    texture: float
    roughness: float


# From small to large. H69 and H526 are small-cell lines: nearly filled by their nucleus.
LUNG_LINES = {
    #                   size  spread aspect spread nucl. dn    spread  +dn     gran  text   rough
    "H69": CellLine(11.0, 0.085, 1.06, 0.5, 0.78, 0.0300, 0.045, 0.0050, 5.0, 0.035, 0.016),
    "H526": CellLine(12.1, 0.085, 1.10, 0.5, 0.74, 0.0240, 0.045, 0.0085, 8.0, 0.040, 0.030),
    "H2170": CellLine(13.65, 0.098, 1.12, 0.5, 0.66, 0.0285, 0.055, 0.0045, 20.0, 0.055, 0.022),
    "H1975": CellLine(13.95, 0.092, 1.13, 0.32, 0.58, 0.0325, 0.027, 0.0055, 18.0, 0.032, 0.020),
    "H520": CellLine(15.4, 0.095, 1.08, 0.5, 0.62, 0.0335, 0.045, 0.0060, 10.0, 0.040, 0.016),
    "HCC827": CellLine(16.6, 0.095, 1.22, 0.5, 0.52, 0.0265, 0.045, 0.0060, 30.0, 0.050, 0.026),
    "H358": CellLine(17.5, 0.105, 1.12, 0.5, 0.56, 0.0220, 0.045, 0.0075, 24.0, 0.055, 0.020),
}


def find_line(class_name):
    """Return the look of a cell line.

    Raises
    ------
    SimulationError
        For a line that the simulator does not know.
    """
    if class_name not in LUNG_LINES:
        raise SimulationError(
            f"The simulator has no cells for {class_name!r}. It makes the lung cell lines "
            f"{', '.join(LUNG_LINES)}. Choose one of these."
        )
    return LUNG_LINES[class_name]


def stable_hash(text):
    """Return 64 bits that depend on the text alone (Python's own hash changes on every run)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def cell_generators(seed, purpose, name, cells):
    """Return one random stream per cell, each found directly from the cell's address.

    Philox is counter-based: a stream is a place in one huge table, not a successor of the stream
    before. So a cell is the same whichever cells are made beside it.

    Parameters
    ----------
    seed : int
        Seed of the dataset, 0 or more.
    purpose : str
        What the numbers are for ("shape", "brightfield noise", ...). Purposes never share numbers:
        changing what one draws leaves the others as they are.
    name : str
        Name of the group and split.
    cells : iterable of int
        Indices of the cells in the group's file.
    """
    if seed != int(seed) or not 0 <= seed < 2**64:
        raise SimulationError(f"seed is {seed!r}; it has to be a whole number from 0 to 2**64 - 1.")
    key = np.array([int(seed), stable_hash(purpose)], dtype=np.uint64)
    group = stable_hash(name)
    # The first counter word counts upwards within the stream; the others are the address.
    counters = [np.array([0, 0, i, group], np.uint64) for i in cells]
    return [np.random.Generator(np.random.Philox(key=key, counter=count)) for count in counters]


@dataclass(frozen=True)
class Cells:
    """Parameters of ``n`` cells: arrays with the cell as the first axis, micrometres and radians.

    ``x``, ``y`` are the cell's place relative to the centre of the image; nucleus, nucleoli and
    granules are placed relative to the cell. ``outline`` and ``nucleus_outline`` are complex
    Fourier coefficients of the relative radius. ``*_opl`` is the optical path at a blob's peak.
    ``lobe_*`` and ``bleb_*`` are balls ``(n, balls)`` that belong to the nucleus and to the body of
    treated cells, placed relative to the cell; a diameter of 0 is no ball.
    """

    x: np.ndarray
    y: np.ndarray
    diameter: np.ndarray
    aspect: np.ndarray
    angle: np.ndarray
    flattening: np.ndarray
    outline: np.ndarray
    delta_n: np.ndarray
    nucleus_x: np.ndarray
    nucleus_y: np.ndarray
    nucleus_diameter: np.ndarray
    nucleus_aspect: np.ndarray
    nucleus_angle: np.ndarray
    nucleus_outline: np.ndarray
    nucleus_delta_n: np.ndarray
    blob_x: np.ndarray
    blob_y: np.ndarray
    blob_radius: np.ndarray
    blob_opl: np.ndarray
    texture_strength: np.ndarray
    texture: np.ndarray
    lobe_x: np.ndarray
    lobe_y: np.ndarray
    lobe_diameter: np.ndarray
    bleb_x: np.ndarray
    bleb_y: np.ndarray
    bleb_diameter: np.ndarray

    def __len__(self):
        """Return the number of cells."""
        return len(self.x)


def draw_cells(line, generators):
    """Draw one random cell of a line from each generator.

    Parameters
    ----------
    line : CellLine
        The average look.
    generators : sequence of numpy.random.Generator
        One stream per cell, from :func:`cell_generators`.

    Returns
    -------
    Cells
        ``len(generators)`` cells. Diameters stay within three standard deviations, and every cell
        lies well inside the field of view.
    """
    modes = len(OUTLINE_MODES)
    # Every cell takes the same count of numbers, so that the columns below mean the same for all.
    normal = np.stack([g.standard_normal(14 + 4 * modes) for g in generators])
    uniform = np.stack([g.random(8) for g in generators])
    granule_count = np.array([g.poisson(line.granules) for g in generators])
    blobs = np.stack([g.random((4, MAX_NUCLEOLI + MAX_GRANULES)) for g in generators])
    spectrum = np.stack([g.standard_normal((2, *_texture_envelope().shape)) for g in generators])

    normal = np.clip(normal, -3.0, 3.0)
    column = iter(normal.T[:14])
    diameter = line.diameter_um * (1 + line.diameter_spread * next(column))
    aspect = 1 + (line.aspect - 1) * np.exp(line.aspect_spread * next(column))
    delta_n = line.delta_n * (1 + line.delta_n_spread * next(column))
    nucleus_delta_n = np.clip(line.nucleus_delta_n * (1 + 0.2 * next(column)), 0.004, 0.010)
    nucleus_ratio = np.clip(line.nucleus_ratio * (1 + 0.07 * next(column)), 0.40, 0.88)
    nucleus_aspect = 1 + 0.14 * np.exp(0.5 * next(column))
    texture_strength = line.texture * np.exp(0.2 * next(column))
    roughness = line.roughness * np.exp(0.3 * next(column))
    x, y = 0.6 * next(column), 0.6 * next(column)
    flattening = FLATTENING * (diameter / line.diameter_um) ** -0.35
    flattening = np.clip(flattening * (1 + 0.03 * next(column)), 0.6, 1.0)

    rough = _rough_outlines(normal[:, 14:])
    # The nucleus sits off centre, but never leaves the cell.
    room = 0.5 * diameter * (0.95 - nucleus_ratio)
    way, direction = room * np.sqrt(uniform[:, 0]), 2 * np.pi * uniform[:, 1]
    nucleus = {
        "nucleus_x": way * np.cos(direction),
        "nucleus_y": way * np.sin(direction),
        "nucleus_diameter": diameter * nucleus_ratio,
    }
    nucleoli_count = 1 + np.floor(3 * uniform[:, 2])
    granule_count = np.minimum(granule_count, MAX_GRANULES)
    return Cells(
        x=x,
        y=y,
        diameter=diameter,
        aspect=aspect,
        angle=np.pi * uniform[:, 3],
        flattening=flattening,
        outline=roughness[:, None] * rough[:, 0],
        delta_n=delta_n,
        **nucleus,
        nucleus_aspect=nucleus_aspect,
        nucleus_angle=np.pi * uniform[:, 4],
        nucleus_outline=0.04 * rough[:, 1],
        nucleus_delta_n=nucleus_delta_n,
        texture_strength=texture_strength,
        texture=(spectrum[:, 0] + 1j * spectrum[:, 1]) * _texture_envelope(),
        **_draw_blobs(blobs, nucleoli_count, granule_count, diameter, **nucleus),
        **dict.fromkeys(BALLS, np.zeros((len(x), 0))),  # untreated cells have none
    )


def _rough_outlines(normal):
    """Return the complex modes of two outlines of each cell, (cells, 2, modes)."""
    fall = OUTLINE_MODES**-1.0  # smooth outlines: high modes are weak
    modes = normal.reshape(len(normal), 2, len(fall), 2) @ np.array([1, 1j])
    return modes * fall / np.sqrt(np.sum(fall**2))


def _draw_blobs(
    uniform, nucleoli_count, granule_count, diameter, nucleus_x, nucleus_y, nucleus_diameter
):
    """Place nucleoli (first) and granules; those beyond the count get zero optical path.

    The arrays have a fixed length, so a cell does not depend on the cells beside it.
    """
    u_place, u_turn, u_size, u_peak = np.moveaxis(uniform, 1, 0)
    number = np.arange(MAX_NUCLEOLI + MAX_GRANULES)
    nucleolus = number < MAX_NUCLEOLI
    nucleoli, granules = nucleoli_count[:, None], granule_count[:, None]
    there = np.where(nucleolus, number < nucleoli, number - MAX_NUCLEOLI < granules)
    # Granules lie around the nucleus, more often outside than over its centre.
    around = 0.5 * diameter[:, None] * (0.30 + 0.52 * np.sqrt(u_place))
    inside = 0.28 * nucleus_diameter[:, None] * np.sqrt(u_place)
    radius = np.where(nucleolus, inside, around)
    blob_radius = np.where(nucleolus, 0.7 + 0.4 * u_size, 0.38 + 0.30 * u_size)
    peak = np.where(nucleolus, 0.022 + 0.018 * u_peak, 0.014 + 0.034 * u_peak)
    return {
        "blob_x": radius * np.cos(2 * np.pi * u_turn) + nucleolus * nucleus_x[:, None],
        "blob_y": radius * np.sin(2 * np.pi * u_turn) + nucleolus * nucleus_y[:, None],
        "blob_radius": blob_radius,
        "blob_opl": there * peak,
    }


def optical_path(cells, grid_size):
    """Map the optical path that the cells add to the light, compared with the medium alone.

    Parameters
    ----------
    cells : Cells
        From :func:`draw_cells`.
    grid_size : int
        Pixels along each side.

    Returns
    -------
    numpy.ndarray
        float64 ``(cells, grid_size, grid_size)`` in micrometres, 0 outside the cells.
    """
    axis = (np.arange(grid_size) + 0.5) * (FIELD_OF_VIEW_UM / grid_size) - FIELD_OF_VIEW_UM / 2
    # Most of the image is empty: compute the part that the largest of these cells can reach.
    near = np.flatnonzero(np.abs(axis) <= _reach_um(cells))
    part = slice(near[0], near[-1] + 1)
    axis = axis[part]
    x = axis[None, None, :] - cells.x[:, None, None]
    y = axis[None, :, None] - cells.y[:, None, None]

    body = spheroid_thickness(
        x, y, cells.diameter, cells.aspect, cells.angle, cells.outline, cells.flattening
    )
    body = _with_balls(body, x, y, cells.bleb_x, cells.bleb_y, cells.bleb_diameter)
    nucleus = spheroid_thickness(
        x - cells.nucleus_x[:, None, None],
        y - cells.nucleus_y[:, None, None],
        cells.nucleus_diameter,
        cells.nucleus_aspect,
        cells.nucleus_angle,
        cells.nucleus_outline,
        cells.flattening,
    )
    nucleus = _with_balls(nucleus, x, y, cells.lobe_x, cells.lobe_y, cells.lobe_diameter)
    # The nucleus takes room from the cytoplasm; it cannot stick out of the cell.
    nucleus = np.minimum(nucleus, body)
    path = cells.delta_n[:, None, None] * body
    path += cells.nucleus_delta_n[:, None, None] * nucleus
    texture = _texture_map(cells.texture, grid_size)[:, part, part]
    texture *= cells.texture_strength[:, None, None]
    texture += 1
    path *= texture
    blobs = _blob_map(cells, axis)
    # Blobs fade towards the rim, where the cell is thinner than they are.
    path += blobs * np.minimum(body / 2.0, 1.0)
    whole = np.zeros((len(cells), grid_size, grid_size))
    whole[:, part, part] = path
    return whole


def _reach_um(cells):
    """Distance from the image centre, along x or y, that no cell's outline exceeds."""
    stretch = np.maximum(np.sqrt(cells.aspect), 1.0)
    waviness = 1 + np.abs(cells.outline).sum(axis=1)
    away = np.maximum(np.abs(cells.x), np.abs(cells.y))
    reach = 0.5 * cells.diameter * stretch * waviness
    blebs = np.hypot(cells.bleb_x, cells.bleb_y) + 0.5 * cells.bleb_diameter
    return float(np.max(np.maximum(reach, blebs.max(axis=1, initial=0.0)) + away))


def spheroid_thickness(x, y, diameter, aspect, angle, outline, flattening):
    """Thickness along the light of bodies with an elliptic, wavy outline, in micrometres.

    The outline is r(direction) = R (1 + Fourier modes), stretched by ``aspect`` along ``angle`` at
    constant area; the thickness falls from ``flattening * diameter`` at the centre to 0 at the
    outline like that of an ellipsoid.

    Parameters
    ----------
    x, y : numpy.ndarray
        Coordinates relative to the bodies' centres, broadcast to ``(cells, height, width)``.
    diameter, aspect, angle, flattening : numpy.ndarray
        ``(cells,)``.
    outline : numpy.ndarray
        complex ``(cells, len(OUTLINE_MODES))``.
    """
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    stretch = np.sqrt(aspect)[:, None, None]
    along = (x * cos + y * sin) / stretch
    across = (y * cos - x * sin) * stretch
    distance = np.hypot(along, across)
    # exp(i direction) and its powers are cheaper than an angle and many cosines.
    unit = (along + 1j * across) / np.maximum(distance, 1e-12)
    radius = np.ones_like(distance)
    power = unit
    for mode in range(len(OUTLINE_MODES)):
        power = power * unit
        coefficient = outline[:, mode, None, None]
        radius += coefficient.real * power.real - coefficient.imag * power.imag
    relative = distance / (0.5 * diameter[:, None, None] * radius)
    height = np.sqrt(np.maximum(1 - relative**2, 0.0))
    return (flattening * diameter)[:, None, None] * height


def _with_balls(thickness, x, y, ball_x, ball_y, diameter):
    """Join balls to bodies: the thickness is that of the thicker one, as all share one midplane."""
    for place_x, place_y, width in zip(ball_x.T, ball_y.T, diameter.T, strict=True):
        place_x, place_y, width = (v[:, None, None] for v in (place_x, place_y, width))
        square = width**2 - 4 * ((x - place_x) ** 2 + (y - place_y) ** 2)
        thickness = np.maximum(thickness, np.sqrt(np.maximum(square, 0.0)))
    return thickness


def _texture_envelope():
    """Weights of the texture's Fourier modes: rows -K..K, columns 0..K; unit variance in space."""
    row = np.arange(-TEXTURE_MODES, TEXTURE_MODES + 1)[:, None]
    column = np.arange(0, TEXTURE_MODES + 1)[None, :]
    frequency = np.hypot(row, column) / FIELD_OF_VIEW_UM
    # Falls with the frequency above 1/(8 um), and vanishes smoothly at the cutoff.
    weight = np.clip(1 - (frequency / TEXTURE_CUTOFF_PER_UM) ** 2, 0, None)
    weight = weight / np.hypot(1.0, frequency * 8.0) ** 1.5
    weight[:, 0] = 0.0  # this column would need a symmetric partner; a texture can do without it
    return weight / np.sqrt(np.sum(4 * weight**2))


def _texture_map(coefficients, grid_size):
    """Sum the texture's Fourier modes on a grid: ``(cells, grid_size, grid_size)``, variance 1."""
    keep = TEXTURE_MODES
    spectrum = np.zeros((len(coefficients), grid_size, grid_size // 2 + 1), complex)
    spectrum[:, : keep + 1, : keep + 1] = coefficients[:, keep:]
    spectrum[:, -keep:, : keep + 1] = coefficients[:, :keep]
    return scipy.fft.irfft2(spectrum, s=(grid_size, grid_size), norm="forward")


def _blob_map(cells, axis):
    """Sum of Gaussian blobs; a Gaussian is a product of x and y, so this is a matrix product."""
    x = (cells.x[:, None] + cells.blob_x)[:, :, None]
    y = (cells.y[:, None] + cells.blob_y)[:, :, None]
    width = cells.blob_radius[:, :, None]
    along_x = np.exp(-0.5 * ((axis - x) / width) ** 2)
    along_y = np.exp(-0.5 * ((axis - y) / width) ** 2) * cells.blob_opl[:, :, None]
    return along_y.transpose(0, 2, 1) @ along_x
