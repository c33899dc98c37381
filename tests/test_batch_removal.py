"""The published recipe: what is frozen, what is dealt out anew, and what each term asks for."""

from dataclasses import replace

import numpy as np
import pytest
from keras import ops
from test_pix2pix import moved, one_minibatch
from training_cells import TINY, make_cells, untraced_steps

from cytomad_lib.networks import build_discriminator, build_generator
from cytomad_lib.training.batch_removal import (
    BatchRemoval,
    Classifiers,
    RefitBatchMLPs,
    generate,
)
from cytomad_lib.training.minibatches import Minibatches


@pytest.fixture
def cells():
    return make_cells()


def lively_generator(preset=TINY):
    """Return a generator whose features vary from cell to cell, as after some training.

    With the small initial weights they are all but zero, and classifiers of them read noise.
    """
    generator = build_generator(**preset.image_network, seed=0)
    generator.set_weights([4 * w if w.ndim == 4 else w for w in generator.get_weights()])
    return generator


def tiny_removal(preset=TINY):
    model = BatchRemoval(
        lively_generator(preset),
        build_discriminator(**preset.image_network, seed=1),
        Classifiers.build(7, 7, preset, seed=2),
        preset,
    )
    model.compile()
    return model


def test_a_step_moves_generator_and_discriminator_and_no_classifier(cells):
    model = tiny_removal()
    frozen = [model.class_mlp, model.class_cnn, model.batch_cnn, *model.batch_mlps]
    before = [network.get_weights() for network in frozen]
    generator, discriminator = model.generator.get_weights(), model.discriminator.get_weights()
    model.fit(Minibatches.of_cells(cells, 8), epochs=1, shuffle=False, verbose=0)
    assert not any(any(moved(b, network)) for b, network in zip(before, frozen, strict=True))
    assert any(moved(generator, model.generator))
    assert any(moved(discriminator, model.discriminator))


def test_the_batch_mlps_share_all_features_without_overlap():
    model = tiny_removal()
    subsets = ops.convert_to_numpy(model.subsets)
    np.testing.assert_array_equal(np.sort(subsets.ravel()), np.arange(TINY.n_features))
    model.draw_subsets(np.random.default_rng(1))
    assert not np.array_equal(subsets, ops.convert_to_numpy(model.subsets))
    features = np.arange(TINY.n_features, dtype="float32")[None]
    for number in range(4):
        np.testing.assert_array_equal(
            model.features_of_mlp(features, number)[0], ops.convert_to_numpy(model.subsets)[number]
        )


def test_the_total_loss_has_the_published_weights(cells):
    model = tiny_removal()
    brightfield, targets = one_minibatch(cells)
    generated, features = model.generator(brightfield, training=False)
    terms = {
        name: float(value)
        for name, value in model.generator_losses(brightfield, targets, generated, features).items()
    }
    classifiers = ("class_mlp", "class_cnn", "batch_cnn", "batch_mlps")
    steering = sum(terms[name] for name in classifiers)
    expected = terms["adversarial"] + 100 * steering + 300 * terms["mae"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    # Untrained classifiers are unsure: seven cross-entropies of about ln 7 each.
    assert steering == pytest.approx(7 * np.log(7), rel=0.2)


def test_the_batch_terms_ask_for_the_first_batch_whatever_the_true_one(cells):
    model = tiny_removal()
    brightfield, targets = one_minibatch(cells)
    generated, features = model.generator(brightfield, training=False)

    def terms(**changed):
        values = model.generator_losses(brightfield, targets | changed, generated, features)
        return {name: float(value) for name, value in values.items()}

    usual, other_batch = terms(), terms(batch=np.full(len(cells), 6, "int32"))
    assert other_batch == usual
    other_class = terms(class_name=(targets["class_name"] + 1) % 7)
    assert other_class["class_mlp"] != usual["class_mlp"]
    assert other_class["batch_mlps"] == usual["batch_mlps"]
    # The batch CNN's term is its cross-entropy with code 0 for every cell.
    says_first = ops.convert_to_numpy(model.batch_cnn(generated, training=False))[:, 0]
    assert usual["batch_cnn"] == pytest.approx(-np.log(says_first).mean(), rel=1e-4)


def test_steering_makes_fitted_batch_mlps_say_first_batch(cells):
    preset = replace(
        TINY, refit_epochs=100, batch_mlp_rate=0.01, weight_mae_removal=0.0, removal_rate=5e-3
    )
    model = tiny_removal(preset)
    callback = RefitBatchMLPs(cells, seed=0)
    callback.set_model(model)
    callback.refit(0)
    feed = Minibatches.of_cells(cells, 8)
    fooled = model.fit(feed, epochs=25, shuffle=False, verbose=0).history["batch_mlps"]
    # Four cross-entropies with "first batch", of which a quarter of these cells are. A guess
    # without information costs 4 ln 7; fooled classifiers are sure of it.
    assert fooled[0] > 4 * np.log(3)
    assert fooled[-1] < 0.2 * fooled[0]


def test_refitted_mlps_are_new_and_read_the_batch():
    cells = make_cells(per_group=12)
    preset = replace(TINY, refit_epochs=200, batch_mlp_rate=0.01)
    model = tiny_removal(preset)
    callback = RefitBatchMLPs(cells, seed=0)
    callback.set_model(model)
    before = [mlp.get_weights() for mlp in model.batch_mlps]
    generator = model.generator.get_weights()
    accuracies = callback.refit(epoch=0)
    assert all(all(moved(b, mlp)) for b, mlp in zip(before, model.batch_mlps, strict=True))
    assert not any(moved(generator, model.generator))
    # The batch changes the brightness, so even an untrained encoder passes it on. Guessing the
    # commonest batch is right for half of these cells.
    assert np.mean(accuracies) > 0.8
    made = generate(model.generator, cells)
    seen = model.features_of_mlp(made["features"], 0)
    guesses = np.argmax(ops.convert_to_numpy(model.batch_mlps[0](seen)), axis=1)
    assert np.mean(guesses == cells.batch_codes) == pytest.approx(accuracies[0])


def test_a_refit_depends_on_seed_and_epoch_alone(cells):
    def weights_after(*epochs):
        model = tiny_removal()
        callback = RefitBatchMLPs(cells, seed=3)
        callback.set_model(model)
        for epoch in epochs:
            callback.refit(epoch)
        return np.concatenate([w.ravel() for mlp in model.batch_mlps for w in mlp.get_weights()])

    with untraced_steps():
        alone, after_another, another = weights_after(2), weights_after(0, 2), weights_after(0)
    np.testing.assert_allclose(alone, after_another, atol=1e-5)
    assert np.abs(alone - another).max() > 0.01


def test_refits_follow_the_schedule(cells, monkeypatch):
    callback = RefitBatchMLPs(cells)
    callback.set_model(tiny_removal(replace(TINY, refit_every=5)))
    epochs = []
    monkeypatch.setattr(callback, "refit", epochs.append)
    for epoch in range(12):
        callback.on_epoch_begin(epoch)
    assert epochs == [0, 5, 10]


def test_generate_is_independent_of_slices(cells):
    generator = build_generator(**TINY.image_network, seed=0)
    whole, sliced = generate(generator, cells), generate(generator, cells, at_once=3)
    for name in whole:
        np.testing.assert_allclose(whole[name], sliced[name], atol=1e-5)
    np.testing.assert_array_equal(whole["batch_codes"], cells.batch_codes)
