"""What a drug does to a cell: the H2170 cells of the drug dataset.

Contents: :class:`Drug` (what a full response is, and how many cells respond at each dose),
``DRUGS`` (the three drugs), :func:`find_treatment` (class and dose to cell line, drug and level),
and :func:`treat_cells` (the same cells, after treatment).

A dose does two things: it decides what fraction of the cells responds, and how strongly those that
respond do. The others look untreated, so low doses overlap widely with the control. Whether and how
strongly a cell responds comes from random numbers of its own, which do not depend on the dose: of
the same cells, those that respond to a dose respond to every higher dose, at least as strongly.

The mechanisms are those of the textbooks. How gemcitabine changes area and dry mass at each dose
follows real H2170 cells (see `tests/test_simulated_and_real_cells.py`). The other numbers are
plausible, not measured.

Example
-------
>>> from cytomad_lib.simulation.morphology import LUNG_LINES, cell_generators, draw_cells
>>> cells = draw_cells(LUNG_LINES["H2170"], cell_generators(1, "shape", "mine", range(50)))
>>> streams = cell_generators(1, "response", "mine", range(50))
>>> treated = treat_cells(cells, DRUGS["Gemcitabine"], 5, streams)
>>> bool(treated.diameter.mean() > 1.1 * cells.diameter.mean())
True
"""

from dataclasses import dataclass, replace

import numpy as np

from cytomad_lib.data.errors import SimulationError
from cytomad_lib.data.layouts import DRUG, dose_level
from cytomad_lib.simulation.morphology import LUNG_LINES, CellLine, find_line

TREATED_LINE = "H2170"
SPREAD = 0.20  # of the strength among cells that respond to the same dose, relative s.d.
STRENGTH_LIMITS = (0.4, 1.6)  # of a single cell, relative to the mean of its dose

MAX_LOBES = 3  # beside the rest of the nucleus
MAX_MICRONUCLEI = 3
MAX_BLEBS = 5


@dataclass(frozen=True)
class Drug:
    """What a drug does. Factors are those of a full response; a weaker one does less.

    Attributes
    ----------
    mechanism : str
        In words.
    responders : tuple of float
        Fraction of the cells that respond, at dose levels 1 to 5.
    strength : tuple of float
        Mean strength of their response, 1 = full.
    diameter, delta_n, nucleus_diameter, nucleus_delta_n : float
        Factors on the parameters of the same name of a cell.
    rounding : float
        Part of the cell's elongation and outline roughness that is lost.
    lobed : bool
        The nucleus breaks up into lobes and micronuclei.
    blebs : bool
        The outline bulges.
    """

    mechanism: str
    responders: tuple[float, ...]
    strength: tuple[float, ...]
    diameter: float
    delta_n: float
    nucleus_diameter: float
    nucleus_delta_n: float
    rounding: float = 0.0
    lobed: bool = False
    blebs: bool = False


DRUGS = {
    "Docetaxel": Drug(
        # Slippage out of mitosis leaves several nuclei; dense chromatin in a large, round cell.
        mechanism="mitotic arrest: more and more large, round cells with a multi-lobed nucleus",
        responders=(0.16, 0.33, 0.52, 0.71, 0.90),
        strength=(0.80, 0.85, 0.90, 0.95, 1.00),
        diameter=1.12,
        delta_n=0.96,
        nucleus_diameter=0.74,  # of the largest lobe
        nucleus_delta_n=2.6,
        rounding=0.8,
        lobed=True,
    ),
    "Afatinib": Drug(
        mechanism="EGFR family blocked: smaller, denser cells whose outline blebs",
        responders=(0.20, 0.38, 0.56, 0.74, 0.90),
        strength=(0.40, 0.55, 0.70, 0.85, 1.00),
        diameter=0.86,
        delta_n=1.22,
        nucleus_diameter=0.85,
        nucleus_delta_n=1.2,
        blebs=True,
    ),
    "Gemcitabine": Drug(
        mechanism="S-phase arrest: cells and nuclei grow and do not divide",
        responders=(0.20, 0.80, 0.85, 0.92, 0.97),
        strength=(0.45, 0.92, 0.95, 0.98, 0.99),
        diameter=1.145,
        delta_n=1.02,
        nucleus_diameter=1.30,
        nucleus_delta_n=1.0,
    ),
}


@dataclass(frozen=True)
class Treatment:
    """A cell line and what was done to it; ``level`` 0 is nothing."""

    line: CellLine
    drug: Drug | None = None
    level: int = 0


def find_treatment(class_name, dose=None):
    """Return what the cells of a class (and dose) are.

    Parameters
    ----------
    class_name : str
        A cell line; with a dose: a drug, or the control ``"DMSO"``.
    dose : str, optional
        As in the drug dataset: ``"Control"`` for DMSO, ``"D1"`` to ``"D5"`` for Docetaxel, …

    Raises
    ------
    SimulationError
        For a class or a dose that the simulator does not know.
    """
    if dose is None and class_name not in DRUG.classes:
        return Treatment(find_line(class_name))
    known = list(dict.fromkeys((group.class_name, group.dose) for group in DRUG.groups))
    if (class_name, dose) not in known:
        what = f"{class_name} at dose {dose}" if dose else f"{class_name} without a dose"
        raise SimulationError(
            f"The simulator has no cells for {what!r}. With a dose it makes "
            f"{', '.join(' '.join(pair) for pair in known)}; without, {', '.join(LUNG_LINES)}. "
            "Choose one of these."
        )
    # The control has no drug: its cells are those of the line.
    return Treatment(LUNG_LINES[TREATED_LINE], DRUGS.get(class_name), dose_level(dose))


