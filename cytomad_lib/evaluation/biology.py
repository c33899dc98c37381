"""How much of what cells differ by, beyond batch and class, is still in the features.

- `biology_kept` (M1): R² of biophysical measures inside the classes, predicted from features.
- `neighbour_overlap` (M2): are the nearest cells those that are nearest in truth?
- `class_retrieval` (M6): is a cell nearer to its class on other days than to its own day?
- `participation_ratio`, `n_directions`: how many directions the features have.
- `score_biology`: all of them for one set of features, as the rows of a table.

Two more are elsewhere: the order of doses (M5) in `dose_response`, the null control of methods that
use batch labels (M7) in `baselines`.

The truth is the batch-free phase of simulated cells. Where there is none, `standardise_groups`
gives targets without batch effect from the measured phase.

Example
-------
>>> import numpy as np, pandas as pd
>>> rng = np.random.default_rng(0)
>>> measures = pd.DataFrame(rng.normal(size=(90, 3)), columns=["area", "mass", "texture"])
>>> labels = pd.DataFrame({"batch": ["B1", "B2", "B3"] * 30, "class_name": ["H69", "H520"] * 45})
>>> biology_kept(measures[["area"]], measures, labels).round(1).tolist()
[1.0, 0.0, 0.0]
>>> round(participation_ratio(np.c_[measures, measures]), 0)
3.0
"""

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from cytomad_lib.evaluation.tasks import ProbeError, check_features, stratified_folds

BIOLOGY, UNSEEN_BIOLOGY = "biology within class", "biology, unseen batch"
DOSE_ORDER = "dose order, share of truth"
KEPT = (
    BIOLOGY,
    UNSEEN_BIOLOGY,
    "neighbours kept",
    "class retrieved",
    "effective dimensions",
    "directions for 95 %",
    DOSE_ORDER,
)
NEIGHBOURS = 10
QUERIES = 5000  # cells that search for others, at most
ALPHAS = np.logspace(-2, 4, 7)
FOREST = {"n_estimators": 30, "min_samples_leaf": 5, "max_features": 0.3}


def biology_kept(features, truth_measures, labels, seed=0, unseen_batch=False):
    """Predict each measure of the cell from the features, inside the classes (M1).

    In each fold, features and measures are taken as differences from the mean of their class over
    the training cells, so that the class itself explains nothing. A ridge regression (its penalty
    chosen inside the training cells) and a forest predict the measures of the test cells. The R²
    of a measure is 1 - (squared errors) / (squared differences from the class mean), both summed
    over the test cells of all folds in units of the variance of the cell's class, so that every
    class counts the same. The better of the two models counts, measure by measure, and no less
    than 0.

    Parameters
    ----------
    features : array, (cells, features)
    truth_measures : pandas.DataFrame, (cells, measures)
        `biophysics.measure_cells` of the batch-free truth. Where there is none,
        `standardise_groups` of the measured phenotypes. Cells that lack one are left out; so are
        measures that do not vary.
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    seed : int
        Of the folds and the forest.
    unseen_batch : bool
        Leave out one batch in turn instead of one of 5 folds. Cells of classes that are in no
        other batch do not count.

    Returns
    -------
    pandas.Series
        R² of each measure, 0 to 1. Its mean is "biology kept". Noise reaches about 0; the truth's
        own measures reach 1.

    Raises
    ------
    ProbeError
        If lengths differ, features are not finite, or there are too few cells or batches.
    """
    features, batch, class_name = check_features(features, labels)
    y = np.asarray(truth_measures, dtype=float)
    kept = pd.DataFrame(y).std().to_numpy() > 0
    there = np.isfinite(y[:, kept]).all(axis=1)
    x, y, classes = features[there].astype(float), y[np.ix_(there, kept)], class_name.codes[there]
    groups = batch.codes[there] * len(class_name.categories) + classes
    folds = batch.codes[there] if unseen_batch else stratified_folds(groups, seed=seed)
    if len(np.unique(folds)) < 2:
        raise ProbeError("Found cells of one batch; biology in an unseen batch needs at least two.")
    with threadpool_limits(1):
        ridge, forest, mean = sum(
            _fold_sums(x, y, classes, folds == fold, seed) for fold in np.unique(folds)
        )
    r2 = np.clip(1 - np.minimum(ridge, forest) / np.maximum(mean, np.finfo(float).tiny), 0, 1)
    return pd.Series(r2, index=np.asarray(truth_measures.columns)[kept], name="r2")


