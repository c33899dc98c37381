"""The networks are the published ones, at every size, and predict without chance."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras import layers, ops

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.models import networks

PUBLISHED_LAYERS = Path(__file__).parent / "data" / "published_networks.csv"
BUILDERS = {
    "generator": networks.build_generator,
    "discriminator": networks.build_discriminator,
    "cnn_classifier_7_classes": lambda: networks.build_cnn_classifier(7),
    "batch_mlp_7_classes": lambda: networks.build_batch_mlp(7),
    "cell_type_mlp_7_classes": lambda: networks.build_cell_type_mlp(7),
}


def published_layers(name):
    with PUBLISHED_LAYERS.open() as file:
        return [row for row in csv.DictReader(file) if row["network"] == name]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_equals_the_published_one(name):
    model = BUILDERS[name]()
    # The published generator gives its bottleneck as 1x1x512; ours also flattens it.
    ours = [
        layer
        for layer in model.layers
        if name != "generator" or not isinstance(layer, layers.Flatten)
    ]
    expected = published_layers(name)
    assert len(ours) == len(expected)
    for layer, row in zip(ours, expected, strict=True):
        shape = "x".join(str(size) for size in layer.output.shape[1:])
        assert (shape, layer.count_params()) == (row["output_shape"], int(row["parameters"])), row
        kind = {"ReLU": "Activation"}.get(type(layer).__name__, type(layer).__name__)
        assert kind == row["layer"], row


@pytest.mark.parametrize(
    "name, total",
    [
        ("generator", 41_909_997),
        ("discriminator", 6_964_161),
        ("cnn_classifier_7_classes", 7_021_511),
        ("batch_mlp_7_classes", 14_932),
        ("cell_type_mlp_7_classes", 159_857),
    ],
)
def test_published_totals(name, total):
    assert sum(int(row["parameters"]) for row in published_layers(name)) == total


@pytest.mark.parametrize("image_size, base_filters", [(16, 4), (32, 4), (64, 6)])
def test_the_rule_holds_for_other_sizes(image_size, base_filters):
    generator = networks.build_generator(image_size, base_filters)
    image, features = generator(np.zeros((2, image_size, image_size, 1)))
    assert image.shape == (2, image_size, image_size, 1)
    assert features.shape == (2, 8 * base_filters)
    strided = [
        layer
        for layer in generator.layers
        if type(layer) is layers.Conv2D and layer.strides == (2, 2)
    ]
    assert len(strided) == np.log2(image_size)  # down to 1x1
    patches = networks.build_discriminator(image_size, base_filters)(
        [np.zeros((2, image_size, image_size, 1))] * 2
    )
    assert patches.shape == (2, image_size // 8, image_size // 8, 1)
    classes = networks.build_cnn_classifier(3, image_size, base_filters)
    guesses = ops.convert_to_numpy(classes(np.zeros((2, image_size, image_size, 1))))
    np.testing.assert_allclose(guesses.sum(axis=1), 1, rtol=1e-5)


def test_no_two_layers_start_equal_and_the_seed_decides():
    first, again, other = (
        networks.build_generator(32, 4, seed=seed).get_weights() for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    kernels = [weight for weight in first if weight.ndim == 4]
    for number, kernel in enumerate(kernels):
        assert not any(
            kernel.shape == later.shape and np.array_equal(kernel, later)
            for later in kernels[number + 1 :]
        )


def test_initial_convolutions_have_the_published_spread():
    kernels = [
        w.ravel() for w in networks.build_generator(64, 32, seed=0).get_weights() if w.ndim == 4
    ]
    values = np.concatenate(kernels)
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std() == pytest.approx(0.02, rel=0.01)


def test_prediction_of_a_cell_ignores_chance_and_the_other_cells():
    generator = networks.build_generator(32, 4, seed=0)
    cells = np.random.default_rng(0).normal(size=(6, 32, 32, 1)).astype("float32")
    for _ in range(3):
        generator(cells, training=True)  # moves the running statistics off their start
    together, _ = outputs_of(generator, cells)
    again, _ = outputs_of(generator, cells)
    np.testing.assert_array_equal(together, again)
    alone = np.concatenate([outputs_of(generator, cells[i : i + 1])[0] for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # ... and in training mode it depends on both: the traps that inference avoids.
    assert np.abs(outputs_of(generator, cells, training=True)[0] - together).max() > 1e-3


@pytest.mark.parametrize("image_size", [0, 8, 100, 96])
def test_impossible_image_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match=f"image_size is {image_size}.*power of two"):
        networks.build_generator(image_size)


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(ValueError, match="n_classes is 1"):
        networks.build_batch_mlp(1)


def test_published_preset_is_the_published_schedule():
    preset = networks.PUBLISHED
    assert (preset.image_size, preset.n_features, preset.batch_size) == (128, 512, 10)
    assert (preset.pretraining_epochs, preset.classifier_epochs, preset.removal_epochs) == (
        100,
        100,
        300,
    )
    assert (preset.refit_every, preset.refit_epochs, preset.batch_mlps) == (5, 100, 4)
    assert (preset.generator_rate, preset.discriminator_rate, preset.beta_1) == (2e-4, 1e-4, 0.5)
    assert preset.removal_rate == preset.generator_rate
    assert (preset.batch_mlp_rate, preset.class_mlp_rate, preset.cnn_rate) == (0.05, 1e-3, 1e-3)
    weights = preset.weight_adversarial, preset.weight_classifier, preset.weight_mae_removal
    assert weights == (1, 100, 300)
    assert preset.weight_mae_pretraining == 100
    assert preset.norm_momentum == 0.99


def test_presets_are_found_by_name_and_keep_their_fields():
    assert networks.find_preset("demo") is networks.DEMO
    assert replace(networks.DEMO, base_filters=4).n_features == 32
    with pytest.raises(CytomadError, match="'dmeo'.*published, demo, study, workshop"):
        networks.find_preset("dmeo")


@pytest.mark.parametrize("preset", networks.PRESETS.values(), ids=lambda preset: preset.name)
def test_presets_come_back_from_a_json_file(preset):
    assert networks.Preset.from_dict(json.loads(json.dumps(preset.as_dict()))) == preset


def test_an_unknown_setting_is_refused():
    fields = networks.DEMO.as_dict()
    fields["conditional"]["no_such_field"] = 1
    with pytest.raises(TypeError, match="no_such_field"):
        networks.Preset.from_dict(fields)


# --- the conditional generator -----------------------------------------------------------------


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


def features_of(generator):
    return generator.get_layer("feature_encoder").get_layer("features")


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
    return ops.convert_to_numpy(networks.QuietBackground(edge, faint)(images))


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


def test_blur_keeps_the_outline_of_a_cell_and_adds_nothing_around_it():
    y, x = np.mgrid[:64, :64] - 31.5
    cell = (np.hypot(y, x) < 12)[None, ..., None]
    flat = (1.7 * cell).astype("float32")
    np.testing.assert_allclose(blurred(flat, sigma=2 / 64), flat, atol=1e-5)
    grainy = flat * np.random.default_rng(0).uniform(0.5, 1.5, flat.shape).astype("float32")
    found = blurred(grainy + 0.01, sigma=2 / 64)
    np.testing.assert_array_equal(found != 0, cell)
    assert found[cell].std() < 0.3 * grainy[cell].std()
    assert found[cell].mean() == pytest.approx(grainy[cell].mean(), rel=0.03)


def test_blur_takes_the_edge_for_a_mirror():
    np.testing.assert_allclose(
        blurred(np.full((2, 16, 16, 1), 0.7, "float32"), 0.1), 0.7, rtol=1e-5
    )
    assert not blurred(np.zeros((1, 16, 16, 1), "float32"), 0.1).any()


def test_a_head_that_is_not_fitted_changes_no_feature():
    features = np.random.default_rng(0).normal(size=(6, 32)).astype("float32")
    head = networks.build_conditional_generator(16, 4, seed=3).get_layer("feature_head")
    np.testing.assert_allclose(ops.convert_to_numpy(head(features)), features, atol=1e-6)
    assert not head.trainable_variables


def test_images_are_blurred_where_that_is_asked_for():
    images = some_images(4)
    sharp, smooth = (
        lively(networks.build_conditional_generator(16, 4, seed=3, blur=blur)) for blur in (0, 0.1)
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
    conditional = lively(networks.build_conditional_generator(32, 4, seed=0))
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
    pretrained = lively(networks.build_generator(16, 4, seed=0, channels=2))
    wanted, _ = outputs_of(pretrained, images)
    conditional = networks.build_conditional_generator(16, 4, seed=1, channels=2)
    networks.adopt_weights(conditional, pretrained, np.array([0.9, -0.5]), np.array([0.2, 1.5]))
    made = before_cleaning(conditional, images)
    np.testing.assert_allclose(made, wanted, atol=0.01 * wanted.std())
    others = before_cleaning(conditional, images[..., ::-1])
    assert np.abs(others - wanted).max() > 0.1 * wanted.std()


def test_one_channel_is_the_default_and_more_change_the_first_layers_only():
    for build in (networks.build_generator, networks.build_discriminator):
        one, same, two = (
            build(16, 4, seed=3, **more) for more in ({}, {"channels": 1}, {"channels": 2})
        )
        for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        differ = [
            index
            for index, (a, b) in enumerate(zip(one.get_weights(), two.get_weights(), strict=True))
            if a.shape != b.shape
        ]
        # The first convolution; in the generator also the one that sees the image again.
        assert 0 in differ and len(differ) == (2 if build is networks.build_generator else 1)


@pytest.mark.parametrize("gain, offset", [(1.4, 0.0), (1.0, -0.3), (0.6, 0.5)])
def test_gain_and_offset_of_the_camera_change_nothing(gain, offset):
    images = some_images()
    standardised = lively(networks.build_conditional_generator(16, 4, seed=0))
    plain = lively(networks.build_generator(16, 4, seed=0))
    for generator, invariant in ((standardised, True), (plain, False)):
        usual, other = outputs_of(generator, images), outputs_of(generator, gain * images + offset)
        for before, after in zip(usual, other, strict=True):
            change = np.abs(after - before).max() / before.std()
            assert change < 0.01 if invariant else change > 0.1


def test_adopted_weights_make_the_same_image():
    images = some_images(mean=0.9, spread=0.2)
    pretrained = lively(networks.build_generator(16, 4, norm_momentum=0.8, seed=0))
    for seed in range(3):
        pretrained(some_images(seed=seed), training=True)  # moves the running statistics
    standardised = networks.build_conditional_generator(16, 4, seed=1)
    wanted, _ = outputs_of(pretrained, images)
    before = before_cleaning(standardised, images)
    networks.adopt_weights(standardised, pretrained, 0.9, 0.2)
    after = before_cleaning(standardised, images)
    assert np.abs(before - wanted).max() > wanted.std()
    np.testing.assert_allclose(after, wanted, atol=0.01 * wanted.std())


def test_an_adopted_encoder_reads_what_the_pretrained_one_reads():
    images = some_images(mean=0.9, spread=0.2)
    pretrained = lively(networks.build_generator(16, 4, norm_momentum=0.8, seed=0))
    pretrained(some_images(seed=1), training=True)  # moves the running statistics
    conditional = networks.build_conditional_generator(16, 4, seed=1)
    networks.adopt_weights(conditional, pretrained, 0.9, 0.2)
    wanted, found = outputs_of(pretrained, images)[1], outputs_of(conditional, images)[1]
    assert wanted.std() > 0.005
    # Not standardised yet, but for the floor of the variance.
    np.testing.assert_allclose(found * np.sqrt(1.001), wanted, atol=0.02 * wanted.max())


def test_standardised_features_have_one_mean_and_spread_over_the_cells():
    generator = lively(networks.build_conditional_generator(16, 4, seed=0))
    _, features = outputs_of(generator, some_images(40), training=True)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    assert 0.5 < np.median(features.std(axis=0)) <= 1.001


def test_the_last_linear_map_changes_the_features_alone():
    generator = lively(networks.build_conditional_generator(16, 4, seed=0))
    image, features = outputs_of(generator, some_images())
    matrix = np.random.default_rng(0).normal(size=(32, 32)).astype("float32")
    features_of(generator).set_weights([matrix, np.full(32, 2.0)])
    same_image, mapped = outputs_of(generator, some_images())
    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_allclose(mapped, features @ matrix + 2, atol=1e-3)
    trainable = {id(weight) for weight in generator.trainable_weights}
    fixed = features_of(generator).weights + generator.get_layer("normalise_image").weights
    assert not any(id(weight) in trainable for weight in fixed)


@pytest.mark.parametrize("module", ["cytomad_lib.models.networks", "cytomad_lib.workflow"])
def test_importing_prints_nothing(module):
    """TensorFlow's remarks on missing GPUs look like errors to a learner."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
