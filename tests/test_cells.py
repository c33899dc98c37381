"""Loading, selecting, resizing, streaming and checking cell images."""

import shutil
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from skimage.transform import resize

from cytomad_lib.data import cells as cells_module
from cytomad_lib.data.cells import (
    CellFiles,
    CellImages,
    check_trainable,
    load_cells,
    resize_images,
)
from cytomad_lib.data.check import check_dataset
from cytomad_lib.data.errors import CytomadError, DatasetError, ImageFileError
from cytomad_lib.data.layouts import DRUG, LUNG, SPLITS
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.data.stackfiles import read_stack

SIZE, COUNT = 8, 5
KINDS = ("BF", "QPI")


def images_of(group, split, kind, count=COUNT, size=SIZE):
    """Images (size, size, count) in which each pixel says where it comes from.

    The integer part of the value tells the group, split and cell apart; QPI is BF plus a quarter,
    the truth BF plus a half, so that a mismatch of pairs or labels shows.
    """
    layout = LUNG if group in LUNG.groups else DRUG
    start = 10 * (3 * layout.groups.index(group) + SPLITS.index(split))
    offset = {"BF": 0.0, "QPI": 0.25, "QPI_TRUE": 0.5}[kind]
    ramp = np.linspace(0, 0.2, size * size).reshape(size, size, 1)
    scale = 0.02 if kind != "BF" else 1.0  # phases stay plausible as radians
    return ((start + np.arange(count) + offset) * scale + ramp).astype(np.float32)


def make_group(root, group, splits=SPLITS, kinds=KINDS, version="7.3", **options):
    for split in splits:
        for kind in kinds:
            path = root / group.file(split, kind)
            variable = "QPI" if kind == "QPI_TRUE" else kind
            write_mat(path, {variable: images_of(group, split, kind, **options)}, version)


@pytest.fixture(scope="module")
def lung_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / LUNG.root_folder
    for group in LUNG.groups:
        make_group(root, group)
    return root


@pytest.fixture
def lung(lung_once, tmp_path):
    """A whole lung dataset, 5 cells of 8 x 8 pixels in each file, to be spoilt by a test."""
    root = tmp_path / LUNG.root_folder
    shutil.copytree(lung_once, root)
    return root


@pytest.fixture
def few(tmp_path):
    """A dataset of four lung groups only."""
    root = tmp_path / "few" / LUNG.root_folder
    for group in LUNG.groups[:4]:
        make_group(root, group)
    return root


def expected_pixels(cells, split, kind):
    """What each cell's image must be, by its label alone."""
    groups = {(g.batch, g.class_name): g for g in LUNG.groups}
    return np.stack(
        [
            images_of(groups[row.batch, row.class_name], split, kind)[:, :, row.cell]
            for row in cells.labels.itertuples()
        ]
    )


# --- Loading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_belongs_to_its_label(lung_once, split):
    cells = load_cells(lung_once, split)
    assert len(cells) == 21 * COUNT
    np.testing.assert_array_equal(cells.brightfield[..., 0], expected_pixels(cells, split, "BF"))
    np.testing.assert_array_equal(cells.qpi[..., 0], expected_pixels(cells, split, "QPI"))
    assert cells.truth is None
    assert cells.pixel_size_um == 45.0 / SIZE
    assert (cells.batches, cells.classes) == (LUNG.batches, LUNG.classes)
    assert "dose" not in cells.labels


def test_codes_do_not_depend_on_what_is_loaded(lung_once):
    every = load_cells(lung_once.parent, "Test")
    some = load_cells(lung_once, "Test", 2, batches=["Batch6", "Batch3"], classes=["H1975"])
    assert some.batches == every.batches and some.classes == every.classes
    assert some.batch_codes.tolist() == [2, 2, 5, 5]
    assert some.class_codes.tolist() == [4] * 4
    assert some.batch_codes.dtype == some.class_codes.dtype == np.int32
    assert some.labels["cell"].tolist() == [0, 1, 0, 1]


def test_drug_dataset_has_doses_and_may_be_partial(tmp_path):
    for group in DRUG.groups[:8]:
        make_group(tmp_path / "renamed", group, splits=["Train"])
    cells = load_cells(tmp_path / "renamed", "Train")
    assert tuple(cells.labels["dose"].cat.categories) == DRUG.doses
    found = cells.labels[["batch", "class_name", "dose"]].drop_duplicates().astype(str)
    assert [tuple(row) for row in found.to_numpy()] == [
        (g.batch, g.class_name, g.dose) for g in DRUG.groups[:8]
    ]


