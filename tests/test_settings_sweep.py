"""A setting harms a prediction only where it changes the brightfield image."""

import keras
import numpy as np
import pandas as pd
import pytest

from cytomad_lib.data.errors import SimulationError
from cytomad_lib.evaluation.settings_sweep import score_settings, setting_harm, sweep_settings
from cytomad_lib.simulation.microscope_settings import SETTINGS, SimulatedMicroscope


@pytest.fixture(scope="module")
def cells():
    return SimulatedMicroscope("H69", 3, image_size=32)


@pytest.fixture(scope="module")
def generator():
    """Make a 'generator' whose phase is the darkness of the image: the gain must harm it."""
    brightfield = keras.Input((32, 32, 1))
    phase = keras.layers.Rescaling(-1.0, 1.0, name="image")(brightfield)
    features = keras.layers.GlobalAveragePooling2D()(phase)
    return keras.Model(brightfield, [phase, features])


def test_a_sweep_goes_from_end_to_end_and_only_light_hurts(cells, generator):
    sweep = sweep_settings(generator, cells, ["gain", "qpi_scale"], steps=5)
    gain, scale = (sweep[sweep["setting"] == name] for name in ("gain", "qpi_scale"))
    assert gain["value"].iloc[[0, -1]].tolist() == [SETTINGS["gain"].least, SETTINGS["gain"].most]
    assert gain["usual"].tolist() == [False, True, True, True, False]
    assert gain["mae_rad"].max() > gain["mae_rad"].min() + 0.1
    assert gain["measured_mae_rad"].nunique() == 1
    assert scale["mae_rad"].nunique() == 1
    # The measured phase is best where its scale is right.
    assert scale["value"].iloc[scale["measured_mae_rad"].argmin()] == 1.0


def test_scores_are_those_of_the_prediction(cells, generator):
    scores = score_settings(generator, cells, {"defocus_um": 5.0})
    measured = cells.measure({"defocus_um": 5.0})
    expected = np.abs(1 - measured.brightfield - measured.truth).mean()
    assert scores["mae_rad"] == pytest.approx(expected, rel=1e-4)
    assert -1 <= scores["pearson_r"] <= 1


def test_harm_counts_usual_settings_only_and_has_the_worst_first():
    sweep = pd.DataFrame(
        {
            "setting": ["a"] * 3 + ["b"] * 3,
            "usual": [True, True, False] * 2,
            "mae_rad": [0.1, 0.2, 9.0, 0.1, 0.5, 0.1],
        }
    )
    harm = setting_harm(sweep)
    assert list(harm.index) == ["b", "a"]
    np.testing.assert_allclose(harm["harm_rad"], [0.4, 0.1])
    np.testing.assert_allclose(harm["worst_mae_rad"], [0.5, 0.2])


def test_an_unknown_setting(cells, generator):
    with pytest.raises(SimulationError, match="no setting 'focus'"):
        sweep_settings(generator, cells, ["focus"])
