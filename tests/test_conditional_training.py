"""The conditional recipe: which weights move in a step, which loss terms count, and when."""

from dataclasses import replace

import numpy as np
import pytest
from keras import ops
from test_pix2pix import moved, one_minibatch
from training_cells import TINY, make_cells

from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.networks import build_conditional_generator
from cytomad_lib.conditional.training import (
    LARGEST_FACTOR,
    FeatureRemoval,
    ImageRemoval,
    _LateFall,
    _turned,
    _turned_back,
    image_statistics,
    match_total_phase,
    transfer_all,
    transfer_at_random,
)
from cytomad_lib.config import Conditional
from cytomad_lib.layers import BatchNormalization
from cytomad_lib.training.batch_removal import generate

CELLS = make_cells()
STEPS = 8
N_MEASURES = 2
NO_ADVERSARY = {"weight_adversary": 0.0, "weight_linear_mmd": 0.0}


def lively_generator():
    """Return a generator whose features and images vary from cell to cell."""
    unblurred = Conditional(blur=0, n_features=3)
    generator = build_conditional_generator(**TINY.image_network, seed=0, recipe=unblurred)
    generator.set_weights([4 * w if w.ndim == 4 else w for w in generator.get_weights()])
    return generator


def tiny_model(kind, **changed):
    preset = replace(TINY, conditional=replace(TINY.conditional, **changed))
    sizes = {ImageRemoval: [batch_shares(CELLS.labels)], FeatureRemoval: [7, N_MEASURES]}[kind]
    model = kind(lively_generator(), *sizes, preset, STEPS, seed=0)
    model.compile()
    return model


def minibatch_of(cells):
    """Return the cells of all groups in turn, with their area and peak, and moved by two pixels."""
    cells = cells.select(np.arange(len(cells)).reshape(4, -1).T.ravel())
    brightfield, targets = one_minibatch(cells)
    area, peak = (cells.qpi > 0.1).mean(axis=(1, 2, 3)), cells.qpi.max(axis=(1, 2, 3))
    measures = np.stack([area, peak], axis=1).astype("float32")
    moved = np.roll(brightfield, 2, axis=1)
    return brightfield, targets | {"measures": measures, "transferred": moved}


def all_losses(model, cells=CELLS):
    """Return the loss terms of cells, without training."""
    brightfield, targets = minibatch_of(cells)
    image, _ = model.generator(brightfield)
    if isinstance(model, FeatureRemoval):
        features = model._features(brightfield, training=False)
        terms = model.losses_of(ops.tile(features, (2, 1)), targets, training=False)
        del terms["pairs"]
    else:
        terms = model.losses_of(image, model.image_summary(image), targets)
    return {name: float(value) for name, value in terms.items()}


class Kernels:
    """The convolutions of a network, for `moved`: all that surely has a gradient in one step."""

    def __init__(self, network):
        self.layers = [layer for layer in network.layers if "conv" in layer.name]

    def get_weights(self):
        return [weight for layer in self.layers for weight in layer.get_weights()]


def test_delivered_is_the_running_mean_of_the_weights_for_as_long_as_asked():
    model = tiny_model(ImageRemoval, ema_decay=0.2)
    weight = model.trained_weights[0]
    start = ops.convert_to_numpy(weight).copy()
    passed = []
    for _ in range(3):
        model.train_step(minibatch_of(CELLS))
        passed.append(ops.convert_to_numpy(weight).copy())
    # The decay grows over the first steps: 1/10, 2/11, 3/12..., until it is as asked for.
    mean = ops.convert_to_numpy(start)
    for decay, value in zip((1 / 10, 2 / 11, 0.2), passed, strict=True):
        mean = decay * mean + (1 - decay) * value
    with model.delivered():
        np.testing.assert_allclose(ops.convert_to_numpy(weight), mean, atol=1e-6)
        assert np.abs(mean - passed[2]).max() > 1e-5
    np.testing.assert_array_equal(ops.convert_to_numpy(weight), passed[2])


def test_the_mean_of_a_short_training_keeps_nothing_of_its_start():
    model = tiny_model(ImageRemoval, ema_decay=0.995)
    weight, steps = model.trained_weights[0], 40
    for step in range(steps):  # as if each step had moved the weight by one
        model.optimizer.iterations.assign(step + 1)
        weight.assign(ops.full(weight.shape, float(step)))
        model._update_means()
    with model.delivered():
        delivered = float(ops.mean(weight))
    assert 0.85 * (steps - 1) < delivered < steps - 1


