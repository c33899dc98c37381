"""Equal computing time: what is timed, how many epochs fit, and from where both trainings begin."""

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from training_cells import ONE_EPOCH, write_dataset

from benchmarks import equal_time
from cytomad_lib.runs import Run

pytestmark = pytest.mark.usefixtures("untraced")


def test_classifiers_count_as_part_of_the_published_recipe():
    seconds = {"classifiers": 20, "published": 40, "conditional": 100}
    assert equal_time.epochs_in_equal_time(seconds, 8) == 16
    assert equal_time.epochs_in_equal_time(seconds | {"conditional": 10}, 8) == 1


def test_what_is_done_is_neither_trained_nor_timed_again(tmp_path):
    path, calls = tmp_path / "seconds.json", []
    first = equal_time.timed(path, "one", lambda: calls.append(1))
    assert equal_time.timed(path, "one", lambda: calls.append(2)) == first
    assert calls == [1] and first["one"] >= 0


def fake_scores(run, *arguments, **options):
    """Score each stage by the number of its epochs, as `score` would return it."""
    names = {stage: equal_time.METHOD_NAMES[stage] for stage in run.stages()}
    epochs = {name: len(run.history(stage)) for stage, name in names.items()}
    scores = pd.DataFrame({"method": list(epochs), "accuracy": list(epochs.values())})
    return SimpleNamespace(
        scores=scores.assign(measure="epochs"),
        biology=pd.DataFrame({"method": list(epochs), "measure": "biology", "value": 0.5}),
        images=pd.DataFrame({"r": 0.9}, index=list(epochs)),
    )


def test_the_longer_training_continues_from_the_same_networks(tmp_path, monkeypatch, capsys):
    write_dataset(tmp_path / "out" / "cells")
    monkeypatch.setattr(equal_time, "PRESETS", {"tiny": ONE_EPOCH})
    monkeypatch.setattr(equal_time, "score", fake_scores)
    monkeypatch.setattr(equal_time, "epochs_in_equal_time", lambda seconds, epochs: 3 * epochs)
    arguments = ["equal_time", "--out", str(tmp_path / "out"), "--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", arguments)
    equal_time.main()
    table = pd.read_csv(tmp_path / "out" / "equal_time.csv", index_col="measure")
    assert table.loc["epochs", "published recipe"] == 1
    assert table.loc["epochs", equal_time.LONGER] == 3
    assert list(table.index) == ["biology", "epochs", "r"]
    run, longer = (Run.open(tmp_path / "out" / name) for name in ("run", "equal_time"))
    assert run.stages() == ["pretraining", "published", "conditional"]
    weights = [one.generator("pretraining").get_weights() for one in (run, longer)]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))
    seconds = json.loads((run.folder / "cpu_seconds.json").read_text())
    trained = ["pretraining", "classifiers", "published", "conditional", equal_time.LONGER]
    assert list(seconds) == trained
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.h5")}
    equal_time.main()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.h5")}
    assert "Epochs of published removal: 1 and 3" in capsys.readouterr().out
