"""The baselines: well-known batch corrections of the features of an untouched generator.

Batch removal inside the generator has to beat what can be had without it: a few lines of arithmetic
on the features of the pretrained generator. `baseline_features` returns the test cells' features as
each of these leaves them; `probes.score_table` and `mixing.mixing_table` then score them all.

- `standardise_batches`: each batch gets the same mean and spread.
- `harmony`: soft clusters that are nudged until each holds all batches (package `harmonypy`).
- `combat`: standardisation whose per-batch means and spreads borrow strength from all features.
- `fit_leace`: the least change after which no linear classifier can tell the batches apart.
- `null_control`: does a correction write a batch in where there is none?

What does each one see? That decides whether a comparison is fair.

- *Batch of the test cells*: standardisation, Harmony and ComBat need it, and they need all the test
  cells at once: one cell alone cannot be corrected.
- *Class of the test cells*: the two "with class" baselines need it, and it is what one wants to
  find out in the end. They are marked `oracle`, and are no competitors: a class that moved its own
  cells is easy to find in them, so that their class accuracy can exceed what the cells allow (the
  truth).
- *Nothing of the test cells*: LEACE. Its map is fitted on the training cells, and corrects any
  single cell.

Class and batch are confounded here: each lung cell line was seen in 3 of the 7 batches. So batches
differ also because they hold other classes, and a correction that makes them alike without knowing
the class takes away differences between classes. That is why each comes in two versions.

Why components? A unit with a ReLU is exactly 0 in most cells. A correction that moves and scales
each batch gives these zeros a different value in each batch, and a probe reads the batch from that
value, even where there was no batch effect: two random halves of the same cells were told apart at
0.98. So the baselines correct `active_components`: whitened principal components of the active
units, without those of least variance, with noise added. Then no value stands for "silent".
`null_control` tests every baseline on such halves.

One oddity: a correction that makes the batches' means equal over all test cells sends a probe's
training and test folds to opposite sides of that mean, so batch accuracy can fall *below* chance.
Read that as "nothing linear left", not as better than a chance result.

Example
-------
>>> import numpy as np, pandas as pd
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 20, "class_name": ["H69"] * 20 + ["H520"] * 20})
>>> features = np.random.default_rng(0).normal(size=(40, 5)) + (labels[["batch"]] == "B2").values
>>> baselines = baseline_features(features, labels, features, labels)
>>> baselines["LEACE"].oracle, baselines["ComBat with class"].oracle
(False, True)
>>> found = baselines["LEACE"].features
>>> bool(abs(found[::2].mean(axis=0) - found[1::2].mean(axis=0)).max() < 1e-5)
True
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from cytomad_lib.conditional.erasure import fit_leace, spread_of, within_class_concept
from cytomad_lib.evaluation.probes import within_class_batch_accuracy
from cytomad_lib.evaluation.tasks import ProbeError, check_features, need_two

ACTIVE = 0.05  # share of cells in which a unit has another value than its most frequent one
EXPLAINED = 0.99  # share of the variance of the active units that the components keep
MAX_COMPONENTS = 50
# In units of a component's spread. What a correction estimates from some hundred cells is uncertain
# by a tenth of the spread; noise has to be a few times as large to hide it.
NOISE = 0.4
CONTROL_SPLITS = 3
CONTROL_PROBES = ("whitened",)  # the fastest that finds what is written in, and finds most of it


@dataclass(frozen=True)
class Baseline:
    """The features of the test cells after one correction.

    Attributes
    ----------
    name : str
    features : float32 array, (cells, components), or None
        "untouched" has the features as they were given. None when the correction could not be
        made; `note` says why and what to do.
    oracle : bool
        Whether the class of the test cells was used.
    note : str
        What the correction sees, or why it is missing.
    """

    name: str
    features: np.ndarray | None = field(repr=False)
    oracle: bool
    note: str


def baseline_features(test_features, test_labels, train_features=None, train_labels=None, seed=0):
    """Correct the features of the test cells by every baseline.

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
    dict of str to Baseline
        By name, in the order of a table. A baseline that cannot be had (package not installed, no
        training cells, too few cells) is there with `features` None and a `note`.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, there is only one batch, or training and test
        cells have different features.
    """
    test, batch, _ = check_features(test_features, test_labels)
    need_two("batches", batch)
    train = _checked_train(train_features, train_labels, test.shape[1])
    sees_batch = "sees the batch of all test cells"
    sees_class = "sees the batch and the class of all test cells"
    sees_none = "fitted on the training cells, sees no label of a test cell"

    def corrected(correct, **settings):
        components = _with_noise(active_components(test)(test), seed)
        return correct(components, test_labels, **settings)

    by_class = {"within_class": True}
    baselines = [
        ("untouched", False, "no correction", lambda: test),
        ("per-batch standardisation", False, sees_batch, partial(corrected, standardise_batches)),
        (
            "per-batch standardisation within class",
            True,
            sees_class,
            partial(corrected, standardise_batches, **by_class),
        ),
        ("Harmony", False, sees_batch, partial(corrected, harmony, seed=seed)),
        ("ComBat", False, sees_batch, partial(corrected, combat)),
        ("ComBat with class", True, sees_class, partial(corrected, combat, with_class=True)),
        ("LEACE", False, sees_none, partial(_leace, test, train, within_class=False)),
        ("LEACE within class", False, sees_none, partial(_leace, test, train, **by_class)),
    ]
    return {name: _make(name, oracle, note, correct) for name, oracle, note, correct in baselines}


def null_control(test_features, test_labels, train_features=None, train_labels=None, seed=0):
    """Run every baseline on a batch that means nothing, and let a probe look for it.

    The cells of each group (batch and class) are split in two halves at random, and the halves are
    taken for batches. Whatever a probe then finds was written in by the correction.

    Parameters
    ----------
    test_features, test_labels, train_features, train_labels, seed
        As for `baseline_features`.

    Returns
    -------
    pandas.DataFrame
        One row per baseline, by name; `null_control`, the accuracy of the strongest probe in
        telling the halves apart within class, mean over `CONTROL_SPLITS` splits; `chance`, 0.5;
        `null_95`, what shuffled halves reach; `writes_batch`, whether the accuracy is above it. A
        baseline that cannot be had is missing from the table.

    Raises
    ------
    ProbeError
        As `baseline_features`, or if no class has enough cells for two halves.
    """
    found = {}
    for split in range(CONTROL_SPLITS):
        rng = np.random.default_rng([seed, split])
        halves = _halves(test_labels, rng)
        train_halves = None if train_labels is None else _halves(train_labels, rng)
        given = test_features, halves, train_features, train_halves, seed + split
        for name, baseline in baseline_features(*given).items():
            if baseline.features is not None:
                # The null hardly depends on the features: once is enough.
                shuffles = 20 if not found else 0
                settings = halves, seed, shuffles, CONTROL_PROBES
                result = within_class_batch_accuracy(baseline.features, *settings)
                found.setdefault(name, []).append(result)
    null_95 = found["untouched"][0].null_95
    accuracy = {name: np.mean([r.accuracy for r in own]) for name, own in found.items()}
    table = pd.DataFrame({"null_control": accuracy, "chance": 0.5, "null_95": null_95})
    return table.assign(writes_batch=table["null_control"] > null_95).rename_axis("baseline")


def active_components(features):
    """Fit whitened principal components of the units that are active.

    A unit is active if it has another value than its most frequent one (for a ReLU: 0) in at least
    `ACTIVE` of the cells. If no unit is, all that vary are taken. The units are standardised. The
    first principal components are kept that together explain `EXPLAINED` of the variance,
    `MAX_COMPONENTS` at most.

    Parameters
    ----------
    features : array, (cells, features)

    Returns
    -------
    function
        Takes features (cells, features) of any cells; returns float32 (cells, components), each of
        mean 0 and standard deviation 1 over the cells that it was fitted on. One component that is
        0 everywhere, if no unit varies.
    """
    features = np.asarray(features, dtype=float)
    most = [np.unique(unit, return_counts=True)[1].max() for unit in features.T]
    share = 1 - np.array(most) / len(features)
    units = np.flatnonzero(share >= ACTIVE)
    units = units if len(units) else np.flatnonzero(share > 0)
    if not len(units):
        return lambda other: np.zeros((len(other), 1), np.float32)
    mean, spread = features[:, units].mean(axis=0), features[:, units].std(axis=0)
    scaled = (features[:, units] - mean) / spread
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    explained = np.cumsum(singular**2) / np.sum(singular**2)
    kept = min(int(np.searchsorted(explained, EXPLAINED)) + 1, MAX_COMPONENTS, len(singular))
    turn = axes[:kept].T / spread[:, None] / singular[:kept] * np.sqrt(len(features))
    return lambda other: ((np.asarray(other, float)[:, units] - mean) @ turn).astype(np.float32)


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
        As `baseline_features`.
    """
    features, batch, class_name = check_features(features, labels)
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


