"""Files are whole or not there."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from training_cells import environment_of_a_program

from cytomad_lib.data.errors import CytomadError, WriteError
from cytomad_lib.data.files import StoredArray, sweep, write_text, written_beside


def test_a_finished_file_appears_under_its_name_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "scores.csv"
    write_text(path, "old\n")
    with written_beside(path) as beside:
        assert beside.suffix == ".csv" and beside.parent == path.parent
        beside.write_text("new\n")
        assert path.read_text() == "old\n"  # untouched until the new one is complete
    assert path.read_text() == "new\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "scores.csv"
    write_text(path, "old\n")
    with pytest.raises(interruption), written_beside(path) as beside:
        beside.write_text("half of it")
        raise interruption
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def gone():
    """Return the number of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    return int(done.stdout)


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    left = tmp_path / f".partial-{gone()}-scores.csv"
    stays = [
        tmp_path / f".partial-{os.getppid()}-scores.csv",  # that process is at work
        tmp_path / ".partial-notes.txt",
        tmp_path / "partial-1-scores.csv",
    ]
    for path in (left, *stays):
        path.write_text("half of it")
    with written_beside(tmp_path / "other.csv") as beside:
        beside.write_text("whole")
        assert not left.exists()
        sweep(tmp_path)  # not what is being written right now
    assert sorted(tmp_path.iterdir()) == sorted([*stays, tmp_path / "other.csv"])


def test_a_process_of_our_number_was_another_one(tmp_path):
    (tmp_path / f".partial-{os.getpid()}-scores.csv").write_text("half of it")
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        note = lambda *them, real=real, name=name: (done.append(name), real(*them))  # noqa: E731
        monkeypatch.setattr(os, name, note)
    write_text(tmp_path / "history.csv", "epoch\n1\n")
    assert done[:2] == ["fsync", "replace"]
    assert done[2:] == ["fsync"] * (os.name != "nt")  # then the name, too


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as caught:
        write_text(tmp_path / "file" / "scores.csv", "1")
    for words in ("scores.csv cannot be written", "Expected", "give another folder"):
        assert words in str(caught.value)


FULL = """
import resource, sys
import keras, numpy as np
from pathlib import Path
from cytomad_lib.data.errors import WriteError
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.training.stages import save_weights
images = np.random.default_rng(0).normal(size=(64, 64, 64)).astype("float32")
model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(400)])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (
    lambda: save_weights(model, Path(sys.argv[1]) / "net_000001.weights.h5"),
    lambda: write_mat(Path(sys.argv[1]) / "H69_BF.mat", {"BF": images}),
    lambda: write_mat(Path(sys.argv[1]) / "H69_BF.mat", {"BF": images}, version="5"),
):
    try:
        write()
    except WriteError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sets no limits to files")
def test_hdf5_does_not_crash_where_there_is_no_room(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path],
        capture_output=True,
        text=True,
        env=environment_of_a_program(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be written") == 3
    assert "Error" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_line_ends_are_the_same_everywhere(tmp_path):
    write_text(tmp_path / "notes.txt", "a\nµ\n")
    assert (tmp_path / "notes.txt").read_bytes() == "a\nµ\n".encode()


def test_a_stored_array_gives_the_rows_asked_for(tmp_path):
    rows = np.random.default_rng(0).normal(size=(7, 3, 2)).astype("float32")
    path = tmp_path / "new" / "rows.npy"
    stored = StoredArray.write(path, (rows[i : i + 3] for i in (0, 3, 6)), rows.shape)
    np.testing.assert_array_equal(np.load(path), rows)
    assert stored.shape == rows.shape and len(stored) == 7 and stored.row_bytes == 24
    some = stored[[5, 0, 5]]
    np.testing.assert_array_equal(some, rows[[5, 0, 5]])
    assert type(some) is np.ndarray  # in memory: the file may go
    np.testing.assert_array_equal(StoredArray(path)[2:4], rows[2:4])


def test_an_array_that_was_not_written_to_its_end_is_not_there(tmp_path):
    def parts():
        yield np.zeros((3, 2), "float32")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StoredArray.write(tmp_path / "rows.npy", parts(), (7, 2))
    assert not list(tmp_path.iterdir())


def test_an_array_that_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Disk", "free")(10**9))
    with pytest.raises(CytomadError, match="rows.npy would take 4.0 GB, the disk has 1.0 GB left"):
        StoredArray.write(tmp_path / "rows.npy", [], (10**6, 1000))
    assert not list(tmp_path.iterdir())