def neighbour_overlap(features, truth_measures, labels):
    """Return which share of a cell's nearest neighbours are its neighbours in truth (M2).

    The `NEIGHBOURS` nearest cells of the same class, of any batch, by the Euclidean distance of
    standardised features and of standardised measures; mean over the cells of a class, then over
    the classes.

    Parameters
    ----------
    features, truth_measures, labels
        As for `biology_kept`.

    Returns
    -------
    overlap, chance : float
        1 if the features keep all neighbours; chance is what neighbours drawn at random share.
        NaN if no class has more than `NEIGHBOURS` + 1 cells.
    """
    features, _, class_name = check_features(features, labels)
    measures = np.asarray(truth_measures, dtype=float)
    measures = measures[:, ~np.isnan(measures).all(axis=0)]
    there = np.isfinite(measures).all(axis=1)
    overlaps, chances = [], []
    for code in range(len(class_name.categories)):
        own = there & (class_name.codes == code)
        if own.sum() > NEIGHBOURS + 1:
            found, true = (
                NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scaled).kneighbors_graph().astype(bool)
                for scaled in (_standardised(features[own]), _standardised(measures[own]))
            )
            overlaps.append(found.multiply(true).sum() / true.sum())
            chances.append(NEIGHBOURS / (own.sum() - 1))
    return (float(np.mean(overlaps)), float(np.mean(chances))) if overlaps else (np.nan, np.nan)


def class_retrieval(features, labels):
    """Return how well a cell finds its class on other days among other classes of its day (M6).

    For each cell, the others are ranked by the cosine similarity of standardised features.
    Positives are cells of the same class in another batch, negatives are cells of another class in
    the same batch; the rest does not count. Features that follow the batch rank the negatives
    first. The average precision is averaged over the cells of a class, then over the classes.

    Parameters
    ----------
    features, labels
        As for `biology_kept`.

    Returns
    -------
    precision, chance : float
        Chance is the expected average precision of a random order. NaN if no cell has positives
        and negatives.

    Source
    ------
    Kalinin et al. 2025, A versatile information retrieval framework for evaluating profile strength
    and similarity, Nature Communications 16, 5181.
    """
    features, batch, class_name = check_features(features, labels)
    x = _standardised(features)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
    found, expected = (np.full(len(x), np.nan) for _ in range(2))
    for cell in np.random.default_rng(0).permutation(len(x))[:QUERIES]:
        same_class = class_name.codes == class_name.codes[cell]
        same_batch = batch.codes == batch.codes[cell]
        positive, counted = same_class & ~same_batch, same_class != same_batch
        n, n_positive = counted.sum(), positive.sum()
        if 0 < n_positive < n:
            relevant = positive[counted][np.argsort(-(x[counted] @ x[cell]), kind="stable")]
            ranks = 1 + np.flatnonzero(relevant)
            found[cell] = np.mean(np.arange(1, n_positive + 1) / ranks)
            harmonic = np.sum(1 / np.arange(1, n + 1))
            others = (n_positive - 1) / max(n - 1, 1)
            expected[cell] = (harmonic + others * (n - harmonic)) / n
    by_class = pd.DataFrame({"found": found, "expected": expected}).groupby(class_name.codes)
    means = by_class.mean().mean()
    return float(means["found"]), float(means["expected"])


def standardise_groups(measures, labels):
    """Give every group (batch and class) mean 0 and standard deviation 1, measure by measure.

    Whatever a batch shifts or scales is gone from such phenotypes, also what it does to one class
    only. They are the targets of `biology_kept` where no batch-free truth is known.

    Parameters
    ----------
    measures : pandas.DataFrame, (cells, measures)
        `biophysics.measure_cells` of the measured phase.
    labels : pandas.DataFrame
        Columns `batch` and `class_name`.

    Returns
    -------
    pandas.DataFrame
        NaN in a group in which a measure does not vary.
    """
    keys = [labels[name].to_numpy() for name in ("batch", "class_name")]
    groups = measures.groupby(keys, observed=True)
    spread = groups.transform("std", ddof=0)
    return (measures - groups.transform("mean")) / spread.where(spread > 0)