def test_truth_on_request(few):
    with pytest.raises(DatasetError, match=r"H69_QPI_TRUE\.mat is missing.*H69_BF.*do not ask"):
        load_cells(few, "Test", with_truth=True)
    for group in LUNG.groups[:4]:
        make_group(few, group, kinds=["QPI_TRUE"])
    cells = load_cells(few, "Test", with_truth=True)
    np.testing.assert_allclose(cells.truth - cells.qpi, 0.25 * 0.02, atol=1e-5)
    assert load_cells(few, "Test").truth is None
    assert CellFiles(few, "Test").has_truth


def test_v5_files_load_the_same(few, tmp_path):
    for group in LUNG.groups[:4]:
        make_group(tmp_path / "old", group, version="5")
    new, old = (
        load_cells(few, "Train", image_size=6),
        load_cells(tmp_path / "old", "Train", None, 6),
    )
    np.testing.assert_array_equal(new.brightfield, old.brightfield)
    pd.testing.assert_frame_equal(new.labels, old.labels)


# --- Refusals --------------------------------------------------------------------------------


def test_more_cells_than_there_are(lung_once):
    with pytest.raises(DatasetError, match=r"Batch1/H69/Train/H69_BF.*has 5 cells.*6 asked.*None"):
        load_cells(lung_once, "Train", cells_per_group=6)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_half_of_a_pair(lung, kind):
    (lung / LUNG.groups[3].file("Valid", kind)).unlink()
    with pytest.raises(DatasetError, match=f"HCC827_{kind}.mat is missing"):
        load_cells(lung, "Valid")
    assert len(load_cells(lung, "Train")) == 21 * COUNT


@pytest.mark.parametrize("options", [{"count": 4}, {"size": 6}])
def test_pairs_of_unequal_count_or_size(lung, options):
    make_group(lung, LUNG.groups[5], ["Test"], ["QPI"], **options)
    with pytest.raises(DatasetError, match=r"5 cells of 8 x 8.*H526_QPI.mat.*(4 cells|6 x 6)"):
        load_cells(lung, "Test", cells_per_group=2)


def test_sizes_that_differ_between_groups(lung):
    make_group(lung, LUNG.groups[5], ["Test"], size=6)
    with pytest.raises(DatasetError, match="6 x 6.*8 x 8.*one size"):
        load_cells(lung, "Test", image_size=16)


def test_images_that_are_not_square(few):
    oblong = np.ones((8, 6, COUNT), np.float32)
    for kind in KINDS:
        write_mat(few / LUNG.groups[0].file("Train", kind), {kind: oblong})
    with pytest.raises(DatasetError, match="8 x 6.*square"):
        load_cells(few, "Train")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("Batch9/H69/Test", "Batch9 is not.*Batch1, Batch2"),
        ("Batch1/HeLa/train", "HeLa is not.*H69, H358, H2170, HCC827"),
        ("Batch1/H69/train", "train is not.*Train, Valid, Test"),
    ],
)
def test_folders_that_look_like_a_group_are_not_left_out_in_silence(lung, folder, words):
    if folder.endswith("train") and (lung / folder).exists():
        pytest.skip("this disk takes capitals for small letters")
    (lung / folder).mkdir(parents=True)
    with pytest.raises(DatasetError, match=words):
        load_cells(lung, "Train")


def test_folders_that_are_no_part_of_the_dataset_are_ignored_and_named(few):
    names = ["Figures", "Batch1/@eaDir", "$RECYCLE.BIN", "Batch1/H69/old", "results/published"]
    for name in (*names, "Batch1/.ipynb_checkpoints", "#snapshot/Batch1/H69/Train"):
        (few / name).mkdir(parents=True)
    write_mat(few / "results/published/CytoMAD_test_Batch1_H69.mat", {"x": np.ones((2, 2))})
    assert len(load_cells(few, "Train")) == 4 * COUNT
    notes = [note for note in check_dataset(few).notes if "ignored" in note]
    assert len(notes) == 1 and notes[0].startswith("6 folder(s)")
    for name in ("Figures", "Batch1/@eaDir", "$RECYCLE.BIN", "H69/old", "results", "#snapshot"):
        assert name in notes[0]


