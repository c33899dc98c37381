"""The two dataset layouts, against the list of the files that were really published."""

import csv
from pathlib import Path

import pytest

from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.layouts import (
    DRUG,
    LAYOUTS,
    LUNG,
    SPLITS,
    dose_level,
    find_layout,
    find_path,
    refuse_inside,
)

PUBLISHED = Path(__file__).parent / "data" / "real_dataset_files.csv"


def test_layouts_name_exactly_the_published_files():
    with PUBLISHED.open(newline="") as file:
        published = sorted(row["path"] for row in csv.DictReader(file))
    ours = sorted(
        f"{layout.root_folder}/{group.file(split, kind)}"
        for layout in LAYOUTS.values()
        for group in layout.groups
        for split in SPLITS
        for kind in ("BF", "QPI")
    )
    assert ours == published
    assert len(ours) == 342


def test_stable_orders():
    assert LUNG.classes == ("H69", "H358", "H520", "H526", "H1975", "H2170", "HCC827")
    assert LUNG.batches == tuple(f"Batch{i}" for i in range(1, 8))
    assert DRUG.classes == ("DMSO", "Docetaxel", "Afatinib", "Gemcitabine")
    assert DRUG.doses[:2] == ("Control", "D1") and DRUG.doses[-1] == "G5"
    for layout in LAYOUTS.values():
        places = [
            (
                layout.batches.index(g.batch),
                layout.classes.index(g.class_name),
                layout.doses.index(g.dose) if g.dose else 0,
            )
            for g in layout.groups
        ]
        assert places == sorted(places) and len(set(places)) == len(places)


def test_every_line_was_seen_in_three_batches_and_dmso_in_all():
    assert {len(LUNG.batches_of_class(line)) for line in LUNG.classes} == {3}
    assert LUNG.classes_of_batch("Batch1") == ("H69", "H358", "H2170", "HCC827")
    assert DRUG.batches_of_class("DMSO") == DRUG.batches
    assert DRUG.classes_of_batch("B3") == ("DMSO", "Afatinib")


def test_names():
    group = next(g for g in DRUG.groups if g.dose == "D3")
    assert group.name == "B1/Docetaxel/D3"
    assert LUNG.groups[0].name == "Batch1/H69"


def test_dose_levels():
    assert [dose_level(dose) for dose in DRUG.doses] == [0] + 3 * [1, 2, 3, 4, 5]
    with pytest.raises(DatasetError, match="'D6'.*Control, D1"):
        dose_level("D6")


def test_file_refuses_unknown_split_and_kind():
    with pytest.raises(DatasetError, match="Training.*Train, Valid, Test"):
        LUNG.groups[0].file("Training", "BF")
    with pytest.raises(DatasetError, match="bf.*BF, QPI"):
        LUNG.groups[0].file("Train", "bf")


def test_find_path_prefers_the_exact_name_and_refuses_to_guess(tmp_path):
    wanted = "Day ä/Train/a.mat"
    assert find_path(tmp_path, wanted) == tmp_path / wanted  # nothing is there
    folder = tmp_path / "day a\u0308" / "TRAIN"  # as macOS writes an umlaut
    folder.mkdir(parents=True)
    (folder / "A.MAT").touch()
    found = find_path(tmp_path, wanted)
    assert found.samefile(folder / "A.MAT")
    (folder / "a.MAT").touch()
    if len(list(folder.iterdir())) == 2:  # this disk tells them apart
        assert not find_path(tmp_path, wanted).exists()
        (folder / "a.mat").touch()
        assert find_path(tmp_path, wanted) == folder / "a.mat"


def test_results_inside_a_dataset_are_refused(tmp_path, monkeypatch):
    root = tmp_path / "data" / "mine"
    root.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(root)
    monkeypatch.chdir(root)
    for out in (root, root / "results" / "new", "results", "../mine/results", link / "results"):
        with pytest.raises(DatasetError, match="inside the dataset.*outside of it, such as"):
            refuse_inside(out, root)
        with pytest.raises(DatasetError, match="inside the dataset"):
            refuse_inside(out, link)
    for out in ("..", tmp_path / "data", tmp_path / "mine", "../mine_results", "../../mine"):
        refuse_inside(out, root)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_find_layout_by_name_parent_and_content(tmp_path, layout):
    root = tmp_path / layout.root_folder
    root.mkdir()
    assert find_layout(root) == (layout, root)
    assert find_layout(tmp_path) == (layout, root)
    renamed = tmp_path / "mine" / "renamed"
    (renamed / layout.groups[0].folder).mkdir(parents=True)
    assert find_layout(renamed) == (layout, renamed)


def test_find_layout_errors(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="holds no dataset"):
        find_layout(tmp_path)
    file = tmp_path / "file.mat"
    file.write_text("x")
    with pytest.raises(DatasetError, match="is a file"):
        find_layout(file)
    for layout in LAYOUTS.values():
        (tmp_path / layout.root_folder).mkdir()
    with pytest.raises(DatasetError, match="both.*name the one"):
        find_layout(tmp_path)
