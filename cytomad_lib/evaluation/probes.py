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
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix
from threadpoolctl import threadpool_limits

from cytomad_lib.evaluation.classifiers import PROBES, check_probes, cross_validate
from cytomad_lib.evaluation.tasks import (
    FOLDS,
    ProbeError,
    batch_tasks,
    check_features,
    class_tasks,
    unseen_tasks,
    with_shuffles,
)
from cytomad_lib.stopping import in_worker

COLUMNS = ["method", "measure", "accuracy", "chance", "null_mean", "null_95", "bits", "probe"]
COLUMNS += [*PROBES, "n_cells", "seed"]
MEASURES = ("batch within class", "class", "class, unseen batch")


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
    features, batch, class_name = check_features(features, labels)
    tasks, _ = batch_tasks(batch, class_name, n_folds, seed)
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
    features, batch, class_name = check_features(features, labels)
    tasks, _ = class_tasks(batch, class_name, n_folds, seed)
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
    features, batch, class_name = check_features(features, labels)
    if only is not None and only not in batch.categories:
        raise ProbeError(f"There are no cells of {only!r}; choose from {list(batch.categories)}.")
    tasks, _ = unseen_tasks(batch, class_name, only=only)
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
    _, batch, class_name = check_features(np.zeros((len(labels), 1)), labels)
    rows = []
    for measure, find in zip(MEASURES, (batch_tasks, class_tasks, unseen_tasks), strict=True):
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
    _, batches, class_name = check_features(np.zeros((len(labels), 1)), labels)
    unseen_tasks(batches, class_name, only=batch)


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
    check_features(features, labels)
    check_probes(probes)
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


def mean_recall(values, codes, n_labels):
    """Average `values` (sets, cells) over the cells of each label, then over the labels."""
    recalls = [
        np.mean(values, axis=1, where=codes == k) for k in range(n_labels) if (codes[0] == k).any()
    ]
    return np.mean(recalls, axis=0)


def _score(measure, features, tasks, probes, n_permutations, seed, bits=False):
    check_probes(probes)
    rng = np.random.default_rng(seed)
    outcomes, shuffled = [], False
    accuracies = {probe: [] for probe in probes}
    chances = []
    # The matrices are small: more threads than one cost more than they save.
    with threadpool_limits(1):
        for task in tasks:
            codes = with_shuffles(task.codes, task.folds, n_permutations, rng)
            shuffled |= bool((codes != codes[0]).any())
            found = cross_validate(features, task, probes, n_permutations, rng, seed)
            known = task.known()
            # Shuffles keep the label counts of each fold, hence the number of cells that count.
            counts = known[task.folds, codes]
            kept = np.where(counts, codes, -1)
            for probe in probes:
                right = found[probe].argmax(axis=2) == codes
                accuracies[probe].append(mean_recall(right, kept, len(task.names)))
            guess = (1 / np.maximum(known.sum(axis=1), 1))[task.folds]
            chances.append(mean_recall(guess[None], kept[:1], len(task.names))[0])
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
        bits=information(outcomes) if bits else None,
        probe=strongest,
        per_probe={probe: float(values[0]) for probe, values in scores.items()},
        by_group=_by_group(outcomes),
        confusion=confusion_table(outcomes),
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


def confusion_table(outcomes):
    """Count the cells of all tasks by true (rows) and predicted (columns) label."""
    names = list(dict.fromkeys(name for task, _, _ in outcomes for name in task.names))
    true, predicted = [], []
    for task, found, counts in outcomes:
        true += [task.names[code] for code in task.codes[counts]]
        predicted += [task.names[code] for code in found.argmax(axis=1)[counts]]
    table = pd.DataFrame(confusion_matrix(true, predicted, labels=names), names, names)
    return table.rename_axis(index="true", columns="predicted")


def information(outcomes):
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
        - mean_recall(loss[None], task.codes[None], len(task.names))[0] / np.log(2)
        for (task, _, _), loss in zip(outcomes, losses, strict=True)
    ]
    return float(np.mean(gains))
