"""The peers: well-known batch corrections of the features of a generator that was left as it was.

Batch removal inside the generator has to beat what can be had without it: a few lines of arithmetic
on the features of the pretrained generator. `peer_features` returns the test cells' features as
each of these leaves them; `probes.score_table` and `mixing.mixing_table` then score them all.

- `standardise_batches`: each batch gets the same mean and spread.
- `harmony`: soft clusters that are nudged until each holds all batches (package `harmonypy`).
- `combat`: standardisation whose per-batch means and spreads borrow strength from all features.
- `fit_leace`: the least change after which no linear classifier can tell the batches apart.

What does each one see? That decides whether a comparison is fair.

- *Batch of the test cells*: standardisation, Harmony and ComBat need it, and they need all the test
  cells at once: one cell alone cannot be corrected.
- *Class of the test cells*: the two "with class" peers need it, and it is what one wants to find
  out in the end. They are marked `oracle`, and are no competitors: a class that moved its own cells
  is easy to find in them, so that their class accuracy can exceed what the cells allow (the truth).
- *Nothing of the test cells*: LEACE. Its map is fitted on the training cells, and corrects any
  single cell.

Class and batch are confounded here: each lung cell line was seen in 3 of the 7 batches. So batches
differ also because they hold other classes, and a correction that makes them alike without knowing
the class takes away differences between classes. That is why each comes in two versions.

One oddity: a correction that makes the batches' means equal over all test cells sends a probe's
training and test folds to opposite sides of that mean, so batch accuracy can fall *below* chance.
Read that as "nothing linear left", not as better than a chance result.

A feature that never varies (a ReLU that is dead in every cell) stays as it is in every peer; one
that is dead in some batches only is moved but never divided by its zero spread there.

Example
-------
>>> import numpy as np, pandas as pd
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 20, "class_name": ["H69"] * 20 + ["H520"] * 20})
>>> features = np.random.default_rng(0).normal(size=(40, 5)) + (labels[["batch"]] == "B2").values
>>> peers = peer_features(features, labels, features, labels)
>>> peers["LEACE"].oracle, peers["ComBat with class"].oracle
(False, True)
>>> found = peers["LEACE"].features
>>> bool(abs(found[::2].mean(axis=0) - found[1::2].mean(axis=0)).max() < 1e-5)
True
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cytomad_lib.analysis.probes import PROBES, ProbeError, _checked, _need_two
from cytomad_lib.conditional.erasure import fit_leace, spread_of, within_class_concept

HARMONY_COMPONENTS = 50


@dataclass(frozen=True)
class Peer:
    """The features of the test cells after one correction.

    Attributes
    ----------
    name : str
    features : float32 array, (cells, features), or None
        None when the correction could not be made; `note` says why and what to do.
    oracle : bool
        Whether the class of the test cells was used.
    note : str
        What the correction sees, or why it is missing.
    """

    name: str
    features: np.ndarray | None = field(repr=False)
    oracle: bool
    note: str


def peer_features(test_features, test_labels, train_features=None, train_labels=None, seed=0):
    """Correct the features of the test cells by every peer.

    Parameters
    ----------
    test_features : array, (cells, features) or (cells, height, width[, 1])
        Features of the untouched pretrained generator (images: one feature per pixel).
    test_labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    train_features, train_labels : optional
        The same of the training cells; LEACE is fitted on them, the others do not use them.
    seed : int
        Of Harmony, the only one that draws random numbers.

    Returns
    -------
    dict of str to Peer
        By name, in the order of a table. A peer that cannot be had (package not installed, no
        training cells, too few cells) is there with `features` None and a `note`.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, there is only one batch, or training and test
        cells have different features.
    """
    test, batch, _ = _checked(test_features, test_labels, PROBES)
    _need_two("batches", batch)
    train = _checked_train(train_features, train_labels, test.shape[1])
    sees_batch = "sees the batch of all test cells"
    sees_class = "sees the batch and the class of all test cells"
    sees_none = "fitted on the training cells, sees no label of a test cell"
    peers = [
        ("untouched", False, "no correction", lambda: test),
        (
            "per-batch standardisation",
            False,
            sees_batch,
            lambda: standardise_batches(test, test_labels),
        ),
        (
            "per-batch standardisation within class",
            True,
            sees_class,
            lambda: standardise_batches(test, test_labels, within_class=True),
        ),
        ("Harmony", False, sees_batch, lambda: harmony(test, test_labels, seed)),
        ("ComBat", False, sees_batch, lambda: combat(test, test_labels)),
        (
            "ComBat with class",
            True,
            sees_class,
            lambda: combat(test, test_labels, with_class=True),
        ),
        ("LEACE", False, sees_none, lambda: _leace(test, train, within_class=False)),
        ("LEACE within class", False, sees_none, lambda: _leace(test, train, within_class=True)),
    ]
    return {name: _make(name, oracle, note, correct) for name, oracle, note, correct in peers}


def standardise_batches(features, labels, within_class=False):
    """Give each batch the mean and the standard deviation that all cells have together.

    Parameters
    ----------
    features : array, (cells, features)
    labels : pandas.DataFrame
        Columns `batch` and `class_name`.
    within_class : bool
        Do so in each class on its own: each class keeps its own mean and spread. Needs the class.

    Returns
    -------
    float32 array, (cells, features)
        The common mean is that of all the cells (of the class); the common spread is the root mean
        square of the batches' standard deviations. A feature that does not vary in a batch is only
        shifted there.

    Raises
    ------
    ProbeError
        As `peer_features`.
    """
    features, batch, class_name = _checked(features, labels, PROBES)
    features = features.astype(float)
    found = np.empty_like(features)
    parts = class_name.codes if within_class else np.zeros(len(features), dtype=int)
    for part in np.unique(parts):
        inside = parts == part
        groups = [
            np.flatnonzero(inside & (batch.codes == b)) for b in np.unique(batch[inside].codes)
        ]
        means = [features[cells].mean(axis=0) for cells in groups]
        spreads = [spread_of(features[cells]) for cells in groups]
        mean = features[inside].mean(axis=0)
        spread = np.sqrt(np.mean(np.square(spreads), axis=0))
        for cells, own_mean, own_spread in zip(groups, means, spreads, strict=True):
            divisor = np.where(own_spread > 0, own_spread, 1)
            found[cells] = (features[cells] - own_mean) / divisor * spread + mean
    return _as_features(found, features)


def harmony(features, labels, seed=0, n_components=HARMONY_COMPONENTS):
    """Correct by Harmony, on principal components of the standardised features.

    Cells are put into soft clusters that are rewarded for holding all batches; each cluster is then
    shifted batch by batch, and this is repeated. Shifts that are large beside the differences
    between cells are hardly removed: the clusters then hold one batch each from the start. The
    corrected components are turned back into features, so what lies outside the `n_components`
    components is lost.

    Parameters
    ----------
    features : array, (cells, features)
    labels : pandas.DataFrame
        Columns `batch` (used) and `class_name` (not used).
    seed : int
        The same seed gives the same result.
    n_components : int
        Principal components, at most.

    Returns
    -------
    float32 array, (cells, features)

    Raises
    ------
    ProbeError
        If the package `harmonypy` is not installed, or as `peer_features`.

    Source
    ------
    Korsunsky et al. 2019, Fast, sensitive and accurate integration of single-cell data with
    Harmony, Nature Methods 16, 1289.
    """
    features, batch, _ = _checked(features, labels, PROBES)
    try:
        import harmonypy
    except ImportError:
        raise ProbeError(
            "Harmony needs the package harmonypy, which is not installed: `pip install harmonypy` "
            "(there are wheels for Linux and macOS, none for Windows)."
        ) from None
    features = features.astype(float)
    mean = features.mean(axis=0)
    spread = spread_of(features)
    scaled = (features - mean) / np.where(spread > 0, spread, 1)
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    # Components without variance would be noise from rounding.
    kept = min(n_components, int((singular > 1e-6 * singular[0]).sum()))
    if kept == 0:
        return features.astype(np.float32)
    axes = axes[:kept]
    table = pd.DataFrame({"batch": np.asarray(batch.codes)})
    found = harmonypy.run_harmony(
        # Components × cells: the other way round is ambiguous where both are equally many.
        (scaled @ axes.T).T,
        table,
        "batch",
        # One cluster per 30 cells is the package's own rule; it would give none for a few cells.
        nclust=int(np.clip(round(len(features) / 30), 2, 100)),
        random_state=seed,
        verbose=False,
        ncores=1,
    )
    return _as_features(np.asarray(found.Z_corr) @ axes * spread + mean, features)


def combat(features, labels, with_class=False, tolerance=1e-4, max_steps=200):
    """Correct by ComBat with its parametric empirical Bayes estimates.

    The model: feature = mean + class effect + batch shift + batch spread × noise. A batch's shifts
    (over the features) come from one normal distribution, its squared spreads from one inverse
    gamma distribution; both are estimated from all features and pull in the estimates of the single
    features. With many cells per batch little is pulled, and without class effects the result is
    near `standardise_batches`.

    Parameters
    ----------
    features : array, (cells, features)
    labels : pandas.DataFrame
        Columns `batch` and `class_name`.
    with_class : bool
        Put class effects into the model, so that they are kept. Needs the class.
    tolerance : float
        Largest relative change of an estimate at which the iteration ends.
    max_steps : int
        The iteration ends here at the latest.

    Returns
    -------
    float32 array, (cells, features)

    Raises
    ------
    ProbeError
        If a batch has one cell only, if fewer than two features vary, or, with class, if groups of
        batches share no class, so that their differences cannot be told from those of the classes.

    Source
    ------
    Johnson, Li, Rabinovic 2007, Adjusting batch effects in microarray expression data using
    empirical Bayes methods, Biostatistics 8, 118. Own code: the ComBat packages for Python are no
    longer maintained, or need an older pandas or NumPy.
    """
    features, batch, class_name = _checked(features, labels, PROBES)
    features = features.astype(float)
    batches = np.eye(len(batch.categories))[batch.codes]
    classes = np.eye(len(class_name.categories))[class_name.codes][:, 1:]
    design = np.hstack([batches, classes]) if with_class else batches
    sizes = batches.sum(axis=0)
    if sizes.min() < 2:
        raise ProbeError(
            f"{batch.categories[sizes.argmin()]} has one cell; ComBat needs at least two per batch."
        )
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ProbeError(
            "Some batches share no class with the others, directly or through a third, so ComBat "
            "cannot tell batch from class. Give cells of classes that link all batches."
        )
    effects = np.linalg.lstsq(design, features, rcond=None)[0]
    spread = np.sqrt(np.mean((features - design @ effects) ** 2, axis=0))
    # What a cell would show without its batch: the mean over the batches, and its class.
    expected = (
        sizes @ effects[: len(sizes)] / len(features)
        + design[:, len(sizes) :] @ effects[len(sizes) :]
    )
    # Features that do not vary within batch (and class) have no noise to rescale: the model gives
    # what is expected of them.
    varies = (spread > 1e-6 * spread_of(features)) & (np.ptp(features, axis=0) > 0)
    if varies.sum() < 2:
        raise ProbeError(
            f"{varies.sum()} features vary within the batches; ComBat needs at least two, as it "
            "learns from all of them how much batches differ."
        )
    noise = (features - expected)[:, varies] / spread[varies]
    for code in range(len(sizes)):
        cells = batch.codes == code
        shift, variance = _shrunken(noise[cells], tolerance, max_steps)
        noise[cells] = (noise[cells] - shift) / np.sqrt(variance)
    found = expected.copy()
    found[:, varies] += noise * spread[varies]
    return _as_features(found, features)


# --- helpers ---------------------------------------------------------------------------------


def _make(name, oracle, note, correct):
    try:
        return Peer(name, correct(), oracle, note)
    except ProbeError as error:  # this peer only: the inputs that all share were checked before
        return Peer(name, None, oracle, str(error))


def _checked_train(features, labels, n_features):
    if features is None and labels is None:
        return None
    if features is None or labels is None:
        raise ProbeError("Give both `train_features` and `train_labels`, or neither.")
    features, batch, class_name = _checked(features, labels, PROBES)
    _need_two("batches", batch)
    if features.shape[1] != n_features:
        raise ProbeError(
            f"The training cells have {features.shape[1]} features, the test cells {n_features}; "
            "expected the same. Were both predicted by the same model?"
        )
    return features, batch, class_name


def _leace(test, train, within_class):
    if train is None:
        raise ProbeError("LEACE is fitted on training cells: give `train_features` and labels.")
    features, batch, class_name = train
    if within_class:
        concept = within_class_concept(batch.codes, class_name.codes)
    else:
        concept = np.eye(len(batch.categories))[batch.codes]
    return fit_leace(features, concept)(test)


def _as_features(found, features):
    """Return float32; features that never vary are as they were, to the last digit."""
    return np.where(np.ptp(features, axis=0) > 0, found, features).astype(np.float32)


def _shrunken(noise, tolerance, max_steps):
    """Return ComBat's shift and variance of each feature of one batch, pulled to the others'."""
    n = len(noise)
    mean, variance = noise.mean(axis=0), noise.var(axis=0, ddof=1)
    # The two prior distributions, by the method of moments.
    centre, width = mean.mean(), mean.var(ddof=1)
    m, s2 = variance.mean(), max(variance.var(ddof=1), np.finfo(float).tiny)
    shape, rate = 2 + m**2 / s2, m + m**3 / s2
    shift, spread2 = mean, variance
    for _ in range(max_steps):
        old = shift, spread2
        shift = (n * width * mean + spread2 * centre) / (n * width + spread2)
        squares = ((noise - shift) ** 2).sum(axis=0)
        spread2 = (rate + squares / 2) / (shape + n / 2 - 1)
        changes = [
            np.abs(a - b) / (np.abs(b) + 1e-8) for a, b in zip((shift, spread2), old, strict=True)
        ]
        if np.max(changes) < tolerance:
            break
    return shift, spread2
