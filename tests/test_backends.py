"""Five training steps are the same on TensorFlow and on PyTorch, and neither needs the other.

Each backend runs in a process of its own, as Keras takes one per process: this file, started as a
program. Weights and minibatches come from the same file. What is random is made the same: no unit
is dropped (rate 0), and what is drawn with `keras.random` (how cells are turned, which cells the
adversary is shown) is drawn by numpy instead, from the same seed. For that the steps are not
traced.

To run any other test on PyTorch, set the backend: `KERAS_BACKEND=torch pytest tests`.
"""

import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from training_cells import environment_of_a_program

BACKENDS = ("tensorflow", "torch")
STEPS = 5
MINIBATCH = 8
missing = [name for name in BACKENDS if importlib.util.find_spec(name) is None]
needs_both = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} is not installed; comparing backends needs both",
)
needs_torch = pytest.mark.skipif(
    "torch" in missing, reason="torch is not installed: pip install cytomad-lib[torch]"
)


def on_backend(backend, *arguments, program=(__file__,)):
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env=environment_of_a_program(KERAS_BACKEND=backend),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Losses by backend, model and term: arrays (steps,)."""
    folder = tmp_path_factory.mktemp("backends")
    for backend in BACKENDS:  # the first writes down what it begins with
        on_backend(backend, folder)
    return {backend: np.load(folder / f"losses_{backend}.npz") for backend in BACKENDS}


@needs_both
@pytest.mark.parametrize("kind", ["Pix2Pix", "BatchRemoval", "ImageRemoval", "FeatureRemoval"])
def test_five_steps_agree(losses, kind):
    ours, theirs = (
        {name: found[name] for name in found.files if name.startswith(f"{kind}/")}
        for found in losses.values()
    )
    assert set(ours) == set(theirs) and f"{kind}/loss" in ours
    for name, values in ours.items():
        assert len(values) == STEPS
        # Something is learned from step to step, else agreement would say nothing.
        assert len(set(values.tolist())) > 1, name
        # These two estimates begin at zero and cross it, where no difference is a small part of
        # them; there it has to be a small part of the largest.
        crosses = name.endswith("mmd")
        tolerance = 1e-3 * (np.abs(values).max() if crosses else np.abs(values))
        assert (np.abs(theirs[name] - values) <= tolerance).all(), (name, values, theirs[name])


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it now fails
import numpy as np
from test_pix2pix import moved, tiny_model
from training_cells import make_cells
import cytomad_lib.workflow
from cytomad_lib.training.minibatches import Minibatches
model = tiny_model()
before = model.generator.get_weights()
losses = model.fit(Minibatches.of_cells(make_cells(), 16), shuffle=False, verbose=0).history
assert np.isfinite(list(losses.values())).all() and any(moved(before, model.generator))
print(sorted(losses))
"""


@needs_torch
def test_pytorch_trains_where_there_is_no_tensorflow():
    tests = os.path.dirname(__file__)
    program = f"import sys; sys.path.insert(0, {tests!r})\n{WITHOUT_TENSORFLOW}"
    shown = on_backend("torch", program=("-c", program))
    assert "discriminator_loss" in shown


@needs_torch
def test_recorded_steps_are_the_ordinary_ones(tmp_path):
    """Both draw their dropout from PyTorch's own generator, from one seed."""
    on_backend("torch", tmp_path, "record")
    for kind in ("Pix2Pix", "BatchRemoval"):
        ordinary, recorded = (np.load(tmp_path / f"{kind}_{way}.npz") for way in (0, 1))
        assert ordinary.files == recorded.files and "loss" in ordinary.files
        for name in ordinary.files:
            found, wanted = recorded[name], ordinary[name]
            np.testing.assert_allclose(
                found, wanted, rtol=1e-3, atol=1e-5, err_msg=f"{kind} {name}"
            )
        # Dropout is drawn anew in each step: with the weights held still, the loss would repeat.
        assert len(set(recorded["loss"].tolist())) == STEPS


@needs_torch
def test_on_a_gpu_fit_records_and_resumes_exactly(tmp_path):
    on_backend("torch", tmp_path, "resume")
    whole, resumed = (np.load(tmp_path / f"{name}.npy") for name in ("whole", "resumed"))
    np.testing.assert_allclose(resumed, whole, rtol=1e-5)
    assert len(whole) == 3


# --- what runs in the other processes ----------------------------------------------------------


def build_models():
    from test_batch_removal import tiny_removal
    from test_conditional_training import CELLS, lively_generator
    from test_pix2pix import tiny_model
    from training_cells import TINY

    from cytomad_lib.conditional.adversary import batch_shares
    from cytomad_lib.conditional.training import FeatureRemoval, ImageRemoval

    recipe = replace(
        TINY.conditional,
        ramp=0.5,
        adversary_steps=2,
        # At the recipe's own rate, seven times this, five steps of a network as tiny as this one
        # make half a percent of what begins as rounding, in the terms of the whitened images.
        generator_rate=1e-4,
    )
    conditional = replace(TINY, conditional=recipe)
    shares = batch_shares(CELLS.labels)
    image_removal = ImageRemoval(lively_generator(), shares, conditional, STEPS, seed=0)
    # Some numbers of the summary hardly vary among such images. Divided by their own spread, they
    # would be made of rounding.
    image_removal.image_summary.standardise.epsilon = 1e-2
    return {
        "Pix2Pix": tiny_model(),
        "BatchRemoval": tiny_removal(),
        "ImageRemoval": image_removal,
        "FeatureRemoval": FeatureRemoval(lively_generator(), 7, 2, conditional, STEPS, seed=0),
    }


