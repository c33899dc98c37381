"""A generator cut in two does what it did, and what is changed between the parts shows."""

import keras
import numpy as np
import pytest

from cytomad_lib.conditional.networks import build_conditional_generator
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation import bottleneck
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.networks import build_cell_type_mlp, build_generator

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.normal(1.0, 0.3, (5, 32, 32, 1)).astype("float32")


def with_large_weights(model):
    """Untrained weights are so small that nothing would show; and statistics are all 0 and 1."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        if len(variable.shape) == 4:
            fan_in = np.prod(variable.shape[:2]) * min(variable.shape[2:])
            variable.assign(random.normal(0, 1.5 / np.sqrt(fan_in), variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.fixture(scope="module", params=[build_generator, build_conditional_generator])
def generator(request):
    return with_large_weights(request.param(32, 4, seed=3))


def test_decode_of_encode_is_the_generator(generator):
    split = split_generator(generator)
    code = split.encode(IMAGES)
    expected, features = (
        keras.ops.convert_to_numpy(made) for made in generator(IMAGES, training=False)
    )
    assert expected.std() > 1e-3
    np.testing.assert_allclose(split.decode(code), expected, atol=1e-5, rtol=1e-5)
    if generator.name == "generator":
        np.testing.assert_allclose(code.bottleneck, features, atol=1e-5, rtol=1e-5)


def test_slices_change_nothing(generator, monkeypatch):
    split = split_generator(generator)
    whole, mean = split.decode(split.encode(IMAGES)), split.mean_code(IMAGES)
    monkeypatch.setattr(bottleneck, "AT_ONCE", 2)
    np.testing.assert_allclose(split.decode(split.encode(IMAGES)), whole, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        split.mean_code(IMAGES).bottleneck, mean.bottleneck, atol=1e-5, rtol=1e-5
    )
    expected = split.encode(IMAGES).bottleneck.mean(axis=0)
    np.testing.assert_allclose(mean.bottleneck[0], expected, atol=1e-5, rtol=1e-5)


def test_the_last_skip_is_the_input_image():
    code = split_generator(build_generator(32, 4, seed=3)).encode(IMAGES)
    np.testing.assert_array_equal(code.skips[-1], IMAGES)
    assert [skip.shape[1] for skip in code.skips] == [2, 4, 8, 16, 32]


def test_a_feature_changes_the_image_and_the_code_stays_as_it_was(generator):
    split = split_generator(generator)
    code = split.encode(IMAGES)
    before = code.bottleneck.copy()
    moved = code.with_feature(2, 50.0)
    assert np.all(moved.bottleneck[:, 2] == 50.0)
    assert np.abs(split.decode(moved) - split.decode(code)).max() > 1e-3
    np.testing.assert_array_equal(code.bottleneck, before)
    each = code.with_feature(2, np.arange(5.0))
    np.testing.assert_array_equal(each.bottleneck[:, 2], np.arange(5.0))


def test_without_skips_the_input_image_does_not_show(generator):
    split = split_generator(generator)
    code = split.encode(IMAGES)
    same = code.with_feature(slice(None), code.bottleneck[:1])  # all cells get one bottleneck
    blind = split.decode(same.without_skips())
    np.testing.assert_allclose(blind, np.repeat(blind[:1], 5, axis=0), atol=1e-5, rtol=1e-5)
    assert np.abs(split.decode(same) - split.decode(same)[:1]).max() > 1e-3


def test_skips_of_other_cells(generator):
    split = split_generator(generator)
    code = split.encode(IMAGES)
    swapped = code.with_skips_of(split.encode(IMAGES[::-1]))
    whole = code.with_feature(slice(None), code.bottleneck[::-1]).with_skips_of(
        split.encode(IMAGES[::-1])
    )
    np.testing.assert_allclose(split.decode(whole), split.decode(code)[::-1], atol=1e-5, rtol=1e-5)
    assert np.abs(split.decode(swapped) - split.decode(code)).max() > 1e-3
    one_for_all = code.with_skips_of(split.mean_code(IMAGES))
    assert [len(skip) for skip in one_for_all.skips] == [5] * len(code.skips)


def test_another_model_is_refused():
    with pytest.raises(CytomadError, match="has no layer 'bottleneck'.*Expected a generator"):
        split_generator(build_cell_type_mlp(3, 8))
