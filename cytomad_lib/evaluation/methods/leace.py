"""LEACE: the least change after which no linear classifier tells the training batches apart.

The map is fitted on training cells and corrects any single cell. One map for all cells cannot write
a batch in, so it needs no noise.
"""

import pandas as pd

from cytomad_lib.evaluation.components import active_components
from cytomad_lib.evaluation.erasure import fit_leace

NAME = "LEACE"
NEEDS = "nothing"
TRAINS_ON = ("features", "batch")


def fit(features, images, labels, seed):
    """Find the components of the training cells, and the map that erases the batch from them."""
    components = active_components(features)
    concept = pd.get_dummies(labels["batch"]).to_numpy(dtype=float)
    return components, fit_leace(components(features), concept)


def transform(fitted, features, images, labels):
    """Erase the batch from the components of the cells."""
    components, erase = fitted
    return erase(components(features))
