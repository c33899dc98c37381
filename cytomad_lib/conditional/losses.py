"""Losses of the conditional recipe: of structure (and the blur that it needs), and of features.

Example
-------
>>> image = np.random.rand(1, 32, 32, 1)
>>> float(lost_structure(image, image, coarse=1.5))       # nothing is lost: about 0
"""

from functools import cache

import numpy as np
from keras import ops

from cytomad_lib.config import DOME_POWERS, RIM_PIXELS, STRUCTURE_MASK
from cytomad_lib.training.losses import cross_entropy


def feature_losses(readers, features, class_codes, measures, training):
    """Return what features lose of class and measures, and how far they are copies of one another.

    Parameters
    ----------
    readers : keras.Model
        From `networks.build_readers`.
    features : tensor (n, n_features)
        Standardised.
    class_codes : int tensor (n,)
    measures : tensor (n, n_measures)
    training : bool
        Whether the readers drop units.

    Returns
    -------
    dict of scalar tensors
        `"class_head"`, `"measures"` and `"correlation"`.
    """
    probabilities, predicted = readers(features, training=training)
    return {
        "class_head": cross_entropy(class_codes, probabilities),
        "measures": ops.mean((predicted - measures) ** 2),
        "correlation": squared_correlations(features),
    }


def squared_correlations(features):
    """Return the sum of the squared correlations of each feature with the others, on average.

    Parameters
    ----------
    features : tensor (n, features)
        Standardised.
    """
    n_features = features.shape[1]
    correlation = ops.mean(features[:, :, None] * features[:, None], axis=0)
    return ops.sum((correlation * (1.0 - ops.eye(n_features))) ** 2) / n_features


def ramp(optimizer, steps):
    """Return a factor that grows from 0 to 1 over the first steps of an optimizer."""
    return ops.minimum(ops.cast(optimizer.iterations, "float32") / max(steps, 1.0), 1.0)


def lost_structure(measured, generated, coarse):
    """Return how much of the fine structure inside the cells is not that of the measured phase.

    One minus the correlation of the fine detail of both images, averaged over the cells. Fine
    detail is the image inside the cell minus its dome (the phase of an ellipsoid) and minus its
    smooth part.
    Scale, offset and slope of a batch do not matter, so an image that is free of batch can be held
    to the structure of a measurement that is not.

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
    measured, generated = (ops.convert_to_tensor(some)[..., 0] for some in (measured, generated))
    peak = ops.max(measured, axis=(1, 2), keepdims=True)
    inside = ops.cast(measured > STRUCTURE_MASK * peak, measured.dtype)
    dome = _dome_powers(inside)
    weight = ops.maximum(blur(inside, coarse), 1e-3)
    # Without the rim, where the steep outline would outweigh all that is inside.
    core = ops.cast(_pixels_near(1.0 - inside, RIM_PIXELS) < 0.5, measured.dtype)

    def structure(images):
        flat = _without(images * inside, dome)
        fine = (flat - blur(flat, coarse) / weight) * core
        return fine - core * _mean(fine, core)

    one, other = structure(measured), structure(generated)
    covariance = ops.sum(one * other, axis=(1, 2))
    spread = ops.sum(one**2, axis=(1, 2)) * ops.sum(other**2, axis=(1, 2))
    return ops.mean(1.0 - covariance / ops.sqrt(spread + 1e-6))


def blur(images, sigma):
    """Blur images by a Gaussian that ends at two sigma; beyond the border all is zero.

    Rows and columns are blurred by one matrix product each: on a CPU a tenth of the time of a
    convolution with so wide a kernel.

    Parameters
    ----------
    images : tensor (n, size, size)
        One channel.
    sigma : float
        Standard deviation in pixels.

    Returns
    -------
    tensor (n, size, size)
    """
    weights = ops.convert_to_tensor(_blur_weights(images.shape[1], sigma))
    return ops.matmul(weights, ops.matmul(images, weights))


@cache  # PyTorch, which does not trace, asks for it in every step
def _blur_weights(size, sigma):
    distance = np.abs(np.arange(size)[:, None] - np.arange(size))
    reach = int(2 * sigma + 0.5)
    line = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = np.exp(-(distance**2) / (2 * sigma**2)) * (distance <= reach) / line.sum()
    return weights.astype("float32")


def _pixels_near(mask, reach):
    """Count the pixels of masks (n, size, size) in the square of `reach` pixels around each."""
    near = ops.convert_to_tensor(_near_weights(mask.shape[1], reach))
    return ops.matmul(near, ops.matmul(mask, near))


@cache  # as the weights of a blur
def _near_weights(size, reach):
    place = np.arange(size)
    return (np.abs(place[:, None] - place) <= reach).astype("float32")


def _dome_powers(inside):
    """Return the first powers of the thickness of an ellipsoid that is shaped as the cell.

    The same as `evaluation.image_quality.ellipsoid_thickness`, for a minibatch of masks
    (n, size, size): (n, powers, size * size), 0 outside of the cells.
    """
    size = inside.shape[1]
    line = ops.arange(size, dtype="float32")
    y, x = line[None, :, None], line[None, None, :]
    y, x = y - _mean(y * inside, inside), x - _mean(x * inside, inside)
    # Of a filled ellipse the variance along an axis is a quarter of that half-axis squared.
    yy, xx, yx = (_mean(4 * moment * inside, inside) for moment in (y * y, x * x, y * x))
    yy, xx = yy + 1 / 3, xx + 1 / 3
    squared = (xx * y * y - 2 * yx * x * y + yy * x * x) / (xx * yy - yx * yx)
    # What has no gradient at zero is kept from it.
    thickness = ops.sqrt(ops.maximum(1.0 - squared, 1e-6))
    powers = [inside]
    for _ in range(DOME_POWERS - 1):
        powers.append(powers[-1] * thickness)
    return ops.reshape(ops.stack(powers, axis=1), (-1, DOME_POWERS, size * size))


def _without(images, regressors):
    """Subtract from images (n, size, size) what the regressors explain of each."""
    flat = ops.reshape(images, (-1, regressors.shape[2], 1))
    transposed = ops.transpose(regressors, (0, 2, 1))
    # The ridge is for an image without a cell.
    products = ops.matmul(regressors, transposed) + 1e-3 * ops.eye(regressors.shape[1])
    shares = ops.solve(products, ops.matmul(regressors, flat))
    explained = ops.matmul(ops.transpose(shares, (0, 2, 1)), regressors)
    return images - ops.reshape(explained, ops.shape(images))


def _mean(masked, mask):
    pixels = ops.maximum(ops.sum(mask, axis=(1, 2), keepdims=True), 1.0)
    return ops.sum(masked, axis=(1, 2), keepdims=True) / pixels