def test_capitals_need_not_agree(few):
    group, again = LUNG.groups[:2]
    path = few / group.file("Test", "BF")
    before = load_cells(few, "Test").brightfield
    path.rename(path.with_name("h69_bf.MAT"))
    for split in SPLITS:
        folder = few / again.folder / split
        folder.rename(folder.with_name("moved")).rename(folder.with_name(split.lower()))
    (few / "Batch1").rename(few / "moved")
    (few / "moved").rename(few / "BATCH1")
    np.testing.assert_array_equal(load_cells(few, "Test").brightfield, before)
    assert check_dataset(few).ok
    write_mat(path.with_name("H69_bf.mat"), {"BF": np.ones((SIZE, SIZE, COUNT), "float32")})
    if len(list((few / group.folder / "Test").glob("*69*"))) == 3:  # the disk tells them apart
        with pytest.raises(DatasetError, match=r"H69_BF.mat is missing.*H69_bf.mat.*h69_bf.MAT"):
            load_cells(few, "Test")


def test_hidden_folders_and_other_files_are_let_be(few):
    (few / ".ipynb_checkpoints").mkdir()
    (few / "__MACOSX").mkdir()
    (few / "README.md").write_text("hello")
    assert len(load_cells(few, "Train")) == 4 * COUNT


def test_missing_split_of_one_group(lung):
    shutil.rmtree(lung / LUNG.groups[2].folder / "Test")
    with pytest.raises(DatasetError, match="Batch1/H2170 has no Test files, only Train, Valid"):
        load_cells(lung, "Test")
    assert len(load_cells(lung, "Test", batches=["Batch2"])) == 3 * COUNT


def test_nothing_there(tmp_path):
    (tmp_path / LUNG.root_folder).mkdir()
    with pytest.raises(DatasetError, match=r"no \.mat files.*Batch1/H69/Train/H69_BF\.mat"):
        load_cells(tmp_path, "Train")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "train"}, "Train, Valid, Test"),
        ({"batches": ["Batch8"]}, "'Batch8' is no batch"),
        ({"classes": ["HeLa"]}, "'HeLa' is no cell line"),
        ({"classes": "H69"}, r"list of names: \['H69'\]"),
        ({"batches": ["Batch1", "Batch7"]}, "no files of Batch7"),
        ({"classes": ["H526"]}, r"no \.mat files of the groups asked"),
        ({"cells_per_group": 0}, "above zero"),
        ({"cells_per_group": {"Train": 3}}, "whole number"),
        ({"image_size": 64.0}, "image_size is 64.0"),
        ({"image_size": 1_000_000}, "image_size is 1000000.*up to 2048"),
    ],
)
def test_wrong_arguments(few, arguments, words):
    with pytest.raises(DatasetError, match=words):
        load_cells(few, **{"split": "Train", **arguments})


def test_every_refusal_is_one_class(few):
    (few / LUNG.groups[0].file("Train", "BF")).write_bytes(b"")
    with pytest.raises(CytomadError, match="empty") as caught:
        load_cells(few, "Train")
    assert isinstance(caught.value, ImageFileError)


# --- CellImages ------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[7, 0, 3], slice(2, 9, 3), np.arange(20) % 6 == 0])
def test_select_keeps_images_and_labels_together(few, index):
    cells = load_cells(few, "Train")
    part = cells.select(index)
    np.testing.assert_array_equal(part.brightfield, cells.brightfield[index])
    np.testing.assert_array_equal(part.brightfield[..., 0], expected_pixels(part, "Train", "BF"))
    assert part.labels.index.tolist() == list(range(len(part)))
    assert part.batches == cells.batches


