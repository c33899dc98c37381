"""How much of the batch, and of the class, can still be read from features.

A *probe* is a small classifier trained after the fact, on cells that the generator was not trained
on. Four of them (logistic regression, nearest neighbours, a small neural network, and the same on
whitened components) are scored by cross-validation inside the cells given, which should be the Test
cells:

- `within_class_batch_accuracy`: inside each class, tell its batches apart. Low is good.
- `class_accuracy`: tell the classes apart, all batches mixed. High is good.
- `unseen_batch_class_accuracy`: tell the classes apart in a batch that the probe never saw. High
  is good, and this is what removal is for.

`score_results` runs all three, `score_table` does so for several methods. `left_out` names the
cells that a measure cannot count, and why: a class that has one batch has none to tell apart.

Why is there no plain "batch accuracy"? Because class and batch are confounded: in the lung data
each cell line was seen in 3 of the 7 batches. Features that say everything about the class and
nothing about the batch still give 33.3 % plain batch accuracy (47.6 % averaged over batches), not
1/7 = 14.3 %, so the number cannot show success. Inside a class, chance is 1/3 and stays 1/3.

Why whitened components? An adversary can learn to hide a batch where a probe hardly looks: in
directions along which the features vary by a thousandth of what they vary along others.
Standardising each feature for itself does not bring these out.

Four choices hold for every number here:

- *Accuracy is the mean of the recalls* (each label counts the same, however many cells it has),
  and probes are trained on equally many cells of each label (spare ones are left out). So 1 /
  (number of labels) is what a guess that ignores the features gets, also in unbalanced data.
- *The strongest probe is the headline.* Picking the best of four flatters: features of pure noise
  then score a little above chance. The null does the same: labels are shuffled, all probes run
  again, and the best one counts. Compare an accuracy with `null_95`, not with chance alone.
- *Labels are shuffled inside each fold*, so that every training and test set keeps its label counts
  and shuffles differ from the truth in nothing but the link to the features.
- *Scaling and principal components are fitted on training cells only*, once per fold.

Example
-------
>>> import numpy as np, pandas as pd
>>> groups = [(c, b) for c in ("H69", "H520") for b in ("Batch1", "Batch3") for _ in range(10)]
>>> labels = pd.DataFrame(groups, columns=["class_name", "batch"]).astype("category")
>>> features = np.eye(2)[labels["class_name"].cat.codes]        # the class, and nothing else
>>> class_accuracy(features, labels, n_permutations=5).accuracy
1.0
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.stopping import in_worker

PROBES = ("logistic", "knn", "mlp", "whitened")
MAX_COMPONENTS = 100
WHITENED_COMPONENTS = 20  # more would drown in noise what 100 training cells can say
SILENT = 1e-3  # of the largest spread: components below are rounding
NEIGHBOURS = 10
FOLDS = 5
COLUMNS = ["method", "measure", "accuracy", "chance", "null_mean", "null_95", "bits", "probe"]
COLUMNS += [*PROBES, "n_cells", "seed"]
MEASURES = ("batch within class", "class", "class, unseen batch")


class ProbeError(CytomadError):
    """Features or labels that cannot be scored; the message says why and what to do."""


@dataclass(frozen=True)
class ProbeResult:
    """One measure of one set of features.

    Attributes
    ----------
    measure : str
        "batch within class", "class" or "class, unseen batch".
    accuracy : float
        Of the strongest probe, named in `probe`.
    chance : float
        Accuracy of a guess that ignores the features.
    null_mean, null_95 : float
        Mean and 95 % quantile of the same procedure (strongest of the probes) on shuffled labels.
    bits : float or None
        Only for "batch within class": information about the batch, 0 to log2(batches per class).
    per_probe : dict
        Accuracy of each probe.
    by_group : pandas.Series
        Accuracy of the strongest probe per class, or per left-out batch.
    confusion : pandas.DataFrame
        Cells counted by true (rows) and predicted (columns) label, strongest probe.
    n_cells : int
        Cells tested.
    seed : int
    """

    measure: str
    accuracy: float
    chance: float
    null_mean: float
    null_95: float
    bits: float | None
    probe: str
    per_probe: dict
    by_group: pd.Series = field(repr=False)
    confusion: pd.DataFrame = field(repr=False)
    n_cells: int
    seed: int

    def as_row(self):
        """Return the numbers as a flat dictionary, one row of a table."""
        names = ("measure", "accuracy", "chance", "null_mean", "null_95", "bits", "probe")
        row = {name: getattr(self, name) for name in names}
        row["bits"] = np.nan if self.bits is None else self.bits
        return row | self.per_probe | {"n_cells": self.n_cells, "seed": self.seed}


def within_class_batch_accuracy(
    features, labels, seed=0, n_permutations=20, probes=PROBES, n_folds=FOLDS
):
    """Tell the batches of one class apart; averaged over the classes.

    Groups (batch and class) with fewer cells than folds are left out, and so are classes with one
    batch only; `left_out` names them.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
        Images are taken as one feature per pixel.
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    seed : int
        Of the folds, the shuffles and the probes.
    n_permutations : int
        Shuffles of the labels behind `null_mean` and `null_95`.
    probes : sequence of str
        Any of "logistic", "knn", "mlp".
    n_folds : int
        Folds of the cross-validation, stratified by group.

    Returns
    -------
    ProbeResult
        `bits` is log2(batches of the class) minus the cross-entropy of the strongest probe, mean
        over classes: a lower bound on the mutual information between features and batch, given the
        class. Probabilities are calibrated first by one temperature, fitted on the other folds, as
        a probe that is right but overconfident would else score below zero. The value is reported
        as it is: around zero it may be slightly negative, which reads "nothing found".

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, or no class has two batches with enough cells.
    """
    features, batch, class_name = _checked(features, labels, probes)
    tasks, _ = _batch_tasks(batch, class_name, n_folds, seed)
    result = _score("batch within class", features, tasks, probes, n_permutations, seed, bits=True)
    # Found class by class; shown in the order of the batches.
    order = [name for name in batch.categories if name in result.confusion.index]
    return replace(result, confusion=result.confusion.loc[order, order])


def class_accuracy(features, labels, seed=0, n_permutations=20, probes=PROBES, n_folds=FOLDS):
    """Tell the classes apart, every batch being in the training and the test folds.

    A probe may use the batch to narrow down the class (a batch holds only some of the classes), so
    this number alone does not show that the features know the class: see
    `unseen_batch_class_accuracy`.

    Parameters and errors are those of `within_class_batch_accuracy`; at least two classes.

    Returns
    -------
    ProbeResult
    """
    features, batch, class_name = _checked(features, labels, probes)
    tasks, _ = _class_tasks(batch, class_name, n_folds, seed)
    return _score("class", features, tasks, probes, n_permutations, seed)


def unseen_batch_class_accuracy(
    features, labels, seed=0, n_permutations=20, probes=PROBES, only=None
):
    """Tell the classes apart in a batch that the probe never saw: leave one batch out, in turn.

    The left-out cells of all turns are pooled and each class counts the same; `by_group` gives the
    fraction of cells that were right in each left-out batch. A cell whose class is in no other
    batch cannot be predicted and is left out of the score (`n_cells` counts those that are in). So
    are a batch without which one class is left, and groups of fewer than `FOLDS` cells.

    Parameters and errors are those of `within_class_batch_accuracy`; at least two batches and two
    classes. With `only`, the name of a batch, that batch alone is left out and scored: for a
    generator that never saw it either.

    Returns
    -------
    ProbeResult
        Chance is 1 / (classes that the probe knows). The null is NaN where every batch holds one
        class: then there are no labels to shuffle inside a batch.
    """
    features, batch, class_name = _checked(features, labels, probes)
    if only is not None and only not in batch.categories:
        raise ProbeError(f"There are no cells of {only!r}; choose from {list(batch.categories)}.")
    tasks, _ = _unseen_tasks(batch, class_name, only=only)
    return _score("class, unseen batch", features, tasks, probes, n_permutations, seed)


def left_out(labels, n_folds=FOLDS):
    """Name the cells that a measure cannot count, and say why.

    Parameters
    ----------
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    n_folds : int

    Returns
    -------
    list of (str, str, str)
        The measure, what is left out of it ("all" if it cannot be asked at all), and why.

    Raises
    ------
    ProbeError
        If the labels are not complete.
    """
    _, batch, class_name = _checked(np.zeros((len(labels), 1)), labels, PROBES)
    rows = []
    for measure, find in zip(MEASURES, (_batch_tasks, _class_tasks, _unseen_tasks), strict=True):
        try:
            rows += [(measure, *reason) for reason in find(batch, class_name, n_folds)[1]]
        except ProbeError as error:
            rows.append((measure, "all", str(error)))
    return rows


def check_unseen(labels, batch):
    """Refuse a batch of which no cell could be scored if it were left out.

    Raises
    ------
    ProbeError
        As `unseen_batch_class_accuracy` with `only=batch`, which needs features; this does not.
    """
    _, batches, class_name = _checked(np.zeros((len(labels), 1)), labels, PROBES)
    _unseen_tasks(batches, class_name, only=batch)


def score_results(features, labels, seed=0, n_permutations=20, probes=PROBES):
    """Score one set of features by all three measures.

    Returns
    -------
    list of ProbeResult
        In the order of `MEASURES`, without those that cannot be asked of these cells; see
        `left_out`.

    Raises
    ------
    ProbeError
        If lengths differ or values are not finite.
    """
    _checked(features, labels, probes)
    measures = (within_class_batch_accuracy, class_accuracy, unseen_batch_class_accuracy)
    found = []
    for measure in measures:
        with suppress(ProbeError):
            found.append(measure(features, labels, seed, n_permutations, probes))
    return found


def score_side_by_side(methods, labels, seed=0, n_permutations=20, probes=PROBES, n_jobs=2):
    """Start scoring several sets of features, in processes beside this one.

    Parameters
    ----------
    methods : dict
        Name of the method to its features.
    n_jobs : int
        Processes at a time; never more than there are processors. The results do not depend on it.

    Returns
    -------
    generator
        Yields (name, list of `ProbeResult`) in the order of `methods`. Work goes on meanwhile, so
        something else can be done before the first is used.
    """
    n_jobs = min(n_jobs, cpu_count(), len(methods))
    found = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(in_worker)(
            os.getpid(), score_results, features, labels, seed, n_permutations, probes
        )
        for features in methods.values()
    )
    return zip(methods, found, strict=True)


def results_table(results):
    """Put the results of several methods into one table.

    Parameters
    ----------
    results : dict
        Name of the method to its list of `ProbeResult`.

    Returns
    -------
    pandas.DataFrame
        Tidy: one row per method and measure, column `method` first, then `ProbeResult.as_row`.
    """
    rows = [{"method": name} | result.as_row() for name, own in results.items() for result in own]
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def score_table(methods, labels, seed=0, n_permutations=20, probes=PROBES):
    """Score several sets of features of the same cells.

    Parameters
    ----------
    methods : dict
        Name of the method to its features.

    Returns
    -------
    pandas.DataFrame
        As `results_table`.
    """
    return results_table(
        {
            name: score_results(features, labels, seed, n_permutations, probes)
            for name, features in methods.items()
        }
    )


# --- what is being predicted, from which folds -----------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One cross-validation: the cells, the label of each, and the fold that each is tested in.

    With `only`, that fold alone is tested. The name is that of the class whose cells these are, or
    empty.
    """

    name: str
    cells: np.ndarray
    codes: np.ndarray
    names: tuple
    folds: np.ndarray
    fold_names: tuple = ()
    only: int | None = None

    def tested_folds(self):
        return np.unique(self.folds) if self.only is None else np.array([self.only])


