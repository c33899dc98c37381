"""How well a classifier can tell the batch, and the class, from features.

A *probe* is a small classifier trained after the fact, on cells that the generator was not trained
on. Four of them (logistic regression, nearest neighbours, a small neural network, and the same on
whitened components) are scored by cross-validation inside the cells given, which should be the Test
cells:

- `within_class_batch_accuracy`: inside each class, tell its batches apart. Low is good.
- `class_accuracy`: tell the classes apart, all batches mixed. High is good.
- `unseen_batch_class_accuracy`: tell the classes apart in a batch on which the probe was not
  trained. High is good; this is the purpose of batch removal.

`score_results` runs all three, `score_table` does so for several methods. `left_out` names the
cells that a measure cannot count, and why, such as a class that was measured in one batch.

There is no plain "batch accuracy", because class and batch are confounded: in the lung data each
cell line was measured in 3 of the 7 batches. Features of the class alone still give 33.3 % plain
batch accuracy (47.6 % averaged over batches), not 1/7 = 14.3 %, so the number cannot show success.
Inside a class, chance is 1/3 and stays 1/3.

Whitened components are used, because an adversary can hide a batch in directions along which the
features vary a thousand times less than along others. Standardising each feature does not reveal
these.

Four choices hold for every number here:

- *Accuracy is the mean of the recalls*: each label counts the same, however many cells it has, and
  probes are trained on equally many cells of each label. So a guess that ignores the features gets
  1 / (number of labels), also in unbalanced data.
- *The strongest probe counts.* The best of four probes is biased upwards: features of pure noise
  score a little above chance. The null has the same bias: labels are shuffled, all probes run
  again, and the best one counts. Compare an accuracy with `null_95`, not with chance alone.
- *Labels are shuffled inside each fold*, so that every training and test set keeps its label
  counts, and shuffles differ from the truth only in the link to the features.
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

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits

from cytomad_lib.evaluation.classifiers import PROBES, cross_validate
from cytomad_lib.evaluation.probe_results import make_result, mean_recall
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


def within_class_batch_accuracy(features, labels, seed=0, n_permutations=20, probes=PROBES):
    """Tell the batches of one class apart; averaged over the classes.

    Groups (batch and class) with fewer than `FOLDS` cells are left out, and so are classes with one
    batch only; `left_out` names them.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
        Images become one feature per pixel.
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    seed : int
        Of the folds, the shuffles and the probes.
    n_permutations : int
        Shuffles of the labels for `null_mean` and `null_95`.
    probes : sequence of str
        Any of `PROBES`.

    Returns
    -------
    ProbeResult
        `bits` is log2(batches of the class) minus the cross-entropy of the strongest probe, mean
        over classes: a lower bound on the mutual information between features and batch, given the
        class. Probabilities are first calibrated by one temperature, fitted on the other folds.
        Without it, a correct but overconfident probe would score below zero. The value may be
        slightly negative, which means that no information was found.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, or no class has two batches with enough cells.
    """
    if not probes or set(probes) - set(PROBES):
        raise ProbeError(f"Found the probes {list(probes)}; choose from {list(PROBES)}.")
    features, batch, class_name = check_features(features, labels)
    tasks, _ = batch_tasks(batch, class_name, FOLDS, seed)
    return _score(MEASURES[0], features, tasks, n_permutations, seed, probes, batch.categories)


def class_accuracy(features, labels, seed=0, n_permutations=20):
    """Tell the classes apart; every batch is in the training and the test folds.

    A batch holds only some of the classes, so a probe may use the batch to narrow down the class.
    This number alone does not show that the features encode the class: see
    `unseen_batch_class_accuracy`.

    Parameters and errors are those of `within_class_batch_accuracy`; at least two classes.

    Returns
    -------
    ProbeResult
    """
    features, batch, class_name = check_features(features, labels)
    tasks, _ = class_tasks(batch, class_name, FOLDS, seed)
    return _score(MEASURES[1], features, tasks, n_permutations, seed)


def unseen_batch_class_accuracy(features, labels, seed=0, n_permutations=20, only=None):
    """Tell the classes apart in a batch that the probe was not trained on, batch by batch.

    The left-out cells of all turns are pooled and each class counts the same; `by_group` gives the
    fraction of cells that were right in each left-out batch. A cell whose class is in no other
    batch cannot be predicted and does not count (`n_cells` is the number of cells that do). Neither
    does a batch without which only one class remains, nor a group of fewer than `FOLDS` cells.

    Parameters and errors are those of `within_class_batch_accuracy`; at least two batches and two
    classes. With `only`, the name of a batch, that batch alone is left out and scored: for a
    generator that was not trained on it either.

    Returns
    -------
    ProbeResult
        Chance is 1 / (classes that the probe was trained on). The null is NaN where every batch
        holds one class, because no labels can be shuffled inside a batch.
    """
    features, batch, class_name = check_features(features, labels)
    if only is not None and only not in batch.categories:
        raise ProbeError(f"There are no cells of {only!r}; choose from {list(batch.categories)}.")
    tasks, _ = unseen_tasks(batch, class_name, only=only)
    return _score(MEASURES[2], features, tasks, n_permutations, seed)


def left_out(labels):
    """Return the cells that a measure cannot count, and why.

    Parameters
    ----------
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.

    Returns
    -------
    list of (str, str, str)
        The measure, what is left out of it ("all" if it cannot be computed), and why.

    Raises
    ------
    ProbeError
        If the labels are not complete.
    """
    _, batch, class_name = check_features(np.zeros((len(labels), 1)), labels)
    rows = []
    for measure, find in zip(MEASURES, (batch_tasks, class_tasks, unseen_tasks), strict=True):
        try:
            rows += [(measure, *reason) for reason in find(batch, class_name)[1]]
        except ProbeError as error:
            rows.append((measure, "all", str(error)))
    return rows


def check_unseen(labels, batch):
    """Refuse a batch of which no cell can be scored when it is left out.

    Raises
    ------
    ProbeError
        As `unseen_batch_class_accuracy` with `only=batch`, which needs features; this does not.
    """
    _, batches, class_name = check_features(np.zeros((len(labels), 1)), labels)
    unseen_tasks(batches, class_name, only=batch)


def score_results(features, labels, seed=0, n_permutations=20):
    """Score one set of features by all three measures.

    Returns
    -------
    list of ProbeResult
        In the order of `MEASURES`, without those that these cells do not allow; see `left_out`.

    Raises
    ------
    ProbeError
        If lengths differ or values are not finite.
    """
    check_features(features, labels)
    measures = (within_class_batch_accuracy, class_accuracy, unseen_batch_class_accuracy)
    found = []
    for measure in measures:
        with suppress(ProbeError):
            found.append(measure(features, labels, seed, n_permutations))
    return found


def score_side_by_side(methods, labels, seed=0, n_permutations=20):
    """Start scoring several sets of features, in two processes beside this one.

    Parameters
    ----------
    methods : dict
        Name of the method to its features.

    Returns
    -------
    generator
        Yields (name, list of `ProbeResult`) in the order of `methods`. The processes run in the
        meantime, so other work can be done before the first result is used.
    """
    n_jobs = min(2, cpu_count(), len(methods))
    found = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(in_worker)(os.getpid(), score_results, features, labels, seed, n_permutations)
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


def score_table(methods, labels, seed=0, n_permutations=20):
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
            name: score_results(features, labels, seed, n_permutations)
            for name, features in methods.items()
        }
    )


def _score(measure, features, tasks, n_permutations, seed, probes=PROBES, batches=None):
    rng = np.random.default_rng(seed)
    outcomes, shuffled, chances = [], False, []
    accuracies = {probe: [] for probe in probes}
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
    # Where each fold holds one label, shuffling changes nothing, and there is no null.
    scores = {p: np.mean(own, axis=0)[: None if shuffled else 1] for p, own in accuracies.items()}
    return make_result(measure, scores, np.mean(chances), outcomes, seed, batches)