def test_cell_images_check_themselves(few):
    good = load_cells(few, "Train")
    bf, qpi, labels = good.brightfield, good.qpi, good.labels
    for arguments, words in [
        ((bf.astype(float), qpi, labels, 1.0), "brightfield is float64.*Expected float32"),
        ((bf[..., 0], qpi, labels, 1.0), r"\(cells, height, width, 1\)"),
        ((bf[..., :0], qpi, labels, 1.0), "brightfield is .*1\\) or more channels"),
        ((bf, np.repeat(qpi, 2, -1), labels, 1.0), r"qpi is .*width, 1\); convert"),
        ((bf, qpi[1:], labels, 1.0), "qpi has shape.*same cells"),
        ((bf, qpi, labels, 1.0, qpi[:, 1:]), "truth has shape"),
        ((bf, qpi, labels[1:], 1.0), "labels has 19 rows.*20 cells"),
        ((bf, qpi, labels.astype({"batch": str}), 1.0), "categorical column 'batch'"),
        ((bf, qpi, labels.drop(columns="class_name"), 1.0), "'class_name'"),
        ((bf, qpi, labels.assign(cell="a"), 1.0), "integer column 'cell'"),
        ((bf, qpi, labels.drop(columns="cell"), 1.0), "integer column 'cell'"),
        ((bf, qpi, labels, 0), "pixel_size_um is 0"),
    ]:
        with pytest.raises(DatasetError, match=words):
            CellImages(*arguments)
    unknown = labels.assign(batch=labels["batch"].cat.remove_categories("Batch1"))
    with pytest.raises(DatasetError, match="'batch'"):
        CellImages(bf, qpi, unknown, 1.0)


def test_brightfield_may_have_several_channels(few):
    good = load_cells(few, "Train")
    assert good.channels == CellFiles(few, "Train").channels == 1
    several = np.concatenate([good.brightfield, good.qpi, good.qpi], axis=-1)
    cells = CellImages(several, good.qpi, good.labels, 1.0).select([3, 1])
    assert cells.channels == 3
    np.testing.assert_array_equal(cells.brightfield, several[[3, 1]])


def test_check_trainable(lung_once):
    check_trainable(load_cells(lung_once, "Train", 1).labels)
    one_batch = load_cells(lung_once, "Train", 1, batches=["Batch1"])
    with pytest.raises(DatasetError, match="only Batch1.*at least two batches"):
        check_trainable(one_batch.labels)
    one_class = load_cells(lung_once, "Train", 1, classes=["H69"])
    with pytest.raises(DatasetError, match="only H69.*at least two classes"):
        check_trainable(one_class.labels)


# --- Resizing --------------------------------------------------------------------------------


def blob(size, sigma=0.12, centre=(0.5, 0.5)):
    """A Gaussian seen by `size` pixels across a field of width one."""
    place = (np.arange(size) + 0.5) / size
    y, x = (np.exp(-((place - c) ** 2) / (2 * sigma**2)) for c in centre)
    return np.outer(y, x).astype(np.float32)


SIZES = [(112, 128), (128, 112), (32, 64), (64, 32), (9, 5)]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_constant_stays_constant(old, new):
    resized = resize_images(np.full((2, old, old), 7.5, np.float32), new)
    assert resized.shape == (2, new, new) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, 7.5, rtol=1e-5)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_agrees_with_scikit_image_on_any_image(old, new):
    image = np.random.default_rng(0).normal(size=(old, old)).astype(np.float32)
    theirs = resize(image, (new, new), order=3, mode="reflect", anti_aliasing=new < old, clip=False)
    np.testing.assert_allclose(resize_images(image[None], new)[0], theirs, atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(112, 128), (32, 128), (128, 112), (128, 96)])
def test_a_known_blob_stays_in_place_and_keeps_its_integral(old, new):
    centre = (0.42, 0.61)  # off centre, so a shift or a swap of axes shows
    resized = resize_images(blob(old, centre=centre)[None], new)[0]
    np.testing.assert_allclose(resized, blob(new, centre=centre), atol=0.01)
    before, after = blob(old, centre=centre).sum() / old**2, resized.sum() / new**2
    assert after == pytest.approx(before, rel=1e-3)


def test_loading_resizes_and_keeps_the_field_of_view(few):
    cells = load_cells(few, "Train", image_size=12)
    assert cells.qpi.shape == (4 * COUNT, 12, 12, 1)
    assert cells.pixel_size_um * 12 == 45.0
    stored = load_cells(few, "Train")
    # On some processors, a matrix product rounds differently in stacks of different size.
    alone = resize_images(stored.qpi[..., 0], 12)
    np.testing.assert_allclose(cells.qpi[..., 0], alone, rtol=2e-6, atol=2e-6)


# --- Streaming -------------------------------------------------------------------------------


def test_read_in_any_order(lung_once):
    files = CellFiles(lung_once, "Test", image_size=6)
    every = load_cells(lung_once, "Test", image_size=6)
    order = [104, 3, 3, 50, 0, 51]
    part = files.read(order)
    np.testing.assert_array_equal(part.brightfield, every.brightfield[order])
    np.testing.assert_array_equal(part.qpi, every.qpi[order])
    pd.testing.assert_frame_equal(part.labels, every.labels.iloc[order].reset_index(drop=True))
    assert len(files.read(files.labels["batch"] == "Batch2")) == 3 * COUNT
    with pytest.raises(IndexError):
        files.read([105])


