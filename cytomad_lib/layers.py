"""Keras' layers of images, with the same arguments, weights and results, but faster.

* `BatchNormalization` in one operation. Keras writes it as a dozen operations, each of which goes
  through memory, and twice as many for the gradient. TensorFlow and PyTorch have one of each.
* `Conv2D` and `Conv2DTranspose` with fewer multiplications, where these are so many that it pays.

Example
-------
>>> layer = BatchNormalization(momentum=0.9, epsilon=1e-3)
>>> normalised = layer(np.random.rand(10, 8, 8, 64), training=True)
"""

from contextlib import contextmanager
from functools import cache

from cytomad_lib.backend import keras
from cytomad_lib.winograd import TAPS, convolve, minimal_form

layers = keras.layers

# Channels in, times channels out, from which matrix products are faster, by stride. Measured on two
# CPU cores, with the 10 cells of a training step and the 100 of a prediction.
MANY_CHANNELS = {1: 128 * 256, 2: 512 * 512}


@keras.saving.register_keras_serializable("cytomad_lib")
class Conv2D(layers.Conv2D):
    """Keras' convolution; on a CPU, a large one by `winograd.convolve`."""

    def convolution_op(self, inputs, kernel):
        """Convolve `inputs` (n, height, width, channels); Keras calls this."""
        form = _form(self, inputs.shape, kernel.shape)
        if form is None:
            return super().convolution_op(inputs, kernel)
        return convolve(inputs, kernel, form)


@keras.saving.register_keras_serializable("cytomad_lib")
class Conv2DTranspose(layers.Conv2DTranspose):
    """Keras' transposed convolution; on a CPU, a large one by `winograd.convolve`."""

    def call(self, inputs):
        """Convolve `inputs` (n, height, width, channels); see `keras.layers.Conv2DTranspose`."""
        large = tuple(self.compute_output_shape(inputs.shape))
        form = _form(self, large, self.kernel.shape)
        if form is None:
            return super().call(inputs)
        outputs = convolve(inputs, self.kernel, form.transposed(), transposed=True)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


def _form(layer, shape, kernel):
    """Return the form by which convolving images of this shape is faster, if there is one.

    The shape is that of the larger images: what goes into a convolution, and what comes out of a
    transposed one.
    """
    pixels, stride = shape[1], layer.strides[0]
    if (
        shape[1] != shape[2]
        or kernel[2] * kernel[3] < MANY_CHANNELS.get(stride, float("inf"))
        or not _is_plain(layer)
        or not _on_cpu()
    ):
        return None
    if stride == 1:
        return _minimal_form(pixels, 1, 4) if pixels >= 16 and pixels % 4 == 0 else None
    return _minimal_form(pixels, 2, pixels // 4) if pixels in (4, 8, 16) else None


def _is_plain(layer):
    return (
        layer.kernel_size == (TAPS, TAPS)
        and len(set(layer.strides)) == 1
        and layer.padding == "same"
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and getattr(layer, "groups", 1) == 1
        and getattr(layer, "output_padding", None) is None
        and layer.compute_dtype == "float32"
    )


_minimal_form = cache(minimal_form)


@contextmanager
def ordinary_convolutions():
    """Convolve as Keras does inside the block: for graphs that other programs will run."""
    before = dict(MANY_CHANNELS)
    MANY_CHANNELS.clear()
    try:
        yield
    finally:
        MANY_CHANNELS.update(before)


@cache
def _on_cpu():
    """Return whether TensorFlow computes on a CPU. A GPU has fast convolutions of its own."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


@keras.saving.register_keras_serializable("cytomad_lib")
class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation: the same arguments, weights and results, sooner.

    Images on one device take the short way, all else takes Keras' own.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise `inputs` (n, height, width, channels); see `keras.layers.BatchNormalization`.

        With `training`, by the mean and variance of the minibatch, and the running statistics
        follow these; else by the running statistics.
        """
        on_torch = keras.backend.backend() == "torch"
        follows = training and self.trainable
        if mask is not None or not self._fits(inputs) or (on_torch and not follows):
            return super().call(inputs, training=training, mask=mask)
        if not follows:
            return self._normalise_by_running_statistics(inputs)
        normalise = self._normalise_on_torch if on_torch else self._normalise_on_tensorflow
        normalised, mean, variance = normalise(inputs)
        self._follow(self.moving_mean, mean)
        self._follow(self.moving_variance, variance)
        return normalised

    def _normalise_by_running_statistics(self, inputs):
        import tensorflow as tf

        return tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma.value,
            self.beta.value,
            self.moving_mean.value,
            self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=False,
        )[0]

    def _normalise_on_tensorflow(self, inputs):
        import tensorflow as tf

        normalised, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
        )
        # The operation returns the variance of the population that the values are drawn from. Keras
        # keeps that of the values themselves.
        count = tf.cast(tf.size(inputs), "float32") / inputs.shape[-1]
        return normalised, mean, variance * (count - 1.0) / count

    def _normalise_on_torch(self, inputs):
        import torch

        normalised, mean, inverse = torch.native_batch_norm(
            inputs.permute(0, 3, 1, 2),  # a view: in memory, the channels stay last
            self.gamma.value,
            self.beta.value,
            None,
            None,
            training=True,
            momentum=0.0,
            eps=self.epsilon,
        )
        mean, inverse = mean.detach(), inverse.detach()
        return normalised.permute(0, 2, 3, 1), mean, inverse.pow(-2) - self.epsilon

    def _follow(self, running, found):
        running.assign(running * self.momentum + found * (1.0 - self.momentum))

    def _fits(self, inputs):
        # On TensorFlow, half precision is left to Keras.
        precisions = {"tensorflow": ("float32",), "torch": ("float32", "bfloat16")}
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.compute_dtype == keras.backend.standardize_dtype(inputs.dtype)
            and self.compute_dtype in precisions[keras.backend.backend()]
            and self.scale
            and self.center
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Keras 3.13 has none
            and self.epsilon > 1.001e-5  # the least that TensorFlow's operation takes
        )