def _checked(features, labels, probes):
    features = np.asarray(features, dtype=np.float32)
    for column in ("batch", "class_name"):
        if column not in labels:
            raise ProbeError(
                f"The labels have columns {list(labels.columns)}; `{column}` is needed. "
                "Pass the labels table of CellImages or of a Prediction."
            )
    if features.ndim < 2 or len(features) != len(labels):
        raise ProbeError(
            f"Found features of shape {features.shape} for {len(labels)} rows of labels; expected "
            "(cells, features) with one row per label. Were both selected by the same cells?"
        )
    bad = ~np.isfinite(features.reshape(len(features), -1)).all(axis=1)
    if bad.any():
        raise ProbeError(
            f"{bad.sum()} of {len(bad)} cells have values that are not finite (first: row "
            f"{bad.argmax()}). Did training diverge? Drop those cells or use an earlier model."
        )
    unlabelled = labels[["batch", "class_name"]].isna().any(axis=1)
    if unlabelled.any():
        raise ProbeError(f"{unlabelled.sum()} cells lack a batch or class name. Drop those cells.")
    unknown = set(probes) - set(PROBES)
    if unknown or not probes:
        raise ProbeError(f"Probes {list(probes)} were asked for; choose from {list(PROBES)}.")
    batch, class_name = (
        pd.Categorical(labels[c].astype("category")).remove_unused_categories()
        for c in ("batch", "class_name")
    )
    return features.reshape(len(features), -1), batch, class_name