def test_validation_scores_the_weights_that_are_delivered():
    model = tiny_model(ImageRemoval, ema_decay=0.995)
    model.train_step(minibatch_of(CELLS))
    for mean in model.means:
        mean.assign(mean * 1.05)
    brightfield, targets = minibatch_of(CELLS)
    scored = model.evaluate(brightfield, targets, verbose=0, return_dict=True)
    last = model.test_step((brightfield, targets))
    with model.delivered():
        model.reset_metrics()
        delivered = model.test_step((brightfield, targets))
    assert scored["mae"] == pytest.approx(float(delivered["mae"]), rel=1e-5)
    assert scored["mae"] != pytest.approx(float(last["mae"]), rel=1e-3)


def test_a_checkpoint_holds_the_running_mean(tmp_path):
    model, other = (tiny_model(ImageRemoval) for _ in range(2))
    model.train_step(minibatch_of(CELLS))
    model.save_weights(tmp_path / "checkpoint.weights.h5")
    other.load_weights(tmp_path / "checkpoint.weights.h5")
    for mean, loaded in zip(model.means, other.means, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(mean), ops.convert_to_numpy(loaded), strict=True
        )


def measured_as(images, factor):
    return replace(CELLS, qpi=(factor * images).astype("float32"))


def test_images_have_the_measured_total_once_scales_are_taken_out():
    generator, scales = lively_generator(), np.linspace(0.8, 1.25, len(CELLS.batches))
    before = generate(generator, CELLS)
    cells = measured_as(before["images"], 1.3)
    match_total_phase(generator, cells, scales)
    after = generate(generator, CELLS)
    measured = (cells.qpi.sum(axis=(1, 2, 3)) / scales[cells.batch_codes]).sum()
    assert after["images"].sum() == pytest.approx(measured, rel=1e-3)
    factor = measured / before["images"].sum()
    assert abs(factor - 1) > 0.05
    np.testing.assert_allclose(after["images"], before["images"] * factor, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(after["features"], before["features"])


def test_images_that_are_no_images_yet_are_not_blown_up():
    generator = lively_generator()
    before = generate(generator, CELLS)["images"]
    match_total_phase(generator, measured_as(before, 50), np.ones(len(CELLS.batches)))
    after = generate(generator, CELLS)["images"]
    np.testing.assert_allclose(after, LARGEST_FACTOR * before, rtol=1e-3, atol=1e-5)


def test_a_target_without_a_total_leaves_the_images_alone():
    generator = lively_generator()
    before = generate(generator, CELLS)["images"]
    centred = replace(CELLS, qpi=CELLS.qpi - CELLS.qpi.max())
    match_total_phase(generator, centred, np.ones(len(CELLS.batches)))
    np.testing.assert_array_equal(generate(generator, CELLS)["images"], before)


# --- who moves ---------------------------------------------------------------------------------


def step_that_moves(model, moving, still):
    """Take one step; `moving` has to change, `still` must not."""
    before, unmoved = [network.get_weights() for network in moving], still.get_weights()
    seen = model.train_step(minibatch_of(CELLS))
    for network, weights in zip(moving, before, strict=True):
        assert np.mean(moved(weights, network)) > 0.8, network
    assert not any(moved(unmoved, still))
    assert np.isfinite([float(value) for value in seen.values()]).all()


def test_a_step_on_images_moves_all_that_makes_them_and_nothing_that_reads_features():
    model = tiny_model(ImageRemoval)
    moving = [Kernels(model.unet), model.batch_effect, model.adversary.mlp]
    step_that_moves(model, moving, still=model.generator.get_layer("feature_encoder"))
    assert ops.convert_to_numpy(model.adversary.buffer_filled).sum() == len(CELLS)


def test_a_step_on_features_moves_encoder_and_readers():
    model = tiny_model(FeatureRemoval)
    moving = [Kernels(model.encoder), model.readers]
    step_that_moves(model, moving, still=model.generator.get_layer("generator"))


def test_pairs_cost_what_their_features_differ_by():
    model = tiny_model(FeatureRemoval, ramp=0.5)
    _, targets = minibatch_of(CELLS)
    features = np.random.default_rng(0).normal(size=(len(CELLS), 32)).astype("float32")

    def terms(other, steps):
        model.optimizer.iterations.assign(steps)
        both = np.concatenate([features, other])
        found = model.losses_of(ops.convert_to_tensor(both), targets, training=False)
        return {name: float(value) for name, value in found.items()}

    assert terms(features, STEPS)["pairs"] == 0
    at_first, at_last = terms(features + 0.5, 0), terms(features + 0.5, STEPS)
    assert at_last["pairs"] == pytest.approx(0.25, rel=1e-4)
    gained = at_last["loss"] - at_first["loss"]
    assert gained == pytest.approx(0.25 * model.recipe.weight_pairs, rel=1e-3)


def test_every_cell_of_a_pair_is_shown_on_a_day_of_its_class():
    shares = np.zeros((7, 7), "float32")
    shares[0, [0, 2]], shares[2, [5]] = (0.5, 0.5), 1.0
    targets = {
        "qpi": np.zeros((40, 4, 4, 1), "float32"),
        "class_name": np.repeat([0, 2], 20),
        "batch": np.full(40, 2),
    }

    def transfer(brightfield, qpi, own, other):
        return brightfield + other[:, None, None, None]

    images = np.zeros((40, 4, 4, 1), "float32")
    found, changed_targets = transfer_all(transfer, shares)(
        images, targets, np.random.default_rng(0)
    )
    assert not found.any()
    days = changed_targets["transferred"][:, 0, 0, 0]
    assert set(days[:20]) == {0, 2} and set(days[20:]) == {5}


def test_images_are_normalised_by_running_statistics_that_stay():
    model = tiny_model(ImageRemoval)
    norms = [layer for layer in model.unet.layers if isinstance(layer, BatchNormalization)]
    before = [layer.get_weights() for layer in norms]
    brightfield, targets = minibatch_of(CELLS)
    model.train_step((brightfield, targets))
    assert len(norms) > 5
    for layer, (gamma, _, mean, variance) in zip(norms, before, strict=True):
        now = layer.get_weights()
        np.testing.assert_array_equal(now[2], mean)
        np.testing.assert_array_equal(now[3], variance)
        assert not np.array_equal(now[0], gamma)  # which is learned
    # What one cell becomes does not depend on the others of its minibatch.
    alone, together = model._images(brightfield[:1])[0], model._images(brightfield)[0]
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (alone, together)), atol=1e-5)


