"""The live view draws what there is, goes on after an interruption, and stays silent elsewhere."""

import types

import IPython
import keras
import numpy as np
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401
from training_cells import TINY, make_cells

from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.networks import build_conditional_generator
from cytomad_lib.conditional.training import FeatureRemoval, ImageRemoval
from cytomad_lib.networks import build_discriminator, build_generator
from cytomad_lib.plots.live import LiveView, StopAfter
from cytomad_lib.runs import Run
from cytomad_lib.training.batch_removal import BatchRemoval, Classifiers
from cytomad_lib.training.recipes import pretrain

CELLS, VALID = make_cells(), make_cells(per_group=2, seed=1)
FEW = VALID.select([0, 4, 7])


class Notebook:
    """Stands for a notebook: keeps what is displayed at each place, pictures and words apart."""

    def __init__(self, monkeypatch):
        self.places, self.words = [], []
        shell = types.SimpleNamespace(kernel=object())
        monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
        monkeypatch.setattr(IPython.display, "display", self.display)

    def display(self, shown, display_id):
        assert display_id
        kind = self.words if isinstance(shown, IPython.display.HTML) else self.places
        kind.append([shown])
        return types.SimpleNamespace(update=kind[-1].append)


def titles(figure):
    return [panel.get_title() for panel in all_axes(figure)]