def draw_by_numpy(seed):
    """Let `keras.random` draw the same numbers on every backend."""
    import keras
    from keras import ops

    random = np.random.default_rng(seed)

    def uniform(shape, seed):
        return ops.convert_to_tensor(random.uniform(size=tuple(map(int, shape))).astype("float32"))

    def randint(shape, low, high, seed):
        return ops.convert_to_tensor(random.integers(low, high, shape).astype("int32"))

    keras.random.uniform, keras.random.randint = uniform, randint


def calm(part):
    """Let Adam take short steps where a gradient is rounding only.

    It divides a gradient by its own size, so a weight whose gradient is 1e-9 on one backend and
    -1e-9 on the other would go a whole step, to either side. In the adversary of the images there
    are such weights: some numbers of the summary hardly vary.
    """
    import keras

    for value in vars(part).values():
        if isinstance(value, keras.optimizers.Optimizer):
            value.epsilon = 1e-5


def minibatches():
    """Return the minibatches of some epochs, as arrays by name."""
    from training_cells import make_cells

    from cytomad_lib.training.minibatches import Minibatches

    cells = make_cells(per_group=MINIBATCH * STEPS // 4)
    groups = cells.batch_codes * 7 + cells.class_codes
    measures = np.random.default_rng(0).normal(size=(len(cells), 2)).astype("float32")

    def moved_by_two(brightfield, targets, random):
        return brightfield, targets | {"transferred": np.roll(brightfield, 2, axis=1)}

    options = {"groups": groups, "measures": measures, "change": moved_by_two}
    feed = Minibatches.of_cells(cells, MINIBATCH, seed=0, **options)
    return {
        f"{number}/{name}": values
        for number in range(STEPS)
        for name, values in ({"brightfield": feed[number][0]} | feed[number][1]).items()
    }


def take_steps(folder):
    import keras

    class Fixed(keras.utils.PyDataset):
        """One minibatch that was written down."""

        def __init__(self, feed, number):
            super().__init__()
            names = ("qpi", "batch", "class_name", "measures", "transferred")
            self.images = feed[f"{number}/brightfield"]
            self.targets = {name: feed[f"{number}/{name}"] for name in names}

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.images, self.targets

    backend = keras.backend.backend()
    models, start, feed = build_models(), folder / "weights.npz", folder / "minibatches.npz"
    if not start.exists():
        weights = {
            f"{kind}/{number}": values
            for kind, model in models.items()
            for number, values in enumerate(model.get_weights())
        }
        np.savez(start, **weights)
        np.savez(feed, **minibatches())
    weights, feed, found = np.load(start), np.load(feed), {}
    for kind, model in models.items():
        model.set_weights([weights[f"{kind}/{n}"] for n in range(len(model.weights))])
        for layer in model._flatten_layers():  # also those inside of the adversaries
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        model.compile(run_eagerly=True)
        for part in (model, *model.layers):
            calm(part)
        draw_by_numpy(seed=1)
        for number in range(STEPS):
            for name, values in model.fit(Fixed(feed, number), verbose=0).history.items():
                found.setdefault(f"{kind}/{name}", []).extend(values)
    np.savez(folder / f"losses_{backend}.npz", **found)


def record_steps(folder):
    """Take the same steps layer by layer and from a recording."""
    import torch

    from cytomad_lib.training.steps import Recording

    feed = minibatches()
    for kind in ("Pix2Pix", "BatchRemoval"):
        for recorded in (0, 1):
            model = build_models()[kind]
            model.compile()
            recording = Recording(model.train_step)
            torch.manual_seed(0)
            found = {}
            with patch("keras.src.backend.torch.random.torch_seed_generator", lambda seed: None):
                for number in range(STEPS):
                    batch = {
                        name: torch.as_tensor(feed[f"{number}/{name}"])
                        for name in ("brightfield", "qpi", "batch", "class_name")
                    }
                    minibatch = batch.pop("brightfield"), batch
                    terms = recording([minibatch]) if recorded else model.train_step(minibatch)
                    for name, value in terms.items():
                        found.setdefault(name, []).append(float(value))
            np.savez(folder / f"{kind}_{recorded}.npz", **found)


def train_and_resume(folder):
    """Train a run of three epochs at once, and another one in two parts, as on a GPU."""
    from training_cells import TINY, make_cells

    from cytomad_lib.plots.live import StopAfter
    from cytomad_lib.runs import Run
    from cytomad_lib.training import pix2pix
    from cytomad_lib.training.recipes import pretrain

    pix2pix.records = lambda model: True
    cells = make_cells(6)

    def losses(name, callbacks=()):
        run = Run.create(folder / name, TINY, cells, "lung", seed=0)
        return pretrain(run, cells, cells, callbacks=callbacks)["loss"].to_numpy()

    np.save(folder / "whole.npy", losses("whole"))
    with suppress(KeyboardInterrupt):
        losses("parts", [StopAfter(1)])
    np.save(folder / "resumed.npy", losses("parts"))


if __name__ == "__main__":
    from pathlib import Path

    work = {"record": record_steps, "resume": train_and_resume}
    work.get(sys.argv[-1], take_steps)(Path(sys.argv[1]))
