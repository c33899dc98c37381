"""How well the batches are mixed among the cells of one class: kBET, iLISI and BRAS.

Probes (`probes`) ask whether a classifier can find the batch. These three scores come from the
comparison of single-cell integration methods and look at neighbours and distances instead. All run
from 0 (batches apart) to 1 (batches mixed):

- `kbet`: share of the cells whose nearest neighbours have the batches in the right proportions.
- `ilisi`: how many batches there effectively are around a cell.
- `bras`: whether a cell is as near to other batches as to its own.

Why class by class? Class and batch are confounded: in the lung data each cell line was seen in 3 of
the 7 batches. Clean features put a cell among cells of its class, and there 4 of the 7 batches are
missing because nobody measured them. Scored over all cells, clean features look badly mixed, and
features without any class look best. Inside a class, only its own batches count.

Mixing is half of the story: features that say nothing are perfectly mixed. Read these scores beside
the class accuracy of `probes`.

Few cells hold the scores below 1: among 30 neighbours of a mixed class the batches are never
exactly alike. `mixing_table(..., shuffled=True)` adds a row with the batch labels shuffled inside
each class, which is what full mixing scores on these cells.

Example
-------
>>> import numpy as np, pandas as pd
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 50, "class_name": ["H69"] * 100})
>>> features = np.random.default_rng(0).normal(size=(100, 4))
>>> bool(mixing_scores(features, labels).loc["mean", "kbet"] > 0.8)
True
>>> apart = features + 50 * (labels[["batch"]] == "B2").to_numpy()
>>> mixing_scores(apart, labels).loc["mean", ["kbet", "ilisi"]].round(2).tolist()
[0.0, 0.0]
"""

import numpy as np
import pandas as pd
from scipy.stats import chi2
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import StandardScaler

from cytomad_lib.evaluation.tasks import batch_tasks, check_features

MAX_COMPONENTS = 50
MIN_CELLS = 5
SCORES = ("kbet", "ilisi", "bras")


def mixing_scores(
    features,
    labels,
    n_neighbours=None,
    perplexity=None,
    alpha=0.05,
    n_components=MAX_COMPONENTS,
    seed=0,
):
    """Score the mixing of the batches within each class.

    Features are standardised over all cells (those that never vary are dropped) and reduced to
    principal components. Noise of a millionth of their size then decides between neighbours at
    exactly the same distance, which would else be taken in the order of the table, that is by
    batch.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    n_neighbours : int, optional
        Neighbours for kBET. Default: a quarter of the class's cells per batch, between 10 and 70.
    perplexity : float, optional
        Effective number of neighbours for iLISI. Default: a third of the class's cells per batch,
        between 5 and 30 (30 is the published value).
    alpha : float
        Level of the test in kBET; mixed batches then score about 1 - alpha.
    n_components : int or None
        Principal components, at most; None keeps the standardised features.
    seed : int
        Of that noise.

    Returns
    -------
    pandas.DataFrame
        One row per class with at least two batches of 5 cells or more (other cells are left out of
        the scores), then "mean"; columns `kbet`, `ilisi`,
        `bras`. Classes count the same, however many cells they have.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, or no class has two batches of 5 cells or more.
    """
    features, batch, class_name = check_features(features, labels)
    classes = {task.name: task.cells for task in batch_tasks(batch, class_name, MIN_CELLS)[0]}
    points = _reduced(features, n_components, seed)
    rows = {}
    for name, cells in classes.items():
        codes = np.unique(batch.codes[cells], return_inverse=True)[1]
        own = points[cells]
        per_batch = len(cells) / (codes.max() + 1)
        k = n_neighbours or int(np.clip(per_batch / 4, 10, 70))
        around = perplexity or float(np.clip(per_batch / 3, 5, 30))
        distances = pairwise_distances(own)
        np.fill_diagonal(distances, np.inf)  # a cell is not its own neighbour
        rows[name] = (
            kbet_acceptance(distances, codes, k, alpha),
            ilisi(distances, codes, around),
            bras(own, codes),
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(SCORES))
    table.loc["mean"] = table.mean()
    return table.rename_axis("class_name")


def mixing_table(methods, labels, shuffled=False, seed=0, **settings):
    """Score the mixing in several sets of features of the same cells.

    Parameters
    ----------
    methods : dict
        Name of the method to its features.
    labels : pandas.DataFrame
        Columns `batch` and `class_name`.
    shuffled : bool
        Add a row "batches shuffled": the first method's features, with the batches shuffled inside
        each class. It shows what full mixing scores with so many cells.
    seed : int
    settings
        As for `mixing_scores`.

    Returns
    -------
    pandas.DataFrame
        One row per method, columns `method`, `kbet`, `ilisi`, `bras` (means over the classes).
    """
    scored = [
        (name, mixing_scores(features, labels, seed=seed, **settings))
        for name, features in methods.items()
    ]
    if shuffled:
        rng = np.random.default_rng(seed)
        batch = np.array(labels["batch"].astype(str))
        for cells in labels.groupby("class_name", observed=True).indices.values():
            batch[cells] = rng.permutation(batch[cells])
        mixed = labels.assign(batch=batch)
        features = next(iter(methods.values()))
        scored.append(("batches shuffled", mixing_scores(features, mixed, seed=seed, **settings)))
    return pd.DataFrame([{"method": name} | dict(table.loc["mean"]) for name, table in scored])