def test_the_gradient_of_a_step_on_images_is_clipped():
    steps = []
    for weight in (1.0, 1e6):
        model = tiny_model(ImageRemoval, **NO_ADVERSARY, weight_mae=weight, weight_structure=0.0)
        model.train_step(minibatch_of(CELLS))
        first_moments = np.concatenate(
            [ops.convert_to_numpy(moment).ravel() for moment in model.optimizer._momentums]
        )
        steps.append(np.linalg.norm(first_moments) / (1 - 0.5))
    assert steps[1] == pytest.approx(model.clipnorm, rel=1e-3)
    assert 0 < steps[0] <= steps[1]


@pytest.mark.parametrize("kind", [ImageRemoval, FeatureRemoval])
def test_validation_moves_nothing(kind):
    model = tiny_model(kind)
    before = model.get_weights()
    found = {name: float(value) for name, value in model.test_step(minibatch_of(CELLS)).items()}
    assert not any(moved(before, model))
    for name, value in all_losses(model).items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", [ImageRemoval, FeatureRemoval])
def test_numbers_of_cells_that_do_not_go_together(kind):
    for numbers in ({"image_cells": 25}, {"image_cells": 0, "feature_cells": 0}):
        with pytest.raises(ValueError, match="image_cells is .* Expected at least 1"):
            tiny_model(kind, **numbers)


# --- what is asked for, and when ---------------------------------------------------------------


def test_the_batch_terms_on_images_grow_from_nothing_to_their_full_weight():
    model = tiny_model(ImageRemoval, ramp=0.5)
    recipe = model.recipe
    model.train_step(minibatch_of(CELLS))  # the adversary now remembers cells
    found = losses_by_step(model)
    terms = found[0]
    without = recipe.weight_mae * terms["mae"] + recipe.weight_structure * terms["structure"]
    batch_terms = (
        recipe.weight_adversary * terms["adversary"]
        + recipe.weight_linear_mmd * terms["linear_mmd"]
    )
    assert abs(batch_terms) > 1e-3 * abs(without)
    for steps, weight in {0: 0, 2: 0.5, 4: 1, 8: 1}.items():
        assert found[steps]["loss"] == pytest.approx(without + weight * batch_terms, rel=1e-4)


def losses_by_step(model):
    found = {}
    for steps in (0, 2, 4, 8):
        model.optimizer.iterations.assign(steps)
        found[steps] = all_losses(model)
    return found


def test_the_image_is_compared_through_the_eyes_of_its_batch():
    model = tiny_model(ImageRemoval)
    brightfield, targets = minibatch_of(CELLS)
    scales = np.zeros(7)
    scales[[0, 2, 5]] = 0.3, -0.2, 0.1
    model.batch_effect.start_from_scales(scales)
    image = model.generator(brightfield, training=False)[0]
    targets = targets | {"qpi": model.batch_effect(image, targets["batch"])}
    terms = model.losses_of(image, model.image_summary(image), targets)
    assert float(terms["mae"]) == pytest.approx(0, abs=1e-6)
    assert np.abs(ops.convert_to_numpy(targets["qpi"] - image)).max() > 1e-4


