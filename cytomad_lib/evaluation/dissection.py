"""Networks taken apart: blocks and shapes, paths, and the receptive field of a discriminator.

- `block_table`: every block of a network with its shape and number of parameters.
- `exchange_paths`: the bottleneck or one skip connection of a generator, taken from other cells.
- `patch_outputs`: the output of a discriminator, by running statistics or by those of the
  minibatch.
- `receptive_field`, `sensitivity`: the pixels that can affect one patch of a discriminator, and
  how much each of them does.

Example
-------
>>> table = block_table(build_generator(image_size=32, base_filters=4))
>>> list(table.index[:5])
['encoder 1', 'encoder 2', 'encoder 3', 'encoder 4', 'bottleneck']
>>> table.loc["encoder 1", ["height", "width", "channels"]].tolist()
[16, 16, 4]
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from cytomad_lib.backend import keras
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation.bottleneck import outputs
from cytomad_lib.training.steps import without_gradients

layers, ops = keras.layers, keras.ops

STATISTICS = ("running", "minibatch")

# A block begins with one of these; what follows it (normalisation, activation, …) belongs to it.
_FIRST_OF_BLOCK = {
    "Conv2D": "convolution",
    "Conv2DTranspose": "transposed convolution",
    "Dense": "dense",
}


class DissectionError(CytomadError):
    """A network that cannot be taken apart, or a patch that it does not have."""


def block_table(network):
    """List the blocks of a network: shapes and numbers of parameters.

    Parameters
    ----------
    network : keras.Model
        From a builder of `cytomad_lib.networks`, but not `build_conditional_generator`:
        give `get_layer("generator")` or `get_layer("feature_encoder")` of that.

    Returns
    -------
    DataFrame
        Index `block`; columns `kind`, `stride`, `height`, `width` (pixels of the output; 1 for a
        dense layer), `channels` (of the block's output), `joined` (channels that a skip connection
        or the input adds) and `parameters`. The parameters add up to `network.count_params()`.

    Raises
    ------
    DissectionError
        If a layer is a network in itself.
    """
    rows = []
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            raise DissectionError(
                f"{network.name} holds the network {layer.name!r}. Expected one of plain layers; "
                f"give `get_layer({layer.name!r})`."
            )
        if type(layer).__name__ in _FIRST_OF_BLOCK:
            rows.append(_new_block(layer))
        elif rows:
            row, shape = rows[-1], layer.output.shape
            row["parameters"] += layer.count_params()
            if isinstance(layer, layers.Concatenate):
                row["joined"] = shape[-1] - row["channels"]
            elif isinstance(layer, layers.MaxPooling2D):
                row["height"], row["width"] = shape[1:3]
    names = _block_names(network, [row["kind"] for row in rows])
    return pd.DataFrame(rows, index=pd.Index(names, name="block"))


def _new_block(layer):
    shape = layer.output.shape
    height, width = shape[1:3] if len(shape) == 4 else (1, 1)
    return {
        "kind": _FIRST_OF_BLOCK[type(layer).__name__],
        "stride": layer.strides[0] if hasattr(layer, "strides") else 1,
        "height": height,
        "width": width,
        "channels": shape[-1],
        "joined": 0,
        "parameters": layer.count_params(),
    }


def _block_names(network, kinds):
    if "bottleneck" not in [layer.name for layer in network.layers]:
        numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
        return [*(f"{k} {n}" for k, n in zip(kinds[:-1], numbers, strict=False)), "answer"]
    down = kinds.count("convolution") - 1
    tail = len(kinds) - 2 * down - 2
    names = [f"encoder {n + 1}" for n in range(down)] + ["bottleneck"]
    names += [f"decoder {n + 1}" for n in range(down)] + [f"tail {n + 1}" for n in range(tail)]
    return [*names, "image"]


def exchange_paths(code, order):
    """Exchange one path between cells, path by path.

    Parameters
    ----------
    code : bottleneck.Code
        The output of a generator's encoder for some cells.
    order : int array (cells,)
        The cell whose path each cell gets.

    Returns
    -------
    dict of Code
        By exchanged path: "bottleneck", "skip 2×2" to the outermost skip, and "input image". All
        other paths are unchanged.
    """
    exchanged = {"bottleneck": replace(code, bottleneck=code.bottleneck[order])}
    for number, skip in enumerate(code.skips):
        last = number == len(code.skips) - 1
        name = "input image" if last else f"skip {skip.shape[1]}×{skip.shape[2]}"
        skips = [*code.skips[:number], skip[order], *code.skips[number + 1 :]]
        exchanged[name] = replace(code, skips=skips)
    return exchanged


@without_gradients()
def patch_outputs(discriminator, brightfield, phase, statistics="running"):
    """Return a discriminator's probability, patch by patch, that phase images are measured.

    Parameters
    ----------
    discriminator : keras.Model
        It is not changed.
    brightfield, phase : array (n, size, size, 1)
    statistics : {"running", "minibatch"}
        Of batch normalisation. "running": those of the training, so that the output for a cell
        depends on that cell alone; the generator is trained against this output. "minibatch": mean
        and spread of all these images together, as in the discriminator's own training step.

    Returns
    -------
    array (n, size / 8, size / 8)
        Probability that the patch is real.

    Raises
    ------
    DissectionError
        If `statistics` is none of these.
    """
    if statistics not in STATISTICS:
        raise DissectionError(
            f"There are no {statistics!r} statistics. Expected one of {', '.join(STATISTICS)}."
        )
    images = [np.asarray(stack, "float32") for stack in (brightfield, phase)]
    if statistics == "minibatch":
        # Without state: a plain call with training=True would move the running statistics.
        patches, _ = discriminator.stateless_call(
            [variable.value for variable in discriminator.trainable_variables],
            [variable.value for variable in discriminator.non_trainable_variables],
            images,
            training=True,
        )
        return ops.convert_to_numpy(patches)[..., 0]
    return outputs(discriminator, *images)[..., 0]


def receptive_field(network, place):
    """Return the pixels of a line that can affect a unit of the last convolution.

    They follow from kernels and strides; the weights do not matter.

    Parameters
    ----------
    network : keras.Model
        From `build_discriminator`.
    place : int
        Row (or column) of the patch.

    Returns
    -------
    tuple of int
        First and last pixel. The field may reach beyond the image into the padding.

    Raises
    ------
    DissectionError
        If there is no such patch.
    """
    n_patches = network.output_shape[1]
    if not 0 <= place < n_patches:
        raise DissectionError(f"There is no patch {place}. Expected 0 to {n_patches - 1}.")
    first = last = place
    for layer in reversed(network.layers):
        if isinstance(layer, layers.Conv2D):
            size, kernel, stride = layer.input.shape[1], layer.kernel_size[0], layer.strides[0]
            padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            first = first * stride - padding // 2
            last = last * stride - padding // 2 + kernel - 1
    return first, last


def sensitivity(discriminator, brightfield, phase, patch, spot=2, change=0.5):
    """Measure how much each pixel of phase images affects the output of a patch.

    Parameters
    ----------
    discriminator : keras.Model
    brightfield, phase : array (n, size, size, 1)
        Pairs; a few suffice.
    patch : tuple of int
        Row and column of the patch.
    spot : int
        Side of the square that is changed at a time, in pixels. It must divide the image's size.
    change : float
        Added to these pixels, in rad.

    Returns
    -------
    array (size / spot, size / spot)
        Absolute change of the patch's log-odds of "real"; mean of the pairs.

    Raises
    ------
    DissectionError
        If the images are not pairs, or the spot does not divide the size.
    """
    size = phase.shape[1]
    if len(phase) != len(brightfield) or not len(phase) or size % spot:
        raise DissectionError(
            f"Found {len(brightfield)} brightfield and {len(phase)} phase images of {size} pixels, "
            f"and spots of {spot}. Expected pairs, and a spot that divides the size."
        )
    pairs = zip(brightfield, phase, strict=True)
    return np.mean([_sensitivity_of(discriminator, *p, patch, spot, change) for p in pairs], axis=0)


def _sensitivity_of(discriminator, brightfield, phase, patch, spot, change):
    before = _log_odds(patch_outputs(discriminator, brightfield[None], phase[None]))[0, *patch]
    n_spots = phase.shape[0] // spot
    changes = []
    for row in range(n_spots):
        changed = np.repeat(phase[None], n_spots, axis=0)
        for column in range(n_spots):
            rows, columns = (slice(k * spot, (k + 1) * spot) for k in (row, column))
            changed[column, rows, columns] += change
        after = patch_outputs(discriminator, np.repeat(brightfield[None], n_spots, axis=0), changed)
        changes.append(np.abs(_log_odds(after)[:, *patch] - before))
    return np.stack(changes)


def _log_odds(probability):
    probability = np.clip(probability.astype("float64"), 1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))
