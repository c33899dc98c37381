"""The baselines: well-known batch corrections of the features of an untouched generator.

Batch removal inside the generator must be better than simple arithmetic on the features of the
pretrained generator. `baseline_features` returns the corrected features of the test cells;
`probes.score_table` and `mixing.mixing_table` then score them all.

- `standardise_batches`: each batch gets the same mean and spread.
- `harmony`: soft clusters that are shifted until each holds all batches (package `harmonypy`).
- `combat`: standardisation whose per-batch means and spreads borrow strength from all features.
- `fit_leace`: the least change after which no linear classifier can tell the batches apart.
- `null_control`: whether a correction writes a batch in where there is none.

A comparison is fair only if the corrections use the same information.

- *Batch of the test cells*: standardisation, Harmony and ComBat need it, and they need all the test
  cells at once: one cell alone cannot be corrected.
- *Class of the test cells*: the two "with class" baselines need it, although the class is what a
  user wants to find out. They are marked `oracle` and are no competitors. They shift each class on
  its own, which marks the class, so their class accuracy can exceed that of the truth.
- *Nothing of the test cells*: LEACE. Its map is fitted on the training cells, and corrects any
  single cell.

Class and batch are confounded here: each lung cell line was measured in 3 of the 7 batches. So
batches differ also because they hold different classes. A correction that ignores the class removes
differences between classes, too. That is why each correction has two versions.

Why components? A unit with a ReLU is exactly 0 in most cells. A correction that moves and scales
each batch gives these zeros a different value in each batch. A probe reads the batch from that
value, even where there was no batch effect: it told two random halves of the same cells apart at
0.98. So the baselines correct `active_components`: whitened principal components of the active
units, without those of least variance, with noise added. Then no value marks a silent unit.
`null_control` tests every baseline on such halves.

A correction that makes the batches' means equal over all test cells puts a probe's training and
test folds on opposite sides of that mean. So batch accuracy can fall *below* chance. Read that as
"nothing linear left"; it is not better than chance.

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

import numpy as np
import pandas as pd

from cytomad_lib.evaluation.combat import combat, keep_constant
from cytomad_lib.evaluation.erasure import fit_leace, spread_of, within_class_concept
from cytomad_lib.evaluation.probes import within_class_batch_accuracy
from cytomad_lib.evaluation.tasks import ProbeError, check_features, need_two

ACTIVE = 0.05  # share of cells in which a unit has another value than its most frequent one
EXPLAINED = 0.99  # share of the variance of the active units that the components keep
MAX_COMPONENTS = 50
# In units of a component's spread. What a correction estimates from some hundred cells is uncertain
# by a tenth of the spread; noise has to be a few times as large to hide it.
NOISE = 0.4
ORACLES = ("per-batch standardisation within class", "ComBat with class")
CONTROL_SPLITS = 3
CONTROL_PROBES = ("whitened",)  # the fastest probe that finds such a batch


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
        The labels that the correction uses, or why it is missing.
    """

    name: str
    features: np.ndarray | None = field(repr=False)
    oracle: bool
    note: str

    @property
    def shown_name(self):
        """The name in tables and figures, which marks oracles."""
        return f"{self.name} (oracle)" if self.oracle else self.name


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
        By name, in the order of a table. A baseline that cannot be computed (package not installed,
        no training cells, too few cells) has `features` None and a `note`.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, there is only one batch, or training and test
        cells have different features.
    """
    test, batch, _ = check_features(test_features, test_labels)
    need_two("batches", batch)
    train = _checked_train(train_features, train_labels, test.shape[1])

    def components():
        return _with_noise(active_components(test)(test), seed)

    def by(correct, **settings):
        return lambda: correct(components(), test_labels, **settings)

    batch_note = "uses the batch of all test cells"
    class_note = "uses the batch and the class of all test cells"
    no_note = "fitted on the training cells, uses no label of a test cell"
    within = {"within_class": True}
    rows = [
        ("untouched", "no correction", lambda: test),
        ("per-batch standardisation", batch_note, by(standardise_batches)),
        ("per-batch standardisation within class", class_note, by(standardise_batches, **within)),
        ("Harmony", batch_note, by(harmony, seed=seed)),
        ("ComBat", batch_note, by(combat)),
        ("ComBat with class", class_note, by(combat, with_class=True)),
        ("LEACE", no_note, lambda: _leace(test, train, within_class=False)),
        ("LEACE within class", no_note, lambda: _leace(test, train, within_class=True)),
    ]
    found = {}
    for name, note, correct in rows:
        try:
            features = correct()
        except ProbeError as error:  # of this baseline only: the common inputs were checked before
            features, note = None, str(error)
        found[name] = Baseline(name, features, name in ORACLES, note)
    return found


def null_control(test_features, test_labels, train_features=None, train_labels=None, seed=0):
    """Correct a batch that has no effect by every baseline, and let a probe look for it.

    The cells of each group (batch and class) are split in two halves at random, and the halves are
    taken for batches. Whatever a probe then finds comes from the correction.

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
        baseline that cannot be computed is missing from the table.

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
    `ACTIVE` of the cells. If no unit is active, all that vary are used. They are standardised. The
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
        Correct each class on its own, so that it keeps its mean and spread. Needs the class.

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
    values = pd.DataFrame(features.astype(float))
    part = class_name.codes if within_class else np.zeros(len(values), dtype=int)
    groups = values.groupby([part, batch.codes])
    variance = groups.var(ddof=0)
    own = np.sqrt(variance.loc[list(zip(part, batch.codes, strict=True))].to_numpy())
    common = np.sqrt(variance.groupby(level=0).mean().loc[part].to_numpy())
    scaled = (values - groups.transform("mean")) / np.where(own > 0, own, 1) * common
    return keep_constant(scaled + values.groupby(part).transform("mean"), features)


def harmony(features, labels, seed=0):
    """Correct by Harmony.

    Cells are put into soft clusters that are rewarded for holding all batches; each cluster is then
    shifted batch by batch, and this is repeated. Shifts that are large beside the differences
    between cells are hardly removed: the clusters then hold one batch each from the start.

    Parameters
    ----------
    features : array, (cells, features)
        They are divided by their standard deviations, so all have the same weight.
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


# --- helpers ---------------------------------------------------------------------------------


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
    # One map for all cells cannot write a batch in, so it needs no noise.
    components = active_components(features)
    return fit_leace(components(features), concept)(components(test))


def _with_noise(components, seed):
    """Add noise to components; constant ones stay constant."""
    noise = np.random.default_rng(seed).normal(size=components.shape)
    return components + NOISE * noise * (np.ptp(components, axis=0) > 0)


def _halves(labels, rng):
    """Return the labels with two random halves of each group as batches."""
    second = np.zeros(len(labels), dtype=bool)
    for cells in labels.groupby(["batch", "class_name"], observed=True).indices.values():
        # Of an odd number, either half may be the larger.
        second[rng.permutation(cells)[: (len(cells) + rng.integers(2)) // 2]] = True
    return labels.assign(batch=pd.Categorical(np.where(second, "second half", "first half")))