def _need_two(what, values, reasons=()):
    if len(values.categories) < 2:
        too_few = f" Left out are {_listed(reasons)}." if reasons else ""
        raise ProbeError(
            f"Found {what} {list(values.categories)}; at least two are needed.{too_few}"
        )


def _folds(codes, n_folds, seed):
    """Return the fold in which each cell is tested, stratified by `codes`."""
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(codes), dtype=int)
    for fold, (_, test) in enumerate(splitter.split(codes, codes)):
        folds[test] = fold
    return folds


# Each of these returns the tasks, and what they leave out as (what, why).


def _large_groups(batch, class_name, least):
    """Return the cells of groups that are large enough, their group names, and the others."""
    groups = np.array([f"{c} in {b}" for c, b in zip(class_name, batch, strict=True)])
    counts = pd.Series(groups).value_counts(sort=False)
    few = counts[counts < least]
    reasons = [
        (name, f"{count} cell{'s' * (count != 1)}; at least {least} are needed")
        for name, count in few.items()
    ]
    return np.flatnonzero(~np.isin(groups, few.index)), groups, reasons


def _batch_tasks(batch, class_name, n_folds=FOLDS, seed=0):
    """Find a task per class that was seen in two batches or more: tell these apart."""
    large, _, reasons = _large_groups(batch, class_name, n_folds)
    tasks = []
    for name in class_name.categories:
        cells = large[class_name[large] == name]
        batches = batch[cells].remove_unused_categories()
        if len(batches.categories) >= 2:
            folds = _folds(batches.codes, n_folds, seed)
            tasks.append(_Task(name, cells, batches.codes, tuple(batches.categories), folds))
        elif len(cells):
            reasons.append((name, f"seen in one batch only, {batches.categories[0]}"))
    if not tasks:
        raise ProbeError(
            "No class was seen in two batches with enough cells, so batches cannot be told apart "
            f"within a class: {_listed(reasons)}. Give cells of a class from at least two batches."
        )
    return tasks, reasons


