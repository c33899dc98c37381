"""What a probe predicts, and in which fold each cell is tested.

- `batch_tasks`: inside each class, its batches.
- `class_tasks`: the classes, all batches mixed.
- `unseen_tasks`: the classes in a batch that is left out.

Each returns the tasks, and what they leave out as pairs (what, why).

Example
-------
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 5, "class_name": "H69"})
>>> _, batch, class_name = check_features(np.zeros((10, 3)), labels)
>>> tasks, left_out = batch_tasks(batch, class_name)
>>> tasks[0].names, len(left_out)
(('B1', 'B2'), 0)
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.folders import listed

FOLDS = 5


class ProbeError(CytomadError):
    """Features or labels that cannot be scored; the message says why and what to do."""


@dataclass(frozen=True)
class Task:
    """One cross-validation: the cells, their labels and the fold in which each is tested.

    Attributes
    ----------
    name : str
        The class whose cells these are; empty for cells of all classes.
    cells : int array
        Rows of the features.
    codes : int array
        The label of each cell, as its place in `names`.
    names : tuple of str
    folds : int array
        The fold in which each cell is tested.
    fold_names : tuple of str
        Names of the folds, where a fold is a batch.
    only : int, optional
        The one fold to test. By default all are tested.
    """

    name: str
    cells: np.ndarray
    codes: np.ndarray
    names: tuple
    folds: np.ndarray
    fold_names: tuple = ()
    only: int | None = None

    def tested_folds(self):
        """Return the folds that are tested."""
        return np.unique(self.folds) if self.only is None else np.array([self.only])

    def known(self):
        """Return (folds, labels): whether a label is among the training cells of that fold.

        No label is known in a fold that is not tested, or whose training cells have one label.
        """
        counts = np.zeros((self.folds.max() + 1, len(self.names)), dtype=int)
        np.add.at(counts, (self.folds, self.codes), 1)
        known = counts.sum(axis=0) - counts > 0
        tested = np.isin(np.arange(len(known)), self.tested_folds())
        return known & (tested & (known.sum(axis=1) > 1))[:, None]


def check_rows(features, labels, columns=("batch", "class_name"), error=ProbeError):
    """Refuse features that do not belong to the rows of a table of labels.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
    labels : pandas.DataFrame
        One row per cell.
    columns : sequence of str
        Columns of the labels that must be complete.
    error : type
        Raised if a column is missing or incomplete, lengths differ, or a value is not finite.
    """
    for column in columns:
        if column not in labels or labels[column].isna().any():
            raise error(
                f"The labels have columns {list(labels.columns)}; a complete `{column}` is needed. "
                "Pass the labels table of CellImages or of a Prediction."
            )
    if features.ndim < 2 or len(features) != len(labels):
        raise error(
            f"Found features of shape {features.shape} for {len(labels)} rows of labels; expected "
            "(cells, features) with one row per label. Were both selected by the same cells?"
        )
    bad = ~np.isfinite(features.reshape(len(features), -1)).all(axis=1)
    if bad.any():
        raise error(
            f"{bad.sum()} of {len(bad)} cells have values that are not finite (first: row "
            f"{bad.argmax()}). Did training diverge? Drop those cells or use an earlier model."
        )


def check_features(features, labels):
    """Return features (cells, features), and batch and class of each cell.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
        Images become one feature per pixel.
    labels : pandas.DataFrame
        Columns `batch` and `class_name`.

    Returns
    -------
    float32 array, (cells, features)
    pandas.Categorical, pandas.Categorical
        Batch and class, without unused categories.

    Raises
    ------
    ProbeError
        As `check_rows`.
    """
    features = np.asarray(features, dtype=np.float32)
    check_rows(features, labels)
    batch, class_name = (
        pd.Categorical(labels[c].astype("category")).remove_unused_categories()
        for c in ("batch", "class_name")
    )
    return features.reshape(len(features), -1), batch, class_name


def need_two(what, values, reasons=()):
    """Raise a ProbeError if a categorical has fewer than two categories."""
    if len(values.categories) < 2:
        too_few = f" Left out are {_listed(reasons)}." if reasons else ""
        raise ProbeError(
            f"Found {what} {list(values.categories)}; at least two are needed.{too_few}"
        )


def batch_tasks(batch, class_name, n_folds=FOLDS, seed=0):
    """Find a task for each class that was measured in two batches or more."""
    large, _, reasons = _large_groups(batch, class_name, n_folds)
    tasks = []
    for name in class_name.categories:
        cells = large[class_name[large] == name]
        batches = batch[cells].remove_unused_categories()
        if len(batches.categories) >= 2:
            folds = stratified_folds(batches.codes, n_folds, seed)
            tasks.append(Task(name, cells, batches.codes, tuple(batches.categories), folds))
        elif len(cells):
            reasons.append((name, f"measured in one batch only, {batches.categories[0]}"))
    if not tasks:
        raise ProbeError(
            "No class was measured in two batches with enough cells, so batches cannot be compared "
            f"within a class: {_listed(reasons)}. Give cells of a class from at least two batches."
        )
    return tasks, reasons


def class_tasks(batch, class_name, n_folds=FOLDS, seed=0):
    """Find the task of telling the classes apart, stratified by class and batch."""
    cells, groups, reasons = _large_groups(batch, class_name, n_folds)
    classes = class_name[cells].remove_unused_categories()
    need_two("classes", classes, reasons)
    folds = stratified_folds(pd.Categorical(groups[cells]).codes, n_folds, seed)
    return [Task("", cells, classes.codes, tuple(classes.categories), folds)], reasons


def unseen_tasks(batch, class_name, only=None):
    """Find the task of telling the classes apart in a batch that is left out."""
    cells, _, reasons = _large_groups(batch, class_name, FOLDS)
    classes, batches = (values[cells].remove_unused_categories() for values in (class_name, batch))
    need_two("classes", classes, reasons)
    need_two("batches", batches, reasons)
    if only is not None and only not in batches.categories:
        raise ProbeError(f"No cell of {only} can be predicted: {_listed(reasons)}.")
    place = None if only is None else batches.categories.get_loc(only)
    names = tuple(classes.categories), tuple(batches.categories)
    task = Task("", cells, classes.codes, names[0], batches.codes, names[1], place)
    reasons += _unpredictable(task, pd.crosstab(np.asarray(batches), np.asarray(classes)))
    counted = np.unique(task.codes[task.known()[task.folds, task.codes]])
    if not len(counted):
        where = "an unseen batch" if only is None else only
        raise ProbeError(
            f"No cell of {where} can be predicted: {_listed(reasons)}. Give cells of two classes "
            "or more from at least two batches each."
        )
    if len(counted) == 1:
        name = names[0][counted[0]]
        why = f"only {name} can be scored, so a constant answer is right; compare with the null"
        reasons.append((f"classes other than {name}", why))
    return [task], reasons


def _unpredictable(task, counts):
    """Return (what, why) for the cells that no probe trained on other batches can predict."""
    reasons = []
    for fold in task.tested_folds():
        left = task.fold_names[fold]
        here, elsewhere = counts.loc[left] > 0, counts.drop(left).sum() > 0
        reasons += [
            (
                f"{name} in {left}",
                "measured in one batch only, so others cannot predict it",
            )
            for name in counts.columns[here & ~elsewhere]
        ]
        if elsewhere.sum() < 2:
            reasons.append((left, "the other batches hold one class only"))
    if ((counts > 0).sum(axis=1) == 1).all():
        reasons.append(("the null", "every batch holds one class, so no labels can be shuffled"))
    return reasons


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


def stratified_folds(codes, n_folds=FOLDS, seed=0):
    """Return the fold in which each cell is tested, stratified by `codes`."""
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(codes), dtype=int)
    for fold, (_, test) in enumerate(splitter.split(codes, codes)):
        folds[test] = fold
    return folds


def _listed(reasons):
    return listed((f"{what}: {why}" for what, why in reasons), most=3, separator="; ")


def with_shuffles(codes, folds, n_permutations, rng):
    """Return (1 + permutations, cells): the true labels, then shuffles inside each fold."""
    sets = np.tile(codes.astype(int), (1 + n_permutations, 1))
    for fold in np.unique(folds):
        inside = np.flatnonzero(folds == fold)
        sets[1:, inside] = rng.permuted(sets[1:, inside], axis=1)
    return sets


def balanced(cells, codes, rng):
    """Draw equally many cells of each label: as many as the rarest label has."""
    labels, counts = np.unique(codes[cells], return_counts=True)
    draws = [rng.permutation(cells[codes[cells] == k])[: counts.min()] for k in labels]
    return np.sort(np.concatenate(draws))