def test_neighbours_are_read_together_whatever_the_order(few, monkeypatch):
    asked = []

    def read(info, cells):
        asked.append((info.path.name, list(cells)))
        return read_stack(info, cells)

    monkeypatch.setattr(cells_module, "read_stack", read)
    files = CellFiles(few, "Train")
    assert list(files.file_codes) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    part = files.read([12, 4, 3, 11, 2])
    first, second = (LUNG.groups[number].class_name for number in (0, 2))
    brightfield = [found for found in asked if found[0].endswith("_BF.mat")]
    assert brightfield == [(f"{first}_BF.mat", [2, 3, 4]), (f"{second}_BF.mat", [1, 2])]
    np.testing.assert_array_equal(part.qpi[..., 0], expected_pixels(part, "Train", "QPI"))
    assert len(files.read([])) == 0


def test_v5_files_are_read_once_and_do_not_stream(few, monkeypatch):
    group = LUNG.groups[1]
    make_group(few, group, ["Train"], version="5", count=200)
    whole = []

    def read(info, cells):
        whole.append(info.path)
        return read_stack(info, cells)

    monkeypatch.setattr(cells_module, "read_stack", read)
    files = CellFiles(few, "Train")
    part = files.read(files.file_codes == 1)
    assert len(part) == 200 and len(whole) == 2  # BF and QPI, once each
    np.testing.assert_array_equal(
        part.qpi[..., 0], images_of(group, "Train", "QPI", 200).transpose(2, 0, 1)
    )
    with pytest.raises(DatasetError, match=f"{group.class_name}_BF.mat is a MATLAB v5.*write_mat"):
        files.check_streams()
    CellFiles(few, "Valid").check_streams()


def test_labels_are_known_without_reading_pixels(lung_once, monkeypatch):
    def no_reading(*args):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(cells_module, "read_stack", no_reading)
    files = CellFiles(lung_once, "Train", cells_per_group=3)
    assert len(files) == len(files.labels) == 63
    with pytest.raises(AssertionError):
        files.read([62, 0, 7, 30])


# --- Memory ----------------------------------------------------------------------------------


def peak_bytes(function):
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """21 groups of 40 cells, 112 x 112 pixels, all files alike: 168 MB when loaded at 128."""
    root = tmp_path_factory.mktemp("larger") / LUNG.root_folder
    noise = np.random.default_rng(0).normal(size=(112, 112, 40)).astype(np.float32)
    for kind in KINDS:
        write_mat(root / f"{kind}.mat", {kind: noise})
    for group in LUNG.groups:
        for kind in KINDS:
            path = root / group.file("Train", kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / f"{kind}.mat", path)
    return root


def test_loading_and_resizing_needs_little_more_than_the_result(larger):
    peak, cells = peak_bytes(lambda: load_cells(larger, "Train", image_size=128))
    assert cells.qpi.shape == (840, 128, 128, 1)
    assert peak <= 1.3 * (cells.brightfield.nbytes + cells.qpi.nbytes)


def test_streaming_holds_a_minibatch_only(larger):
    files = CellFiles(larger, "Train", image_size=128)
    order = np.random.default_rng(0).permutation(len(files))
    files.read(order[:20])  # so that what is made once is made
    peak, minibatch = peak_bytes(lambda: files.read(order[20:40]))
    assert peak < 4 * (minibatch.brightfield.nbytes + minibatch.qpi.nbytes)


# --- Checking --------------------------------------------------------------------------------


def test_a_good_dataset(lung_once):
    report = check_dataset(lung_once)
    assert report.ok and not report.problems and not report.notes
    assert report.uses == ("prediction", "training", "batch removal")
    assert "Can be used for: prediction, training, batch removal." in str(report)
    assert len(report.table) == 63 and set(report.table["status"]) == {"ok"}
    assert (report.table[["cells", "height", "width"]] == [COUNT, SIZE, SIZE]).all(axis=None)
    assert "lung dataset" in str(report) and "Batch7/H520" in str(report)