def _class_tasks(batch, class_name, n_folds=FOLDS, seed=0):
    """Find the one task of telling the classes apart."""
    cells, groups, reasons = _large_groups(batch, class_name, n_folds)
    classes = class_name[cells].remove_unused_categories()
    _need_two("classes", classes, reasons)
    folds = _folds(pd.Categorical(groups[cells]).codes, n_folds, seed)
    return [_Task("", cells, classes.codes, tuple(classes.categories), folds)], reasons


def _unseen_tasks(batch, class_name, n_folds=FOLDS, only=None):
    """Find the one task of telling the classes apart in a batch that is left out."""
    cells, _, reasons = _large_groups(batch, class_name, n_folds)
    classes, batches = (values[cells].remove_unused_categories() for values in (class_name, batch))
    _need_two("classes", classes, reasons)
    _need_two("batches", batches, reasons)
    if only is not None and only not in batches.categories:
        raise ProbeError(f"No cell of {only} can be predicted: {_listed(reasons)}.")
    place = None if only is None else batches.categories.get_loc(only)
    names = tuple(classes.categories), tuple(batches.categories)
    task = _Task("", cells, classes.codes, names[0], batches.codes, names[1], place)
    counts = pd.crosstab(np.asarray(batches), np.asarray(classes))
    for fold in task.tested_folds():
        left = names[1][fold]
        here, elsewhere = counts.loc[left] > 0, counts.drop(left).sum() > 0
        reasons += [
            (f"{name} in {left}", "seen in one batch only, so no probe knows it elsewhere")
            for name in counts.columns[here & ~elsewhere]
        ]
        if elsewhere.sum() < 2:
            reasons.append((left, "the other batches hold one class only"))
    if ((counts > 0).sum(axis=1) == 1).all():
        reasons.append(("the null", "every batch holds one class, so no labels can be shuffled"))
    counted = np.unique(task.codes[_known(task)[task.folds, task.codes]])
    if not len(counted):
        where = "an unseen batch" if only is None else only
        raise ProbeError(
            f"No cell of {where} can be predicted: {_listed(reasons)}. Give cells of two classes "
            "or more from at least two batches each."
        )
    if len(counted) == 1:
        name = names[0][counted[0]]
        why = f"{name} alone can be scored: the answer {name} is always right, so read the null"
        reasons.append((f"classes other than {name}", why))
    return [task], reasons


