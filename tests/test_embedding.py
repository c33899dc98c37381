"""The map of cells."""

import warnings

import numpy as np
import pytest

from cytomad_lib.evaluation.embedding import umap_coordinates


def test_map_is_reproducible_quiet_and_keeps_groups_apart():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) + 12 * np.repeat([0, 1], 20)[:, None]
    features = np.hstack([features, np.ones((40, 1))])  # a dead unit
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, again = (umap_coordinates(features, seed=1, n_neighbors=8) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    a, b = first[:20], first[20:]
    assert np.linalg.norm(a.mean(0) - b.mean(0)) > 2 * max(a.std(), b.std())


def test_too_few_cells():
    with pytest.raises(ValueError, match="Found 3 cells"):
        umap_coordinates(np.zeros((3, 4)))
