"""Gradient steps: the one file that knows TensorFlow from PyTorch.

Everything else in the kit is written with `keras` and `keras.ops` and runs on both.

Example
-------
>>> w = keras.Variable(3.0)
>>> optimizer = keras.optimizers.SGD(0.1)
>>> optimizer.build([w])
>>> loss = minimise(lambda: {"loss": w * w}, [w], optimizer)["loss"]   # 9.0; w is now 2.4
"""

import keras

BACKENDS = ("tensorflow", "torch")


def minimise(compute_losses, variables, optimizer):
    """Take one gradient step.

    Parameters
    ----------
    compute_losses : callable
        Takes nothing and returns a dict of scalar tensors; its `"loss"` is minimised.
    variables : list of keras.Variable
        What the step may change. Nothing else moves, whatever the loss depends on.
    optimizer : keras.optimizers.Optimizer
        Already built for `variables`.

    Returns
    -------
    dict
        What `compute_losses` returned, from before the step.

    Raises
    ------
    RuntimeError
        If Keras runs on another backend than TensorFlow or PyTorch.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _minimise_tensorflow(compute_losses, variables, optimizer)
    if backend == "torch":
        return _minimise_torch(compute_losses, variables, optimizer)
    raise RuntimeError(
        f"Keras runs on the backend {backend!r}; this kit trains on {' or '.join(BACKENDS)}. "
        "Set the environment variable KERAS_BACKEND to one of them before importing keras."
    )


def _minimise_tensorflow(compute_losses, variables, optimizer):
    import tensorflow as tf

    # Watching only what the step may change saves the work for all other gradients.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        losses = compute_losses()
        scaled = optimizer.scale_loss(losses["loss"])
    gradients = tape.gradient(scaled, [variable.value for variable in variables])
    optimizer.apply(gradients, variables)
    return losses


def _minimise_torch(compute_losses, variables, optimizer):
    import torch

    losses = compute_losses()
    # `grad` returns the gradients and leaves no sums behind on the variables, which a
    # `backward` would: the generator's loss also reaches the discriminator's weights.
    gradients = torch.autograd.grad(
        optimizer.scale_loss(losses["loss"]), [variable.value for variable in variables]
    )
    with torch.no_grad():
        optimizer.apply(list(gradients), variables)
    return {name: value.detach() for name, value in losses.items()}
