"""Per-batch standardisation: every batch gets the same mean and spread."""

import numpy as np
import pandas as pd

from cytomad_lib.evaluation.components import keep_constant, noisy_components
from cytomad_lib.evaluation.tasks import check_features

NAME = "per-batch standardisation"
NEEDS = "many cells of the batch"


def transform(seed, features, images, labels):
    """Standardise the components of the cells, batch by batch."""
    components = noisy_components(features, seed)
    return standardise_batches(components, labels.assign(class_name="any"))


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
