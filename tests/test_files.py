"""Files are whole or not there."""

import shutil
from collections import namedtuple

import numpy as np
import pytest

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import StoredArray, write_text, written_beside


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