def test_all_problems_are_listed_together(lung):
    groups = LUNG.groups
    (lung / "Batch9" / "H69" / "Train").mkdir(parents=True)
    (lung / groups[0].file("Train", "QPI")).unlink()
    make_group(lung, groups[1], ["Train"], ["QPI"], count=3)
    (lung / groups[2].file("Train", "BF")).write_bytes(b"not a mat file")
    (lung / groups[2].file("Train", "QPI")).write_bytes(b"")
    spoilt = images_of(groups[3], "Valid", "BF")
    spoilt[0, 0, 2] = np.nan
    write_mat(lung / groups[3].file("Valid", "BF"), {"BF": spoilt})
    make_group(lung, groups[4], ["Test"], size=6)
    shutil.rmtree(lung / groups[5].folder / "Test")

    report = check_dataset(lung)
    assert not report.ok
    for words in (
        "Batch9 is not a folder",
        "H69_QPI.mat is missing",
        "3 cells of 8 x 8",
        "does not start like a .mat file",
        "is empty (0 bytes)",
        "first in cell 3, counted from 1",
        "6 x 6",
        "has no Test files",
    ):
        assert sum(words in problem for problem in report.problems) == 1, words
    assert len(report.problems) == 8
    bad = report.table[report.table["status"] != "ok"]
    assert set(bad["group"]) == {group.name for group in groups[:4]}
    assert all(f"Problem: {problem}" in str(report) for problem in report.problems)
    assert report.uses == () and "Can be used" not in str(report)


def test_notes(few):
    make_group(few, LUNG.groups[0], ["Test"], ["QPI_TRUE"])
    make_group(few, LUNG.groups[1], ["Test"], version="5")
    degrees = np.full((SIZE, SIZE, COUNT), 180, np.float32)
    write_mat(few / LUNG.groups[2].file("Train", "QPI"), {"QPI": degrees})
    write_mat(few / LUNG.groups[2].file("Train", "BF"), {"BF": degrees})
    for group in LUNG.groups[:4]:
        shutil.rmtree(few / group.folder / "Valid")
    report = check_dataset(few.parent)
    assert report.ok
    for words in (
        "4 of the 21 groups",
        "No group has a Valid split",
        "QPI_TRUE) is there for 1 of the 8",
        "does not look like radians",
        "same value everywhere",
        "2 file(s) are MATLAB v5",
        "only Batch1",
    ):
        assert sum(words in note for note in report.notes) == 1, words
    versions = report.table.set_index(["group", "split"])["version"]
    assert versions["Batch1/H358", "Test"] == "5" and versions["Batch1/H69", "Test"] == "7.3"


def test_problems_that_are_alike_are_one_line(lung):
    for group in LUNG.groups[:5]:
        (lung / group.file("Train", "QPI")).write_bytes(b"no mat file" * 20)
    for number, group in enumerate(LUNG.groups[6:9]):
        spoilt = images_of(group, "Test", "BF")
        spoilt[:number, 0, number] = np.nan
        write_mat(lung / group.file("Test", "BF"), {"BF": spoilt})
    problems = check_dataset(lung).problems
    assert len(problems) == 2
    assert "Batch1/H69/Train/H69_QPI.mat" in problems[0] and "4 more" in problems[0]
    assert "more: Batch1/H358/Train/H358_QPI.mat, Batch1/H2170/Train/H2170_QPI.mat" in problems[0]
    assert "Likewise 1 more" in problems[1]


@pytest.mark.parametrize(
    ("axes", "found", "matlab", "python"),
    [
        ((2, 0, 1), "5 x 8 x 8 looks like cells x height x width", "[2 3 1]", (1, 2, 0)),
        ((0, 2, 1), "8 x 5 x 8 looks like height x cells x width", "[1 3 2]", (0, 2, 1)),
    ],
)
def test_turned_axes_are_recognised_by_the_shape(few, axes, found, matlab, python):
    for group in LUNG.groups[:4]:
        for kind in KINDS:
            turned = images_of(group, "Train", kind).transpose(axes)
            write_mat(few / group.file("Train", kind), {kind: turned})
    problems = check_dataset(few).problems
    assert len(problems) == 2  # BF and QPI, whose remedies name the variable
    for kind, problem in zip(KINDS, problems, strict=True):
        assert found in problem and "Likewise 3 more" in problem
        assert f"permute({kind}, {matlab})" in problem
        assert f"numpy.transpose({kind}, {python})" in problem
        stored = images_of(LUNG.groups[0], "Train", kind)
        np.testing.assert_array_equal(stored.transpose(axes).transpose(python), stored)
    with pytest.raises(DatasetError, match="looks like"):
        load_cells(few, "Train")


