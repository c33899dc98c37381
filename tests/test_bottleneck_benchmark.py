"""The variants of the bottleneck: each differs from the published generator as its name says."""

import numpy as np
import pytest

from benchmarks import bottleneck
from cytomad_lib.networks import build_generator

SIZES = {"image_size": 16, "base_filters": 4, "seed": 1}


@pytest.fixture(scope="module")
def brightfield():
    return np.random.default_rng(0).random((6, 16, 16, 1)).astype("float32")


def test_without_an_option_it_is_the_published_generator(brightfield):
    variant, published = bottleneck.build_variant(**SIZES), build_generator(**SIZES)
    for found, expected in zip(variant(brightfield), published(brightfield), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_leaky_or_normalised_bottleneck_has_no_silent_feature(brightfield):
    silent = {}
    for name, options in bottleneck.VARIANTS.items():
        _, features = bottleneck.build_variant(**SIZES, **options[1])(brightfield, training=True)
        silent[name] = bottleneck.describe(np.asarray(features))["0 in all cells"]
    assert silent["demo: 64 features, 8 epochs"] > 0
    assert silent["leaky ReLU at the bottleneck"] == 0
    assert silent["batch normalisation before the ReLU"] == 0


def silence(generator, place):
    """Set the weights of the layer so many places behind the bottleneck to 0."""
    names = [layer.name for layer in generator.layers]
    layer = generator.layers[names.index("bottleneck") + place]
    layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])


@pytest.mark.parametrize("skips", [True, False])
def test_without_skips_the_image_comes_from_the_bottleneck_alone(brightfield, skips):
    generator = bottleneck.build_variant(**SIZES, skips=skips)
    silence(generator, -1)
    image, _ = generator(brightfield, training=False)
    assert (np.ptp(image, axis=0).max() > 0) == skips


def test_zeros_are_counted():
    found = bottleneck.describe(np.array([[0.0, 0.0, 1.0, 2.0], [0.0, 3.0, 1.5, 0.0]]))
    assert found["exactly 0"] == 0.5
    assert found["0 in all cells"] == 0.25
    assert found["above 0 in half of the cells"] == 0.75


def test_another_cells_bottleneck_changes_nothing_where_it_is_not_read(brightfield):
    generator = build_generator(**SIZES)
    (share,) = bottleneck.exchange_error(generator, brightfield).values()
    assert share >= 0
    silence(generator, +1)
    (share,) = bottleneck.exchange_error(generator, brightfield).values()
    assert share == 0
