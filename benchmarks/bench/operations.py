"""Floating-point operations of the networks and of a training step, counted from their layers.

Convolutions, transposed convolutions and dense layers are counted, a multiplication and an addition
as two operations; all else is less than a hundredth of them. Counted is what a step **needs**: no
gradient that nothing uses, and nothing twice. A program that computes more gets no credit for it.

Example
-------
>>> generator = build_generator(image_size=128, base_filters=64)
>>> count_operations(generator) / 1e9                                 # one cell, forward
3.844079616
>>> 10 * step_operations(generator, build_discriminator(128, 64)) / 1e9   # a minibatch of ten
417.2283904
"""

from keras import layers


def count_operations(network, weights=False, inner=False, inputs=False):
    """Count the floating-point operations that a network needs for one cell.

    A gradient costs as much as the layer itself: that with respect to the weights once, that
    with respect to what the layer takes in once more.

    Parameters
    ----------
    network : keras.Model
        Functional, of layers that are used once.
    weights : bool
        With the gradient of all weights.
    inner : bool
        With the gradient of what goes from layer to layer: weights further up need it.
    inputs : bool
        With the gradient of what the network takes in, too (and so of all between).

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If there is a layer with a kernel whose operations are not known here.
    """
    total = 0
    for operations, takes_inputs in _layers(network):
        backward = inputs or (inner and not takes_inputs)
        total += operations * (1 + weights + backward)
    return total


def step_operations(generator, discriminator, judges=(), updates="alternating"):
    """Count the operations that a training step needs for one cell of its minibatch.

    The discriminator learns from a measured and from a generated pair; then it and the frozen
    classifiers hand a gradient through to the generator, which is run once.

    Parameters
    ----------
    generator, discriminator : keras.Model
    judges : sequence of keras.Model
        The frozen classifiers of batch removal; none in pretraining.
    updates : {"alternating", "simultaneous"}
        In the latter the generated pair is judged once for both networks. What they make of the
        verdict differs, so that a gradient goes back through the discriminator for each.

    Returns
    -------
    int
    """
    operations = (
        count_operations(generator, weights=True, inner=True)
        + 2 * count_operations(discriminator, weights=True, inner=True)
        + sum(count_operations(judge, inputs=True) for judge in (discriminator, *judges))
    )
    if updates == "simultaneous":
        operations -= count_operations(discriminator)
    return operations


def _layers(network):
    """List (operations per cell, whether it takes in only what needs no gradient) per layer."""
    # What comes from the inputs alone, past no weight, needs a gradient only if the inputs do.
    free = {id(tensor) for tensor in network.inputs}
    found = []
    for layer in network.layers:
        taken = layer.input if isinstance(layer.input, list) else [layer.input]
        takes_inputs = all(id(tensor) in free for tensor in taken)
        if takes_inputs and not layer.trainable_variables:
            free.add(id(layer.output))
        if hasattr(layer, "kernel"):
            found.append((_of_layer(layer), takes_inputs))
    return found


def _of_layer(layer):
    if isinstance(layer, layers.Conv2DTranspose):
        _, height, width, _ = layer.input.shape  # every pixel that goes in meets the whole kernel
    elif isinstance(layer, layers.Conv2D):
        _, height, width, _ = layer.output.shape
    elif isinstance(layer, layers.Dense):
        height = width = 1
    else:
        raise ValueError(
            f"The layer {layer.name!r} is a {type(layer).__name__}. Expected Conv2D, "
            "Conv2DTranspose or Dense; say in `models.operations` what it costs."
        )
    size = 1
    for length in layer.kernel.shape:
        size *= length
    return 2 * size * height * width