def _listed(reasons, most=3):
    """Return reasons as text: the first few, and how many more there are."""
    told = "; ".join(f"{what}: {why}" for what, why in reasons[:most])
    return told + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")


def _known(task):
    """Return (folds, labels): whether the label is among the training cells of that fold.

    In a fold that is not tested, no label is, nor where the training cells have one label only.
    """
    counts = np.zeros((task.folds.max() + 1, len(task.names)), dtype=int)
    np.add.at(counts, (task.folds, task.codes), 1)
    known = counts.sum(axis=0) - counts > 0
    tested = np.isin(np.arange(len(known)), task.tested_folds())
    return known & (tested & (known.sum(axis=1) > 1))[:, None]


def _with_shuffles(codes, folds, n_permutations, rng):
    """Return (1 + permutations, cells): the true labels, then shuffles inside each fold."""
    sets = np.tile(codes.astype(int), (1 + n_permutations, 1))
    for fold in np.unique(folds):
        inside = np.flatnonzero(folds == fold)
        sets[1:, inside] = rng.permuted(sets[1:, inside], axis=1)
    return sets


def _balanced(cells, codes, rng):
    """Draw the same number of `cells` of each label: as many as the rarest one has."""
    labels, counts = np.unique(codes[cells], return_counts=True)
    draws = [rng.permutation(cells[codes[cells] == k])[: counts.min()] for k in labels]
    return np.sort(np.concatenate(draws))


# --- the probes: (train, codes (sets, cells), test, labels, seed) -> (sets, cells, labels) -------


def _logistic(train, codes, test, n_labels, seed):
    probabilities = np.zeros((len(codes), len(test), n_labels), dtype=np.float32)
    # Newton steps: few of them, so little overhead on the many small fits of the null.
    model = LogisticRegression(C=0.3, solver="newton-cg", tol=1e-3, max_iter=500)
    for found, y in zip(probabilities, codes, strict=True):
        model.fit(train, y)
        found[:, model.classes_] = model.predict_proba(test)
    return probabilities


def _knn(train, codes, test, n_labels, seed):
    # Who is near to whom does not depend on the labels: one search serves all shuffles.
    k = min(NEIGHBOURS, len(train))
    near = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(test, return_distance=False)
    return np.eye(n_labels, dtype=np.float32)[codes[:, near]].mean(axis=2)