@pytest.mark.parametrize("kind", [ImageRemoval, FeatureRemoval])
def test_the_learning_rate_falls_late(kind):
    rate = _LateFall(1e-3, 100)
    found = [float(rate(step)) for step in (0, 70, 85, 100, 150)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-5)
    assert _LateFall.from_config(rate.get_config()).get_config() == {"rate": 1e-3, "steps": 100}
    model = tiny_model(kind)
    assert float(model.optimizer.learning_rate) == pytest.approx(7e-4)
    model.optimizer.iterations.assign(STEPS)
    assert float(model.optimizer.learning_rate) == pytest.approx(7e-5)


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
    model = tiny_model(ImageRemoval)
    cells = make_cells()
    cells.brightfield[:] = np.random.default_rng(1).normal(size=cells.qpi.shape)
    cells.qpi[:] = cells.brightfield
    shown = []

    def copy(brightfield):
        shown.append(ops.convert_to_numpy(brightfield))
        return brightfield

    monkeypatch.setattr(model, "_images", copy)
    brightfield, targets = minibatch_of(cells)
    terms = model.train_step((brightfield, targets))
    assert float(terms["mae"]) == pytest.approx(0, abs=1e-6)
    differ = (shown[0] != ops.convert_to_numpy(brightfield)).any(axis=(1, 2, 3))
    assert 8 < differ.sum() <= 16  # one cell in eight stays as it is


# --- other days --------------------------------------------------------------------------------


def changed(transferred=0.5, n=600):
    """Return what becomes of a minibatch in which brightfield images are moved by adding 100."""
    random = np.random.default_rng(0)
    shares = np.zeros((7, 7), "float32")
    shares[0, [0, 2]] = 0.75, 0.25
    shares[2, [2, 5]] = 0.5, 0.5
    targets = {
        "qpi": np.zeros((n, 4, 4, 1), "float32"),
        "class_name": random.choice([0, 2], n),
        "batch": np.full(n, 2),
    }

    def transfer(brightfield, qpi, own, other):
        assert (own == 2).all() and len(other) == len(brightfield) == len(qpi)
        return brightfield + 100

    brightfield = np.zeros((n, 4, 4, 1), "float32")
    change = transfer_at_random(transfer, shares, Conditional(transferred=transferred))
    return *change(brightfield, targets, np.random.default_rng(1)), targets, brightfield


def test_some_of_the_cells_change_days_by_the_shares_of_their_class():
    shown, targets, before, images = changed()
    moved = shown[:, 0, 0, 0] == 100
    assert 250 < moved.sum() < 350
    assert not images.any()  # the cells themselves stay as they are
    np.testing.assert_array_equal(targets["shown_batch"][~moved], 2)
    np.testing.assert_array_equal(targets["batch"], before["batch"])  # the phase is still of then
    for code, shares in ((0, {0: 0.75, 2: 0.25}), (2, {2: 0.5, 5: 0.5})):
        drawn = targets["shown_batch"][moved & (targets["class_name"] == code)]
        for batch in range(7):
            assert np.mean(drawn == batch) == pytest.approx(shares.get(batch, 0), abs=0.12)


def test_no_cell_changes_days_unless_asked():
    shown, targets, before, _ = changed(transferred=0.0)
    assert not shown.any()
    np.testing.assert_array_equal(targets["shown_batch"], before["batch"])


def test_the_adversary_is_asked_about_the_day_that_is_shown():
    model = tiny_model(ImageRemoval)
    brightfield, targets = minibatch_of(CELLS)
    shown_batch = ops.convert_to_tensor(np.full(len(CELLS), 5, "int32"))
    model.train_step((brightfield, targets | {"shown_batch": shown_batch}))
    remembered = ops.convert_to_numpy(model.adversary.buffer_batch)
    assert (remembered[-len(CELLS) :] == 5).all()


# --- before and after the training -------------------------------------------------------------


def test_image_statistics_are_means_over_the_cells(monkeypatch):
    mean, spread = image_statistics(CELLS)
    assert mean == pytest.approx(CELLS.brightfield.mean(), rel=1e-5)
    assert spread == pytest.approx(np.mean([image.std() for image in CELLS.brightfield]), rel=1e-5)
    in_slices = type(CELLS).in_slices
    monkeypatch.setattr(type(CELLS), "in_slices", lambda cells: in_slices(cells, 5))
    assert image_statistics(CELLS) == pytest.approx((mean, spread))
