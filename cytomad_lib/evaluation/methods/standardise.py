"""Per-batch standardisation: every batch gets the same mean and spread."""

import numpy as np

from cytomad_lib.conditional.erasure import spread_of
from cytomad_lib.evaluation.components import active_components, unless_constant, with_noise
from cytomad_lib.evaluation.tasks import check_features

NAME = "per-batch standardisation"
NEEDS = "many cells of the batch"
TRAINS_ON = ()


def fit(features, images, labels, seed):
    """Keep the seed of the noise."""
    return seed


def transform(fitted, features, images, labels):
    """Standardise the components of the cells, batch by batch."""
    components = with_noise(active_components(features)(features), fitted)
    return standardise_batches(components, labels.assign(class_name="any"))


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
    return unless_constant(found, features)
