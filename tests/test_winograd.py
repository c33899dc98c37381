"""Matrix products at points give what a convolution gives."""

import keras
import numpy as np
import pytest
from keras import ops

from cytomad_lib.training import steps
from cytomad_lib.winograd import convolve, minimal_form

# Pixels, stride and tile: also where the last tile is not full.
FORMS = [(16, 1, 4), (16, 1, 3), (6, 1, 4), (8, 1, 2), (4, 2, 1), (8, 2, 2), (16, 2, 4), (12, 2, 4)]
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def assert_near(found, wanted, part):
    found, wanted = (ops.convert_to_numpy(values) for values in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=part * np.std(wanted))


@pytest.mark.parametrize("pixels, stride, tile", FORMS)
def test_a_form_is_the_convolution(pixels, stride, tile):
    images, kernel = normal(3, pixels, pixels, 5), normal(4, 4, 5, 6)
    wanted = ops.conv(images, kernel, stride, "same")
    assert_near(convolve(images, kernel, minimal_form(pixels, stride, tile)), wanted, 1e-4)


@pytest.mark.parametrize("pixels, stride, tile", [form for form in FORMS if form[1] == 2])
def test_the_transposed_form_is_the_transposed_convolution(pixels, stride, tile):
    images, kernel = normal(3, pixels // 2, pixels // 2, 5), normal(4, 4, 6, 5)
    wanted = ops.conv_transpose(images, kernel, stride, "same")
    form = minimal_form(pixels, stride, tile).transposed()
    assert_near(convolve(images, kernel, form, transposed=True), wanted, 1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_convolution(transposed):
    form = minimal_form(8, 2, 2)
    values = normal(2, 4, 4, 3) if transposed else normal(2, 8, 8, 3)
    kernel, weights = normal(4, 4, 3, 3), normal(2, *(2 * [8 if transposed else 4]), 3)
    ordinary = ops.conv_transpose if transposed else ops.conv
    form = form.transposed() if transposed else form

    def changes(convolution):
        variables = [keras.Variable(values), keras.Variable(kernel)]
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(variables)

        def losses():
            outputs = convolution(*(variable.value for variable in variables))
            return {"loss": ops.sum(weights * outputs)}

        steps.minimise(losses, variables, optimizer)
        return [ops.convert_to_numpy(v) for v in variables]

    found = changes(lambda x, k: convolve(x, k, form, transposed))
    wanted = changes(lambda x, k: ordinary(x, k, 2, "same"))
    for ours, theirs, before in zip(found, wanted, (values, kernel), strict=True):
        assert np.abs(theirs - before).max() > 1
        assert_near(ours, theirs, 1e-4)


def test_a_tile_of_four_takes_seven_products_instead_of_sixteen():
    form = minimal_form(16, 1, 4)
    points, tiles, _ = form.inputs.shape
    assert (points * tiles, 4 * len(form.outputs)) == (28, 64)
