"""The conditional recipe: who moves in which step, what is asked for and when, what is erased."""

from dataclasses import replace

import numpy as np
import pytest
from keras import ops
from test_adversaries import Loop
from test_pretraining import moved, one_minibatch
from training_cells import TINY, make_cells

from cytomad_lib.models.adversaries import batch_shares
from cytomad_lib.models.batch_removal import generate
from cytomad_lib.models.conditional_removal import (
    ConditionalRemoval,
    _LateFall,
    _turned,
    _turned_back,
    erase_linear_trace,
    image_statistics,
)
from cytomad_lib.models.networks import build_generator

CELLS = make_cells()
STEPS = 8
NO_IMAGES = {
    "weight_image_adversary": 0.0,
    "weight_image_mmd": 0.0,
    "weight_image_linear_mmd": 0.0,
}


def lively_generator():
    """Return a generator whose features and images vary from cell to cell."""
    generator = build_generator(**TINY.image_network, seed=0, standardised=True)
    generator.set_weights([4 * w if w.ndim == 4 else w for w in generator.get_weights()])
    return generator


def tiny_model(**changed):
    preset = replace(TINY, conditional=replace(TINY.conditional, **changed))
    model = ConditionalRemoval(
        lively_generator(), batch_shares(CELLS.labels), preset, STEPS, seed=0
    )
    model.compile()
    return model


def minibatch_of(cells):
    """Return the cells of all groups in turn, so that every part of a step has several batches."""
    return one_minibatch(cells.select(np.arange(len(cells)).reshape(4, -1).T.ravel()))


def all_losses(model, cells=CELLS):
    brightfield, targets = minibatch_of(cells)
    image, features = model.generator(brightfield, training=False)
    numbers = model.summary(image, training=False)
    terms = model.losses_of(image, features, numbers, targets, training=False)
    return {name: float(value) for name, value in terms.items()}


def weights_of(layers):
    return [weight for layer in layers for weight in layer.get_weights()]


class Layers(list):
    """Layers that `moved` can look at as at one network."""

    def get_weights(self):
        return weights_of(self)


def parts_of(model):
    """Split the generator in the layers up to the features and those that draw the image."""
    encoder = model.encoder.layers
    decoder = [layer for layer in model.generator.layers if layer not in encoder]
    kernels = [[x for x in part if "conv" in x.name] for part in (encoder, decoder)]
    return Layers(kernels[0]), Layers(kernels[1])


# --- who moves ---------------------------------------------------------------------------------


def test_a_step_moves_everything_that_learns():
    model = tiny_model()
    networks = [
        *parts_of(model),
        model.class_head,
        model.view,
        model.feature_adversary.mlp,
        model.image_adversary.mlp,
    ]
    before = [network.get_weights() for network in networks]
    seen = model.train_step(minibatch_of(CELLS))
    for network, weights in zip(networks, before, strict=True):
        assert np.mean(moved(weights, network)) > 0.8, network
    # One image step of 4 cells, one feature step of 4 others; the image adversary saw the first.
    assert ops.convert_to_numpy(model.feature_adversary.recent_filled).sum() == 8
    assert ops.convert_to_numpy(model.image_adversary.recent_filled).sum() == 4
    assert np.isfinite([float(value) for value in seen.values()]).all()


def test_the_parts_of_a_minibatch_are_of_different_cells():
    model = tiny_model(feature_steps=2)
    brightfield, targets = minibatch_of(CELLS)
    model.train_step((brightfield, targets))
    remembered = ops.convert_to_numpy(model.feature_adversary.recent_batch)[-12:]
    np.testing.assert_array_equal(remembered, ops.convert_to_numpy(targets["batch"])[:12])