def harmony(features, labels, seed=0):
    """Correct by Harmony.

    Cells are put into soft clusters that are rewarded for holding all batches; each cluster is then
    shifted batch by batch, and this is repeated. Shifts that are large beside the differences
    between cells are hardly removed: the clusters then hold one batch each from the start.

    Parameters
    ----------
    features : array, (cells, features)
        All count the same after division by their standard deviation; see `active_components`.
    labels : pandas.DataFrame
        Columns `batch` (used) and `class_name` (not used).
    seed : int
        The same seed gives the same result.

    Returns
    -------
    float32 array, (cells, features)

    Raises
    ------
    ProbeError
        If the package `harmonypy` is not installed, or as `baseline_features`.

    Source
    ------
    Korsunsky et al. 2019, Fast, sensitive and accurate integration of single-cell data with
    Harmony, Nature Methods 16, 1289.
    """
    features, batch, _ = check_features(features, labels)
    try:
        import harmonypy
    except ImportError:
        raise ProbeError(
            "Harmony needs the package harmonypy, which is not installed: `pip install harmonypy` "
            "(there are wheels for Linux and macOS, none for Windows)."
        ) from None
    features = features.astype(float)
    mean, spread = features.mean(axis=0), spread_of(features)
    varies = spread > 0
    if not varies.any():
        return features.astype(np.float32)
    found = harmonypy.run_harmony(
        # Features × cells: the other way round is ambiguous where both are equally many.
        ((features - mean)[:, varies] / spread[varies]).T,
        pd.DataFrame({"batch": np.asarray(batch.codes)}),
        "batch",
        # One cluster per 30 cells is the package's own rule; it would give none for a few cells.
        nclust=int(np.clip(round(len(features) / 30), 2, 100)),
        random_state=seed,
        verbose=False,
        ncores=1,
    )
    features[:, varies] = np.asarray(found.Z_corr) * spread[varies] + mean[varies]
    return features.astype(np.float32)


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
    features, batch, class_name = check_features(features, labels)
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
        return Baseline(name, correct(), oracle, note)
    except ProbeError as error:  # this baseline only: the inputs that all share were checked before
        return Baseline(name, None, oracle, str(error))


def _checked_train(features, labels, n_features):
    if features is None and labels is None:
        return None
    if features is None or labels is None:
        raise ProbeError("Give both `train_features` and `train_labels`, or neither.")
    features, batch, class_name = check_features(features, labels)
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
    need_two("batches of training cells", batch)
    if within_class:
        concept = within_class_concept(batch.codes, class_name.codes)
    else:
        concept = np.eye(len(batch.categories))[batch.codes]
    # One map for all cells cannot write a batch in: it needs no noise.
    components = active_components(features)
    return fit_leace(components(features), concept)(components(test))


def _with_noise(components, seed):
    """Blur components; one in which nothing varies stays so."""
    noise = np.random.default_rng(seed).normal(size=components.shape)
    return components + NOISE * noise * (np.ptp(components, axis=0) > 0)


def _halves(labels, rng):
    """Return the labels with two random halves of each group for batches."""
    second = np.zeros(len(labels), dtype=bool)
    for cells in labels.groupby(["batch", "class_name"], observed=True).indices.values():
        # Of an odd number, either half may be the larger.
        second[rng.permutation(cells)[: (len(cells) + rng.integers(2)) // 2]] = True
    return labels.assign(batch=pd.Categorical(np.where(second, "second half", "first half")))


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
