"""Smaller copies of datasets in a published layout."""

import numpy as np
import pytest

from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.data.subsample import subsample

GROUPS = [group for group in LUNG.groups if group.batch in ("Batch1", "Batch2")]
COUNTS = {"Train": 3, "Valid": 0, "Test": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published") / LUNG.root_folder
    random = np.random.default_rng(0)
    for group in GROUPS:
        for split in ("Train", "Valid", "Test"):
            for kind in ("BF", "QPI"):
                stack = random.normal(1, 0.1, (32, 32, 5)).astype("float32")
                write_mat(root / group.file(split, kind), {kind: stack})
    return root.parent


def test_the_first_cells_of_each_group_are_copied_and_resized(published, tmp_path):
    copy = subsample(published, tmp_path / "small", COUNTS, image_size=16)
    assert copy == tmp_path / "small" / LUNG.root_folder
    for split, count in (("Train", 3), ("Test", 2)):
        ours = load_cells(copy, split)
        wanted = load_cells(published, split, count, image_size=16)
        np.testing.assert_array_equal(ours.brightfield, wanted.brightfield)
        np.testing.assert_array_equal(ours.qpi, wanted.qpi)
        assert ours.labels.equals(wanted.labels)
        assert ours.pixel_size_um == wanted.pixel_size_um == 45 / 16
    assert not list(copy.rglob("Valid/*"))


def test_images_keep_their_size_unless_another_is_given(published, tmp_path):
    copy = subsample(published, tmp_path / "small", {"Test": 1})
    assert load_cells(copy, "Test").qpi.shape[1:3] == (32, 32)


def test_a_copy_is_never_overwritten(published, tmp_path):
    subsample(published, tmp_path, {"Test": 1})
    with pytest.raises(DatasetError, match="exists already"):
        subsample(published, tmp_path, {"Test": 1})


def test_more_cells_than_a_file_holds_are_refused(published, tmp_path):
    with pytest.raises(DatasetError, match="6"):
        subsample(published, tmp_path / "small", {"Test": 6})
    assert not (tmp_path / "small").exists()


def test_a_described_dataset_is_refused(tmp_path):
    text = """
name = "mine"
folders = "{batch}/{class}/{split}"
batches = ["A", "B"]
classes = ["x", "y"]
field_of_view_um = 45.0
[[input]]
file = "BF.mat"
variable = "BF"
[target]
file = "QPI.mat"
variable = "QPI"
"""
    (tmp_path / "dataset.toml").write_text(text)
    (tmp_path / "A" / "x" / "Train").mkdir(parents=True)
    with pytest.raises(DatasetError, match="published layout"):
        subsample(tmp_path, tmp_path.parent / "small", {"Test": 1})
