"""Cells under a simulated microscope: those of a dataset, and only the settings change them."""

import numpy as np
import pytest

from cytomad_lib.data.errors import SimulationError
from cytomad_lib.simulation.acquisition import NAMES, batch_table, simulate_cells
from cytomad_lib.simulation.microscope_settings import (
    LIGHT_SETTINGS,
    PHASE_SETTINGS,
    SETTINGS,
    SimulatedMicroscope,
    day_settings,
)
from cytomad_lib.simulation.write import round_to_step


@pytest.fixture(scope="module")
def cells():
    return SimulatedMicroscope("H358", 2, seed=26, batch="Batch1", image_size=32)


def test_they_are_the_cells_of_the_dataset(cells):
    simulated = simulate_cells("H358", 2, "Batch1", seed=26, image_size=32)
    truth = cells.measure().truth[..., 0]
    np.testing.assert_array_equal(truth, round_to_step(simulated.truth, "QPI_TRUE"))
    # A cell with its own settings is the cell of the file, in both images.
    for number, settings in enumerate(simulated.settings.to_dict("records")):
        measured = cells.measure(settings)
        for images, stored, kind in (
            (measured.brightfield, simulated.brightfield, "BF"),
            (measured.qpi, simulated.qpi, "QPI"),
        ):
            expected = round_to_step(stored, kind)[number]
            np.testing.assert_array_equal(images[number, ..., 0], expected)


def test_each_setting_changes_one_of_the_two_images_and_never_the_truth(cells):
    before = cells.measure()
    assert set(SETTINGS) == set(NAMES)
    for name, setting in SETTINGS.items():
        after = cells.measure({name: setting.most})
        other = cells.measure({name: setting.least})
        moved = {
            "brightfield": (after.brightfield != other.brightfield).any(),
            "phase": (after.qpi != other.qpi).any(),
        }
        assert moved.pop(setting.changes), name
        assert not any(moved.values()), name
        np.testing.assert_array_equal(after.truth, before.truth)


def test_the_same_setting_gives_the_same_images(cells):
    a, b = cells.measure({"defocus_um": -4.0}), cells.measure({"defocus_um": -4.0})
    np.testing.assert_array_equal(a.brightfield, b.brightfield)
    assert (a.brightfield != cells.measure().brightfield).any()


def test_the_limits_are_wider_than_any_day():
    for setting in SETTINGS.values():
        assert setting.least <= setting.low < setting.high < setting.most
        assert setting.is_usual(setting.nominal) and not setting.is_usual(setting.most)
    assert min(SETTINGS[name].least for name in ("read_noise", "qpi_noise", "fringe")) >= 0
    assert set(LIGHT_SETTINGS + PHASE_SETTINGS) <= set(SETTINGS)


def test_a_day_has_all_settings():
    table = batch_table(26)
    assert day_settings(26, "Batch4") == table.loc["Batch4"].to_dict()
    assert day_settings(26, "nominal")["defocus_um"] == SETTINGS["defocus_um"].nominal
    with pytest.raises(SimulationError, match="no day 'Monday'.*nominal, Batch1"):
        day_settings(26, "Monday")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"focus": 1.0}, "no setting 'focus'.*defocus_um"),
        ({"na": 0.9}, "na is 0.9.*usual values are from 0.31"),
        ({"read_noise": -0.1}, "read_noise is -0.1"),
        ({"gain": float("nan")}, "gain is nan"),
        ({"fringe_period_um": 0.0}, "fringe_period_um is 0.0"),
    ],
)
def test_settings_that_cannot_be(cells, settings, said):
    with pytest.raises(SimulationError, match=said):
        cells.measure(settings)


def test_cells_that_cannot_be():
    with pytest.raises(SimulationError, match="no cells for 'HeLa'"):
        SimulatedMicroscope("HeLa")
    with pytest.raises(SimulationError, match="Found no cells"):
        SimulatedMicroscope("H69", 0)
