"""Harmony: soft clusters that are shifted until each holds all batches (package `harmonypy`)."""

import numpy as np
import pandas as pd

from cytomad_lib.evaluation.components import noisy_components
from cytomad_lib.evaluation.erasure import spread_of
from cytomad_lib.evaluation.tasks import ProbeError, check_features

NAME = "Harmony"
NEEDS = "many cells of the batch"


def transform(seed, features, images, labels):
    """Correct the components of the cells."""
    components = noisy_components(features, seed)
    return harmony(components, labels.assign(class_name="any"), seed)


def harmony(features, labels, seed=0):
    """Correct by Harmony.

    Cells are put into soft clusters that are rewarded for holding all batches; each cluster is then
    shifted batch by batch, and this is repeated. Shifts that are large beside the differences
    between cells are hardly removed: the clusters then hold one batch each from the start.

    Parameters
    ----------
    features : array, (cells, features)
        They are divided by their standard deviations, so all have the same weight.
    labels : pandas.DataFrame
        Columns `batch` (used) and `class_name` (not used).
    seed : int
        The same seed gives the same result.

    Returns
    -------
    float32 array, (cells, features)

    Raises
    ------
    ProbeError
        If the package `harmonypy` is not installed, or as `baseline_features`.

    Source
    ------
    Korsunsky et al. 2019, Fast, sensitive and accurate integration of single-cell data with
    Harmony, Nature Methods 16, 1289.
    """
    features, batch, _ = check_features(features, labels)
    try:
        import harmonypy
    except ImportError:
        raise ProbeError(
            "Harmony needs the package harmonypy, which is not installed: `pip install harmonypy` "
            "(there are wheels for Linux and macOS, none for Windows)."
        ) from None
    features = features.astype(float)
    mean, spread = features.mean(axis=0), spread_of(features)
    varies = spread > 0
    if not varies.any():
        return features.astype(np.float32)
    found = harmonypy.run_harmony(
        # Features × cells: the other way round is ambiguous where both are equally many.
        ((features - mean)[:, varies] / spread[varies]).T,
        pd.DataFrame({"batch": np.asarray(batch.codes)}),
        "batch",
        # One cluster per 30 cells is the package's own rule; it would give none for a few cells.
        nclust=int(np.clip(round(len(features) / 30), 2, 100)),
        random_state=seed,
        verbose=False,
        ncores=1,
    )
    features[:, varies] = np.asarray(found.Z_corr) * spread[varies] + mean[varies]
    return features.astype(np.float32)
