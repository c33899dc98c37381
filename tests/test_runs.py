"""Runs survive interruptions, keep the best epoch, and refuse to mix what does not belong."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
from training_cells import TINY, make_cells, untraced_steps, write_dataset

from cytomad_lib import runs
from cytomad_lib.conditional import recipe as conditional_recipe
from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.errors import CytomadError, DatasetError, ImageFileError
from cytomad_lib.data.files import StoredArray
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.prediction import predict
from cytomad_lib.run_copies import branch, copy_networks
from cytomad_lib.runs import Run, RunError
from cytomad_lib.training import minibatches, stages
from cytomad_lib.training.recipes import (
    classifier_scores,
    fit_classifiers,
    pretrain,
    removal_model,
    remove_batches,
)

CELLS, VALID = make_cells(), make_cells(per_group=2, seed=1)


class PowerCut(BaseException):
    """Ends a run where a real interruption might, past every `except Exception`."""


def train_all(folder):
    run = Run.create(folder, TINY, CELLS, "lung", seed=4)
    pretrain(run, CELLS, VALID)
    fit_classifiers(run, CELLS, VALID)
    remove_batches(run, CELLS, VALID)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted."""
    with untraced_steps():
        return train_all(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The same run, cut off in every stage: after the checkpoint of epoch 2, before its losses."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    save = stages.save_weights
    cut_at = [
        folder / stage / "checkpoint_000002.weights.h5"
        for stage in ("pretraining", "classifiers/batch_cnn", "published")
    ]

    def save_or_stop(model, path):
        save(model, path)
        if cut_at and path == cut_at[0]:
            cut_at.pop(0)
            raise PowerCut

    with untraced_steps(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_weights", save_or_stop)
        for _ in range(3):
            with pytest.raises(PowerCut):
                train_all(folder)
        return train_all(folder)


@pytest.mark.parametrize("stage", ["pretraining", "published"])
def test_interrupted_and_resumed_equals_uninterrupted(whole, interrupted, stage):
    ours, theirs = (run.history(stage).drop(columns="seconds") for run in (whole, interrupted))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
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
        ours, theirs = (history.drop(columns="seconds") for history in (ours, theirs))
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
        Run.create(tmp_path / str(seed), TINY, CELLS, "lung", seed).new_generator().get_weights()
        for seed in (4, 5)
    ]
    assert not np.array_equal(kernels[0][0], kernels[1][0])


def test_the_own_verdict_is_that_of_the_last_classifiers_on_the_last_generator(whole):
    verdict = classifier_scores(whole, CELLS)
    assert list(verdict.index) == ["batch_cnn", *(f"batch_mlp_{n}" for n in (1, 2, 3, 4))]
    assert verdict.between(0, 1).all()
    model = removal_model(whole)
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
    return stages.Stage(folder, model, {"net": model}, epochs)


def test_the_best_epochs_weights_are_what_is_kept(tmp_path):
    x = np.ones((4, 1), "float32")
    data = minibatches.Minibatches.of_arrays(x, x, 4)  # the best kernel is 1
    mine = [tmp_path / f"{name}.weights.h5" for name in ("mine", "net_best", "other_000001")]
    for path in mine:
        path.write_text("the user's own")
    stage = scripted_stage(tmp_path, 4)
    history = stage.fit(data, data, callbacks=[Scripted([5.0, 1.5, 3.0, 4.0])])
    np.testing.assert_allclose(history["val_loss"], [4, 0.5, 2, 3])
    assert float(stage.model.get_weights()[0][0, 0]) == 1.5  # restored, not the last one's 4.0
    files = {path.name for path in tmp_path.glob("net_*")}
    assert files == {"net_000002.weights.h5", "net_best.weights.h5"}
    assert all(path.read_text() == "the user's own" for path in mine)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_epochs_before(tmp_path):
    x = np.ones((4, 1), "float32")
    data = minibatches.Minibatches.of_arrays(x, x, 4)
    stage = scripted_stage(tmp_path, 4)
    with pytest.raises(RunError, match="not a number in epoch 3"):
        stage.fit(data, data, callbacks=[Scripted([5.0, 1.5, np.nan, 4.0])])
    assert list(runs.read_history(tmp_path)["epoch"]) == [1, 2]


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
        pretrain(run, VALID, VALID)


@untraced_steps()
def test_one_batch_is_enough_to_pretrain_and_too_few_to_remove_batches(tmp_path):
    one, valid = (c.select(c.labels["batch"].to_numpy() == "Batch1") for c in (CELLS, VALID))
    run = Run.create(tmp_path / "run", replace(TINY, pretraining_epochs=1), one, "lung")
    pretrain(run, one, valid)
    assert run.stages() == ["pretraining"]
    for stage in (partial(fit_classifiers, run), partial(remove_batches, run)):
        with pytest.raises(DatasetError, match="only Batch1.*at least two batches"):
            stage(one, valid)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match="run.json does not exist"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{not json")
    with pytest.raises(RunError, match="run.json cannot be used"):
        Run.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", TINY, CELLS, "lung")


def test_stages_without_settings_are_not_adopted(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunError, match="pretraining is of a training.*no run.json.*restore"):
        Run.create(tmp_path / "run", TINY, CELLS, "lung", seed=5)
    assert not (tmp_path / "run" / "run.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")  # other files do not matter
    assert Run.create(tmp_path / "mine", TINY, CELLS, "lung").seed == 0


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 1.5, None])
def test_seeds_that_something_refuses_later(tmp_path, seed):
    with pytest.raises(RunError, match="Expected a whole number from 0 to 4294967295"):
        Run.create(tmp_path / "run", TINY, CELLS, "lung", seed=seed)
    assert not (tmp_path / "run").exists()


