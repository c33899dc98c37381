"""The conditional generator: what its layers do, and how it starts from a pretrained one."""

import numpy as np
import pytest
from keras import ops

from cytomad_lib.conditional import networks
from cytomad_lib.config import Conditional
from cytomad_lib.networks import build_generator


def lively(generator):
    """Scale up the small initial kernels, so that outputs vary from cell to cell."""
    generator.set_weights([4 * w if w.ndim == 4 else w for w in generator.get_weights()])
    return generator


def some_images(n=12, mean=0.9, spread=0.2, seed=0):
    """Return images of exactly this mean and standard deviation each."""
    images = np.random.default_rng(seed).normal(size=(n, 16, 16, 1))
    images -= images.mean(axis=(1, 2, 3), keepdims=True)
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    return (mean + spread * images).astype("float32")


def outputs_of(generator, images, training=False):
    return [ops.convert_to_numpy(made) for made in generator(images, training=training)]


def test_normalising_gives_every_image_the_same_brightness_and_contrast():
    layer = networks.NormaliseImage()
    images = np.concatenate([some_images(3), some_images(3, mean=-2.0, spread=5.0)])
    shown = ops.convert_to_numpy(layer(images))
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(shown.std(axis=(1, 2, 3)), 1, rtol=1e-3)
    layer.set_weights([np.array([0.9, 0.2])])
    np.testing.assert_allclose(ops.convert_to_numpy(layer(images[:3])), images[:3], atol=1e-3)
    assert np.isfinite(ops.convert_to_numpy(layer(np.ones((1, 16, 16, 1))))).all()


def quiet(images, edge=0, faint=0.0):
    return ops.convert_to_numpy(networks.CleanBackground(edge, faint)(images))


def test_the_edge_of_an_image_mirrors_what_lies_inside():
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype("float32")
    beside = ((0, 0), (4, 4), (4, 4), (0, 0))
    wanted = np.pad(images[:, 4:-4, 4:-4], beside, mode="symmetric")
    np.testing.assert_array_equal(quiet(images, edge=4), wanted)
    np.testing.assert_array_equal(quiet(images), images)


def test_what_is_faint_beside_the_cell_becomes_zero():
    images = np.zeros((2, 8, 8, 1), "float32")
    images[:, 0, 0], images[:, 1, 1], images[:, 2, 2], images[:, 3, 3] = 2.0, 0.019, -0.019, -1.0
    images[1] *= 10
    found = quiet(images, faint=0.01)
    for image, scale in zip(found[..., 0], (1, 10), strict=True):
        assert image[0, 0] == pytest.approx(1.98 * scale)
        assert image[3, 3] == pytest.approx(-0.98 * scale)
        assert np.count_nonzero(image) == 2
    assert not quiet(np.zeros((1, 8, 8, 1)), faint=0.01).any()


def blurred(images, sigma):
    return ops.convert_to_numpy(networks.BlurImage(sigma)(images))


def test_a_point_inside_a_cell_gets_the_width_asked_for():
    images = np.ones((1, 64, 64, 1), "float32")
    images[0, 30, 33] = 6.0
    found = blurred(images, sigma=2 / 64)[0, ..., 0] - 1
    assert found.sum() == pytest.approx(5.0, rel=1e-3)
    line = np.arange(64)
    for axis, centre in ((0, 33), (1, 30)):
        profile = found.sum(axis=axis) / 5
        assert profile @ line == pytest.approx(centre, abs=1e-2)
        assert profile @ (line - centre) ** 2 == pytest.approx(4.0, rel=0.02)
    np.testing.assert_array_equal(blurred(images, sigma=0), images)


def test_blur_adds_nothing_around_a_cell_and_levels_its_grain():
    y, x = np.mgrid[:64, :64] - 31.5
    cell = (np.hypot(y, x) < 12)[None, ..., None]
    inner = (np.hypot(y, x) < 6)[None, ..., None]  # three sigmas from the rim
    flat = (1.7 * cell).astype("float32")
    np.testing.assert_allclose(blurred(flat, sigma=2 / 64)[inner], 1.7, rtol=2e-3)
    grainy = flat * np.random.default_rng(0).uniform(0.5, 1.5, flat.shape).astype("float32")
    found = blurred(grainy + 0.01, sigma=2 / 64)
    np.testing.assert_array_equal(found != 0, cell)
    assert found[inner].std() < 0.3 * grainy[inner].std()
    assert found[inner].mean() == pytest.approx(grainy[inner].mean(), rel=0.03)


def test_blur_hardly_changes_the_size_of_a_cell():
    """The phase of an ellipsoid; a mean over its own pixels would add 10 % at the level 0.35."""
    y, x = np.mgrid[:64, :64] - 31.5
    dome = np.sqrt(np.maximum(1 - (x / 16) ** 2 - (y / 12) ** 2, 0))[None, ..., None]
    found = blurred(dome.astype("float32"), sigma=1.25 / 64)
    for level in (0.2, 0.35, 0.5):
        area, before = (np.sum(image > level * image.max()) for image in (found, dome))
        assert area == pytest.approx(before, rel=0.06), level


def test_blur_takes_the_edge_of_the_image_for_a_mirror():
    np.testing.assert_allclose(
        blurred(np.full((2, 16, 16, 1), 0.7, "float32"), 0.1), 0.7, rtol=1e-5
    )
    assert not blurred(np.zeros((1, 16, 16, 1), "float32"), 0.1).any()


