"""The error of a generator while one setting of the microscope changes and all others stay.

- `sweep_settings`: one setting after another, from end to end; errors against the truth.
- `setting_harm`: the same in one row per setting, the most harmful first.

A generator takes the brightfield image only. So the settings of the phase camera cannot change a
prediction; they change the measured phase, whose error is listed for comparison.

Example
-------
>>> from cytomad_lib.networks import build_generator
>>> from cytomad_lib.simulation.microscope_settings import SimulatedMicroscope
>>> microscope = SimulatedMicroscope("H69", 2, image_size=32)
>>> sweep = sweep_settings(build_generator(32, 4), microscope, ["na"], 3)
>>> sweep[["setting", "value", "usual"]].to_numpy().tolist()
[['na', 0.31, False], ['na', 0.45, True], ['na', 0.59, False]]
"""

import numpy as np
import pandas as pd

from cytomad_lib.evaluation.image_quality import image_scores
from cytomad_lib.prediction import predict
from cytomad_lib.simulation.microscope_settings import (
    LIGHT_SETTINGS,
    PHASE_SETTINGS,
    SETTINGS,
    check_settings,
)


def sweep_settings(generator, microscope, names=LIGHT_SETTINGS + PHASE_SETTINGS, steps=7):
    """Change one setting after another from end to end, and score the predicted phase each time.

    Parameters
    ----------
    generator : keras.Model
    microscope : SimulatedMicroscope
        Ten cells or more make a smooth curve.
    names : sequence of str
        Of the settings, see `cytomad_lib.simulation.microscope_settings.SETTINGS`.
    steps : int
        Values per setting, evenly spaced.

    Returns
    -------
    DataFrame
        A row per setting and value: `setting`, `unit`, `value`, `usual` (whether a simulated day
        could have it), `mae_rad` and `pearson_r` of the predicted phase with the batch-free truth,
        and `measured_mae_rad` of the measured phase with it; means over the cells.

    Raises
    ------
    SimulationError
        If there is no such setting.
    """
    rows = []
    for name in names:
        check_settings({name: SETTINGS[name].nominal if name in SETTINGS else 0.0})
        for value in np.linspace(SETTINGS[name].least, SETTINGS[name].most, steps):
            scores = score_settings(generator, microscope, {name: float(value)})
            usual = SETTINGS[name].is_usual(value)
            rows.append(
                {"setting": name, "unit": SETTINGS[name].unit, "value": round(float(value), 9)}
                | {"usual": usual}
                | scores
            )
    return pd.DataFrame(rows)


def score_settings(generator, microscope, settings):
    """Measure cells with these settings, predict their phase, and compare it with the truth.

    Parameters
    ----------
    generator : keras.Model
    microscope : SimulatedMicroscope
    settings : dict
        Name to value; the others are nominal.

    Returns
    -------
    dict
        `mae_rad`, `pearson_r` and `measured_mae_rad`, see `sweep_settings`.
    """
    measured = microscope.measure(settings)
    predicted = image_scores(predict(generator, measured).images, measured.truth)
    return {
        "mae_rad": predicted["mae_rad"].mean(),
        "pearson_r": predicted["pearson_r"].mean(),
        "measured_mae_rad": np.abs(measured.qpi - measured.truth).mean(),
    }


def setting_harm(sweep):
    """List how much each setting adds to the error over the range of the simulated days.

    Parameters
    ----------
    sweep : DataFrame
        From `sweep_settings`.

    Returns
    -------
    DataFrame
        A row per setting, the worst first: `best_mae_rad` and `worst_mae_rad` of the prediction,
        and `harm_rad`, the difference. Values that no day could have do not count.
    """
    usual = sweep[sweep["usual"]].groupby("setting", sort=False)["mae_rad"]
    table = pd.DataFrame({"best_mae_rad": usual.min(), "worst_mae_rad": usual.max()})
    table["harm_rad"] = table["worst_mae_rad"] - table["best_mae_rad"]
    return table.sort_values("harm_rad", ascending=False)
