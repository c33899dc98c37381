"""How much of what cells differ by, beyond batch and class, is still in the features.

- `biology_kept` (M1): R² of biophysical measures inside the classes, predicted from features.
- `standardise_groups`: measured phenotypes as targets without batch, where no truth is known.
- `participation_ratio`, `n_directions`: how many directions the features have.

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
from threadpoolctl import threadpool_limits

from cytomad_lib.analysis.probes import FOLDS, PROBES, ProbeError, _checked, _folds

ALPHAS = np.logspace(-2, 4, 7)
FOREST = {"n_estimators": 50, "min_samples_leaf": 3, "max_features": 0.3}


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
    features, batch, class_name = _checked(features, labels, PROBES)
    y = np.asarray(truth_measures, dtype=float)
    kept = pd.DataFrame(y).std().to_numpy() > 0
    there = np.isfinite(y[:, kept]).all(axis=1)
    x, y, classes = features[there].astype(float), y[np.ix_(there, kept)], class_name.codes[there]
    groups = batch.codes[there] * len(class_name.categories) + classes
    folds = batch.codes[there] if unseen_batch else _folds(groups, FOLDS, seed)
    if len(np.unique(folds)) < 2:
        raise ProbeError("Found cells of one batch; biology in an unseen batch needs at least two.")
    with threadpool_limits(1):
        ridge, forest, mean = sum(
            _fold_sums(x, y, classes, folds == fold, seed) for fold in np.unique(folds)
        )
    r2 = np.clip(1 - np.minimum(ridge, forest) / np.maximum(mean, np.finfo(float).tiny), 0, 1)
    return pd.Series(r2, index=np.asarray(truth_measures.columns)[kept], name="r2")


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


def n_directions(features, share=0.95):
    """Return how many principal components hold a share of the variance of standardised features.

    Parameters
    ----------
    features : array, (cells, features)
    share : float

    Returns
    -------
    int
        0 if nothing varies.
    """
    variances = _variances(features)
    if not variances.any():
        return 0
    return int(np.searchsorted(np.cumsum(variances), share * variances.sum()) + 1)


# --- helpers ---------------------------------------------------------------------------------


def _variances(features):
    """Return the variances of the principal components of the standardised features."""
    x = np.asarray(features, dtype=float)
    x = x[np.isfinite(x).all(axis=1)]
    x = x[:, np.ptp(x, axis=0) > 0]
    if not x.size:
        return np.zeros(1)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.linalg.svd(x, compute_uv=False) ** 2 / len(x)


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
    """Subtract the class means of the training cells, and divide by what is left of their spread.

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