def test_the_head_standardises_the_few_numbers_that_it_delivers():
    encoded = 3 + 2 * np.random.default_rng(0).normal(size=(300, 32)).astype("float32")
    head = networks.build_feature_head(32, 5, seed=3)
    for _ in range(40):  # its running statistics settle
        head(encoded, training=True)
    features = ops.convert_to_numpy(head(encoded))
    assert features.shape == (300, 5)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=0.05)


def test_number_of_features_is_that_of_the_recipe_for_every_width():
    recipe = Conditional(feature_filters=2, n_encoded=10, n_features=3)
    generator = networks.build_conditional_generator(16, 4, seed=0, recipe=recipe)
    assert generator.output_shape[1] == (None, 3)
    assert generator.get_layer("feature_encoder").output_shape == (None, 10)


def test_images_are_blurred_where_that_is_asked_for():
    images = some_images(4)
    sharp, smooth = (
        lively(networks.build_conditional_generator(16, 4, seed=3, recipe=Conditional(blur=blur)))
        for blur in (0, 0.1)
    )
    image = outputs_of(sharp, images)[0]
    assert image.std() > 0.005
    np.testing.assert_allclose(outputs_of(smooth, images)[0], blurred(image, 0.1), atol=1e-5)


def before_cleaning(conditional, images):
    """Return the images as the generator inside draws them, before they are cleaned."""
    normalised = conditional.get_layer("normalise_image")(images)
    return outputs_of(conditional.get_layer("generator"), normalised)[0]


def test_images_of_the_conditional_generator_have_no_edge_of_their_own():
    images = np.ones((1, 32, 32, 1), "float32")  # nothing that would tell one pixel from another
    images[0, 0, 0] = 1.1
    recipe = Conditional(blur=0)
    conditional = lively(networks.build_conditional_generator(32, 4, seed=0, recipe=recipe))
    made = outputs_of(conditional, images)[0][0, ..., 0]
    assert np.ptp(before_cleaning(conditional, images)[0, :4, :, 0]) > 0
    np.testing.assert_array_equal(made[:4], made[7:3:-1])
    np.testing.assert_array_equal(made[:, -4:], made[:, -5:-9:-1])


def test_each_channel_is_normalised_by_itself():
    images = np.concatenate([some_images(3), some_images(3, -2.0, 5.0, seed=1)], axis=-1)
    layer = networks.NormaliseImage()
    shown = ops.convert_to_numpy(layer(images))
    np.testing.assert_allclose(shown.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(shown.std(axis=(1, 2)), 1, rtol=1e-3)
    layer.set_weights([np.array([[0.9, -2.0], [0.2, 5.0]])])  # means, then spreads
    np.testing.assert_allclose(ops.convert_to_numpy(layer(images)), images, atol=2e-3)


def test_adopted_weights_of_several_channels_make_the_same_image():
    images = np.concatenate([some_images(3), some_images(3, -0.5, 1.5, seed=1)], axis=-1)
    pretrained = lively(build_generator(16, 4, seed=0, channels=2))
    wanted, _ = outputs_of(pretrained, images)
    conditional = networks.build_conditional_generator(16, 4, seed=1, channels=2)
    networks.adopt_weights(conditional, pretrained, np.array([0.9, -0.5]), np.array([0.2, 1.5]))
    made = before_cleaning(conditional, images)
    np.testing.assert_allclose(made, wanted, atol=0.01 * wanted.std())
    others = before_cleaning(conditional, images[..., ::-1])
    assert np.abs(others - wanted).max() > 0.1 * wanted.std()


@pytest.mark.parametrize("gain, offset", [(1.4, 0.0), (1.0, -0.3), (0.6, 0.5)])
def test_gain_and_offset_of_the_camera_change_nothing(gain, offset):
    images = some_images()
    standardised = lively(networks.build_conditional_generator(16, 4, seed=0))
    plain = lively(build_generator(16, 4, seed=0))
    for generator, invariant in ((standardised, True), (plain, False)):
        usual, other = outputs_of(generator, images), outputs_of(generator, gain * images + offset)
        for before, after in zip(usual, other, strict=True):
            change = np.abs(after - before).max() / before.std()
            assert change < 0.01 if invariant else change > 0.1


def test_adopted_weights_make_the_same_image():
    images = some_images(mean=0.9, spread=0.2)
    pretrained = lively(build_generator(16, 4, norm_momentum=0.8, seed=0))
    for seed in range(3):
        pretrained(some_images(seed=seed), training=True)  # moves the running statistics
    standardised = networks.build_conditional_generator(16, 4, seed=1)
    wanted, _ = outputs_of(pretrained, images)
    before = before_cleaning(standardised, images)
    networks.adopt_weights(standardised, pretrained, 0.9, 0.2)
    after = before_cleaning(standardised, images)
    assert np.abs(before - wanted).max() > wanted.std()
    np.testing.assert_allclose(after, wanted, atol=0.01 * wanted.std())


def test_encoded_features_have_one_mean_and_spread_over_the_cells():
    encoder = lively(networks.build_feature_encoder(16, 4, seed=0))
    features = ops.convert_to_numpy(encoder(some_images(40), training=True))
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    assert 0.5 < np.median(features.std(axis=0)) <= 1.001
