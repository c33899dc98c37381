"""ComBat, the correction of batch effects by empirical Bayes estimates.

Example
-------
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 20, "class_name": "H69"})
>>> features = np.random.default_rng(0).normal(size=(40, 5)) + (labels[["batch"]] == "B2").values
>>> found = combat(features, labels)
>>> bool(abs(found[::2].mean(axis=0) - found[1::2].mean(axis=0)).max() < 0.1)
True
"""

import numpy as np

from cytomad_lib.evaluation.components import keep_constant
from cytomad_lib.evaluation.erasure import spread_of
from cytomad_lib.evaluation.tasks import ProbeError, check_features


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
        Put class effects into the model, which keeps them. Needs the class.
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
        batches share no class: then batch effects and class effects cannot be separated.

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
            "cannot separate batch and class. Give cells of classes that link all batches."
        )
    effects = np.linalg.lstsq(design, features, rcond=None)[0]
    spread = np.sqrt(np.mean((features - design @ effects) ** 2, axis=0))
    # Expected without the batch: the mean over the batches, and the class effect.
    expected = (
        sizes @ effects[: len(sizes)] / len(features)
        + design[:, len(sizes) :] @ effects[len(sizes) :]
    )
    # Features that do not vary within batch (and class) have no noise to rescale: they get their
    # expected value.
    varies = (spread > 1e-6 * spread_of(features)) & (np.ptp(features, axis=0) > 0)
    if varies.sum() < 2:
        raise ProbeError(
            f"{varies.sum()} features vary within the batches; ComBat needs at least two, because "
            "it estimates from all of them how much batches differ."
        )
    noise = (features - expected)[:, varies] / spread[varies]
    for code in range(len(sizes)):
        cells = batch.codes == code
        shift, variance = _shrunken(noise[cells], tolerance, max_steps)
        noise[cells] = (noise[cells] - shift) / np.sqrt(variance)
    found = expected.copy()
    found[:, varies] += noise * spread[varies]
    return keep_constant(found, features)


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