def participation_ratio(features):
    """Return the effective number of dimensions of standardised features.

    (sum of the variances)² / (sum of their squares), of the principal components: as many as there
    are features if these are independent, 1 if all follow one of them. Features that never vary
    do not count.

    Parameters
    ----------
    features : array, (cells, features)
        Cells with a missing value are left out.

    Returns
    -------
    float
        0 if nothing varies.
    """
    variances = _variances(features)
    return float(variances.sum() ** 2 / np.sum(variances**2)) if variances.any() else 0.0


def n_directions(features):
    """Return how many principal components hold 95 % of the variance of standardised features.

    Parameters
    ----------
    features : array, (cells, features)

    Returns
    -------
    int
        0 if nothing varies.
    """
    variances = _variances(features)
    share = 0.95 * variances.sum()
    return int(np.searchsorted(np.cumsum(variances), share) + 1) if variances.any() else 0


def score_biology(features, truth_measures, labels, seed=0):
    """Score one set of features by all of these measures.

    Parameters
    ----------
    features, truth_measures, labels, seed
        As for `biology_kept`.

    Returns
    -------
    pandas.DataFrame
        Columns `measure`, `value` and `chance` (NaN for a number of dimensions).
    """
    kept, unseen = (
        biology_kept(features, truth_measures, labels, seed, unseen_batch).mean()
        for unseen_batch in (False, True)
    )
    values = [
        (kept, 0.0),
        (unseen, 0.0),
        neighbour_overlap(features, truth_measures, labels),
        class_retrieval(features, labels),
        (participation_ratio(features), np.nan),
        (float(n_directions(features)), np.nan),
    ]
    table = pd.DataFrame(values, columns=["value", "chance"])
    table.insert(0, "measure", KEPT[: len(values)])
    return table


# --- helpers ---------------------------------------------------------------------------------


def _standardised(values):
    """Return the columns that vary, with mean 0 and standard deviation 1; else one column of 0."""
    values = np.asarray(values, dtype=float)
    values = values[:, np.ptp(values, axis=0) > 0]
    if not values.size:
        return np.zeros((len(values), 1))
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _variances(features):
    """Return the variances of the principal components of the standardised features."""
    x = np.asarray(features, dtype=float)
    return np.linalg.svd(_standardised(x[np.isfinite(x).all(axis=1)]), compute_uv=False) ** 2


def _fold_sums(x, y, classes, test, seed):
    """Return the squared errors of ridge regression, of the forest and of the class mean.

    Test cells of a class that no training cell has do not count.
    """
    train, test = ~test, test & np.isin(classes, classes[~test])
    if not test.any():
        return np.zeros((3, y.shape[1]))
    (x_train, x_test, _), (y_train, y_test, scale) = (
        _centred(values, classes, train, test) for values in (x, y)
    )
    errors = [y_test]
    for model in (
        ExtraTreesRegressor(**FOREST, random_state=seed),
        RidgeCV(ALPHAS, alpha_per_target=True),
    ):
        predicted = model.fit(x_train, y_train.squeeze()).predict(x_test)
        errors.insert(0, predicted.reshape(y_test.shape) - y_test)
    return np.stack([np.sum((error / scale) ** 2, axis=0) for error in errors])


def _centred(values, classes, train, test):
    """Subtract the class means of the training cells, and divide by the spread that remains.

    Returns
    -------
    train, test : array, (cells, columns)
        A column that does not vary in training is 0: it says nothing about the test cells.
    class_spread : array, (test cells, columns)
        Spread of the cell's class among the training cells, on the new scale.
    """
    means, spreads = np.zeros((2, classes.max() + 1, values.shape[1]))
    for code in np.unique(classes[train]):
        own = values[train & (classes == code)]
        means[code], spreads[code] = own.mean(axis=0), own.std(axis=0)
    centred = values - means[classes]
    scale = centred[train].std(axis=0)
    scale[scale == 0] = np.inf
    class_spread = (spreads / scale)[classes[test]]
    class_spread[class_spread == 0] = np.inf
    return centred[train] / scale, centred[test] / scale, class_spread
