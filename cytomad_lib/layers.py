"""Batch normalisation in one operation, where there is such a one.

Keras writes it as a dozen operations, each of which goes through memory, and twice as many for the
gradient; TensorFlow has one of each.

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

    Images in float32 that are trained on one device take the short way, all else Keras' own.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise `inputs` (n, height, width, channels); see `keras.layers.BatchNormalization`.

        With `training`, by the mean and variance of the minibatch, and the running statistics
        follow these; else by the running statistics.
        """
        if not (training and self.trainable and mask is None and self._fits(inputs)):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        normalised, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
        )
        # What the operation reports is the variance of the population that the values are drawn
        # from; Keras keeps that of the values themselves.
        shape = tf.shape(inputs)
        count = tf.cast(shape[0] * shape[1] * shape[2], "float32")
        self._follow(self.moving_mean, mean)
        self._follow(self.moving_variance, variance * (count - 1.0) / count)
        return normalised

    def _follow(self, running, found):
        running.assign(running * self.momentum + found * (1.0 - self.momentum))

    def _fits(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.compute_dtype == inputs.dtype == "float32"
            and self.scale
            and self.center
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Keras 3.13 has none
            and self.epsilon > 1.001e-5  # the least that the operation takes
        )
