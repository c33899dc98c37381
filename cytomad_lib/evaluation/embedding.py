"""Features drawn as a map of points: UMAP, for the eye only.

Distances and cluster sizes in the map mean little: read `probes` for numbers.

Example
-------
>>> import numpy as np
>>> umap_coordinates(np.random.default_rng(0).normal(size=(40, 8))).shape
(40, 2)
"""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from cytomad_lib.evaluation.tasks import ProbeError


def umap_coordinates(features, seed=0, n_neighbors=15):
    """Place each cell in the plane, similar cells near each other.

    Features are standardised and reduced to 50 principal components first.

    Parameters
    ----------
    features : array, (cells, features) or (cells, height, width[, 1])
    seed : int
        The same seed gives the same map.
    n_neighbors : int
        Cells that count as neighbours of a cell.

    Returns
    -------
    float32 array, (cells, 2)

    Raises
    ------
    ProbeError
        With fewer than 5 cells.
    """
    from umap import UMAP  # imported here: it takes seconds to load

    features = np.asarray(features, dtype=np.float32)
    n = len(features)
    if n < 5:
        raise ProbeError(f"Found {n} cells; a map needs at least 5.")
    features = StandardScaler().fit_transform(features.reshape(n, -1))
    features = PCA(min(50, n, features.shape[1]), random_state=seed).fit_transform(features)
    # One job and a start from principal components: reproducible, and no warning about either.
    model = UMAP(n_neighbors=min(n_neighbors, n - 1), init="pca", random_state=seed, n_jobs=1)
    return model.fit_transform(features).astype(np.float32)
