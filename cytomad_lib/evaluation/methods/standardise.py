"""Per-batch standardisation: every batch gets the same mean and spread."""

import numpy as np
import pandas as pd

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
    values = pd.DataFrame(features.astype(float))
    part = class_name.codes if within_class else np.zeros(len(features), dtype=int)
    groups = values.groupby([part, batch.codes])
    # 0, not 1e-17, where nothing varies.
    variances = groups.var(ddof=0).where(groups.max() > groups.min(), 0.0)
    own, common = (
        table.loc[keys].to_numpy() ** 0.5
        for table, keys in (
            (variances, list(zip(part, batch.codes, strict=True))),
            (variances.groupby(level=0).mean(), part),
        )
    )
    scaled = (values - groups.transform("mean")) / np.where(own > 0, own, 1) * common
    return unless_constant(scaled + values.groupby(part).transform("mean"), features)
