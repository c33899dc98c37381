"""TensorBoard reads what `history.csv` holds: each epoch once, also of a run that was resumed."""

import sys
from dataclasses import replace

import pytest
from training_cells import ONE_EPOCH, write_dataset

from cytomad_lib import cli, config
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.packages import PackageError
from cytomad_lib.runs import CLASSIFIER_FOLDERS, Run
from cytomad_lib.tensorboard_log import FOLDER
from cytomad_lib.workflow import train

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the log needs `pip install '.[log]'`",
)
pytestmark = pytest.mark.usefixtures("untraced")


def scalars(folder):
    """Return {name: [(epoch, value), …]} as TensorBoard reads it."""
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        found[tag] = [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)]
    return found


def check_log_repeats_history(run, stage):
    history = run.history(stage).set_index("epoch")
    found = scalars(run.folder / FOLDER / stage)
    assert set(found) == set(history.columns) and len(history)
    for name, values in history.items():
        assert [epoch for epoch, _ in found[name]] == list(history.index)
        assert [value for _, value in found[name]] == pytest.approx(list(values), rel=1e-6)


def test_the_log_repeats_the_history_of_a_run_that_was_resumed(tmp_path, monkeypatch):
    preset = replace(ONE_EPOCH, pretraining_epochs=2)
    data = write_dataset(tmp_path / "data")
    out = tmp_path / "run"

    def interrupt(run, *arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:  # after pretraining
        patch.setattr("cytomad_lib.workflow.fit_classifiers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(data, out, preset, log="tensorboard")
    check_log_repeats_history(Run.open(out), "pretraining")  # also of a run that was cut off

    monkeypatch.setitem(config.PRESETS, "tiny", preset)
    words = ["train", str(data), "--out", str(out), "--preset", "tiny", "--recipe", "published"]
    monkeypatch.setattr(sys, "argv", ["cytomad", *words, "--log", "tensorboard"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    run = Run.open(out)
    assert len(run.history("pretraining")) == 2
    for stage in ("pretraining", *CLASSIFIER_FOLDERS, "published"):
        check_log_repeats_history(run, stage)


def test_a_log_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(CytomadError, match="no log 'wandb'.*'tensorboard'"):
        train(tmp_path, tmp_path / "run", log="wandb")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(PackageError, match=r"tensorboard.*pip install '\.\[log\]'"):
        train(tmp_path, tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()