def test_two_trainings_never_share_a_folder(whole, tmp_path):
    run = pretrained_copy(whole, tmp_path / "run")
    steps = [partial(step, run) for step in (pretrain, fit_classifiers, remove_batches)]
    refused = []

    def other():
        for step in steps:
            try:
                step(CELLS, VALID)
            except RunError as error:
                refused.append(str(error))

    with run.held():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 3 and all("is in use: process" in text for text in refused)


def test_a_history_of_two_trainings_is_refused(whole, tmp_path):
    run = pretrained_copy(whole, tmp_path / "run")
    path = run.folder / "pretraining" / "history.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    for use in (run.stages, lambda: pretrain(run, CELLS, VALID)):
        with pytest.raises(RunError, match="history.csv has epoch 3 in line 5"):
            use()


def test_what_was_left_half_written_is_swept_when_a_run_goes_on(whole, tmp_path):
    run = pretrained_copy(whole, tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    (run.folder / "published").mkdir()
    left = run.folder / "published" / f".partial-{int(done.stdout)}-history.csv"
    left.write_text("half of it")
    Run.create(run.folder, TINY, CELLS, "lung", seed=4)
    assert not left.exists()


def test_nothing_is_built_on_an_unfinished_pretraining(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    (tmp_path / "pretraining").mkdir()
    pd.DataFrame({"epoch": [1, 2], "val_loss": [2.0, 1.0]}).to_csv(
        tmp_path / "pretraining" / "history.csv", index=False
    )
    for stage in (partial(fit_classifiers, run), partial(remove_batches, run)):
        with pytest.raises(RunError, match="2 finished epochs. Expected all 3"):
            stage(CELLS, VALID)


def test_stages_that_are_not_there(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    with pytest.raises(RunError, match="no finished epoch.*train it first"):
        run.generator("pretraining")
    with pytest.raises(RunError, match="no stage 'removal'.*pretraining, published"):
        run.generator("removal")


# --- the conditional recipe --------------------------------------------------------------------


def pretrained_copy(whole, folder):
    """Return a run that has the pretraining of another, and no classifiers."""
    folder.mkdir()
    shutil.copy(whole.folder / "run.json", folder)
    shutil.copytree(whole.folder / "pretraining", folder / "pretraining")
    return Run.open(folder)


@pytest.fixture(scope="module")
def conditional(whole, tmp_path_factory):
    run = pretrained_copy(whole, tmp_path_factory.mktemp("runs") / "conditional")
    remove_batches(run, CELLS, VALID, recipe="conditional")
    return run


def test_the_conditional_recipe_needs_no_classifiers(conditional):
    assert conditional.stages() == ["pretraining", "conditional"]
    folder = conditional.folder / "conditional"
    trained = {"history.csv", "checkpoint_000002.weights.h5", "generator_000002.weights.h5"}
    assert {path.name for path in (folder / "images").iterdir()} == trained
    names = {path.name for path in folder.iterdir()}
    assert names == trained | {"images", "generator_aligned.weights.h5"}
    parts = [pd.read_csv(path)["seconds"].sum() for path in folder.rglob("history.csv")]
    assert len(parts) == 2
    assert conditional.training_seconds("conditional") == pytest.approx(sum(parts))


def test_the_conditional_recipe_survives_interruptions(whole, conditional, tmp_path):
    run = pretrained_copy(whole, tmp_path / "cut")
    save = stages.save_weights
    cut_at = [
        "images/checkpoint_000002.weights.h5",
        "conditional/checkpoint_000002.weights.h5",
        "conditional/generator_aligned.weights.h5",
    ]

    def save_or_stop(model, path):
        if cut_at and path.as_posix().endswith(cut_at[0]):
            cut_at.pop(0)
            raise PowerCut
        save(model, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_weights", save_or_stop)
        patch.setattr(conditional_recipe, "save_weights", save_or_stop)
        for images_done, features_done in ((1, 0), (2, 1), (2, 2)):
            with pytest.raises(PowerCut):
                remove_batches(run, CELLS, VALID, recipe="conditional")
            assert len(run.history("conditional/images")) == images_done
            assert len(run.history("conditional")) == features_done
    remove_batches(run, CELLS, VALID, recipe="conditional")
    ours, theirs = (
        one.history("conditional").drop(columns="seconds") for one in (conditional, run)
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-4)
    ours, theirs = (one.generator("conditional").get_weights() for one in (conditional, run))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


def test_the_conditional_generator_is_the_aligned_one(conditional):
    last = conditional.new_conditional_generator()
    # The images are those of the first part: learning to read features does not change them.
    last.load_weights(conditional.folder / "conditional/images/generator_000002.weights.h5")
    images = last.get_layer("generator").get_weights()
    last.load_weights(conditional.folder / "conditional" / "generator_000002.weights.h5")
    aligned = conditional.generator("conditional")
    *drawn, kernel, bias = aligned.get_layer("generator").get_weights()
    for a, b in zip(images, drawn, strict=False):
        np.testing.assert_array_equal(a, b)
    # But for one factor, which brings their total to the measured one.
    factor = kernel.sum() / images[-2].sum()
    np.testing.assert_allclose(kernel, factor * images[-2], rtol=1e-5)
    np.testing.assert_allclose(bias, factor * images[-1], rtol=1e-5)
    encoders = [generator.get_layer("feature_encoder") for generator in (aligned, last)]
    for a, b in zip(*(encoder.get_weights() for encoder in encoders), strict=True):
        np.testing.assert_array_equal(a, b)
    heads = [generator.get_layer("feature_head") for generator in (aligned, last)]
    ours, theirs = (head.get_weights()[0] for head in heads)
    assert np.abs(ours - theirs).max() > 0.01
    features = predict(aligned, CELLS).features
    assert features.shape == (len(CELLS), conditional.preset.conditional.n_features)


def test_the_conditional_generator_sees_a_cell_by_itself_and_no_brightness(conditional):
    generator = conditional.new_conditional_generator()
    generator.load_weights(conditional.folder / "conditional" / "generator_000002.weights.h5")
    together = generator.predict(CELLS.brightfield, verbose=0)
    alone = generator.predict(CELLS.brightfield[5:6], verbose=0)
    brighter = generator.predict(1.3 * CELLS.brightfield[5:6] + 0.2, verbose=0)
    for whole_set, single, bright in zip(together, alone, brighter, strict=True):
        scale = whole_set.std()
        np.testing.assert_allclose(single[0], whole_set[5], atol=0.01 * scale)
        np.testing.assert_allclose(bright[0], whole_set[5], atol=0.02 * scale)


def test_a_finished_conditional_stage_is_not_trained_again(conditional):
    files = list(conditional.folder.rglob("*.h5"))
    before = [path.stat().st_mtime_ns for path in files]
    remove_batches(conditional, CELLS, VALID, recipe="conditional")
    assert before == [path.stat().st_mtime_ns for path in files]


def test_of_a_batch_removal_the_last_epoch_is_kept_and_not_the_one_before_a_refit(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [2.0, 1.0, 3.0]})
    for stage in ("pretraining", "published", "conditional"):
        (tmp_path / stage).mkdir()
        history.to_csv(tmp_path / stage / "history.csv", index=False)
    assert run.best_epoch("pretraining") == 2
    assert run.best_epoch("published") == 3
    assert run.best_epoch("conditional") == 3


def test_recipes_that_there_are_not(tmp_path):
    run = Run.create(tmp_path, TINY, CELLS, "lung")
    with pytest.raises(RunError, match="no recipe 'conditonal'.*published, conditional"):
        remove_batches(run, CELLS, VALID, recipe="conditonal")


def test_too_few_cells_for_a_conditional_step(whole, tmp_path):
    run = pretrained_copy(whole, tmp_path / "run")
    recipe = replace(TINY.conditional, image_cells=13, feature_cells=17)
    run.preset = replace(TINY, conditional=recipe)
    with pytest.raises(RunError, match="16 training cells. Expected at least 17"):
        remove_batches(run, CELLS, VALID, recipe="conditional")
    assert not (run.folder / "conditional").exists()


def test_a_run_of_before_a_field_goes_on_with_its_default(tmp_path):
    Run.create(tmp_path, TINY, CELLS, "lung")
    path = tmp_path / "run.json"
    settings = json.loads(path.read_text())
    assert settings["preset"].pop("updates") == "alternating"
    path.write_text(json.dumps(settings))
    assert Run.create(tmp_path, TINY, CELLS, "lung").preset == TINY
    with pytest.raises(RunError, match="simultaneous"):
        Run.create(tmp_path, replace(TINY, updates="simultaneous"), CELLS, "lung")


# --- channels ----------------------------------------------------------------------------------


def two_channels(cells):
    several = np.concatenate([cells.brightfield, cells.qpi], axis=-1)
    return replace(cells, brightfield=several)


def test_the_networks_have_as_many_channels_as_the_cells(tmp_path):
    run = Run.create(tmp_path, TINY, two_channels(CELLS), "mine")
    assert run.settings["channels"] == run.channels == 2
    for network in (run.new_generator(), run.new_conditional_generator()):
        assert network.input_shape[-1] == 2
    assert run.new_discriminator().input_shape[0][-1] == 2
    with pytest.raises(RunError, match="cells have 1 channels.*started with 2"):
        pretrain(run, CELLS, VALID)


@pytest.mark.parametrize("dataset", ["lung", LUNG])
def test_the_published_datasets_have_one_channel(dataset, tmp_path):
    assert Run.create(tmp_path / "one", TINY, CELLS, dataset).settings["dataset"] == "lung"
    with pytest.raises(RunError, match="2 channels. Expected 1, as the lung dataset"):
        Run.create(tmp_path / "two", TINY, two_channels(CELLS), dataset)
    assert not (tmp_path / "two").exists()


# --- watching, and going on with other settings ------------------------------------------------


class Watcher(keras.callbacks.Callback):
    """Notes what is written down at the end of each epoch; may stop the training there."""

    def __init__(self, run, stage, stop_after=None):
        super().__init__()
        self.run, self.stage, self.stop_after = run, stage, stop_after
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(len(self.run.history(self.stage)))
        if epoch + 1 == self.stop_after:
            raise KeyboardInterrupt


@untraced_steps()
def test_callbacks_come_after_the_epoch_is_safe(whole, tmp_path):
    run = Run.create(tmp_path / "run", TINY, CELLS, "lung", seed=4)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run, CELLS, VALID, callbacks=[Watcher(run, "pretraining", stop_after=2)])
    assert len(run.history("pretraining")) == 2
    rest = Watcher(run, "pretraining")
    pretrain(run, CELLS, VALID, callbacks=[rest])
    assert rest.seen == [3]
    ours, theirs = (r.history("pretraining").drop(columns="seconds") for r in (run, whole))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize(
    "recipe, epochs", [("published", [1, 2, 3]), ("conditional", [0, 0, 1, 2])]
)
@untraced_steps()
def test_callbacks_watch_batch_removal(whole, tmp_path, recipe, epochs):
    run = branch(whole, tmp_path / "run", CELLS)
    watcher = Watcher(run, recipe)
    remove_batches(run, CELLS, VALID, recipe=recipe, callbacks=[watcher])
    assert watcher.seen == epochs  # the conditional recipe's first part has losses of its own


@untraced_steps()
def test_a_branch_begins_with_the_trained_networks(whole, tmp_path):
    small = replace(copy_networks(whole, tmp_path / "copy").preset, removal_epochs=1)
    few = make_cells(per_group=3, seed=2)
    other = branch(Run.open(tmp_path / "copy"), tmp_path / "branch", few, small)
    assert other.stages() == ["pretraining"]
    assert other.settings["pretrained"] == whole.settings["training_cells"]
    assert other.was_trained_on(few.labels) and not other.was_trained_on(CELLS.labels)
    ours, theirs = removal_model(other), removal_model(whole)
    for network in ("generator", "discriminator", "class_mlp", "class_cnn", "batch_cnn"):
        for a, b in zip(
            getattr(ours, network).get_weights(),
            getattr(theirs, network).get_weights(),
            strict=True,
        ):
            # Float16, then seven bits behind the point; below 6e-5 it has fewer.
            np.testing.assert_allclose(a, b, rtol=2**-8 + 2**-11, atol=1e-6)
    remove_batches(other, few, VALID)
    assert len(other.history("published")) == 1 and len(classifier_scores(other, few)) == 5


def test_a_branch_takes_networks_of_its_own_size_only(whole, tmp_path):
    with pytest.raises(RunError, match="base_filters.*Expected"):
        branch(whole, tmp_path / "other", CELLS, replace(TINY, base_filters=8))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(RunError, match="there already"):
        branch(whole, tmp_path / "full", CELLS)
    assert not (tmp_path / "other").exists()


# --- the discriminator -------------------------------------------------------------------------


def test_the_discriminator_of_each_stage_can_be_loaded(whole):
    first, later = whole.discriminator(), whole.discriminator("published")
    assert first.input_shape[0][1] == TINY.image_size
    stored = whole.folder / "published" / f"discriminator_{whole.best_epoch('published'):06d}"
    expected = whole.new_discriminator()
    expected.load_weights(f"{stored}.weights.h5")
    for number, weights in enumerate(expected.get_weights()):
        np.testing.assert_array_equal(later.get_weights()[number], weights)
    assert not np.array_equal(first.get_weights()[0], expected.get_weights()[0])


def test_a_discriminator_that_there_is_not(whole, tmp_path):
    with pytest.raises(RunError, match="no discriminator of 'conditional'.*pretraining, published"):
        whole.discriminator("conditional")
    with pytest.raises(RunError, match="no finished epoch"):
        Run.create(tmp_path, TINY, CELLS, "lung", seed=4).discriminator()


def test_half_precision_is_for_training_and_predictions_are_in_full(tmp_path):
    preset = replace(TINY, precision="mixed_bfloat16", pretraining_epochs=1)
    run = Run.create(tmp_path, preset, CELLS, "lung")
    with untraced_steps():
        pretrain(run, CELLS, VALID)
    assert run.new_generator(preset.precision).get_layer("bottleneck").compute_dtype == "bfloat16"
    assert run.generator("pretraining").get_layer("bottleneck").compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(CytomadError, match="precision is 'half'. Expected one of float32"):
        replace(TINY, precision="half")


# --- from disk ---------------------------------------------------------------------------------

FEW = replace(
    TINY,
    pretraining_epochs=2,
    classifier_epochs=1,
    removal_epochs=1,
    conditional=replace(TINY.conditional, image_epochs=1, feature_epochs=1),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def files(dataset, monkeypatch):
    """Train and Valid cells on disk, the former in two blocks of 12 cells."""
    monkeypatch.setattr(minibatches, "BLOCK_BYTES", 12 * 2 * 4 * TINY.image_size**2)
    return CellFiles(dataset, "Train"), CellFiles(dataset, "Valid")


@untraced_steps()
def test_every_stage_trains_from_disk(files, tmp_path, monkeypatch):
    seen = []
    of_arrays = minibatches.Minibatches.of_arrays

    def watched(inputs, *others, **options):
        seen.append(inputs)
        return of_arrays(inputs, *others, **options)

    monkeypatch.setattr(minibatches.Minibatches, "of_arrays", watched)
    run = Run.create(tmp_path / "run", FEW, files[0], "lung", seed=4)
    pretrain(run, *files)
    fit_classifiers(run, *files)
    images = [inputs for inputs in seen if isinstance(inputs, StoredArray)]
    assert [len(one) for one in images] == [24, 12] * 2  # two CNNs
    assert not (run.folder / "generated").exists()
    for recipe in runs.RECIPES:
        remove_batches(run, *files, recipe=recipe)
    assert run.stages() == list(runs.STAGES)
    assert np.isfinite(run.training_seconds("published"))


@untraced_steps()
def test_training_from_disk_survives_interruptions(files, tmp_path, monkeypatch):
    def train(folder):
        run = Run.create(folder, FEW, files[0], "lung", seed=4)
        pretrain(run, *files)
        return run

    whole = train(tmp_path / "whole")
    save = stages.save_weights
    cut_at = ["pretraining/checkpoint_000002.weights.h5", "class_cnn/checkpoint_000001.weights.h5"]

    def save_or_stop(model, path):
        if cut_at and path.as_posix().endswith(cut_at[0]):
            cut_at.pop(0)
            raise PowerCut
        save(model, path)

    monkeypatch.setattr(stages, "save_weights", save_or_stop)
    with pytest.raises(PowerCut):
        train(tmp_path / "cut")
    cut = train(tmp_path / "cut")
    ours, theirs = (run.history("pretraining").drop(columns="seconds") for run in (whole, cut))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
    with pytest.raises(PowerCut):
        fit_classifiers(cut, *files)
    assert not (cut.folder / "generated").exists()


def test_a_file_that_is_damaged_while_training_is_named(files, dataset, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    train, valid = CellFiles(broken, "Train"), files[1]
    next(broken.rglob("Train/H520_QPI.mat")).write_bytes(b"MATLAB, but not for long")
    run = Run.create(tmp_path / "run", FEW, train, "lung", seed=4)
    with pytest.raises(ImageFileError, match="H520_QPI.mat does not start like a .mat file"):
        pretrain(run, train, valid)
