"""Closed-form erasure of what a linear probe could find (LEACE).

A baseline of batch removal: it projects out the linear trace of the batch inside the classes. The
map is fitted on the training cells. It needs neither the batch nor the class of the cells that it
is applied to.

Example
-------
>>> concept = within_class_concept(batch_codes, class_codes)
>>> erase = fit_leace(training_features, concept)
>>> clean = erase(any_features)
"""

import numpy as np

RANK_TOLERANCE = 1e-6  # directions with less than this part of the largest spread are constant


def within_class_concept(batch_codes, class_codes):
    """Return the batch as indicator columns, less their mean inside each class.

    This is the part of the batch that the class does not explain. Erasing it removes the effect
    that a batch has on all of its classes. An effect on a single class stays. Differences between
    classes stay, too, except along the directions of the batches.

    Parameters
    ----------
    batch_codes, class_codes : int array (cells,)

    Returns
    -------
    array (cells, batches)
    """
    concept = np.eye(int(np.max(batch_codes)) + 1)[batch_codes]
    class_codes = np.asarray(class_codes)
    for code in np.unique(class_codes):
        own = class_codes == code
        concept[own] -= concept[own].mean(axis=0)
    return concept


def fit_leace(features, concept):
    """Fit least-squares concept erasure (LEACE) in closed form.

    Of all affine maps after which the features have no covariance with the concept, this is the one
    that changes the features least, whatever inner product measures the change. When the concept is
    a label as indicator columns, no linear classifier can then do better than a constant, on these
    cells. Whatever is not linear stays, and with fewer cells than a few times the features the map
    fits these cells and helps little on others.

    Parameters
    ----------
    features : array, (cells, features)
        Of the training cells.
    concept : array, (cells, columns)
        For example the batch as indicator columns. If the mean of each class is subtracted from
        those, batches become alike *inside* the classes, and the difference between classes that
        comes with their different batches is left alone (LEACE "within class").

    Returns
    -------
    function
        Takes features (cells, features) of any cells and returns them, float32, without the
        concept. The mean of the training cells stays where it is, and so do features that are
        constant in training.

    Source
    ------
    Belrose et al. 2023, LEACE: perfect linear concept erasure in closed form, NeurIPS
    (theorem 4.3).
    """
    features = np.asarray(features, dtype=float)
    concept = np.asarray(concept, dtype=float)
    mean = features.mean(axis=0)
    spread = spread_of(features)
    # The map does not depend on the units of the features; standardised ones are safer to invert.
    scale = np.where(spread > 0, spread, 1)
    scaled = np.where(spread > 0, (features - mean) / scale, 0) / np.sqrt(len(features))
    white, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    kept = singular > RANK_TOLERANCE * singular[0]
    white, singular, axes = white[:, kept], singular[kept], axes[kept]
    # Whitened features have covariance 1: there, the least change is an orthogonal projection.
    covariance = white.T @ (concept - concept.mean(axis=0)) / np.sqrt(len(features))
    directions, strength, _ = np.linalg.svd(covariance, full_matrices=False)
    directions = directions[:, strength > RANK_TOLERANCE]
    reads = (axes.T / singular) @ directions / scale[:, None]
    writes = (axes.T * singular) @ directions * scale[:, None]
    # A constant feature has no part in any direction, but for rounding.
    reads[spread == 0] = writes[spread == 0] = 0

    def erase(other):
        other = np.asarray(other, dtype=float)
        return (other - (other - mean) @ reads @ writes.T).astype(np.float32)

    return erase


def spread_of(values):
    """Return the standard deviation per column, 0 (not 1e-17) where nothing varies."""
    return np.where(np.ptp(values, axis=0) > 0, values.std(axis=0), 0)
