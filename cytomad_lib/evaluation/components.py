"""Components of features that a correction can move without writing a batch in.

A unit with a ReLU is exactly 0 in most cells. A correction that moves and scales each batch gives
these zeros a different value in each batch, and a probe reads the batch from that value, even where
there was no batch effect: two random halves of the same cells were told apart at 0.98. So the
methods that move batches correct `noisy_components`: whitened principal components of the active
units without those of least variance, with noise. Then no value stands for "silent".

Example
-------
>>> features = np.maximum(np.random.default_rng(0).normal(size=(100, 8)), 0)
>>> components = active_components(features)
>>> components(features).std(axis=0).round(3).max()
np.float32(1.0)
"""

import numpy as np

ACTIVE = 0.05  # share of cells in which a unit has another value than its most frequent one
EXPLAINED = 0.99  # share of the variance of the active units that the components keep
MAX_COMPONENTS = 50
# In units of a component's spread. What a correction estimates from some hundred cells is uncertain
# by a tenth of the spread; noise has to be a few times as large to hide it.
NOISE = 0.4


def active_components(features):
    """Fit whitened principal components of the units that are active.

    A unit is active if it has another value than its most frequent one (for a ReLU: 0) in at least
    `ACTIVE` of the cells. If no unit is active, all that vary are used. They are standardised. The
    first principal components are kept that together explain `EXPLAINED` of the variance,
    `MAX_COMPONENTS` at most.

    Parameters
    ----------
    features : array, (cells, features)

    Returns
    -------
    function
        Takes features (cells, features) of any cells; returns float32 (cells, components), each of
        mean 0 and standard deviation 1 over the cells that it was fitted on. One component that is
        0 everywhere, if no unit varies.
    """
    features = np.asarray(features, dtype=float)
    most = [np.unique(unit, return_counts=True)[1].max() for unit in features.T]
    share = 1 - np.array(most) / len(features)
    units = np.flatnonzero(share >= ACTIVE)
    units = units if len(units) else np.flatnonzero(share > 0)
    if not len(units):
        return lambda other: np.zeros((len(other), 1), np.float32)
    mean, spread = features[:, units].mean(axis=0), features[:, units].std(axis=0)
    scaled = (features[:, units] - mean) / spread
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    explained = np.cumsum(singular**2) / np.sum(singular**2)
    kept = min(int(np.searchsorted(explained, EXPLAINED)) + 1, MAX_COMPONENTS, len(singular))
    turn = axes[:kept].T / spread[:, None] / singular[:kept] * np.sqrt(len(features))
    return lambda other: ((np.asarray(other, float)[:, units] - mean) @ turn).astype(np.float32)


def noisy_components(features, seed):
    """Return the `active_components` of features, with noise; constant ones stay constant."""
    components = active_components(features)(features)
    noise = np.random.default_rng(seed).normal(size=components.shape)
    return components + NOISE * noise * (np.ptp(components, axis=0) > 0)


def keep_constant(found, features):
    """Return float32; features that never vary are unchanged."""
    return np.where(np.ptp(features, axis=0) > 0, found, features).astype(np.float32)
