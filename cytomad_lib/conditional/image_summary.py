"""What of a batch can be seen in a phase image, as one vector per cell.

An adversary of whole images is slow to train, and sees few cells per step. Most of what batches do
to an image is in a few hundred numbers, which can be kept for thousands of cells:

* a coarse copy of the image: scale, background, and on which side of the cell the rim is brighter;
* the energy of the fine detail, place by place: blur, noise;
* the power in bands of spatial frequency: sharpness, fringes, the grid of transposed convolutions;
* the mean squared slope along either axis: stripes, and light from one side;
* the area above each of some levels: how steeply the cell rises from its rim, which is faint beside
  what lies inside.

Example
-------
>>> summary = ImageSummary(64)
>>> summary(images, training=True).shape, summary.length
((42, 355), 355)
"""

import numpy as np
from keras import layers, ops

from cytomad_lib.conditional.losses import blur
from cytomad_lib.config import (
    AREA_LEVELS,
    AREA_SOFTNESS,
    BANDS,
    COARSE_SIDE,
    DETAIL_PLACES,
    DETAIL_SIGMA,
    LOG_FLOOR,
)


class ImageSummary(layers.Layer):
    """Summarise images, each number standardised over the cells by running statistics.

    Parameters
    ----------
    image_size : int
        Height and width in pixels, a power of two.
    """

    def __init__(self, image_size, **options):
        super().__init__(**options)
        self.image_size = image_size
        self.coarse_side, self.places_side = (
            min(COARSE_SIDE, image_size),
            min(DETAIL_PLACES, image_size),
        )
        self.length = self.coarse_side**2 + self.places_side**2 + BANDS + 2 + len(AREA_LEVELS)
        self.standardise = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-4, center=False, scale=False
        )
        self.standardise.build((None, self.length))
        self._bands = _frequency_bands(image_size)
        self._difference = _differences(image_size)
        self._coarse, self._squares = (
            _means_of_squares(image_size, side) for side in (self.coarse_side, self.places_side)
        )
        self.built = True

    def call(self, images, training=False):
        """Return `(n, length)` for images `(n, size, size, 1)`."""
        planes = ops.convert_to_tensor(images)[..., 0]
        detail = planes - blur(planes, DETAIL_SIGMA)
        # By matrix products, whose gradients take a CPU less than those of slices and pools.
        down = ops.matmul(self._difference, planes)
        across = ops.matmul(planes, ops.transpose(self._difference))
        numbers = [
            _places(planes, self._coarse),
            ops.log(_places(detail**2, self._squares) + LOG_FLOOR),
            ops.log(self._power(planes) + LOG_FLOOR),
            ops.log(ops.mean(down**2, axis=(1, 2)) + LOG_FLOOR)[:, None],
            ops.log(ops.mean(across**2, axis=(1, 2)) + LOG_FLOOR)[:, None],
            ops.log(_areas_above(planes) + LOG_FLOOR),
        ]
        return self.standardise(ops.concatenate(numbers, axis=-1), training=training)

    def _power(self, planes):
        n = self.image_size
        real, imaginary = ops.fft2((planes, ops.zeros_like(planes)))
        power = ops.reshape(real**2 + imaginary**2, (-1, n * n)) / n**2
        return ops.matmul(power, self._bands)


def _areas_above(planes):
    """Return (n, levels): the part of each image that is above each level, softly counted."""
    peak = ops.max(planes, axis=(1, 2))[:, None]
    level = (peak * ops.convert_to_tensor(AREA_LEVELS, "float32"))[:, :, None, None]
    above = ops.sigmoid((planes[:, None] - level) / (AREA_SOFTNESS * ops.abs(level) + 1e-3))
    return ops.mean(above, axis=(2, 3))


def _places(planes, pool):
    """Pool images along both axes, into (n, places)."""
    pooled = ops.matmul(pool, ops.matmul(planes, ops.transpose(pool)))
    return ops.reshape(pooled, (-1, pool.shape[0] ** 2))


def _means_of_squares(n, side):
    """Return (side, n): the mean over each of `side` parts of a line."""
    return np.repeat(np.eye(side, dtype="float32"), n // side, axis=1) / (n // side)


def _differences(n):
    """Return (n - 1, n): each pixel of a line less the one before it."""
    return np.eye(n - 1, n, 1, dtype="float32") - np.eye(n - 1, n, dtype="float32")


def _frequency_bands(n):
    """Return (n * n, bands): the mean over the frequencies of each ring."""
    frequency = np.fft.fftfreq(n)
    radius = np.hypot(frequency[:, None], frequency[None]).ravel()
    band = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS - 1)
    member = np.eye(BANDS, dtype="float32")[band]
    return member / np.maximum(member.sum(axis=0), 1)