def kbet_acceptance(distances, codes, n_neighbours, alpha=0.05):
    """Return the share of cells whose neighbourhood has the batch composition of all the cells.

    A chi-square test per cell compares the batch counts among the `n_neighbours` nearest cells with
    the composition of the whole; those not rejected at level `alpha` are accepted.

    Parameters
    ----------
    distances : array, (cells, cells)
        Infinite on the diagonal.
    codes : int array, (cells,)
        Batch of each cell, 0 to batches - 1.
    n_neighbours : int
        Cut to the number of other cells.

    Returns
    -------
    float
        Near 1 - alpha when mixed (somewhat above with few cells, as neighbours are drawn without
        being put back), 0 when apart.

    Source
    ------
    Büttner et al. 2019, A test metric for assessing single-cell RNA-seq batch correction, Nature
    Methods 16, 43. Every cell is tested here, with Euclidean distances.
    """
    k = min(n_neighbours, len(codes) - 1)
    near = np.argpartition(distances, k - 1, axis=1)[:, :k]
    indicators = np.eye(codes.max() + 1)[codes]
    expected = k * indicators.mean(axis=0)
    observed = indicators[near].sum(axis=1)
    statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
    return float(np.mean(chi2.sf(statistic, len(expected) - 1) >= alpha))


def ilisi(distances, codes, perplexity):
    """Return the mean inverse Simpson index of the batches around a cell, scaled to 0…1.

    Neighbours are weighted by exp(-distance / own width); the width is set per cell so that the
    weights have the given perplexity. The index 1 / Σ p², with p the weight of each batch, is the
    effective number of batches, from 1 to B; (index - 1) / (B - 1) is averaged over the cells.

    Parameters
    ----------
    distances : array, (cells, cells)
        Infinite on the diagonal.
    codes : int array, (cells,)
        Batch of each cell, 0 to batches - 1.
    perplexity : float
        Effective number of neighbours; the nearest three times as many are looked at. With too few
        cells for that, a third of the other cells.

    Returns
    -------
    float
        1 only when each batch has the same number of cells and the neighbourhoods are large.

    Source
    ------
    Korsunsky et al. 2019 (LISI), Nature Methods 16, 1289; scaled to 0…1 as in Luecken et al. 2022,
    Nature Methods 19, 41.
    """
    k = min(int(3 * perplexity), len(codes) - 1)
    near = np.argsort(distances, axis=1)[:, :k]
    weights = _weights(np.take_along_axis(distances, near, axis=1), min(perplexity, k / 3))
    indicators = np.eye(codes.max() + 1)[codes]
    shares = np.einsum("ck,ckb->cb", weights, indicators[near])
    index = 1 / (shares**2).sum(axis=1)
    return float(np.mean((index - 1) / codes.max()))


def bras(points, codes, metric="cosine"):
    """Return the batch removal adapted silhouette of the cells of one class.

    Per cell, a is the mean distance to the other cells of its batch and b the mean distance to all
    cells of *all* other batches, s = (b - a) / max(a, b); the score is the mean of 1 - |s|. The
    usual silhouette takes the nearest other batch for b: a batch that mixes with one other then
    looks mixed though it is far from all the rest.

    Parameters
    ----------
    points : array, (cells, components)
    codes : int array, (cells,)
        Batch of each cell, at least two cells per batch.
    metric : str
        "cosine" (that of the published implementation) or "euclidean".

    Returns
    -------
    float
        The values crowd towards 1, as distances in many dimensions differ little: compare methods,
        and do not read 0.9 as "90 % removed".

    Source
    ------
    Rautenstrauch and Ohler 2025, Shortcomings of silhouette in single-cell integration
    benchmarking, Nature Biotechnology; variant "mean other".
    """
    distances = pairwise_distances(points, metric=metric)
    np.fill_diagonal(distances, 0)
    indicators = np.eye(codes.max() + 1)[codes]
    sums, sizes = distances @ indicators, indicators.sum(axis=0)
    own_sum = sums[np.arange(len(codes)), codes]
    own = own_sum / (sizes[codes] - 1)
    others = (sums.sum(axis=1) - own_sum) / (len(codes) - sizes[codes])
    largest = np.maximum(own, others)
    silhouette = (others - own) / np.where(largest > 0, largest, 1)
    return float(np.mean(1 - np.abs(silhouette)))


# --- helpers ---------------------------------------------------------------------------------


def _reduced(features, n_components, seed):
    features = features[:, np.ptp(features, axis=0) > 0].astype(float)
    if features.shape[1] == 0:
        features = np.zeros((len(features), 2))  # the noise below is then all there is
    else:
        features = StandardScaler().fit_transform(features)
    if n_components is not None and n_components < features.shape[1]:
        model = PCA(min(n_components, len(features)), random_state=seed)
        features = model.fit_transform(features)
    noise = np.random.default_rng(seed).normal(size=features.shape)
    return features + 1e-6 * noise


def _weights(distances, perplexity, steps=60):
    """Return weights exp(-distance / width), sum 1 per row, with the perplexity asked for."""
    # Only differences and proportions of distances matter.
    distances = distances - distances[:, :1]
    typical = distances.mean(axis=1, keepdims=True)
    distances = distances / np.where(typical > 0, typical, 1)
    low, high = np.full((len(distances), 1), -15.0), np.full((len(distances), 1), 15.0)
    for _ in range(steps):  # bisection of log(1 / width): narrower is a lower entropy
        middle = (low + high) / 2
        weights = np.exp(-distances * np.exp(middle))
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return weights
