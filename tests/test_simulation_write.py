"""Simulated files: the published layout, the same bytes every time, and nothing overwritten."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from cytomad_lib.data.layouts import DRUG, KINDS, LUNG, SPLITS, VARIABLE
from cytomad_lib.data.matfiles import read_mat
from cytomad_lib.data.stackfiles import inspect_stack
from cytomad_lib.simulation import write
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.write import (
    DEMO_DATASET,
    DEMO_DRUG_DATASET,
    STEP,
    simulate_dataset,
)

COMMITTED = Path(__file__).parents[1] / "Dataset"
GROUPS = ["Batch1/H69", "Batch3/H520"]
SMALL = {
    "image_size": 32,
    "cells_per_group": {"Train": 3, "Test": 2},
    "seed": 5,
    "progress": False,
}


def files_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp("made"), groups=GROUPS, **SMALL)


def test_files_are_laid_out_as_published(made):
    assert made.name == "7LungCancerDataset"
    expected = {"simulation.json"} | {
        f"{group}/{split}/{group.split('/')[1]}_{kind}.mat"
        for group in GROUPS
        for split in ("Train", "Test")
        for kind in KINDS
    }
    assert set(files_of(made)) == expected
    info = inspect_stack(made / "Batch1/H69/Train/H69_QPI_TRUE.mat", "QPI")
    assert (info.shape, info.dtype, info.version) == ((32, 32, 3), "float32", "7.3")


def test_files_hold_the_simulated_cells(made):
    cells = simulate_cells("H520", 2, "Batch3", seed=5, image_size=32, split="Test")
    images = {"BF": cells.brightfield, "QPI": cells.qpi, "QPI_TRUE": cells.truth}
    for kind, expected in images.items():
        stored = read_mat(made / f"Batch3/H520/Test/H520_{kind}.mat", VARIABLE[kind])
        assert np.abs(stored - expected).max() <= 0.5 * STEP[kind] + 1e-6


def test_values_are_whole_steps_without_negative_zeros(made):
    for path in made.rglob("*.mat"):
        kind = path.stem.split("_", 1)[1]
        values = read_mat(path, VARIABLE[kind])
        steps = values / STEP[kind]
        assert np.array_equal(steps, np.rint(steps))
        assert not np.signbit(values[values == 0]).any()


def test_steps_lie_under_the_noise(made):
    noise = json.loads((made / "simulation.json").read_text())["batches"]
    assert STEP["BF"] / np.sqrt(12) < 0.5 * min(b["read_noise"] for b in noise.values())
    assert STEP["QPI"] / np.sqrt(12) < 0.5 * min(b["qpi_noise"] for b in noise.values())


def test_the_same_arguments_give_the_same_bytes(made, tmp_path):
    again = simulate_dataset(tmp_path, groups=GROUPS, **SMALL)
    assert files_of(again) == files_of(made)


def test_a_part_equals_that_part_of_the_whole(made, tmp_path):
    fewer = {**SMALL, "cells_per_group": {"Train": 2}}
    part = simulate_dataset(tmp_path, groups=["Batch3/H520"], with_truth=False, **fewer)
    name = "Batch3/H520/Train/H520_QPI.mat"
    assert np.array_equal(read_mat(part / name, "QPI"), read_mat(made / name, "QPI")[:2])
    assert len(list(part.rglob("*.mat"))) == 2


def test_notes_say_how_it_was_made(made):
    notes = json.loads((made / "simulation.json").read_text())
    assert "SIMULATED" in notes["what"]
    assert notes["arguments"]["seed"] == 5
    assert notes["arguments"]["groups"] == GROUPS
    assert notes["wavelength_um"] == 1.06
    assert notes["pixel_um"] == 45 / 32
    assert set(notes["batches"]) == {"nominal", *LUNG.batches}
    assert notes["parameters"]["qpi_tilt_x"]["unit"] == "rad/um"


def test_truth_can_be_left_out_by_split(tmp_path):
    root = simulate_dataset(tmp_path, groups=GROUPS[:1], with_truth=("Test",), **SMALL)
    truths = [p.parent.name for p in root.rglob("*_QPI_TRUE.mat")]
    assert truths == ["Test"]


def test_files_that_are_there_are_refused_and_kept(made):
    before = files_of(made)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        simulate_dataset(made.parent, groups=["Batch7/H520"], **SMALL)
    assert files_of(made) == before


def test_overwrite_leaves_nothing_of_the_old_simulation(tmp_path):
    root = simulate_dataset(tmp_path, groups=GROUPS, **SMALL)
    kept = root / "my notes.txt"
    kept.write_text("mine")
    simulate_dataset(
        tmp_path, groups=GROUPS[:1], with_truth=False, overwrite=True, **{**SMALL, "seed": 6}
    )
    left = {p.name for p in root.rglob("*") if p.is_file()}
    assert left == {"simulation.json", "H69_BF.mat", "H69_QPI.mat", "my notes.txt"}


def interrupted(tmp_path, monkeypatch, files, **options):
    """Simulate, and be interrupted before file number `files` is written."""
    write_mat, count = write.write_mat, iter(range(files))

    def write_or_stop(path, arrays):
        if next(count, None) is None:
            raise KeyboardInterrupt
        write_mat(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_mat", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            simulate_dataset(tmp_path, groups=GROUPS, **SMALL, **options)
    return tmp_path / "7LungCancerDataset"


def test_an_interrupted_simulation_is_known_and_goes_on_to_the_same(made, tmp_path, monkeypatch):
    root = interrupted(tmp_path, monkeypatch, 4)
    assert write.is_unfinished(root) and not write.is_unfinished(made)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.mat")}
    assert len(before) == 4
    simulate_dataset(tmp_path, groups=GROUPS, **SMALL)
    assert files_of(root) == files_of(made) and not write.is_unfinished(root)
    # The first three files are of one group and split, which is whole.
    assert sum(path.stat().st_mtime_ns == time for path, time in before.items()) == 3


def test_another_simulation_does_not_go_on_with_it(tmp_path, monkeypatch):
    root = interrupted(tmp_path, monkeypatch, 4)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        simulate_dataset(tmp_path, groups=GROUPS, **SMALL | {"seed": 6})
    assert write.is_unfinished(root)


def test_one_that_was_interrupted_while_it_replaced_another_is_no_mixture(tmp_path, monkeypatch):
    simulate_dataset(tmp_path, groups=GROUPS, **SMALL | {"seed": 6})
    root = interrupted(tmp_path, monkeypatch, 0, overwrite=True)
    assert write.is_unfinished(root) and not list(root.rglob("*.mat"))


def test_measurements_are_never_replaced(tmp_path):
    measured = tmp_path / "7LungCancerDataset/Batch2/H526/Test/H526_BF.mat"
    measured.parent.mkdir(parents=True)
    measured.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="may be measurements"):
        simulate_dataset(tmp_path, groups=GROUPS, overwrite=True, **SMALL)
    assert measured.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": "liver"}, "'lung' and 'drug'"),
        ({"layout": "drug", "groups": ["Batch1/H69"]}, "Batch1/H69.*B1/Docetaxel/D1"),
        ({"groups": ["Batch9/H69"]}, "Batch9/H69.*Batch1/H69"),
        ({"groups": []}, "nothing"),
        ({"cells_per_group": {"train": 3}}, "'train'.*Train"),
        ({"cells_per_group": {"Train": -1}}, "whole number"),
        ({"cells_per_group": {"Train": 10**9}}, "4096 GB per file.*ask for fewer"),
        ({"image_size": 1_000_000}, "image_size is 1000000.*from 16 to 1024"),
        ({"cells_per_group": {"Train": 0}}, "no cells"),
        ({"with_truth": ("Trial",)}, "'Trial'"),
        ({"image_size": 4}, "image_size is 4"),
        ({"batch_strength": float("nan")}, "batch_strength"),
        ({"seed": -3}, "seed is -3"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_dataset(tmp_path, **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


DRUG_GROUPS = ["B1/DMSO/Control", "B1/Docetaxel/D1", "B4/Afatinib/A5"]


@pytest.fixture(scope="module")
def drugs(tmp_path_factory):
    out = tmp_path_factory.mktemp("drugs")
    return simulate_dataset(out, "drug", groups=DRUG_GROUPS, with_truth=("Test",), **SMALL)


def test_drug_files_are_laid_out_as_published(drugs):
    assert drugs.name == "H2170DrugTreatmentDataset"
    folders = {"DMSO/B1/Control": "Control", "Docetaxel/B1/D1": "D1", "Afatinib/B4/A5": "A5"}
    expected = {"simulation.json"} | {
        f"{folder}/{split}/{stem}_{kind}.mat"
        for folder, stem in folders.items()
        for split, kinds in (("Train", ("BF", "QPI")), ("Test", KINDS))
        for kind in kinds
    }
    assert set(files_of(drugs)) == expected


def test_drug_files_hold_the_treated_cells(drugs):
    cells = simulate_cells("Afatinib", 2, "B4", seed=5, image_size=32, split="Test", dose="A5")
    stored = read_mat(drugs / "Afatinib/B4/A5/Test/A5_QPI_TRUE.mat", "QPI")
    assert np.abs(stored - cells.truth).max() <= 0.5 * STEP["QPI_TRUE"] + 1e-6
    control = read_mat(drugs / "DMSO/B1/Control/Test/Control_QPI_TRUE.mat", "QPI")
    assert not np.array_equal(stored, control)


def test_drug_files_are_the_same_every_time(drugs, tmp_path):
    again = simulate_dataset(tmp_path, "drug", groups=DRUG_GROUPS, with_truth=("Test",), **SMALL)
    assert files_of(again) == files_of(drugs)


def test_drug_notes_name_the_line_and_the_drugs(drugs):
    notes = json.loads((drugs / "simulation.json").read_text())
    assert set(notes["batches"]) == {"nominal", *DRUG.batches}
    assert list(notes["cell_lines"]) == ["H2170"]
    assert ("DMSO", *notes["drugs"]) == DRUG.classes
    assert len(notes["drugs"]["Docetaxel"]["responders"]) == 5


def test_both_datasets_can_lie_side_by_side(drugs):
    lung = simulate_dataset(drugs.parent, groups=GROUPS[:1], **SMALL)
    assert lung.parent == drugs.parent
    assert (drugs / "simulation.json").exists()


DEMOS = pytest.mark.parametrize(
    ("layout", "demo"), [(LUNG, DEMO_DATASET), (DRUG, DEMO_DRUG_DATASET)], ids=["lung", "drug"]
)


@DEMOS
def test_committed_dataset_is_small_and_complete(layout, demo):
    root = COMMITTED / layout.root_folder
    assert sum(len(content) for content in files_of(root).values()) < 20e6
    counts, size = demo["cells_per_group"], demo["image_size"]
    for group in layout.groups:
        for split in SPLITS:
            kinds = KINDS if split in demo["with_truth"] else KINDS[:2]
            for kind in kinds:
                info = inspect_stack(root / group.file(split, kind), VARIABLE[kind])
                assert info.shape == (size, size, counts[split])


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """Some of the committed groups, made anew: each batch and each class at least once."""
    out = tmp_path_factory.mktemp("remade")
    pairs = zip((1, 2, 7, 5, 4, 3, 6), LUNG.classes, strict=True)
    lines = [f"Batch{day}/{line}" for day, line in pairs]
    drugs = ["B1/Docetaxel/D5", "B2/Docetaxel/D2", "B3/Afatinib/A1", "B4/Afatinib/A4"]
    drugs += ["B5/DMSO/Control", "B6/Gemcitabine/G3"]
    return {
        "lung": simulate_dataset(out, groups=lines, progress=False, **DEMO_DATASET),
        "drug": simulate_dataset(out, groups=drugs, progress=False, **DEMO_DRUG_DATASET),
    }


@DEMOS
def test_committed_dataset_can_be_made_again(remade, layout, demo):
    made, committed = remade[layout.name], COMMITTED / layout.root_folder
    paths = list(made.rglob("*.mat"))
    assert len(paths) >= 6 * 8
    for path in paths:
        variable = VARIABLE[path.stem.split("_", 1)[1]]
        old = read_mat(committed / path.relative_to(made), variable)
        assert np.array_equal(read_mat(path, variable), old), path.name
    new, old = (json.loads((root / "simulation.json").read_text()) for root in (made, committed))
    assert old["arguments"].pop("groups") == [group.name for group in layout.groups]
    new["arguments"].pop("groups")
    assert new == old


@pytest.mark.skipif(
    h5py.version.hdf5_version_tuple[:2] != (1, 14),
    reason="another HDF5 version may pack the same values into other bytes",
)
@DEMOS
def test_committed_files_are_the_same_bytes(remade, layout, demo):
    committed = files_of(COMMITTED / layout.root_folder)
    for name, content in files_of(remade[layout.name]).items():
        if name.endswith(".mat"):
            assert content == committed[name], name
