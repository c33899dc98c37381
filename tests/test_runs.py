"""Runs survive interruptions, keep the best epoch, and refuse to mix what does not belong."""

import json
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from training_cells import TINY, make_cells

from cytomad_lib import runs
from cytomad_lib.data.errors import DatasetError
from cytomad_lib.runs import Run, RunError

CELLS, VALID = make_cells(), make_cells(per_group=2, seed=1)


class PowerCut(BaseException):
    """Ends a run where a real interruption might, past every `except Exception`."""


def train_all(folder):
    run = Run.create(folder, TINY, CELLS, "lung", seed=4)
    run.pretrain(CELLS, VALID)
    run.fit_classifiers(CELLS, VALID)
    run.remove_batches(CELLS, VALID)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted."""
    return train_all(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The same run, cut off in every stage: after the checkpoint of epoch 2, before its losses."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    save = runs._save_weights
    cut_at = [
        folder / stage / "checkpoint_000002.weights.h5"
        for stage in ("pretraining", "classifiers/batch_cnn", "published")
    ]

    def save_or_stop(model, path):
        save(model, path)
        if cut_at and path == cut_at[0]:
            cut_at.pop(0)
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_save_weights", save_or_stop)
        for _ in range(3):
            with pytest.raises(PowerCut):
                train_all(folder)
    return train_all(folder)


@pytest.mark.parametrize("stage", ["pretraining", "published"])
def test_interrupted_and_resumed_equals_uninterrupted(whole, interrupted, stage):
    pd.testing.assert_frame_equal(whole.history(stage), interrupted.history(stage), rtol=1e-4)
    assert whole.best_epoch(stage) == interrupted.best_epoch(stage)
    ours, theirs = whole.generator(stage), interrupted.generator(stage)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_classifiers_too(whole, interrupted):
    for name in ("class_mlp", "class_cnn", "batch_cnn"):
        ours, theirs = (
            pd.read_csv(run.folder / "classifiers" / name / "history.csv")
            for run in (whole, interrupted)
        )
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)


def test_nothing_unfinished_and_nothing_superfluous_is_left(interrupted):
    names = sorted(path.name for path in (interrupted.folder / "pretraining").iterdir())
    best = interrupted.best_epoch("pretraining")
    assert names == sorted(
        [
            "history.csv",
            f"generator_{best:06d}.weights.h5",
            f"discriminator_{best:06d}.weights.h5",
            "checkpoint_000003.weights.h5",
        ]
    )
    assert not list(interrupted.folder.rglob("*partial*"))


def test_the_run_says_what_it_was(whole):
    settings = json.loads((whole.folder / "run.json").read_text())
    assert settings["batches"][0] == "Batch1"  # the "first batch" of the published recipe
    assert settings["classes"] == list(CELLS.classes)
    assert settings["training_cells"]["Batch3/H520"] == 4
    assert settings["seed"] == 4 and settings["dataset"] == "lung"
    assert Run.open(whole.folder).preset == TINY
    assert whole.stages() == ["pretraining", "published"]


def test_a_finished_run_is_not_trained_again(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.h5")}
    train_all(whole.folder)
    assert before == {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.h5")}


def test_another_seed_starts_from_other_weights(tmp_path):
    kernels = [
        Run.create(tmp_path / str(seed), TINY, CELLS, "lung", seed)._new_generator().get_weights()
        for seed in (4, 5)
    ]
    assert not np.array_equal(kernels[0][0], kernels[1][0])


def test_the_own_verdict_is_that_of_the_last_classifiers_on_the_last_generator(whole):
    verdict = whole.own_verdict(CELLS)
    assert list(verdict.index) == ["batch_cnn", *(f"batch_mlp_{n}" for n in (1, 2, 3, 4))]
    assert verdict.between(0, 1).all()
    model = whole._new_removal()
    model.load_weights(whole.folder / "published" / "checkpoint_000003.weights.h5")
    images, _ = model.generator.predict(CELLS.brightfield, verbose=0)
    first = model.batch_cnn.predict(images, verbose=0).argmax(axis=1) == 0
    assert verdict["batch_cnn"] == pytest.approx(first.mean())


class Scripted(keras.callbacks.Callback):
    """Set the model's only weight to a chosen value in every epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_train_batch_end(self, batch, logs=None):
        self.model.layers[0].kernel.assign([[self.values[self.epoch]]])

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


def scripted_stage(folder, epochs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.0), loss="mae")
    return runs._Stage(folder, model, {"net": model}, epochs)


def test_the_best_epochs_weights_are_what_is_kept(tmp_path):
    x = np.ones((4, 1), "float32")
    data = runs.Minibatches.of_arrays(x, x, 4)  # the best kernel is 1
    stage = scripted_stage(tmp_path, 4)
    history = stage.fit(data, data, callbacks=[Scripted([5.0, 1.5, 3.0, 4.0])])
    np.testing.assert_allclose(history["val_loss"], [4, 0.5, 2, 3])
    assert float(stage.model.get_weights()[0][0, 0]) == 1.5  # restored, not the last one's 4.0
    files = {path.name for path in tmp_path.glob("net_*")}
    assert files == {"net_000002.weights.h5"}


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_epochs_before(tmp_path):
    x = np.ones((4, 1), "float32")
    data = runs.Minibatches.of_arrays(x, x, 4)
    stage = scripted_stage(tmp_path, 4)
    with pytest.raises(RunError, match="not a number in epoch 3"):
        stage.fit(data, data, callbacks=[Scripted([5.0, 1.5, np.nan, 4.0])])
    assert list(runs._read_history(tmp_path)["epoch"]) == [1, 2]


def test_another_setting_needs_another_folder(tmp_path):
    Run.create(tmp_path, TINY, CELLS, "lung")
    with pytest.raises(RunError, match="seed = 0, now it would be 1.*another folder"):
        Run.create(tmp_path, TINY, CELLS, "lung", seed=1)
    with pytest.raises(RunError, match="preset"):
        Run.create(tmp_path, replace(TINY, batch_size=5), CELLS, "lung")
    with pytest.raises(RunError, match="training_cells"):
        Run.create(tmp_path, TINY, VALID, "lung")
    run = Run.open(tmp_path)
    with pytest.raises(RunError, match="differ in number"):
        run.pretrain(VALID, VALID)


def test_a_single_batch_leaves_no_folder(tmp_path):
    one = CELLS.select(CELLS.labels["batch"].to_numpy() == "Batch1")
    with pytest.raises(DatasetError, match="only Batch1.*at least two batches"):
        Run.create(tmp_path / "run", TINY, one, "lung")
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match="run.json does not exist"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{not json")
    with pytest.raises(RunError, match="run.json cannot be used"):
        Run.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", TINY, CELLS, "lung")


def test_nothing_is_built_on_an_unfinished_pretraining(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    (tmp_path / "pretraining").mkdir()
    pd.DataFrame({"epoch": [1, 2], "val_loss": [2.0, 1.0]}).to_csv(
        tmp_path / "pretraining" / "history.csv", index=False
    )
    for stage in (run.fit_classifiers, run.remove_batches):
        with pytest.raises(RunError, match="2 finished epochs. Expected all 3"):
            stage(CELLS, VALID)


def test_stages_that_are_not_there(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    with pytest.raises(RunError, match="no finished epoch.*Train it first"):
        run.generator("pretraining")
    with pytest.raises(RunError, match="no stage 'removal'.*pretraining, published"):
        run.generator("removal")
