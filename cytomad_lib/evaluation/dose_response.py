"""How much features know of the dose, which no model and no axis here was ever shown.

- `dose_distances`: how far the cells of each drug, dose and batch are from the untreated ones.
- `dose_positions`: where each cell lies on the way from untreated to treated, on an axis fitted on
  other cells and without the dose.
- `dose_order`: do these positions put the doses in order? Spearman's rho, with interval and null.

Features are of any kind: the bottleneck, pixels, or `biophysics.measure_cells`. They are first put
on one scale by the untreated cells (each batch around its own mean, so that a batch effect is no
unit), and more than `MAX_COMPONENTS` of them are reduced to principal components, fitted on all
cells without any label.

Use Test cells, and keep in mind what is compared: the *drug* of the cells was shown to a model that
was trained to keep the class, the dose within the drug never was.

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

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from cytomad_lib.data.errors import CytomadError, DatasetError
from cytomad_lib.data.layouts import dose_level

MAX_COMPONENTS = 50
MIN_CELLS = 4  # of a group, so that both halves of it have a mean and a spread
ALL_BATCHES = "all"  # in the table of `dose_order`: the batches of a drug together


class DoseError(CytomadError):
    """Features or labels whose dose response cannot be told; the message says why."""


def dose_distances(features, labels, reference="DMSO", seed=0, n_bootstrap=500):
    """Measure how far treated cells are from untreated ones, per drug, dose and batch.

    The distance is that of two group means a and b in units of the spread of untreated cells
    (Mahalanobis): d^2 = (a - b)' S^-1 (a - b), where S is the covariance of the reference cells
    around the mean of their own batch, shrunk as Ledoit and Wolf do. Plugged in as it is, d^2 would
    be too large by the noise of both means, the more so the more features and the fewer cells there
    are: two halves of the same cells would seem to differ. This expected noise,
    trace(S^-1 cov) / cells of each group, is subtracted, which makes d^2 unbiased for a given S. It
    is the analytic form of the cross-validated distance of Walther et al. As S comes from the same
    untreated cells, a little bias is left where these are few and the features many; the null, made
    of the same cells, is the judge.

    So d^2 of equal groups scatters around 0, and may be negative. The distance returned is
    sign(d^2) sqrt(abs(d^2)): a negative distance reads "nothing found".

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
        Resamples of the cells behind the bands and the null.

    Returns
    -------
    pandas.DataFrame
        One row per drug, batch and level; level 0 is the reference itself.

        `class_name`, `batch`, `dose` (at level 0 the name of the reference), `level`, `n_cells`
        `distance`, `low`, `high`
            From the reference cells of the same batch, with the 95 % band of the bootstrap over
            the cells of both groups (S is kept). By definition 0 at level 0.
        `null_95`
            Of two samples of reference cells of that batch, as large as the two groups: 95 % of
            their distances lie below.
        `distance_pooled`, `low_pooled`, `high_pooled`
            From the pooled reference cells of all *other* batches: what is left to compare with
            if a day has no control of its own. It holds the batch effect too, and at level 0
            nothing else. NaN if there is no other batch.

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
    _check_samples(n_bootstrap=n_bootstrap)
    cells = _checked(features, labels, reference)
    rng = np.random.default_rng(seed)
    # In whitened features S is the identity, so distances are plain Euclidean ones.
    white = cells.values @ _whitening(_within(cells.values, cells.batch, cells.level == 0))
    rows = []
    for drug, batch in cells.drug_batches():
        treated = cells.of(drug, batch)
        own = white[(cells.level == 0) & (cells.batch == batch)]
        others = white[(cells.level == 0) & (cells.batch != batch)]
        for level in [0, *np.unique(cells.level[treated])]:
            group = white[treated & (cells.level == level)] if level else own
            row = {"class_name": drug, "batch": batch}
            row["dose"] = cells.dose[treated & (cells.level == level)][0] if level else reference
            row |= {"level": int(level), "n_cells": len(group)}
            row["distance"], row["low"], row["high"] = (
                _with_band(group, own, rng, n_bootstrap) if level else (0.0, 0.0, 0.0)
            )
            row["null_95"] = _null_95(own, len(group), rng, n_bootstrap)
            row["distance_pooled"], row["low_pooled"], row["high_pooled"] = (
                _with_band(group, others, rng, n_bootstrap) if len(others) else (np.nan,) * 3
            )
            rows.append(row)
    return pd.DataFrame(rows)


