"""Batch normalisation in one operation.

Keras writes it as a dozen operations, each of which goes through memory, and twice as many for the
gradient. TensorFlow and PyTorch have one of each.

Example
-------
>>> layer = BatchNormalization(momentum=0.9, epsilon=1e-3)
>>> normalised = layer(np.random.rand(10, 8, 8, 64), training=True)
"""

from cytomad_lib.backend import keras

layers = keras.layers


@keras.saving.register_keras_serializable("cytomad_lib")
class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation: the same arguments, weights and results, sooner.

    Images that are trained on one device take the short way, all else takes Keras' own.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise `inputs` (n, height, width, channels); see `keras.layers.BatchNormalization`.

        With `training`, by the mean and variance of the minibatch, and the running statistics
        follow these; else by the running statistics.
        """
        if not (training and self.trainable and mask is None and self._fits(inputs)):
            return super().call(inputs, training=training, mask=mask)
        on_torch = keras.backend.backend() == "torch"
        normalise = self._normalise_on_torch if on_torch else self._normalise_on_tensorflow
        normalised, mean, variance = normalise(inputs)
        self._follow(self.moving_mean, mean)
        self._follow(self.moving_variance, variance)
        return normalised

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
