"""The loss terms of both training stages.

Keras' own loss objects are used throughout, because they average over the minibatch and scale
themselves when several devices share it; a hand-written mean would not.

Example
-------
>>> real_or_fake(np.full((1, 8, 8, 1), 0.5), real=True)    # ln 2: the discriminator is unsure
0.6931
"""

from keras import losses, ops

_binary = losses.BinaryCrossentropy()
mean_absolute_error = losses.MeanAbsoluteError()  # of measured and generated images, in rad
# In nats, of true codes (n,) and predicted probabilities (n, classes).
cross_entropy = losses.SparseCategoricalCrossentropy()


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


def fooled(probabilities, fake_code=0):
    """Cross-entropy with one fake label for every cell: small once the classifier is fooled.

    The published recipe steers the generator until its batch classifiers predict "first batch" for
    every cell.

    Parameters
    ----------
    probabilities : tensor (n, batches)
    fake_code : int
        Code of the fake batch.

    Returns
    -------
    scalar tensor, in nats
    """
    fake = ops.full(ops.shape(probabilities)[:1], fake_code, dtype="int32")
    return cross_entropy(fake, probabilities)