def _mlp(train, codes, test, n_labels, seed, hidden=32, steps=60, rate=0.1, decay=1.0):
    """Train one network (a hidden layer of ReLUs) per set of labels, all of them side by side.

    It is what `MLPClassifier` does, with full batches and Adam with weight decay. Side by side,
    matrices are (sets, …), and the null costs seconds where one fit after the other took minutes.
    """
    rng = np.random.default_rng(seed)
    sizes = (train.shape[1], hidden), (hidden, n_labels)
    n_sets = len(codes)
    w1, w2 = (rng.normal(0, np.sqrt(2 / a), (n_sets, a, b)).astype(np.float32) for a, b in sizes)
    b1, b2 = (np.zeros((n_sets, 1, b), dtype=np.float32) for _, b in sizes)
    parameters = [w1, b1, w2, b2]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    truth = np.eye(n_labels, dtype=np.float32)[codes]
    for step in range(1, steps + 1):
        active = np.maximum(train @ w1 + b1, 0)
        error = (softmax(active @ w2 + b2, axis=2) - truth) / len(train)
        back = (error @ w2.transpose(0, 2, 1)) * (active > 0)
        gradients = (
            train.T @ back,
            back.sum(axis=1, keepdims=True),
            active.transpose(0, 2, 1) @ error,
            error.sum(axis=1, keepdims=True),
        )
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        for w in (w1, w2):
            w *= 1 - rate * decay
    return softmax(np.maximum(test @ w1 + b1, 0) @ w2 + b2, axis=2)


def _whitened(train, codes, test, n_labels, seed):
    """Train the network on the first principal components, each of spread 1."""
    spread = train.std(axis=0)
    kept = np.flatnonzero(spread >= SILENT * spread.max())[:WHITENED_COMPONENTS]
    scale = np.where(spread[kept] > 0, spread[kept], 1)
    return _mlp(train[:, kept] / scale, codes, test[:, kept] / scale, n_labels, seed)


_PROBE_FUNCTIONS = {"logistic": _logistic, "knn": _knn, "mlp": _mlp, "whitened": _whitened}


# --- cross-validation and scores -------------------------------------------------------------


def _compress(train, test, seed):
    """Standardise, then rotate to the principal components of the training cells.

    With fewer than 100 training cells this loses nothing that a probe could learn.
    """
    if np.ptp(train, axis=0).max() == 0:
        return np.zeros((len(train), 1), np.float32), np.zeros((len(test), 1), np.float32)
    n_components = min(MAX_COMPONENTS, len(train) - 1, train.shape[1])
    model = make_pipeline(StandardScaler(), PCA(n_components, random_state=seed))
    train = model.fit_transform(train)
    # One common scale: the components keep their proportions, the probes meet values around 1.
    scale = train.std()
    return train / scale, model.transform(test) / scale


def _cross_validate(features, task, probes, n_permutations, rng, seed):
    """Return {probe: probabilities (sets, cells, labels)}; each cell from its own test fold."""
    shape = (1 + n_permutations, len(task.cells), len(task.names))
    found = {probe: np.zeros(shape, dtype=np.float32) for probe in probes}
    for fold in np.flatnonzero(_known(task).any(axis=1)):
        test = task.folds == fold
        train = _balanced(np.flatnonzero(~test), task.codes, rng)
        codes = _with_shuffles(task.codes[train], task.folds[train], n_permutations, rng)
        x_train, x_test = _compress(features[task.cells[train]], features[task.cells[test]], seed)
        for probe in probes:
            found[probe][:, test] = _PROBE_FUNCTIONS[probe](
                x_train, codes, x_test, len(task.names), seed
            )
    return found


def _mean_recall(values, codes, n_labels):
    """Average `values` (sets, cells) over the cells of each label, then over the labels."""
    recalls = [
        np.mean(values, axis=1, where=codes == k) for k in range(n_labels) if (codes[0] == k).any()
    ]
    return np.mean(recalls, axis=0)