def test_turned_axes_are_recognised_by_the_images_where_cells_are_as_many_as_pixels(few):
    blobs = [blob(SIZE, 0.2, centre) for centre in np.random.default_rng(0).random((SIZE, 2))]
    images = np.stack(blobs, axis=-1)
    group = LUNG.groups[0]
    for order, words in ((images, None), (images.transpose(2, 0, 1), "cells x height x width")):
        for kind in KINDS:
            write_mat(few / group.file("Train", kind), {kind: np.ascontiguousarray(order)})
        notes = [note for note in check_dataset(few).notes if "look like" in note]
        assert len(notes) == (2 if words else 0)
        assert all(words in note and "permute" in note for note in notes)


def test_what_a_dataset_can_be_used_for(few):
    def limits():
        report = check_dataset(few)
        assert report.ok
        return report.uses, " ".join(note for note in report.notes if "raining" in note)

    uses, notes = limits()
    assert (
        uses == ("prediction", "training") and "only Batch1. " in notes and "--recipe none" in notes
    )
    make_group(few, LUNG.groups[4])
    (few / LUNG.groups[5].folder / "Train").mkdir(parents=True)
    assert limits() == (("prediction", "training", "batch removal"), "")
    assert any("no files of any split" in note for note in check_dataset(few).notes)
    make_group(few, LUNG.groups[5], ["Test"])
    uses, notes = limits()
    assert uses == ("prediction",) and "1 group(s) have no Train split: Batch2/H526." in notes
    with pytest.raises(DatasetError, match="H526 has no Train files, only Test"):
        load_cells(few, "Train")
    shutil.rmtree(few / LUNG.groups[5].folder)
    for group in LUNG.groups[:5]:
        shutil.rmtree(few / group.folder / "Valid")
    uses, notes = limits()
    assert uses == ("prediction",) and "No group has a Valid split" in notes
    with pytest.raises(DatasetError, match="No group has a Valid split"):
        load_cells(few, "Valid")


def test_a_design_that_cannot_tell_batch_from_class_is_named(tmp_path):
    root = tmp_path / LUNG.root_folder
    groups = {group.name: group for group in LUNG.groups}
    for name in ("Batch1/H69", "Batch3/H520"):
        make_group(root, groups[name])
    report = check_dataset(root)
    assert report.uses == ("prediction", "training")
    assert any("No class was measured in two batches" in note for note in report.notes)
    make_group(root, groups["Batch3/H69"])
    assert check_dataset(root).uses == ("prediction", "training", "batch removal")


# --- Cells without a target ------------------------------------------------------------------


def test_brightfield_alone_can_be_predicted(few):
    for split in SPLITS:
        (few / LUNG.groups[2].file(split, "QPI")).unlink()
    report = check_dataset(few)
    assert report.ok and report.uses == ("prediction",)
    assert any(
        "1 group(s) have Brightfield alone, without phase: Batch1/H2170." in note
        for note in report.notes
    )
    with pytest.raises(DatasetError, match=r"H2170_QPI.mat is missing.*H2170_BF.mat.*predicted"):
        load_cells(few, "Test")
    cells = load_cells(few, "Test", with_target=False)
    assert cells.qpi is None and cells.select([3, 1]).qpi is None
    np.testing.assert_array_equal(cells.brightfield[..., 0], expected_pixels(cells, "Test", "BF"))
    files = CellFiles(few, "Test", with_target=False)
    with_target = files.read(files.labels["class_name"] == "H358")
    np.testing.assert_array_equal(
        with_target.qpi[..., 0], expected_pixels(with_target, "Test", "QPI")
    )
    assert files.read([0, len(files) - 8]).qpi is None
    (few / LUNG.groups[1].file("Test", "BF")).unlink()
    with pytest.raises(DatasetError, match="H358_BF.mat is missing"):
        load_cells(few, "Test", with_target=False)


def test_check_of_an_empty_dataset(tmp_path):
    (tmp_path / DRUG.root_folder).mkdir()
    report = check_dataset(tmp_path)
    assert not report.ok and "no .mat files" in report.problems[0]
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with pytest.raises(DatasetError, match="holds no dataset"):
        check_dataset(nothing)
