"""The losses of a training stage, a row per epoch: an epoch counts once its row is written.

Example
-------
>>> history = read_history("results/run/pretraining")
>>> history["val_loss"].min()
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.data.errors import RunError

HISTORY = "history.csv"
SECONDS = "seconds"  # the column of wall time


def read_history(folder):
    """Read the losses per epoch of a stage.

    Parameters
    ----------
    folder : path
        The stage's.

    Returns
    -------
    DataFrame
        Empty before the first epoch.

    Raises
    ------
    RunError
        If no training can have written the file, as when two wrote it at the same time.
    """
    path = Path(folder) / HISTORY
    if not path.exists():
        return pd.DataFrame()
    try:
        history = pd.read_csv(path)
        problem = _problem(history)
    except ValueError as error:  # no table, or no text
        problem = f"cannot be read ({error})"
    if problem:
        raise RunError(
            f"{path} {problem}. Expected a row per epoch, counted from 1, and a finite number in "
            f"each cell. Restore the file, or remove {path.parent} and train this stage anew."
        )
    return history


def _problem(history):
    """Say what is wrong with a table of losses; None if nothing is."""
    missing = [name for name in ("epoch", "val_loss") if name not in history]
    if missing:
        return f"has no column {' and '.join(missing)}"
    if not len(history):
        return "has no epoch"
    losses = history.drop(columns=SECONDS, errors="ignore")
    for name, values in losses.apply(pd.to_numeric, errors="coerce").items():
        wrong = ~np.isfinite(values)
        if wrong.any():
            row = wrong.idxmax()
            return f"has {str(losses[name][row])!r} in column {name}, line {row + 2}"
    for row, epoch in enumerate(history["epoch"]):
        if epoch != row + 1:
            return f"has epoch {epoch} in line {row + 2}, where epoch {row + 1} belongs"
    return None


def best_epoch(history, last=False):
    """Return the epoch of the lowest validation loss, or the last one."""
    return int(
        history["epoch"].iloc[-1] if last else history["epoch"][history["val_loss"].idxmin()]
    )
