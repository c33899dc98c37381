"""Simulated files: the published layout, the same bytes every time, and nothing overwritten."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from cytomad_lib.data.layouts import KINDS, LUNG, SPLITS, VARIABLE
from cytomad_lib.data.matfiles import inspect_mat, read_mat
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.write import DEMO_DATASET, STEP, simulate_dataset

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
    info = inspect_mat(made / "Batch1/H69/Train/H69_QPI_TRUE.mat", "QPI")
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
        ({"layout": "drug"}, "'lung' only"),
        ({"layout": "liver"}, "'lung' only"),
        ({"groups": ["Batch9/H69"]}, "Batch9/H69.*Batch1/H69"),
        ({"groups": []}, "nothing"),
        ({"cells_per_group": {"train": 3}}, "'train'.*Train"),
        ({"cells_per_group": {"Train": -1}}, "whole number"),
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


def test_committed_dataset_is_small_and_complete():
    root = COMMITTED / LUNG.root_folder
    assert sum(p.stat().st_size for p in COMMITTED.rglob("*") if p.is_file()) < 25e6
    counts = DEMO_DATASET["cells_per_group"]
    size = DEMO_DATASET["image_size"]
    for group in LUNG.groups:
        for split in SPLITS:
            kinds = KINDS if split in DEMO_DATASET["with_truth"] else KINDS[:2]
            for kind in kinds:
                info = inspect_mat(root / group.file(split, kind), VARIABLE[kind])
                assert info.shape == (size, size, counts[split])


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """A third of the committed groups, made anew: each batch once, each line once."""
    pairs = zip((1, 2, 7, 5, 4, 3, 6), LUNG.classes, strict=True)
    names = [f"Batch{day}/{line}" for day, line in pairs]
    out = tmp_path_factory.mktemp("remade")
    return simulate_dataset(out, groups=names, progress=False, **DEMO_DATASET)


def test_committed_dataset_can_be_made_again(remade):
    for path in remade.rglob("*.mat"):
        committed = COMMITTED / LUNG.root_folder / path.relative_to(remade)
        variable = VARIABLE[path.stem.split("_", 1)[1]]
        assert np.array_equal(read_mat(path, variable), read_mat(committed, variable)), path.name
    new, old = (
        json.loads((root / "simulation.json").read_text())
        for root in (remade, COMMITTED / LUNG.root_folder)
    )
    assert old["arguments"].pop("groups") == [group.name for group in LUNG.groups]
    new["arguments"].pop("groups")
    assert new == old


@pytest.mark.skipif(
    h5py.version.hdf5_version_tuple[:2] != (1, 14),
    reason="another HDF5 version may pack the same values into other bytes",
)
def test_committed_files_are_the_same_bytes(remade):
    committed = files_of(COMMITTED / LUNG.root_folder)
    for name, content in files_of(remade).items():
        if name.endswith(".mat"):
            assert content == committed[name], name
