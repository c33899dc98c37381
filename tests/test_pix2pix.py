"""Pix2pix training: who moves, by how much, and what it learns."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops
from training_cells import TINY, make_cells

from cytomad_lib.networks import build_discriminator, build_generator, computing_in
from cytomad_lib.training.minibatches import Minibatches
from cytomad_lib.training.pix2pix import Pix2Pix


def tiny_model(preset=TINY, seed=0):
    with computing_in(preset.precision):
        generator = build_generator(**preset.image_network, seed=seed)
        discriminator = build_discriminator(**preset.image_network, seed=seed + 1)
    model = Pix2Pix(generator, discriminator, preset)
    model.compile()
    return model


def one_minibatch(cells):
    """All cells as the tensors that Keras hands to a step."""
    brightfield, targets = Minibatches.of_cells(cells, len(cells), shuffle=False)[0]
    targets = {name: ops.convert_to_tensor(values) for name, values in targets.items()}
    return ops.convert_to_tensor(brightfield), targets


def moved(before, network):
    after = network.get_weights()
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def test_both_networks_move_in_a_step():
    model, cells = tiny_model(), make_cells()
    generator, discriminator = model.generator.get_weights(), model.discriminator.get_weights()
    model.fit(Minibatches.of_cells(cells, 6), epochs=1, shuffle=False, verbose=0)
    # Dropout may silence a bias or two for a step, but no kernel stays where it was.
    kernels = [w.ndim == 4 for w in generator]
    assert all(
        m for m, kernel in zip(moved(generator, model.generator), kernels, strict=True) if kernel
    )
    kernels = [w.ndim == 4 for w in discriminator]
    assert all(
        m
        for m, kernel in zip(moved(discriminator, model.discriminator), kernels, strict=True)
        if kernel
    )


def test_a_discriminator_step_leaves_the_generator_alone():
    model, cells = tiny_model(), make_cells()
    before = model.generator.get_weights()
    discriminator = model.discriminator.get_weights()
    generated = np.zeros_like(cells.qpi)
    model.update_discriminator(cells.brightfield, cells.qpi, generated)
    assert not any(moved(before, model.generator))
    assert any(moved(discriminator, model.discriminator))


def test_the_discriminator_learns_to_tell_measured_from_generated():
    model, cells = tiny_model(replace(TINY, discriminator_rate=2e-3)), make_cells()
    generated = np.zeros_like(cells.qpi)
    first = float(model.update_discriminator(cells.brightfield, cells.qpi, generated))
    for _ in range(30):
        last = float(model.update_discriminator(cells.brightfield, cells.qpi, generated))
    assert first == pytest.approx(np.log(2), rel=0.1)  # half + half of "unsure"
    assert last < 0.5 * first


def test_the_total_loss_is_the_weighted_sum():
    model, cells = tiny_model(), make_cells()
    brightfield, targets = one_minibatch(cells)
    generated, features = model.generator(brightfield, training=False)
    terms = model.generator_losses(brightfield, targets, generated, features)
    mae = np.abs(ops.convert_to_numpy(generated) - cells.qpi).mean()
    assert float(terms["mae"]) == pytest.approx(mae, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(float(terms["adversarial"]) + 100 * mae, rel=1e-4)


def test_validation_changes_nothing_and_weighs_every_cell_alike():
    model, cells = tiny_model(), make_cells()
    before = model.get_weights()
    in_parts = model.evaluate(
        Minibatches.of_cells(cells, 5, shuffle=False), verbose=0, return_dict=True
    )
    at_once = model.evaluate(
        Minibatches.of_cells(cells, 100, shuffle=False), verbose=0, return_dict=True
    )
    assert in_parts == pytest.approx(at_once, rel=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_training_lowers_the_error():
    preset = replace(TINY, generator_rate=2e-3)
    model, cells = tiny_model(preset), make_cells(per_group=6)
    feed = Minibatches.of_cells(cells, 6, seed=0)
    history = model.fit(feed, epochs=15, shuffle=False, verbose=0).history
    assert history["mae"][-1] < 0.5 * history["mae"][0]


def generator_after_one_step(**settings):
    model, cells = tiny_model(replace(TINY, **settings)), make_cells()
    model.train_step(one_minibatch(cells))
    return np.concatenate([part.ravel() for part in model.generator.get_weights()])


@pytest.mark.parametrize("updates", ["alternating", "simultaneous"])
def test_whether_the_generator_meets_the_updated_discriminator(updates):
    # Dropout draws the same units in both, as the seeds are the same.
    slow, fast = (
        generator_after_one_step(updates=updates, weight_adversarial=50.0, discriminator_rate=rate)
        for rate in (1e-4, 5e-2)
    )
    assert np.allclose(slow, fast, atol=1e-7) == (updates == "simultaneous")


def test_simultaneous_updates_move_both_networks_and_lower_the_error():
    preset = replace(TINY, generator_rate=2e-3, updates="simultaneous")
    model, cells = tiny_model(preset), make_cells(per_group=6)
    discriminator = model.discriminator.get_weights()
    feed = Minibatches.of_cells(cells, 6, seed=0)
    history = model.fit(feed, epochs=8, shuffle=False, verbose=0).history
    assert history["mae"][-1] < 0.7 * history["mae"][0]
    assert any(moved(discriminator, model.discriminator))


def test_simultaneous_updates_teach_the_discriminator():
    # Alone: what it finds out, a generator that learns takes away from it again.
    preset = replace(TINY, generator_rate=0.0, discriminator_rate=2e-3, updates="simultaneous")
    feed = Minibatches.of_cells(make_cells(per_group=6), 6, seed=0)
    history = tiny_model(preset).fit(feed, epochs=8, shuffle=False, verbose=0).history
    assert history["discriminator_loss"][-1] < 0.7 * history["discriminator_loss"][0]


def test_half_precision_learns_what_full_precision_learns():
    cells = make_cells(per_group=6)
    courses, model = [], None
    for precision in ("float32", "mixed_float16"):
        model = tiny_model(replace(TINY, generator_rate=2e-3, precision=precision))
        feed = Minibatches.of_cells(cells, 6, seed=0)
        courses.append(model.fit(feed, epochs=6, shuffle=False, verbose=0).history)
    full, half = courses
    # Not in the first steps: float16 leaves out some of them, until it has found its scale.
    for term in ("mae", "adversarial", "discriminator_loss"):
        np.testing.assert_allclose(half[term][-1], full[term][-1], rtol=0.3)
    assert half["mae"][-1] < 0.7 * half["mae"][0]
    assert half["mae"] != full["mae"]  # it did compute otherwise
    outputs = model.generator(cells.brightfield, training=False)
    assert [keras.backend.standardize_dtype(part.dtype) for part in outputs] == ["float32"] * 2
    assert all(weight.dtype == "float32" for weight in model.generator.trainable_variables)


def test_the_loss_is_scaled_up_for_float16_only():
    scaled = tiny_model(replace(TINY, precision="mixed_float16")).generator_optimizer
    assert float(scaled.scale_loss(1.0)) > 1000
    for precision in ("float32", "mixed_bfloat16"):
        plain = tiny_model(replace(TINY, precision=precision)).generator_optimizer
        assert float(plain.scale_loss(1.0)) == 1