def test_a_step_on_features_moves_the_encoder_and_no_part_that_draws():
    model = tiny_model()
    encoder, decoder = parts_of(model)
    assert len(encoder) == len(decoder) - 4 == 4  # 16 pixels to 1 and back, and the thin tail
    still = [decoder, model.view, model.image_adversary, model.summary]
    before = [network.get_weights() for network in still]
    moving = [encoder, model.class_head, model.feature_adversary.mlp]
    start = [network.get_weights() for network in moving]
    terms = model.step_on_features(*minibatch_of(CELLS))
    assert all(all(moved(b, network)) for b, network in zip(start, moving, strict=True))
    assert not any(any(moved(b, network)) for b, network in zip(before, still, strict=True))
    assert "mae" not in terms and "loss" not in terms


def test_without_image_weights_no_image_adversary_is_trained():
    model = tiny_model(**NO_IMAGES)
    before = model.image_adversary.get_weights()
    seen = model.step_on_images(*minibatch_of(CELLS))
    assert not any(moved(before, model.image_adversary))
    assert not any(name.startswith("image_") for name in seen)


def test_validation_moves_nothing():
    model = tiny_model()
    before = model.get_weights()
    losses = {name: float(value) for name, value in model.test_step(minibatch_of(CELLS)).items()}
    assert not any(moved(before, model))
    assert losses["mae"] == pytest.approx(all_losses(model)["mae"], rel=1e-5)


# --- what is asked for, and when ---------------------------------------------------------------


def test_the_batch_terms_grow_from_nothing_to_their_full_weight():
    model = tiny_model(ramp=0.5)
    recipe = model.recipe
    model.train_step(minibatch_of(CELLS))  # the adversaries now remember cells
    found = {}
    for steps in (0, 2, 4, 8):
        model.optimizer_of_all.iterations.assign(steps)
        found[steps] = all_losses(model)
    terms = found[0]
    without = (
        recipe.weight_mae * terms["mae"]
        + recipe.weight_structure * terms["structure"]
        + recipe.weight_class * terms["class_head"]
    )
    batch_terms = (
        recipe.weight_adversary * terms["adversary"]
        + recipe.weight_mmd * terms["mmd"]
        + recipe.weight_linear_mmd * terms["linear_mmd"]
        + recipe.weight_image_adversary * terms["image_adversary"]
        + recipe.weight_image_mmd * terms["image_mmd"]
        + recipe.weight_image_linear_mmd * terms["image_linear_mmd"]
    )
    assert abs(batch_terms) > 0.01 * without
    for steps, weight in {0: 0, 2: 0.5, 4: 1, 8: 1}.items():
        assert found[steps]["loss"] == pytest.approx(without + weight * batch_terms, rel=1e-4)


def test_the_image_is_compared_through_the_eyes_of_its_batch():
    model = tiny_model()
    brightfield, targets = minibatch_of(CELLS)
    scales = np.zeros(7)
    scales[[0, 2, 5]] = 0.3, -0.2, 0.1
    model.view.start_from_scales(scales)
    image, features = model.generator(brightfield, training=False)
    numbers = model.summary(image)
    targets = targets | {"qpi": model.view(image, targets["batch"])}
    terms = model.losses_of(image, features, numbers, targets, training=False)
    assert float(terms["mae"]) == pytest.approx(0, abs=1e-6)
    assert np.abs(ops.convert_to_numpy(targets["qpi"] - image)).max() > 1e-4


def test_the_learning_rate_falls_late():
    rate = _LateFall(1e-3, 100)
    found = [float(rate(step)) for step in (0, 70, 85, 100, 150)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-5)
    assert _LateFall.from_config(rate.get_config()).get_config() == {"rate": 1e-3, "steps": 100}
    model = tiny_model(feature_steps=3)
    # There are three steps on features for each on images.
    assert float(model.optimizer_of_all.learning_rate) == pytest.approx(7e-4)
    for optimizer, steps in ((model.optimizer_of_all, 8), (model.feature_optimizer, 24)):
        optimizer.iterations.assign(steps - 1)
        assert float(optimizer.learning_rate) > 1e-4
        optimizer.iterations.assign(steps)
        assert float(optimizer.learning_rate) == pytest.approx(7e-5)


# --- turns -------------------------------------------------------------------------------------