def dose_positions(features, labels, reference="DMSO", seed=0, n_repeats=10):
    """Place each cell on its drug's axis from untreated to treated; the dose plays no part.

    For each drug, the cells of each batch, treated or not, are split into halves at random. On one
    half the axis is fitted: S^-1 (mean of the treated - mean of the untreated), where the means are
    taken batch by batch, so that the difference is one of the same day, and then averaged, and S is
    as in `dose_distances`. It is Fisher's linear discriminant between the drug, all doses mixed,
    and its control. The other half is placed on it; then the halves change roles. Repeated with
    other halves and averaged, every cell gets a position from axes that it had no part in.

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
        the mean of the untreated cells of the same batch. NaN for cells of the reference class
        (they belong to no drug).

    Raises
    ------
    DoseError
        As `dose_distances`.
    """
    cells = _checked(features, labels, reference)
    return _positions(cells, np.random.default_rng(seed), n_repeats)


def dose_order(
    features,
    labels,
    reference="DMSO",
    seed=0,
    n_repeats=10,
    n_bootstrap=500,
    n_permutations=500,
):
    """Tell how well features order the doses of each drug, which nothing here was shown.

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
        Resamples of the cells of each group behind the 95 % intervals. The axes are kept.
    n_permutations : int
        Shuffles of the levels among the cells of a drug and batch, behind the null. The axes know
        no levels, so they are the same under the null.

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
    _check_samples(n_bootstrap=n_bootstrap, n_permutations=n_permutations)
    cells = _checked(features, labels, reference)
    rng = np.random.default_rng(seed)
    positions = _positions(cells, rng, n_repeats).to_numpy()
    rows = []
    for drug, batches in cells.batches_of_drug().items():
        for name, chosen in [(batch, [batch]) for batch in batches] + [(ALL_BATCHES, batches)]:
            here = np.isin(cells.batch, chosen) & (cells.class_name == drug)
            batch, level = cells.batch[here], cells.level[here]
            _check_levels(drug, batch, level)
            rows.append(
                {"class_name": drug, "batch": name}
                | _order(positions[here], batch, level, rng, n_bootstrap, n_permutations)
            )
    return pd.DataFrame(rows)


# --- the cells, on one scale ------------------------------------------------------------------


@dataclass(frozen=True)
class _DoseCells:
    """Features of comparable scale, ``(cells, features)``, with the labels of each cell."""

    values: np.ndarray
    batch: np.ndarray
    class_name: np.ndarray
    dose: np.ndarray
    level: np.ndarray
    reference: str
    index: pd.Index

    def of(self, class_name, batch):
        return (self.class_name == class_name) & (self.batch == batch)

    def batches_of_drug(self):
        """Return {drug: its batches}, both in the order of the labels."""
        found = {}
        for drug, batch in zip(self.class_name, self.batch, strict=True):
            if drug != self.reference and batch not in found.setdefault(drug, []):
                found[drug].append(batch)
        return found

    def drug_batches(self):
        return [(drug, batch) for drug, own in self.batches_of_drug().items() for batch in own]


def _checked(features, labels, reference):
    values = np.asarray(features, dtype=float)
    images = values.ndim > 2
    for column in ("batch", "class_name", "dose"):
        if column not in labels or labels[column].isna().any():
            raise DoseError(
                f"The labels have columns {list(labels.columns)}; a complete `{column}` is needed, "
                "as cells of the drug dataset have it."
            )
    if values.ndim < 2 or len(values) != len(labels):
        raise DoseError(
            f"Found features of shape {values.shape} for {len(labels)} rows of labels; expected "
            "(cells, features) with one row per label. Were both selected by the same cells?"
        )
    values = values.reshape(len(values), -1)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DoseError(
            f"{bad.sum()} of {len(bad)} cells have values that are not finite (first: row "
            f"{bad.argmax()}). Drop those cells."
        )
    batch, class_name, dose = (labels[c].to_numpy(str) for c in ("batch", "class_name", "dose"))
    level = np.where(class_name == reference, 0, _levels(dose))
    _check_groups(batch, class_name, level, reference)
    values = _one_scale(values, batch, level == 0, images)
    return _DoseCells(values, batch, class_name, dose, level, reference, labels.index)


def _check_samples(**counts):
    for name, count in counts.items():
        if int(count) != count or count < 1:
            raise DoseError(f"{name} is {count!r}; expected a whole number above zero.")


def _check_levels(drug, batch, level):
    """Refuse a batch with too few doses to be in an order."""
    for name in np.unique(batch):
        found = np.unique(level[batch == name]).tolist()
        if len(found) < 3:
            raise DoseError(
                f"{drug} in {name} has the dose levels {found}; an order needs 3 at least. Load "
                "more of its doses."
            )


def _levels(dose):
    names, which = np.unique(dose, return_inverse=True)
    try:
        return np.array([dose_level(str(name)) for name in names])[which]
    except DatasetError as error:
        raise DoseError(f"The labels' column `dose`: {error}") from error


def _check_groups(batch, class_name, level, reference):
    """Refuse cells that lack a control, or groups too small for a mean and a spread."""
    treated = class_name != reference
    if not treated.any() or treated.all():
        raise DoseError(
            f"Found the classes {sorted(set(class_name))}; expected the untreated {reference!r} "
            "and at least one drug."
        )
    alone = sorted(set(batch[treated]) - set(batch[~treated]))
    if alone:
        raise DoseError(
            f"There are no {reference} cells in {', '.join(alone)}, so the treated cells of that "
            f"day have no control. Load the {reference} cells of that batch, too."
        )
    if (level[treated] == 0).any():
        raise DoseError("Some treated cells have the dose Control. Check their labels.")
    counts = pd.DataFrame({"class": class_name, "batch": batch, "level": level}).value_counts()
    if counts.min() < MIN_CELLS:
        name = "/".join(map(str, counts.idxmin()))
        raise DoseError(
            f"The group {name} (class/batch/level) has {counts.min()} cells; at least {MIN_CELLS} "
            "are needed. Load more cells per group."
        )


def _one_scale(values, batch, untreated, images):
    """Bring features to comparable units, and to `MAX_COMPONENTS` at most; no label but DMSO."""
    if not images:  # pixels share a unit already
        spread = np.sqrt(np.mean(_centred(values, batch, untreated) ** 2, axis=0))
        # What varies among treated cells only has no unit of its own: it gets a part of its spread.
        spread = np.maximum(spread, 0.1 * values.std(axis=0))
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    n_components = min(MAX_COMPONENTS, len(values) - 1)
    if values.shape[1] > n_components:
        values = PCA(n_components, svd_solver="full").fit_transform(values)
    if not _centred(values, batch, untreated).any():
        raise DoseError("No feature varies among the untreated cells, so distances have no unit.")
    return values


def _centred(values, batch, untreated):
    """Return the untreated cells, each minus the mean of its batch."""
    cells, codes = values[untreated], np.unique(batch[untreated], return_inverse=True)[1]
    sums = np.zeros((codes.max() + 1, cells.shape[1]))
    np.add.at(sums, codes, cells)
    return cells - (sums / np.bincount(codes)[:, None])[codes]


def _within(values, batch, untreated):
    """Covariance of the untreated cells around the mean of their batch, shrunk."""
    centred = _centred(values, batch, untreated)
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    free = len(centred) - len(np.unique(batch[untreated]))
    return covariance * len(centred) / free


def _whitening(covariance):
    """Return W with W W' = covariance^-1."""
    spread, directions = np.linalg.eigh(covariance)
    return directions / np.sqrt(spread)


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
    # Samples scatter around the plug-in distance of the cells, which holds their own noise already:
    # it has to go twice.
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
            covariance = _within(cells.values, cells.batch, fitted & (cells.level == 0))
            whitening = _whitening(covariance)
            for drug, batches in cells.batches_of_drug().items():
                shifts = [
                    _mean(cells, drug, batch, fitted) - _mean(cells, cells.reference, batch, fitted)
                    for batch in batches
                ]
                axis = whitening @ (whitening.T @ np.mean(shifts, axis=0))
                axis /= np.sqrt(axis @ covariance @ axis)
                for batch in batches:
                    placed = ~fitted & cells.of(drug, batch)
                    # Counted from untreated cells that had no part in the axis either: from those
                    # that had, even pure noise would lie further along.
                    origin = _mean(cells, cells.reference, batch, ~fitted)
                    total[placed] += (cells.values[placed] - origin) @ axis
    positions = np.where(cells.class_name == cells.reference, np.nan, total / n_repeats)
    return pd.Series(positions, index=cells.index, name="position")


def _mean(cells, class_name, batch, among):
    return cells.values[among & cells.of(class_name, batch)].mean(axis=0)


def _halves(cells, rng):
    """Mark half of the cells of each class and batch at random; the dose plays no part."""
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
    # Samples in rows: the cells as they are, drawn anew within each group, shuffled within a day.
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
        # The cells as they are count among the shuffles, so p is never 0.
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
