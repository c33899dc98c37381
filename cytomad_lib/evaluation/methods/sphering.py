"""Sphering: directions in which untreated cells vary count as little as all others.

The covariance of the untreated training cells (`UNTREATED`) around the mean of their batch is
whitened, and every batch is counted from its own untreated cells: typical variation normalisation
(TVN) without its last step. Where no cell is untreated, as among cell lines, the covariance is that
of the first batch's cells around the mean of their class, and no batch is moved.

Source
------
Ando, McLean and Berndl 2017, Improving phenotypic measurements in high-content imaging screens,
bioRxiv 161422.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

from cytomad_lib.evaluation.components import active_components
from cytomad_lib.evaluation.dose_cells import whitening_of

NAME = "sphering"
NEEDS = "batch"
TRAINS_ON = ("features", "batch", "class_name")
UNTREATED = "DMSO"


def fit(features, images, labels, seed):
    """Return the components, the origin of each batch and the whitening."""
    components = active_components(features)
    x = components(features).astype(float)
    batch, class_name = labels["batch"].astype(str), labels["class_name"].astype(str)
    reference = (class_name == UNTREATED).to_numpy()
    groups, moves = batch, reference.any()
    if not moves:
        reference, groups = (batch == batch.iloc[0]).to_numpy(), class_name
    means = {
        name: x[reference & (groups == name)].mean(axis=0) for name in groups[reference].unique()
    }
    centred = x[reference] - np.stack([means[name] for name in groups[reference]])
    whiten = whitening_of(ledoit_wolf(centred, assume_centered=True)[0])
    return components, means if moves else {}, np.mean(list(means.values()), axis=0), whiten


def transform(fitted, features, images, labels):
    """Count each cell from the untreated cells of its batch, in units of their variation."""
    components, origins, elsewhere, whiten = fitted
    origin = np.stack([origins.get(name, elsewhere) for name in labels["batch"].astype(str)])
    return (components(features) - origin) @ whiten
