"""Convolutions with fewer multiplications: Winograd's minimal filtering.

Four neighbouring outputs of a filter with four taps take 16 multiplications. The product of two
polynomials gives them with seven: evaluate both at seven points, multiply there, interpolate. Along
both axes of an image that is 49 instead of 256. Evaluation and interpolation are matrix products
with small constant matrices, so a convolution becomes a few matrix products, forward and backward.

Results agree with an ordinary convolution within 1e-5, by rounding.

Source: A. Lavin and S. Gray 2016, "Fast algorithms for convolutional neural networks", CVPR.

Example
-------
>>> form = minimal_form(pixels=16, stride=1, tile=4)
>>> form.inputs.shape, form.kernel.shape, form.outputs.shape
((7, 4, 16), (7, 4), (16, 7, 4))
>>> convolve(np.ones((1, 16, 16, 2)), np.ones((4, 4, 2, 3)), form).shape
TensorShape([1, 16, 16, 3])
"""

from dataclasses import dataclass

import numpy as np

from cytomad_lib.backend import keras

ops = keras.ops

TAPS = 4  # of a kernel, along each axis
# Where the polynomials are evaluated, besides infinity. Small numbers keep rounding errors small.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)


@dataclass(frozen=True)
class Form:
    """A convolution along one axis, as products at points.

    The outputs are `outputs @ ((kernel @ weights) * (inputs @ values))`.

    Parameters
    ----------
    inputs : array (points, tiles, pixels of the input)
    kernel : array (points, 4)
    outputs : array (pixels of the output, points, tiles)
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray

    def transposed(self):
        """Return the form of the transposed convolution: inputs and outputs change places."""
        return Form(self.outputs.transpose(1, 2, 0), self.kernel, self.inputs.transpose(2, 0, 1))


def minimal_form(pixels, stride, tile):
    """Return the form of a convolution with four taps and padding "same".

    With a stride of 2, even and odd taps are two filters with two taps each.

    Parameters
    ----------
    pixels : int
        Of the input along the axis; a multiple of the stride.
    stride : {1, 2}
    tile : int
        Neighbouring outputs that share their products, 1 to 4. With a stride of 2, a tile of 1
        saves no multiplication: the convolution is then one matrix product per tap.

    Returns
    -------
    Form
    """
    from_inputs, from_kernel, to_outputs = _products(tile, TAPS // stride)
    points, tiles = len(from_inputs), -(-pixels // (stride * tile))
    inputs = np.zeros((points, stride, tiles, stride * (tiles * tile + points)))
    kernel = np.zeros((points, stride, TAPS))
    outputs = np.zeros((tiles, tile, points, stride, tiles))
    for phase in range(stride):
        kernel[:, phase, phase::stride] = from_kernel
        for number in range(tiles):
            start = number * tile * stride + phase
            inputs[:, phase, number, start : start + stride * points : stride] = from_inputs
            outputs[number, :, :, phase, number] = to_outputs
    return Form(
        inputs.reshape(points * stride, tiles, -1)[..., 1 : pixels + 1],  # 0 is the padding
        kernel.reshape(points * stride, TAPS),
        outputs.reshape(tiles * tile, points * stride, tiles)[: pixels // stride],
    )


def _products(tile, taps):
    """Return the matrices of one tile, for its inputs, the kernel and its outputs (Cook-Toom)."""
    places = np.array(POINTS[: tile + taps - 2])[:, None]
    at_infinity = np.eye(TAPS)[-1:]  # the highest coefficient
    kernel = np.vstack([places ** np.arange(taps), at_infinity[:, -taps:]])
    outputs = np.vstack([places ** np.arange(tile), at_infinity[:, -tile:]]).T
    # Output i is the sum over the taps j of tap j times input i + j. The third matrix follows.
    i, j, k = np.indices((tile, taps, len(kernel))).reshape(3, -1)
    demanded = (i + j == k).reshape(tile * taps, -1)
    known = np.einsum("ip,pj->ijp", outputs, kernel).reshape(tile * taps, -1)
    inputs = np.linalg.lstsq(known, demanded.astype(float), rcond=None)[0]
    largest = np.abs(inputs).max(axis=1, keepdims=True)
    return inputs / largest, kernel * largest, outputs


def convolve(images, kernel, form, transposed=False):
    """Convolve images by one form along both axes.

    Parameters
    ----------
    images : tensor (n, pixels, pixels, channels)
    kernel : tensor (4, 4, channels, filters)
        Of a transposed convolution (4, 4, filters, channels), as Keras has it.
    form : Form
    transposed : bool
        Whether `form` is that of a transposed convolution.

    Returns
    -------
    tensor (n, pixels of the output, pixels of the output, filters)
    """
    points, tiles, pixels = form.inputs.shape
    channels, filters = images.shape[-1], kernel.shape[2 if transposed else 3]
    inputs = form.inputs.reshape(points * tiles, pixels).astype("float32")
    outputs = form.outputs.reshape(-1, points * tiles).astype("float32")

    # Rows, then columns. Cells stay beside channels, so both are columns of one matrix.
    x = ops.reshape(ops.transpose(images, (1, 2, 0, 3)), (pixels, -1))
    x = ops.matmul(inputs, ops.reshape(ops.matmul(inputs, x), (points * tiles, pixels, -1)))
    x = ops.transpose(ops.reshape(x, (points, tiles, points, tiles, -1)), (0, 2, 1, 3, 4))
    x = ops.reshape(x, (points**2, -1, channels))
    weights = _at_points(kernel, form)
    y = ops.matmul(x, ops.swapaxes(weights, 1, 2) if transposed else weights)
    y = ops.transpose(ops.reshape(y, (points, points, tiles, tiles, -1)), (0, 2, 1, 3, 4))
    y = ops.matmul(outputs, ops.reshape(y, (points * tiles, points * tiles, -1)))
    y = ops.matmul(outputs, ops.reshape(y, (points * tiles, -1)))
    y = ops.reshape(y, (len(outputs), len(outputs), -1, filters))
    return ops.transpose(y, (2, 0, 1, 3))


def _at_points(kernel, form):
    """Return the kernel's values at each point of both axes (points squared, ., .)."""
    both_axes = np.kron(form.kernel, form.kernel).astype("float32")
    weights = ops.reshape(kernel, (TAPS**2, -1))
    if not np.array_equal(both_axes, np.eye(TAPS**2)):
        weights = ops.matmul(both_axes, weights)
    return ops.reshape(weights, (len(both_axes), *kernel.shape[2:]))