def test_turning_and_turning_back_is_the_identity_in_all_eight_ways():
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    images = ops.convert_to_tensor(np.repeat(image, 8, axis=0))
    ways = np.array(np.unravel_index(np.arange(8), (2, 2, 2))).astype(bool)
    turn = ops.convert_to_tensor(ways[:, :, None, None, None])
    turned = _turned(images, turn)
    assert len({one.tobytes() for one in ops.convert_to_numpy(turned)}) == 8
    back = ops.convert_to_numpy(_turned_back(turned, turn))
    np.testing.assert_array_equal(back, ops.convert_to_numpy(images))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # the copy has no weights
def test_images_are_turned_back_before_they_are_compared(monkeypatch):
    """A generator that copies its input must be without error, however the cells are turned."""
    model = tiny_model()
    cells = make_cells()
    cells.brightfield[:] = np.random.default_rng(1).normal(size=cells.qpi.shape)
    cells.qpi[:] = cells.brightfield
    shown = []

    def copy(brightfield, training):
        shown.append(ops.convert_to_numpy(brightfield))
        return brightfield, ops.zeros((len(cells), TINY.n_features))

    monkeypatch.setattr(model, "generator", copy)
    brightfield, targets = minibatch_of(cells)
    terms = model.step_on_images(brightfield, targets)
    assert float(terms["mae"]) == pytest.approx(0, abs=1e-6)
    differ = (shown[0] != ops.convert_to_numpy(brightfield)).any(axis=(1, 2, 3))
    assert 8 < differ.sum() <= 16  # one cell in eight stays as it is


# --- before and after the training -------------------------------------------------------------


def test_image_statistics_are_means_over_the_cells(monkeypatch):
    mean, spread = image_statistics(CELLS)
    assert mean == pytest.approx(CELLS.brightfield.mean(), rel=1e-5)
    assert spread == pytest.approx(np.mean([image.std() for image in CELLS.brightfield]), rel=1e-5)
    in_slices = type(CELLS).in_slices
    monkeypatch.setattr(type(CELLS), "in_slices", lambda cells: in_slices(cells, 5))
    assert image_statistics(CELLS) == pytest.approx((mean, spread))


def test_erasure_changes_the_features_and_not_the_images():
    # A stripe in the images of one batch.
    cells = make_cells(per_group=30)
    cells.brightfield[cells.batch_codes == 2, :, 4] += 0.3
    generator = lively_generator()
    for _ in range(10):
        generator(cells.brightfield, training=True)  # running statistics that fit the features
    before = generate(generator, cells)
    erase_linear_trace(generator, before)
    after = generate(generator, cells)
    np.testing.assert_array_equal(after["images"], before["images"])

    def gaps(features):
        """Distance of the batches' means in each class, in units of the spread of a feature."""
        own = [features[i : i + 30].mean(axis=0) for i in range(0, 120, 30)]
        return [np.abs(own[i + 1] - own[i]).max() / features.std() for i in (0, 2)]

    assert min(gaps(before["features"])) > 0.2
    assert max(gaps(after["features"])) < 1e-3


def test_steps_on_features_bring_the_batches_of_a_class_together():
    model = tiny_model(
        feature_cells=160,
        recent_cells=160,
        generator_rate=2e-3,
        weight_class=0.0,
        weight_adversary=0.0,
        weight_mmd=0.0,
        weight_linear_mmd=1.0,
    )
    model.optimizer_of_all.iterations.assign(STEPS)  # batch terms at full weight

    def step(brightfield, batch, class_name):
        targets = {"batch": batch, "class_name": class_name}
        return {"linear_mmd": model.step_on_features(brightfield, targets)["linear_mmd"]}

    cells = make_cells(per_group=40)
    cells.brightfield[cells.batch_codes == 2, :, 4] += 0.3  # a stripe in the images of one batch
    found = Loop(step).history(25, cells.brightfield, cells.batch_codes, cells.class_codes)
    assert found["linear_mmd"][1] > 1  # at 0 no cells were remembered
    assert found["linear_mmd"][-1] < 0.3 * found["linear_mmd"][1]
