"""An example of a method of your own: subtract what the batch adds to the features.

    cytomad compare lung --out results/mine --method docs/my_method.py

A linear model of the training cells, feature = class + batch + noise, gives what each batch adds.
See `cytomad_lib.evaluation.baselines` for what a method gets, and `evaluation/methods/` for the
baselines, which are written in the same way.
"""

import numpy as np
import pandas as pd

from cytomad_lib.evaluation.components import active_components

NAME = "batch effect subtracted"
NEEDS = "batch"  # of a cell to be corrected; "nothing" would be better
TRAINS_ON = ("features", "batch", "class_name")


def fit(features, images, labels, seed):
    """Fit to the training cells; `transform` gets what this returns."""
    components = active_components(features)
    design = pd.get_dummies(labels[["batch", "class_name"]], dtype=float)
    effects = np.linalg.lstsq(design.to_numpy(), components(features), rcond=None)[0]
    by_batch = pd.DataFrame(effects, index=design.columns).filter(like="batch_", axis="index")
    return components, by_batch - by_batch.mean()


def transform(fitted, features, images, labels):
    """Return the new features of some cells, one row each."""
    components, by_batch = fitted
    effect = by_batch.reindex("batch_" + labels["batch"].astype(str)).fillna(0)  # 0: a new batch
    return components(features) - effect.to_numpy()
