"""Trainings that are killed at random moments go on to the same result; see `kills`."""

import os

import pytest
from kills import kill_some


@pytest.mark.skipif(os.name == "nt", reason="signals of Linux and macOS")
def test_killed_trainings_end_like_one_that_was_not(tmp_path):
    table = kill_some(tmp_path, 2, seed=0)
    assert not table[["different", "partial files", "orphans"]].any(axis=None), table.to_string()
    assert (table["wrong"] == "").all(), table.to_string()