def all_axes(figure):
    return [panel for part in figure.subfigs for panel in part.axes]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A pretraining that was watched outside of a notebook, and its losses."""
    live, folder = LiveView(FEW), tmp_path_factory.mktemp("run")
    history = pretrain(Run.create(folder, TINY, CELLS, "lung"), CELLS, VALID, callbacks=[live])
    return live, history


def play(live, model, losses):
    """Call a view as Keras does, for one epoch, without the training between."""
    live.set_model(model)
    live.set_params({"epochs": 1})
    live.on_train_begin()
    live.on_epoch_begin(0)
    live.on_epoch_end(0, losses)


def dense():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mae")
    return model


def test_outside_of_notebooks_nothing_is_drawn(monkeypatch):
    live = LiveView(FEW)
    monkeypatch.setattr(live, "figure", lambda: pytest.fail("drawn for nobody"))
    play(live, dense(), {"loss": 1.0})
    assert list(live.history["loss"]) == [1.0]


def test_losses_and_images_of_every_epoch_are_kept(watched):
    live, history = watched
    np.testing.assert_allclose(live.history["val_loss"], history["val_loss"], rtol=1e-5)
    assert sorted(live.images) == [0, 1, 2, 3]
    # After the training the model has the weights of the best epoch.
    best, _ = live.model.generator.predict(FEW.brightfield, verbose=0)
    np.testing.assert_allclose(live.images[history["val_loss"].idxmin() + 1], best, atol=1e-4)


def test_one_picture_is_redrawn_and_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    notebook = Notebook(monkeypatch)
    run, live = Run.create(tmp_path, TINY, CELLS, "lung"), LiveView(FEW, names=("loss", "mae"))
    with pytest.raises(KeyboardInterrupt, match="epoch 2"):
        pretrain(run, CELLS, VALID, callbacks=[live, StopAfter(2)])
    assert [len(place) for place in notebook.places] == [3]  # before, and two epochs
    history = pretrain(run, CELLS, VALID, callbacks=[live])
    assert [len(place) for place in notebook.places] == [3, 2]
    assert list(live.history["epoch"]) == [1, 2, 3]
    np.testing.assert_allclose(live.history["loss"], history["loss"], rtol=1e-5)
    last = notebook.places[1][-1]
    assert "epoch 3 of 3" in last.get_suptitle()
    assert {"loss", "mae"} < set(titles(last)) and "discriminator loss" not in titles(last)
    drawn = all_axes(last)[0].lines[0]
    np.testing.assert_allclose(drawn.get_ydata(), history["loss"], rtol=1e-5)
    assert [len(place) for place in notebook.words] == [3, 2]
    first, last = (notebook.words[place][-1].data for place in (0, 1))
    assert 'role="status" aria-live="polite"' in last and first != last
    of_last = history.iloc[-1]
    assert f"After epoch 3 of 3: loss {of_last['loss']:.3g} (validation " in last
    assert f"mae {of_last['mae']:.3g} (validation {of_last['val_mae']:.3g})." in last


def test_what_is_not_to_be_shown_is_kept(monkeypatch):
    notebook, live = Notebook(monkeypatch), LiveView(FEW, show=False)
    play(live, dense(), {"loss": 1.0})
    assert notebook.places == [] and len(live.history) == 1


def test_the_picture_shows_the_cells_of_this_epoch_on_one_scale(watched):
    live, _ = watched
    panels = [panel for panel in all_axes(live.figure()) if panel.images]
    panels = [panel for panel in panels if panel.images[0].get_array().shape == (16, 16)]
    assert len(panels) == 3 * len(FEW)
    generated, measured = panels[3:6], panels[6:9]
    for panel, image in zip(generated, live.images[3], strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), image[..., 0])
    limits = {panel.images[0].get_clim() for panel in (*generated, *measured)}
    assert len(limits) == 1
    assert titles(live.figure()).count("H69\nBatch1") == 1


def test_the_film_shows_epochs_between_input_and_measurement(watched):
    live, _ = watched
    headings = [panel.get_title() for panel in live.film(cells=2).axes if panel.get_title()]
    expected = ["untrained", "epoch 1", "epoch 2", "epoch 3"]
    assert headings == ["Brightfield", *expected, "Measured phase"]
    assert len([p for p in live.film([0, 3], cells=2).axes if p.images]) >= 8
    with pytest.raises(ValueError, match=r"no images of epochs \[7\]"):
        live.film([0, 7])


def test_all_models_of_batch_removal_can_be_followed():
    shares, size = batch_shares(CELLS.labels), TINY.image_network
    generator = build_conditional_generator(**size, seed=0)
    classifiers = Classifiers.build(7, 7, TINY, seed=0)
    models = [
        BatchRemoval(build_generator(**size), build_discriminator(**size), classifiers, TINY),
        ImageRemoval(generator, shares, TINY, 4, seed=0),
        FeatureRemoval(generator, len(shares), 2, TINY, 4, seed=0),
    ]
    live = LiveView(FEW)
    for number, model in enumerate(models):
        play(live, model, {"loss": number + 1.0, "mae": 0.1})
        # Each is a training of its own: its losses do not go on with those of the one before.
        assert list(live.history["loss"]) == [number + 1.0]
        expected, _ = model.generator.predict(FEW.brightfield, verbose=0)
        np.testing.assert_allclose(live.images[1], expected, atol=1e-4)
        assert {"loss", "mae"} < set(titles(live.figure()))


def test_a_model_without_a_generator_shows_losses_only():
    model, live = dense(), LiveView(FEW, every=2)
    x = np.ones((4, 1), "float32")
    model.fit(x, 2 * x, epochs=3, verbose=0, callbacks=[live])
    assert live.images == {} and list(live.history) == ["epoch", "loss"]
    assert len(live.history) == 3
    assert titles(live.figure()) == ["loss"]


def test_a_training_from_the_start_forgets_the_one_before():
    model, live, x = dense(), LiveView(), np.ones((4, 1), "float32")
    for epochs in (3, 1):
        model.fit(x, 2 * x, epochs=epochs, verbose=0, callbacks=[live])
        assert len(live.history) == epochs


def test_too_much_to_show():
    with pytest.raises(ValueError, match="8 cells.*1 to 6"):
        LiveView(VALID)
    with pytest.raises(ValueError, match="4 names.*1 to 3"):
        LiveView(FEW, names=("loss", "mae", "adversarial", "accuracy"))
