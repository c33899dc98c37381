"""How well features order the doses, which no model and no axis here used.

- `dose_distances`: how far the cells of each drug, dose and batch are from the untreated ones.
- `dose_positions`: the position of each cell on the axis from untreated to treated cells, fitted on
  other cells and without the dose.
- `dose_order`: Spearman's rho between dose and position, with interval and null.

Features may be of any kind: the bottleneck, pixels, or `biophysics.measure_cells`. Their unit is
the spread of the untreated cells (each batch around its own mean, so that a batch effect does not
count), and more than `MAX_COMPONENTS` of them are reduced to principal components, fitted on all
cells without any label.

Use Test cells. A model that was trained to keep the class was given the *drug* of the training
cells, but never the dose.

Example
-------
>>> import numpy as np, pandas as pd
>>> rng = np.random.default_rng(0)
>>> groups = [("B1", "DMSO", "Control")] + [("B1", "Docetaxel", f"D{k}") for k in range(1, 6)]
>>> rows = [group for group in groups for _ in range(40)]
>>> labels = pd.DataFrame(rows, columns=["batch", "class_name", "dose"])
>>> features = rng.normal(size=(240, 3))
>>> features[:, 0] += np.repeat(range(6), 40)                   # each dose one further
>>> dose_distances(features, labels, n_bootstrap=20).distance.round().astype(int).tolist()
[0, 1, 2, 3, 4, 4]
>>> dose_order(features, labels, n_bootstrap=20, n_permutations=20).rho_groups.tolist()
[1.0, 1.0]
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cytomad_lib.evaluation.dose_cells import (
    check_cells,
    check_levels,
    covariance_within,
    whitening_of,
)

ALL_BATCHES = "all"  # in the table of `dose_order`: the batches of a drug together


def dose_distances(features, labels, reference="DMSO", seed=0, n_bootstrap=500):
    """Measure how far treated cells are from untreated ones, per drug, dose and batch.

    The distance is that of two group means a and b in units of the spread of untreated cells
    (Mahalanobis): d^2 = (a - b)' S^-1 (a - b), where S is the covariance of the reference cells
    around the mean of their own batch, shrunk as Ledoit and Wolf do. This plain d^2 is too large by
    the noise of both means, which grows with the number of features and falls with the number of
    cells: two halves of the same cells would seem to differ. This expected noise,
    trace(S^-1 cov) / cells of each group, is subtracted, which makes d^2 unbiased for a given S. It
    is the analytic form of the cross-validated distance of Walther et al. S comes from the same
    untreated cells. So a small bias remains if these are few and the features are many. Compare
    with the null, which comes from the same cells.

    So d^2 of equal groups scatters around 0, and may be negative. The distance returned is
    sign(d^2) sqrt(abs(d^2)): a negative distance means that no difference was found.

    Parameters
    ----------
    features : array or pandas.DataFrame, (cells, features) or (cells, height, width[, 1])
        Images are taken as one feature per pixel.
    labels : pandas.DataFrame
        One row per cell: `batch`, `class_name` and `dose`. Doses are those of the drug dataset.
    reference : str
        The untreated class.
    seed : int
        Of the bootstrap and the null.
    n_bootstrap : int
        Resamples of the cells for the bands and the null.

    Returns
    -------
    pandas.DataFrame
        One row per drug, batch and level; level 0 is the reference itself.

        `class_name`, `batch`, `dose` (at level 0 the name of the reference), `level`, `n_cells`
        `distance`, `low`, `high`
            From the reference cells of the same batch, with the 95 % band of the bootstrap over
            the cells of both groups (S is kept). By definition 0 at level 0.
        `null_95`
            95 % quantile of the distances between two samples of reference cells of that batch, as
            large as the two groups.
        `distance_pooled`, `low_pooled`, `high_pooled`
            From the pooled reference cells of all *other* batches: the only comparison for a day
            without a control of its own. It includes the batch effect; at level 0 it is the batch
            effect alone. NaN if there is no other batch.

    Raises
    ------
    DoseError
        If lengths differ, values are not finite, a label is missing, there is no drug, a drug's
        batch has no reference cells, or a group has fewer than `MIN_CELLS` cells.

    Source
    ------
    A. Walther et al., NeuroImage 137, 188 (2016), cross-validated Mahalanobis distance;
    O. Ledoit and M. Wolf, J. Multivariate Analysis 88, 365 (2004), shrinkage.
    """
    cells = check_cells(features, labels, reference)
    rng = np.random.default_rng(seed)
    # In whitened features S is the identity, so distances are plain Euclidean ones.
    white = cells.values @ whitening_of(covariance_within(cells, cells.untreated))
    rows = []
    pairs = [(drug, batch) for drug, own in cells.batches_of_drug().items() for batch in own]
    for drug, batch in pairs:
        treated, own = cells.of(drug, batch), cells.of(reference, batch)
        others = white[cells.untreated & ~own]
        for level in [0, *np.unique(cells.level[treated])]:
            here = treated & (cells.level == level) if level else own
            group, none = white[here], (np.nan,) * 3
            name = cells.dose[here][0] if level else reference
            row = {"class_name": drug, "batch": batch, "dose": name, "level": int(level)}
            row["n_cells"] = len(group)
            band = _with_band(group, white[own], rng, n_bootstrap) if level else (0.0, 0.0, 0.0)
            row |= zip(("distance", "low", "high"), band, strict=True)
            row["null_95"] = _null_95(white[own], len(group), rng, n_bootstrap)
            pooled = _with_band(group, others, rng, n_bootstrap) if len(others) else none
            row |= zip(("distance_pooled", "low_pooled", "high_pooled"), pooled, strict=True)
            rows.append(row)
    return pd.DataFrame(rows)


def dose_positions(features, labels, reference="DMSO", seed=0, n_repeats=10):
    """Place each cell on its drug's axis from untreated to treated; the dose is not used.

    For each drug, the cells of each batch, treated or not, are split into halves at random. On one
    half the axis is fitted: S^-1 (mean of the treated - mean of the untreated). The differences of
    the means are computed within each batch and then averaged; S is as in `dose_distances`. It is
    Fisher's linear discriminant between the drug, all doses mixed, and its control. The other half
    is placed on it; then the halves change roles. This is repeated with other halves and averaged,
    so that no cell takes part in fitting its own axes.

    Parameters
    ----------
    features, labels, reference
        As for `dose_distances`.
    seed : int
        Of the halves.
    n_repeats : int
        Splits into halves.

    Returns
    -------
    pandas.Series
        Position of each cell in standard deviations of the untreated cells along the axis; 0 is
        the mean of the untreated cells of the same batch. NaN for cells of the reference class.

    Raises
    ------
    DoseError
        As `dose_distances`.
    """
    cells = check_cells(features, labels, reference)
    positions = _positions(cells, np.random.default_rng(seed), n_repeats)
    return pd.Series(positions, index=labels.index, name="position")


def dose_order(
    features, labels, reference="DMSO", seed=0, n_repeats=10, n_bootstrap=500, n_permutations=500
):
    """Measure how well features order the doses of each drug.

    Spearman's rho between the dose level (1 to 5; the untreated level, which defines the axis, is
    left out) and the position from `dose_positions`: for the means of the groups, and for single
    cells. Single cells cannot reach 1 where only some of them respond to a dose.

    Parameters
    ----------
    features, labels, reference
        As for `dose_distances`.
    seed : int
        Of the halves, the intervals and the null.
    n_repeats : int
        Splits into halves, see `dose_positions`.
    n_bootstrap : int
        Resamples of the cells of each group for the 95 % intervals. The axes are kept.
    n_permutations : int
        Shuffles of the levels among the cells of a drug and batch, for the null. The axes do not
        depend on the levels, so they are the same under the null.

    Returns
    -------
    pandas.DataFrame
        For each drug a row per batch, and a row with `batch` "all" of all its batches.

        `class_name`, `batch`, `n_groups`, `n_cells`
        `rho_groups`, `low_groups`, `high_groups`, `null_95_groups`, `p_groups`
            Of the group means (one per dose and batch), the 95 % interval, the 95 % quantile of
            the null, and the share of the null that is at least as high. Five doses have only 120
            orders: a batch alone reaches 0.9 by chance in 4 % of all cases.
        `rho_cells`, `low_cells`, `high_cells`, `null_95_cells`, `p_cells`
            The same of single cells.

    Raises
    ------
    DoseError
        As `dose_distances`, or if a drug has fewer than 3 doses in some batch.
    """
    cells = check_cells(features, labels, reference)
    rng = np.random.default_rng(seed)
    positions = _positions(cells, rng, n_repeats)
    rows = []
    for drug, batches in cells.batches_of_drug().items():
        for name in [*batches, ALL_BATCHES]:
            here = (cells.class_name == drug) & ((cells.batch == name) | (name == ALL_BATCHES))
            batch, level = cells.batch[here], cells.level[here]
            check_levels(drug, batch, level)
            row = {"class_name": drug, "batch": name}
            samples = n_bootstrap, n_permutations
            rows.append(row | _order(positions[here], batch, level, rng, *samples))
    return pd.DataFrame(rows)


# --- distances ----------------------------------------------------------------------------------


def _squared(a, b, weights_a=None, weights_b=None):
    """Squared distance of the means of whitened cells, and the noise that it is expected to hold.

    Parameters
    ----------
    a, b : numpy.ndarray
        ``(cells, features)``.
    weights_a, weights_b : numpy.ndarray, optional
        ``(samples, cells)``: how often each sample holds each cell; by default one sample of all.

    Returns
    -------
    square, noise : numpy.ndarray
        ``(samples,)``; square - noise is the unbiased estimate.
    """
    means, noise = [], 0.0
    for cells, weights in ((a, weights_a), (b, weights_b)):
        weights = np.ones((1, len(cells))) if weights is None else weights
        count = weights.sum(axis=1)
        mean = weights @ cells / count[:, None]
        total = weights @ np.sum(cells**2, axis=1) / count - np.sum(mean**2, axis=1)
        noise = noise + total / (count - 1)  # trace of the covariance, by cells
        means.append(mean)
    return np.sum((means[0] - means[1]) ** 2, axis=1), noise


def _root(square):
    """Square root that keeps the sign."""
    return np.sign(square) * np.sqrt(np.abs(square))


def _with_band(a, b, rng, n_bootstrap):
    """Distance of two groups of whitened cells, and its 95 % band."""
    square, noise = _squared(a, b)
    drawn = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), n_bootstrap) for x in (a, b)]
    again, again_noise = _squared(a, b, *drawn)
    # Samples scatter around the plain distance of the cells, which already includes their noise.
    # So it is subtracted twice.
    low, high = np.quantile(again - again_noise - noise, (0.025, 0.975))
    return float(_root(square - noise)[0]), float(_root(low)), float(_root(high))


def _null_95(untreated, n_treated, rng, n_samples):
    """95 % quantile of the distance between two samples of the same untreated cells."""
    even = np.full(len(untreated), 1 / len(untreated))
    drawn = [rng.multinomial(n, even, n_samples) for n in (n_treated, len(untreated))]
    square, noise = _squared(untreated, untreated, *drawn)
    return float(np.quantile(_root(square - noise), 0.95))


# --- order -------------------------------------------------------------------------------------


def _positions(cells, rng, n_repeats):
    total = np.zeros(len(cells.level))
    for _ in range(n_repeats):
        second = _halves(cells, rng)
        for fitted in (second, ~second):
            covariance = covariance_within(cells, fitted & cells.untreated)
            whitening = whitening_of(covariance)
            for drug, batches in cells.batches_of_drug().items():
                shifts = [
                    _mean(cells, drug, batch, fitted) - _mean(cells, cells.reference, batch, fitted)
                    for batch in batches
                ]
                axis = whitening @ (whitening.T @ np.mean(shifts, axis=0))
                axis /= np.sqrt(axis @ covariance @ axis)
                for batch in batches:
                    placed = ~fitted & cells.of(drug, batch)
                    # The origin is that of untreated cells that had no part in the axis either.
                    # From those that had, even pure noise would lie further along.
                    origin = _mean(cells, cells.reference, batch, ~fitted)
                    total[placed] += (cells.values[placed] - origin) @ axis
    return np.where(cells.untreated, np.nan, total / n_repeats)


def _mean(cells, class_name, batch, among):
    return cells.values[among & cells.of(class_name, batch)].mean(axis=0)


def _halves(cells, rng):
    """Mark half of the cells of each class and batch at random; the dose is not used."""
    second = np.zeros(len(cells.level), bool)
    names = np.char.add(np.char.add(cells.class_name, "/"), cells.batch)
    for name in np.unique(names):
        own = rng.permutation(np.flatnonzero(names == name))
        second[own[: len(own) // 2]] = True
    return second


def _order(position, batch, level, rng, n_bootstrap, n_permutations):
    """Return one row of `dose_order`, of the treated cells of one drug."""
    group = np.unique(batch, return_inverse=True)[1] * (level.max() + 1) + level
    days = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    groups = [np.flatnonzero(group == code) for code in np.unique(group)]
    # Samples in rows: drawn anew within each group, and shuffled within each day.
    drawn = np.tile(position, (n_bootstrap, 1))
    for own in groups:
        drawn[:, own] = position[rng.choice(own, (n_bootstrap, len(own)))]
    shuffled = np.tile(position, (n_permutations, 1))
    for own in days:
        shuffled[:, own] = rng.permuted(shuffled[:, own], axis=1)

    row = {"n_groups": len(groups), "n_cells": len(position)}
    for what, rho in (
        ("groups", lambda samples: _spearman(*_group_means(samples, level, groups))),
        ("cells", lambda samples: _spearman(level, samples)),
    ):
        (found,), again, null = rho(position[None]), rho(drawn), rho(shuffled)
        low, high = np.quantile(again, (0.025, 0.975))
        row |= {f"rho_{what}": found, f"low_{what}": low, f"high_{what}": high}
        row[f"null_95_{what}"] = np.quantile(null, 0.95)
        # The true order counts among the shuffles, so p is never 0.
        row[f"p_{what}"] = (1 + np.sum(null >= found - 1e-9)) / (1 + len(null))
    return row


def _group_means(samples, level, groups):
    """Return the level of each group, and its mean position in each sample."""
    means = np.stack([samples[:, own].mean(axis=1) for own in groups], axis=1)
    return np.array([level[own[0]] for own in groups]), means


def _spearman(level, samples):
    """Spearman's rho of the levels with each row of `samples`; 0 if all values are equal."""
    a = rankdata(level) - (len(level) + 1) / 2
    b = rankdata(samples, axis=1) - (len(level) + 1) / 2
    length = np.sqrt((a @ a) * np.sum(b**2, axis=1))
    return np.divide(b @ a, length, out=np.zeros(len(b)), where=length > 0)