def _score(measure, features, tasks, probes, n_permutations, seed, bits=False):
    rng = np.random.default_rng(seed)
    outcomes, shuffled = [], False
    accuracies = {probe: [] for probe in probes}
    chances = []
    # The matrices are small: more threads than one cost more than they save.
    with threadpool_limits(1):
        for task in tasks:
            codes = _with_shuffles(task.codes, task.folds, n_permutations, rng)
            shuffled |= bool((codes != codes[0]).any())
            found = _cross_validate(features, task, probes, n_permutations, rng, seed)
            known = _known(task)
            # Shuffles keep the label counts of each fold, hence the number of cells that count.
            counts = known[task.folds, codes]
            kept = np.where(counts, codes, -1)
            for probe in probes:
                right = found[probe].argmax(axis=2) == codes
                accuracies[probe].append(_mean_recall(right, kept, len(task.names)))
            guess = (1 / np.maximum(known.sum(axis=1), 1))[task.folds]
            chances.append(_mean_recall(guess[None], kept[:1], len(task.names))[0])
            outcomes.append((task, {p: q[0] for p, q in found.items()}, counts[0]))
    scores = {probe: np.mean(values, axis=0) for probe, values in accuracies.items()}
    strongest = max(probes, key=lambda probe: scores[probe][0])
    # Where each fold holds one label, shuffling changes nothing, and there is no null.
    null = np.max(list(scores.values()), axis=0)[1:] if shuffled else []
    outcomes = [(task, found[strongest], counts) for task, found, counts in outcomes]
    return ProbeResult(
        measure=measure,
        accuracy=float(scores[strongest][0]),
        chance=float(np.mean(chances)),
        null_mean=float(np.mean(null)) if len(null) else np.nan,
        null_95=float(np.quantile(null, 0.95)) if len(null) else np.nan,
        bits=_bits(outcomes) if bits else None,
        probe=strongest,
        per_probe={probe: float(values[0]) for probe, values in scores.items()},
        by_group=_by_group(outcomes),
        confusion=_confusion(outcomes),
        n_cells=int(sum(counts.sum() for _, _, counts in outcomes)),
        seed=seed,
    )


def _by_group(outcomes):
    """Accuracy per class; of cells of all classes: per left-out batch or per label."""
    accuracy = {}
    for task, found, counts in outcomes:
        right = found.argmax(axis=1) == task.codes
        groups, names = (
            (task.folds, task.fold_names) if task.fold_names else (task.codes, task.names)
        )
        parts = {name: right[counts & (groups == k)] for k, name in enumerate(names)}
        means = {name: part.mean() if len(part) else np.nan for name, part in parts.items()}
        accuracy |= {task.name: np.mean(list(means.values()))} if task.name else means
    return pd.Series(accuracy, name="accuracy")


def _confusion(outcomes):
    names = list(dict.fromkeys(name for task, _, _ in outcomes for name in task.names))
    table = pd.DataFrame(0, index=names, columns=names)
    for task, found, counts in outcomes:
        own = np.zeros((len(task.names), len(task.names)), dtype=int)
        np.add.at(own, (task.codes[counts], found.argmax(axis=1)[counts]), 1)
        table.loc[list(task.names), list(task.names)] += own
    return table.rename_axis(index="true", columns="predicted")


def _bits(outcomes):
    """log2(labels) minus the cross-entropy after cross-fitted temperature scaling, task mean."""
    # A vote of exactly zero would cost infinitely many bits; one in a thousand is left for it.
    logs = [np.log(0.999 * found + 0.001 / len(task.names)) for task, found, _ in outcomes]
    losses = [np.empty(len(task.cells)) for task, _, _ in outcomes]

    def loss(index, cells, log_temperature):
        scaled = log_softmax(logs[index][cells] / np.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(scaled)), outcomes[index][0].codes[cells]]

    for fold in np.unique(outcomes[0][0].folds):
        others = [task.folds != fold for task, _, _ in outcomes]
        fitted = minimize_scalar(
            lambda t, others=others: sum(loss(i, o, t).sum() for i, o in enumerate(others)),
            bounds=(-3, 6),
            method="bounded",
        )
        for index, other in enumerate(others):
            losses[index][~other] = loss(index, ~other, fitted.x)
    gains = [
        np.log2(len(task.names))
        - _mean_recall(loss[None], task.codes[None], len(task.names))[0] / np.log(2)
        for (task, _, _), loss in zip(outcomes, losses, strict=True)
    ]
    return float(np.mean(gains))
