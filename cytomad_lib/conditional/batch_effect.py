"""The effect of each batch on a measured phase image, as a layer that is trained.

The measured phase is the target of the training, and it carries its batch: a day scales the phase,
blurs it, tilts its background. `BatchEffect` models that. The generator makes an image without
batch; this layer turns it into the image that the microscope of the cell's own day would have
measured, which is compared with the measurement. After the training the layer is removed.

The layer has one small kernel per batch (scale and blur, or sharpening) and one plane per batch
(offset and tilt). It cannot draw structure into a cell. The effects of all batches add up to zero,
so the image before the layer is that of an average day.

Example
-------
>>> effect = BatchEffect(n_batches=3)
>>> effect.start_from_scales([0.1, 0.0, -0.1])          # log scale of each batch
>>> measured = effect(np.ones((2, 32, 32, 1), "float32"), np.array([0, 2]))
>>> measured[:, 16, 16, 0]                               # e^0.1, e^-0.1, minus the mean effect
array([1.1018348, 0.9015013], dtype=float32)
"""

import keras
import numpy as np
from keras import ops

from cytomad_lib.config import (
    EFFECT_KERNEL,
)


class BatchEffect(keras.layers.Layer):
    """Turn a batch-free phase image into the image that the cell's own batch would measure.

    Parameters
    ----------
    n_batches : int
    """

    def __init__(self, n_batches, **options):
        super().__init__(**options)
        self.n_batches = n_batches
        self.kernels = self.add_weight(
            shape=(EFFECT_KERNEL, EFFECT_KERNEL, 1, n_batches), initializer="zeros", name="kernels"
        )
        self.planes = self.add_weight(shape=(n_batches, 3), initializer="zeros", name="planes")
        self.built = True

    def start_from_scales(self, log_scales):
        """Start from a known scale per batch, without blur and plane.

        Parameters
        ----------
        log_scales : array (n_batches,)
            Natural logarithm of each batch's phase scale; see `batch_scales`.
        """
        kernels = np.zeros(self.kernels.shape, "float32")
        kernels[EFFECT_KERNEL // 2, EFFECT_KERNEL // 2, 0] = np.expm1(log_scales)
        self.kernels.assign(kernels)

    def call(self, image, batch):
        """Turn images without batch into images as measured.

        Parameters
        ----------
        image : tensor (n, size, size, 1)
            In rad.
        batch : int tensor (n,)
            Codes of the batches.

        Returns
        -------
        tensor (n, size, size, 1), in rad
        """
        # Minus the mean over the batches: what they have in common belongs to the image.
        kernels = self.kernels - ops.mean(self.kernels, axis=-1, keepdims=True)
        planes = self.planes - ops.mean(self.planes, axis=0, keepdims=True)
        own = ops.one_hot(batch, self.n_batches, dtype=image.dtype)
        changes = ops.conv(image, kernels, padding="same")  # one channel per batch
        change = ops.sum(changes * own[:, None, None, :], axis=-1, keepdims=True)
        plane = ops.matmul(own, planes)[:, :, None, None, None]
        axis = ops.linspace(-1.0, 1.0, image.shape[1], dtype="float32")
        slope = plane[:, 1] * axis[None, :, None, None] + plane[:, 2] * axis[None, None, :, None]
        return image + change + plane[:, 0] + slope


def batch_scales(cells):
    """Estimate each batch's phase scale from the training cells, the classes being set off.

    A batch that happens to hold thick cells is not a batch of large scale. So the peak phase (98th
    percentile, logarithm) of each cell is explained by an effect of its class plus one of its
    batch, by least squares; batches are compared through the classes that they share.

    Parameters
    ----------
    cells : CellImages or CellFiles
        Read in slices.

    Returns
    -------
    array (batches,)
        Natural logarithm of the scale, relative to the mean of the batches that have cells; 0 for
        batches without cells.
    """
    peaks, batch, class_name = [], [], []
    for part in cells.in_slices():
        peaks.append(np.percentile(part.qpi.reshape(len(part.qpi), -1), 98, axis=1))
        batch.append(part.batch_codes)
        class_name.append(part.class_codes)
    # Phase is positive inside a cell; the floor only guards against an empty image.
    log_peak = np.log(np.maximum(np.concatenate(peaks), 1e-3))
    batch, class_name = np.concatenate(batch), np.concatenate(class_name)
    one_hot = np.hstack([np.eye(len(cells.batches))[batch], np.eye(len(cells.classes))[class_name]])
    effects = np.linalg.lstsq(one_hot, log_peak, rcond=None)[0][: len(cells.batches)]
    present = np.isin(np.arange(len(cells.batches)), batch)
    return np.where(present, effects - effects[present].mean(), 0.0)
