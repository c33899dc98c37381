"""The settings of the simulated microscope, and cells that can be measured with any of them.

In a dataset, every cell was measured once, with the settings of its day. `SimulatedMicroscope`
keeps the cells, and `measure` takes the settings. A setting that is left out has its nominal value,
and noise keeps its pattern, so every change of an image comes from the setting that was changed.

- `Setting`, `SETTINGS`: what can be set, its limits, and the range of the simulated days.
- `LIGHT_SETTINGS`, `PHASE_SETTINGS`: the main ones, of the brightfield and of the phase image.
- `SimulatedMicroscope`: cells that can be measured again and again.

Example
-------
>>> microscope = SimulatedMicroscope("H358", 2, seed=26, batch="Batch1")  # first two of that file
>>> sharp, blurred = (microscope.measure({"defocus_um": value}) for value in (0.0, 9.0))
>>> sharp.brightfield.shape, bool((sharp.truth == blurred.truth).all())
((2, 64, 64, 1), True)
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.errors import SimulationError
from cytomad_lib.simulation.acquisition import (
    NOMINAL,
    NOT_NEGATIVE,
    PARAMETERS,
    Parameter,
    batch_table,
    cell_indices,
    check_image_size,
    fine_phase,
    measure,
)
from cytomad_lib.simulation.morphology import (
    FIELD_OF_VIEW_UM,
    cell_generators,
    draw_cells,
    find_line,
)
from cytomad_lib.simulation.optics import WAVELENGTH_UM
from cytomad_lib.simulation.write import round_to_step

NA_LIMITS = (0.2, 0.7)  # what the computed grid resolves
BATCH = "simulated"  # the batch of cells that are measured here


@dataclass(frozen=True)
class Setting(Parameter):
    """One setting of the microscope: a parameter of the acquisition, with limits.

    Parameters
    ----------
    least, most : float
        The limits: half of the range of the simulated days further, where that is possible.
    changes : {"brightfield", "phase"}
        Which of the two measured images it changes.
    """

    least: float
    most: float
    changes: str

    def is_usual(self, value):
        """Say whether a simulated day could have this value."""
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack


def _limits(name):
    if name == "na":
        return NA_LIMITS
    return (0.0 if name in NOT_NEGATIVE else -np.inf), np.inf


def _make_setting(parameter):
    room, (lowest, highest) = (parameter.high - parameter.low) / 2, _limits(parameter.name)
    least, most = max(parameter.low - room, lowest), min(parameter.high + room, highest)
    return Setting(
        **vars(parameter) | {"unit": parameter.unit.replace("um", "µm")},
        least=round(least, 9),
        most=round(most, 9),
        changes="phase" if parameter.name.startswith("qpi") else "brightfield",
    )


SETTINGS = {parameter.name: _make_setting(parameter) for parameter in PARAMETERS}

# Without the place and the period of the fringe, which change next to nothing.
LIGHT_SETTINGS = (
    "defocus_um", "na", "gain", "offset", "oblique_x", "oblique_y", "fringe", "read_noise",
)  # fmt: skip
PHASE_SETTINGS = ("qpi_scale", "qpi_blur_um", "qpi_tilt_x", "qpi_tilt_y", "qpi_noise")


def day_settings(seed, batch):
    """Return the settings of a simulated day: name to value.

    Parameters
    ----------
    seed : int
        Of the dataset.
    batch : str
        "nominal", or a batch of the lung dataset.

    Raises
    ------
    SimulationError
        If there is no such day.
    """
    table = batch_table(seed)
    if batch not in table.index:
        raise SimulationError(
            f"There is no day {batch!r}. Expected one of {', '.join(table.index)}."
        )
    return {name: float(value) for name, value in table.loc[batch].items()}


class SimulatedMicroscope:
    """Simulated cells under a microscope that measures them with any settings.

    Parameters
    ----------
    class_name : str
        Cell line of the lung dataset.
    cells : int or sequence of int
        How many cells, or their indices in the group's file.
    seed : int
        Of the dataset; the demonstration dataset has 26.
    batch : str, optional
        With it, the cells are those of that batch's file; without it, others.
    image_size : int
        Pixels along each side.
    split : str

    Raises
    ------
    SimulationError
        If the simulator does not know the line, or cannot make that size.
    """

    def __init__(self, class_name, cells=1, seed=26, batch=None, image_size=64, split="Test"):
        check_image_size(image_size)
        self.class_name = class_name
        self.indices, self.image_size = cell_indices(cells), image_size
        self._seed, self._address = seed, f"{batch or 'nominal'}/{class_name}/{split}"
        drawn = draw_cells(find_line(class_name), self._streams("shape"))
        self._phase = fine_phase(drawn, image_size)

    def __len__(self):
        """Return the number of cells."""
        return len(self.indices)

    def measure(self, settings=None):
        """Measure the cells.

        Parameters
        ----------
        settings : dict, optional
            Name to value; the same for all cells. What is left out is nominal.

        Returns
        -------
        CellImages
            With the batch-free truth. The grey levels are those that a dataset's files hold.

        Raises
        ------
        SimulationError
            If there is no such setting, or its value is impossible.
        """
        settings = NOMINAL | check_settings(settings or {})
        values = {name: np.full(len(self), value) for name, value in settings.items()}
        stacks = measure(self._phase, self.image_size, values, self._streams)
        kinds = ("BF", "QPI", "QPI_TRUE")
        images = [round_to_step(*pair)[..., None] for pair in zip(stacks, kinds, strict=True)]
        labels = pd.DataFrame({"cell": self.indices})
        labels["batch"] = pd.Categorical([BATCH] * len(self))
        labels["class_name"] = pd.Categorical([self.class_name] * len(self))
        pixel = FIELD_OF_VIEW_UM / self.image_size
        return CellImages(*images[:2], labels, pixel, images[2], WAVELENGTH_UM)

    def _streams(self, purpose):
        return cell_generators(self._seed, purpose, self._address, self.indices)


def check_settings(settings):
    """Return the settings, or refuse unknown names and impossible values.

    Raises
    ------
    SimulationError
        Names them, and what is possible.
    """
    for name, value in settings.items():
        if name not in SETTINGS:
            raise SimulationError(
                f"There is no setting {name!r}. Expected some of {', '.join(SETTINGS)}."
            )
        least, most = _limits(name)
        positive = value > 0 or name != "fringe_period_um"
        if not (np.isfinite(value) and least <= value <= most and positive):
            raise SimulationError(
                f"{name} is {value!r}. Expected a number such as {SETTINGS[name].nominal}; usual "
                f"values are from {SETTINGS[name].least} to {SETTINGS[name].most}."
            )
    return dict(settings)
