"""Files are whole or not there."""

import pytest

from cytomad_lib.data.files import write_text, written_beside


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
