"""The result of a probe: accuracy, chance, null, bits, and what was confused with what.

- `ProbeResult`: one measure of one set of features.
- `make_result`: puts the outcomes of a cross-validation into one.
- `mean_recall`: the accuracy that counts each label the same.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix


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


def mean_recall(values, codes, n_labels):
    """Average `values` (sets, cells) over the cells of each label, then over the labels."""
    recalls = [
        np.mean(values, axis=1, where=codes == k) for k in range(n_labels) if (codes[0] == k).any()
    ]
    return np.mean(recalls, axis=0)


def make_result(measure, scores, chance, outcomes, seed, batches=None):
    """Put the outcomes of a cross-validation into a `ProbeResult`.

    Parameters
    ----------
    measure : str
    scores : dict
        Probe to accuracies (1 + shuffles,): that of the true labels first.
    chance : float
    outcomes : list of (Task, dict, bool array)
        A task, probabilities (cells, labels) by probe, and the cells that count.
    seed : int
    batches : pandas.Index, optional
        Order of the batches, if these were predicted; the result then has `bits`.

    Returns
    -------
    ProbeResult
    """
    strongest = max(scores, key=lambda probe: scores[probe][0])
    null = np.max(list(scores.values()), axis=0)[1:]
    outcomes = [(task, found[strongest], counts) for task, found, counts in outcomes]
    return ProbeResult(
        measure=measure,
        accuracy=float(scores[strongest][0]),
        chance=float(chance),
        null_mean=float(np.mean(null)) if len(null) else np.nan,
        null_95=float(np.quantile(null, 0.95)) if len(null) else np.nan,
        bits=None if batches is None else _bits(outcomes),
        probe=strongest,
        per_probe={probe: float(values[0]) for probe, values in scores.items()},
        by_group=_by_group(outcomes),
        confusion=_confusion(outcomes, batches),
        n_cells=int(sum(counts.sum() for _, _, counts in outcomes)),
        seed=seed,
    )


def _by_group(outcomes):
    """Accuracy per class; of cells of all classes: per left-out batch or per label."""
    accuracy = {}
    for task, found, counts in outcomes:
        right = pd.Series(found.argmax(axis=1) == task.codes)[counts]
        groups, names = (
            (task.folds, task.fold_names) if task.fold_names else (task.codes, task.names)
        )
        means = right.groupby(groups[counts]).mean().reindex(range(len(names))).set_axis(names)
        accuracy |= {task.name: means.mean()} if task.name else means.to_dict()
    return pd.Series(accuracy, name="accuracy")


def _confusion(outcomes, order=None):
    """Count the cells of all tasks by true (rows) and predicted (columns) label."""
    names = list(dict.fromkeys(name for task, _, _ in outcomes for name in task.names))
    if order is not None:
        names = [name for name in order if name in names]
    true, predicted = [], []
    for task, found, counts in outcomes:
        true += [task.names[code] for code in task.codes[counts]]
        predicted += [task.names[code] for code in found.argmax(axis=1)[counts]]
    table = pd.DataFrame(confusion_matrix(true, predicted, labels=names), names, names)
    return table.rename_axis(index="true", columns="predicted")


def _bits(outcomes):
    """log2(labels) minus the cross-entropy after cross-fitted temperature scaling, task mean."""
    # A probability of exactly zero would cost infinitely many bits, so 0.001 is shared out.
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