def response_strength(drug, level, uniform, normal):
    """Return how strongly each cell responds: 0 = not at all, 1 = fully, some a little more.

    Parameters
    ----------
    drug : Drug
    level : int
        Dose level, 1 to 5.
    uniform, normal : numpy.ndarray
        ``(cells,)``: the cells' own random numbers, uniform in 0 to 1 and standard normal.
    """
    responds = uniform < drug.responders[level - 1]
    own = np.clip(1 + SPREAD * normal, *STRENGTH_LIMITS)
    return responds * own * drug.strength[level - 1]


def treat_cells(cells, drug, level, generators):
    """Return the same cells after treatment; those that do not respond are unchanged.

    Parameters
    ----------
    cells : Cells
        Untreated, from :func:`~cytomad_lib.simulation.morphology.draw_cells`.
    drug : Drug
        One of ``DRUGS``.
    level : int
        Dose level, 1 to 5; 0 leaves all cells as they are.
    generators : sequence of numpy.random.Generator
        One stream per cell, for its response; not the stream that drew the cell.

    Returns
    -------
    Cells
    """
    if not 0 <= level <= len(drug.responders):
        raise SimulationError(
            f"The dose level is {level!r}; expected 0 to {len(drug.responders)}, 0 = untreated."
        )
    if level == 0:
        return cells
    # Every cell takes the same count of numbers, whatever its response.
    normal = np.clip(np.array([g.standard_normal() for g in generators]), -3, 3)
    uniform = np.stack(
        [g.random(3 + 3 * (MAX_LOBES + MAX_MICRONUCLEI + MAX_BLEBS)) for g in generators]
    )
    strength = response_strength(drug, level, uniform[:, 0], normal)
    count, turn = uniform[:, 1:2], uniform[:, 2:3]  # how many lobes or blebs, and which way up
    numbers = uniform[:, 3:].reshape(len(uniform), -1, 3)
    nuclear, rim = np.split(numbers, [MAX_LOBES + MAX_MICRONUCLEI], axis=1)

    grown = drug.diameter**strength
    rounder = 1 - np.clip(drug.rounding * strength, 0, 1)
    inner = grown[:, None]  # what is inside moves out with the outline
    treated = replace(
        cells,
        diameter=cells.diameter * grown,
        aspect=1 + (cells.aspect - 1) * rounder,
        outline=cells.outline * rounder[:, None],
        delta_n=cells.delta_n * drug.delta_n**strength,
        nucleus_x=cells.nucleus_x * grown,
        nucleus_y=cells.nucleus_y * grown,
        nucleus_diameter=cells.nucleus_diameter * drug.nucleus_diameter**strength,
        nucleus_delta_n=cells.nucleus_delta_n * drug.nucleus_delta_n**strength,
        blob_x=cells.blob_x * inner,
        blob_y=cells.blob_y * inner,
    )
    if drug.lobed:
        treated = replace(treated, **_lobes(cells, treated, strength, count, turn, nuclear))
    if drug.blebs:
        treated = replace(treated, **_blebs(treated, strength, count, rim))
    return treated


def _lobes(cells, treated, strength, count, turn, numbers):
    """Break the nucleus up: lobes that overlap with it, and micronuclei away from it."""
    which, way, size = np.moveaxis(numbers, 2, 0)
    number = np.arange(MAX_LOBES + MAX_MICRONUCLEI)
    lobe = number < MAX_LOBES
    there = np.where(lobe, number < 2 + np.floor(2 * count), which < 0.5)
    full = np.minimum(strength, 1)[:, None]
    nucleus, body = cells.nucleus_diameter[:, None], treated.diameter[:, None]
    diameter = np.where(lobe, (0.52 + 0.16 * size) * nucleus, 1.8 + 1.2 * size)
    away = np.where(lobe, 0.44 * nucleus, (0.62 + 0.16 * size) * 0.5 * body)
    # Lobes lie around the nucleus, about evenly; micronuclei anywhere.
    angle = 2 * np.pi * np.where(lobe, (number + 0.8 * way) / MAX_LOBES + turn, way)
    x, y = full * away * np.cos(angle), full * away * np.sin(angle)
    # Together they lie in the middle of the cell: half of the nucleus' own displacement is lost.
    middle = 1 - 0.5 * full
    centre_x, centre_y = treated.nucleus_x[:, None] * middle, treated.nucleus_y[:, None] * middle
    return {
        "nucleus_x": centre_x[:, 0],
        "nucleus_y": centre_y[:, 0],
        "lobe_x": x + lobe * centre_x,
        "lobe_y": y + lobe * centre_y,
        "lobe_diameter": there * full * diameter,
    }


def _blebs(treated, strength, count, numbers):
    """Put bulges on the outline, most of each outside of it."""
    _, way, size = np.moveaxis(numbers, 2, 0)
    there = np.arange(MAX_BLEBS) < 2 + np.floor((MAX_BLEBS - 1) * count)
    angle = 2 * np.pi * way
    radius = 0.45 * treated.diameter[:, None]
    stretch = np.sqrt(treated.aspect)[:, None]
    along, across = radius * stretch * np.cos(angle), radius / stretch * np.sin(angle)
    cos, sin = np.cos(treated.angle)[:, None], np.sin(treated.angle)[:, None]
    return {
        "bleb_x": along * cos - across * sin,
        "bleb_y": along * sin + across * cos,
        "bleb_diameter": there * strength[:, None] * (2.1 + 2.3 * size),
    }
