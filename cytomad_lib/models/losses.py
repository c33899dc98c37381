"""The loss terms of both training stages.

Keras' own loss objects are used throughout, because they average over the minibatch and scale
themselves when several devices share it; a hand-written mean would not.

Example
-------
>>> real_or_fake(np.full((1, 8, 8, 1), 0.5), real=True)    # ln 2: the discriminator is unsure
0.6931
"""

import numpy as np
from keras import losses, ops

CELL = 0.35  # of its peak phase: where the cell begins, for `lost_structure`
RIM = 5  # pixels: pixels nearer than half of it to the outline do not count there

_binary = losses.BinaryCrossentropy()
_absolute = losses.MeanAbsoluteError()
_categorical = losses.SparseCategoricalCrossentropy()


def real_or_fake(patches, real):
    """Binary cross-entropy of the discriminator's patches against "all real" or "all fake".

    Parameters
    ----------
    patches : tensor (n, height, width, 1)
        Probabilities that each patch is real.
    real : bool
        What they should have said.

    Returns
    -------
    scalar tensor, in nats
    """
    target = ops.ones_like(patches) if real else ops.zeros_like(patches)
    return _binary(target, patches)


def mean_absolute_error(measured, generated):
    """Mean absolute difference of two stacks of phase images, in rad."""
    return _absolute(measured, generated)


def cross_entropy(codes, probabilities):
    """Cross-entropy of predicted probabilities (n, classes) with true codes (n,), in nats."""
    return _categorical(codes, probabilities)


def fooled(probabilities, fake_code=0):
    """Cross-entropy with one fake label for every cell: small once the classifier is fooled.

    The published recipe steers the generator until its batch classifiers say "first batch" of
    every cell.

    Parameters
    ----------
    probabilities : tensor (n, batches)
    fake_code : int
        Code of the batch that every cell shall seem to come from.

    Returns
    -------
    scalar tensor, in nats
    """
    fake = ops.full(ops.shape(probabilities)[:1], fake_code, dtype="int32")
    return _categorical(fake, probabilities)


def lost_structure(measured, generated, coarse):
    """Return how much of the fine structure inside the cells is not that of the measured phase.

    One minus the correlation, cell by cell, of what is left of both images when their smooth part
    is subtracted, inside the cell. Scale, offset and slope of a batch do not matter to it, so an
    image that is free of batch can be held to the structure of a measurement that is not.

    Parameters
    ----------
    measured, generated : tensor (n, size, size, 1)
        In rad.
    coarse : float
        Standard deviation, in pixels, of the Gaussian that makes the smooth part.

    Returns
    -------
    scalar tensor
        0: the same structure; 1: unrelated.
    """
    peak = ops.max(measured, axis=(1, 2, 3), keepdims=True)
    inside = ops.cast(measured > CELL * peak, measured.dtype)
    blur = gaussian_kernel(coarse)
    weight = ops.maximum(ops.conv(inside, blur, padding="same"), 1e-3)
    # Without the rim, where the steep outline would outweigh all that is inside.
    core = 1.0 - ops.max_pool(1.0 - inside, RIM, strides=1, padding="same")

    def structure(images):
        smooth = ops.conv(images * inside, blur, padding="same") / weight
        fine = (images - smooth) * core
        mean = ops.sum(fine, axis=(1, 2, 3), keepdims=True) / _count(core)
        return (fine - mean) * core

    one, other = structure(measured), structure(generated)
    covariance = ops.sum(one * other, axis=(1, 2, 3))
    spread = ops.sum(one**2, axis=(1, 2, 3)) * ops.sum(other**2, axis=(1, 2, 3))
    return ops.mean(1.0 - covariance / ops.sqrt(spread + 1e-6))


def mean_squared_correlation(features):
    """Return the squared correlation of two features, on average over all pairs of different ones.

    Parameters
    ----------
    features : tensor (n, n_features)
        Of enough cells: of n independent cells, uncorrelated features still give some 1 / n.

    Returns
    -------
    scalar tensor
        0: no two say the same; 1: all do.
    """
    centred = features - ops.mean(features, axis=0, keepdims=True)
    # The floor is for features that never vary: they correlate with nothing.
    standard = centred / ops.sqrt(ops.mean(centred**2, axis=0, keepdims=True) + 1e-6)
    n_cells, n_features = ops.shape(features)[0], features.shape[1]
    correlation = ops.matmul(ops.transpose(standard), standard) / ops.cast(n_cells, "float32")
    off_diagonal = correlation * (1.0 - ops.eye(n_features))
    return ops.sum(off_diagonal**2) / (n_features * (n_features - 1))


def gaussian_kernel(sigma):
    """Return a convolution kernel (side, side, 1, 1) that blurs; it ends at two sigma."""
    reach = np.arange(-int(2 * sigma + 0.5), int(2 * sigma + 0.5) + 1)
    line = np.exp(-(reach**2) / (2 * sigma**2))
    plane = np.outer(line, line)
    return (plane / plane.sum())[:, :, None, None].astype("float32")


def _count(mask):
    return ops.maximum(ops.sum(mask, axis=(1, 2, 3), keepdims=True), 1.0)
