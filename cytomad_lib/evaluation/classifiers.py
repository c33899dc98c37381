"""The classifiers behind the probes, each trained on many sets of labels at once.

`cross_validate` trains every probe on the true labels and on shuffles of them. scikit-learn's
`permutation_test_score` would fit each probe anew for each shuffle, which takes minutes instead of
seconds, and it has no common null for the strongest of several probes.

Each classifier takes `(train, codes, test, n_labels, seed)`: training cells (cells, features),
their labels in sets (sets, cells), and test cells. It returns probabilities (sets, cells, labels).
"""

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cytomad_lib.evaluation.tasks import balanced, with_shuffles

MAX_COMPONENTS = 100
WHITENED_COMPONENTS = 20  # more would add noise that 100 training cells cannot average out
SILENT = 1e-3  # of the largest spread: components below it are rounding errors
NEIGHBOURS = 10


def _logistic(train, codes, test, n_labels, seed):
    probabilities = np.zeros((len(codes), len(test), n_labels), dtype=np.float32)
    # Newton steps: few of them, so little overhead on the many small fits of the null.
    model = LogisticRegression(C=0.3, solver="newton-cg", tol=1e-3, max_iter=500)
    for found, y in zip(probabilities, codes, strict=True):
        model.fit(train, y)
        found[:, model.classes_] = model.predict_proba(test)
    return probabilities


def _knn(train, codes, test, n_labels, seed):
    # Neighbours do not depend on the labels: one search serves all shuffles.
    k = min(NEIGHBOURS, len(train))
    near = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(test, return_distance=False)
    return np.eye(n_labels, dtype=np.float32)[codes[:, near]].mean(axis=2)


def _mlp(train, codes, test, n_labels, seed, hidden=32, steps=60, rate=0.1, decay=1.0):
    """Train one network (a hidden layer of ReLUs) per set of labels, all of them side by side.

    It is `MLPClassifier` with full batches, and Adam with weight decay. Arrays have the shape
    (sets, …), so the null takes seconds; one fit after the other took minutes.
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


CLASSIFIERS = {"logistic": _logistic, "knn": _knn, "mlp": _mlp, "whitened": _whitened}
PROBES = tuple(CLASSIFIERS)


def _compress(train, test, seed):
    """Standardise, then rotate to the principal components of the training cells.

    With fewer than 100 training cells this loses no information.
    """
    if np.ptp(train, axis=0).max() == 0:
        return np.zeros((len(train), 1), np.float32), np.zeros((len(test), 1), np.float32)
    n_components = min(MAX_COMPONENTS, len(train) - 1, train.shape[1])
    model = make_pipeline(StandardScaler(), PCA(n_components, random_state=seed))
    train = model.fit_transform(train)
    # One common scale: the components keep their proportions, and values are around 1.
    scale = train.std()
    return train / scale, model.transform(test) / scale


def cross_validate(features, task, probes, n_permutations, rng, seed):
    """Return {probe: probabilities (sets, cells, labels)}; each cell from its own test fold."""
    shape = (1 + n_permutations, len(task.cells), len(task.names))
    found = {probe: np.zeros(shape, dtype=np.float32) for probe in probes}
    for fold in np.flatnonzero(task.known().any(axis=1)):
        test = task.folds == fold
        train = balanced(np.flatnonzero(~test), task.codes, rng)
        codes = with_shuffles(task.codes[train], task.folds[train], n_permutations, rng)
        x_train, x_test = _compress(features[task.cells[train]], features[task.cells[test]], seed)
        for probe in probes:
            found[probe][:, test] = CLASSIFIERS[probe](
                x_train, codes, x_test, len(task.names), seed
            )
    return found
