"""What a generator does when one dial of the microscope is turned, and all others stay.

- `sweep_dials`: one dial after another, from end to end; errors against the truth.
- `dial_harm`: the same in one row per dial: which of them hurts most?

The brightfield image is all that a generator sees. So the dials of the phase camera cannot change
a prediction; they change the measured phase, which stands beside it for comparison.

Example
-------
>>> from cytomad_lib.networks import build_generator
>>> from cytomad_lib.simulation.dials import DialledCells
>>> sweep = sweep_dials(build_generator(32, 4), DialledCells("H69", 2, image_size=32), ["na"], 3)
>>> sweep[["dial", "value", "usual"]].to_numpy().tolist()
[['na', 0.31, False], ['na', 0.45, True], ['na', 0.59, False]]
"""

import numpy as np
import pandas as pd

from cytomad_lib.analysis.image_quality import image_scores
from cytomad_lib.prediction import predict
from cytomad_lib.simulation.dials import DIALS, check_settings

# The dials that a learner turns; the fringe's place and period change next to nothing.
SWEPT = (
    "gain",
    "offset",
    "defocus_um",
    "na",
    "oblique_x",
    "oblique_y",
    "fringe",
    "read_noise",
    "qpi_scale",
    "qpi_blur_um",
    "qpi_tilt_x",
    "qpi_tilt_y",
    "qpi_noise",
)


def sweep_dials(generator, cells, dials=SWEPT, steps=7):
    """Turn one dial after another from end to end, and score the predicted phase each time.

    Parameters
    ----------
    generator : keras.Model
    cells : DialledCells
        Ten or more make a smooth curve.
    dials : sequence of str
        Their names, see `cytomad_lib.simulation.dials.DIALS`.
    steps : int
        Settings per dial, evenly spaced.

    Returns
    -------
    DataFrame
        A row per dial and setting: `dial`, `unit`, `value`, `usual` (whether a simulated day could
        have it), `mae_rad` and `pearson_r` of the predicted phase with the batch-free truth, and
        `measured_mae_rad` of the measured phase with it; means over the cells.

    Raises
    ------
    SimulationError
        If there is no such dial.
    """
    rows = []
    for name in dials:
        check_settings({name: DIALS[name].nominal if name in DIALS else 0.0})
        for value in np.linspace(DIALS[name].least, DIALS[name].most, steps):
            scores = score_setting(generator, cells, {name: float(value)})
            usual = DIALS[name].is_usual(value)
            rows.append(
                {"dial": name, "unit": DIALS[name].unit, "value": round(float(value), 9)}
                | {"usual": usual}
                | scores
            )
    return pd.DataFrame(rows)


def score_setting(generator, cells, settings):
    """Measure cells with one setting, predict their phase, and compare it with the truth.

    Parameters
    ----------
    generator : keras.Model
    cells : DialledCells
    settings : dict
        Dial to value; the others are nominal.

    Returns
    -------
    dict
        `mae_rad`, `pearson_r` and `measured_mae_rad`, see `sweep_dials`.
    """
    measured = cells.measure(settings)
    predicted = image_scores(predict(generator, measured).images, measured.truth)
    return {
        "mae_rad": predicted["mae_rad"].mean(),
        "pearson_r": predicted["pearson_r"].mean(),
        "measured_mae_rad": np.abs(measured.qpi - measured.truth).mean(),
    }


def dial_harm(sweep):
    """Say how much harm each dial does over the range of the simulated days.

    Parameters
    ----------
    sweep : DataFrame
        From `sweep_dials`.

    Returns
    -------
    DataFrame
        A row per dial, the worst first: `best_mae_rad` and `worst_mae_rad` of the prediction, and
        `harm_rad`, the difference. Settings that no day could have do not count.
    """
    usual = sweep[sweep["usual"]].groupby("dial", sort=False)["mae_rad"]
    table = pd.DataFrame({"best_mae_rad": usual.min(), "worst_mae_rad": usual.max()})
    table["harm_rad"] = table["worst_mae_rad"] - table["best_mae_rad"]
    return table.sort_values("harm_rad", ascending=False)
