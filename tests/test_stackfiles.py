"""TIFF, .npy, one file per cell and montages: the same cells, guards and words as .mat."""

import struct

import numpy as np
import pytest
import tifffile

from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.check import check_dataset, value_warnings
from cytomad_lib.data.errors import CytomadError, DatasetError, ImageFileError
from cytomad_lib.data.layouts import find_layout
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.data.stackfiles import inspect_stack, matching, read_stack

SIZE, BATCHES, CLASSES = 8, ("Day1", "Day2"), ("G1", "G2")
COUNTS = {"Train": 13, "Valid": 3, "Test": 5}


def images_of(*place, count=5, size=SIZE):
    """16-bit images (cells, height, width) of one file, no two pixels alike."""
    seed = [len(str(part)) * 1000 + sum(map(ord, str(part))) for part in place]
    return np.random.default_rng(seed).permutation(2000)[: count * size**2].reshape(
        count, size, size
    ).astype(np.uint16)  # fmt: skip


def to_montage(images, columns=4):
    """Put cells into a montage, row by row, with empty tiles after the second and at the end."""
    images = np.insert(images, 2, 0, axis=0)
    rows = -(-(len(images) + 1) // columns)
    size = images.shape[1]
    tiles = np.zeros((rows * columns, size, size), images.dtype)
    tiles[: len(images)] = images
    return tiles.reshape(rows, columns, size, size).swapaxes(1, 2).reshape(rows * size, -1)


def write_cells(path, images):
    """Write one file per cell, numbered without leading zeros; `path` has a * for the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        one = path.with_name(path.name.replace("*", str(number)))
        np.save(one, image) if path.suffix == ".npy" else tifffile.imwrite(one, image)


def write_tiff(path, images, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, images, **options)


def write_npy(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)


def to_matlab(images):
    return np.ascontiguousarray(np.moveaxis(images, 0, -1))


# What stands in the table of dataset.toml -> how the file is written.
FORMATS = {
    "mat": (
        'file = "{class}_%s.mat"\nvariable = "v"', lambda p, a: write_mat(p, {"v": to_matlab(a)})
    ),
    "mat v5": (
        'file = "{class}_%s.mat"\nvariable = "v"',
        lambda p, a: write_mat(p, {"v": to_matlab(a)}, "5"),
    ),
    "mat, axes stated": (
        'file = "{class}_%s.mat"\nvariable = "v"\naxes = "NYX"',
        lambda p, a: write_mat(p, {"v": a}),
    ),
    "mat v5, axes stated": (
        'file = "{class}_%s.mat"\nvariable = "v"\naxes = "YNX"',
        lambda p, a: write_mat(p, {"v": a.swapaxes(0, 1)}, "5"),
    ),
    "npy": ('file = "{class}_%s.npy"', write_npy),
    "npy, axes stated": (
        'file = "{class}_%s.npy"\naxes = "XNY"', lambda p, a: write_npy(p, a.transpose(2, 0, 1))
    ),
    "npy, axes inferred": ('file = "{class}_%s.npy"', lambda p, a: write_npy(p, to_matlab(a))),
    "npy, Fortran": ('file = "{class}_%s.npy"', lambda p, a: write_npy(p, np.asfortranarray(a))),
    "npy, big-endian": ('file = "{class}_%s.npy"', lambda p, a: write_npy(p, a.astype(">u2"))),
    "TIFF": (
        'file = "{class}_%s.tif"', lambda p, a: write_tiff(p, a, photometric="minisblack")
    ),
    "TIFF, compressed": (
        'file = "{class}_%s.tiff"',
        lambda p, a: write_tiff(p, a, compression="zlib", photometric="minisblack"),
    ),
    "TIFF, ImageJ": (
        'file = "{class}_%s.tif"',
        lambda p, a: write_tiff(p, a, imagej=True, metadata={"axes": "ZYX"}),
    ),
    "TIFF, axes stated": (
        'file = "{class}_%s.tif"\naxes = "YXN"',
        lambda p, a: write_tiff(p, to_matlab(a), photometric="minisblack"),
    ),
    "OME-TIFF": (
        'file = "{class}_%s.ome.tif"', lambda p, a: write_tiff(p, a, metadata={"axes": "ZYX"})
    ),
    "OME-TIFF, TCZYX": (
        'file = "{class}_%s.ome.tif"',
        lambda p, a: write_tiff(p, a[:, None, None], metadata={"axes": "TCZYX"}),
    ),
    "a TIFF per cell": ('file = "%s/cell_*.tif"', write_cells),
    "a npy per cell": ('file = "*_%s.npy"', write_cells),
    "montage": ('file = "{class}_%s.tif"\ntile = 8', lambda p, a: write_tiff(p, to_montage(a))),
    "montage in mat": (
        'file = "{class}_%s.mat"\nvariable = "v"\ntile = 8',
        lambda p, a: write_mat(p, {"v": to_montage(a)}),
    ),
}  # fmt: skip


def describe(root, inputs, target, scale=0.001, batches=BATCHES, classes=CLASSES):
    lists = f"batches = {list(batches)}\nclasses = {list(classes)}".replace("'", '"')
    table = f'{inputs % "BF"}\nscale = {scale}\nname = "light"\n'
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.toml").write_text(
        f'name = "mine"\nfolders = "{{batch}}/{{class}}/{{split}}"\n{lists}\n'
        f"field_of_view_um = 20\n[[input]]\n{table}[target]\n{target % 'DNA'}\nscale = {scale}\n"
        'name = "DNA"\n'
    )


def write_dataset(root, form, target=None, batches=BATCHES, classes=CLASSES, splits=COUNTS):
    """Write a dataset in one format, or the target in another, or none ("")."""
    forms = {"BF": form, "DNA": form if target is None else target}
    describe(root, FORMATS[form][0], FORMATS[forms["DNA"] or form][0], 0.001, batches, classes)
    for batch in batches:
        for class_name in classes:
            for split in splits:
                for kind, own in forms.items():
                    if own:
                        entry, write = FORMATS[own]
                        name = entry.split('"')[1] % kind
                        path = (
                            root / batch / class_name / split / name.replace("{class}", class_name)
                        )
                        place = batch, class_name, split, kind
                        write(path, images_of(*place, count=COUNTS[split]))
    return root


@pytest.fixture(scope="module")
def as_mat(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("mat") / "mine", "mat")


# --- The same cells --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_cells(as_mat, tmp_path, form):
    root = write_dataset(tmp_path / "mine", form)
    for split in COUNTS:
        expected, found = load_cells(as_mat, split), load_cells(root, split)
        np.testing.assert_array_equal(found.brightfield, expected.brightfield)
        np.testing.assert_array_equal(found.qpi, expected.qpi)
        assert found.labels.equals(expected.labels)
    place = "Day2", "G2", "Train", "BF"
    files, stored = CellFiles(root, "Train"), images_of(*place, count=13)
    some = files.read([51, 0, 40, 40, 39])
    expected = (stored[[12, 1, 1, 0]].astype(np.float32) * np.float32(0.001))[..., None]
    np.testing.assert_array_equal(some.brightfield[[0, 2, 3, 4]], expected)
    report = check_dataset(root)
    assert report.ok and report.uses == ("prediction", "training", "batch removal"), str(report)
    assert value_warnings(files, find_layout(root)[0]) == []


def test_formats_can_be_mixed(as_mat, tmp_path):
    found = load_cells(write_dataset(tmp_path / "mine", "a TIFF per cell", "npy"), "Test")
    np.testing.assert_array_equal(found.qpi, load_cells(as_mat, "Test").qpi)


@pytest.mark.parametrize("form", ["npy", "OME-TIFF", "a TIFF per cell", "montage"])
def test_what_is_incomplete_serves_what_it_can(tmp_path, form):
    root = write_dataset(tmp_path / "no target", form, target="", splits=["Test"])
    report = check_dataset(root)
    assert report.ok and report.uses == ("prediction",), str(report)
    assert load_cells(root, "Test", with_target=False).qpi is None
    with pytest.raises(DatasetError, match="is missing"):
        load_cells(root, "Test")
    root = write_dataset(tmp_path / "one day", form, batches=["Day1"])
    report = check_dataset(root)
    assert report.ok and report.uses == ("prediction", "training")
    assert any("--recipe none" in note for note in report.notes)


@pytest.mark.parametrize(
    "form, words",
    [
        ("npy", "light: uint16 in npy files, axes NYX"),
        ("npy, axes inferred", "axes YXN"),
        ("OME-TIFF", "uint16 in TIFF files, axes NYX"),
        ("a TIFF per cell", "uint16 in TIFF files, axes YX"),
        ("mat", "uint16 in MATLAB 7.3 files, axes YXN"),
        ("montage", "tiles of 8 x 8 pixels"),
    ],
)
def test_check_tells_axes_type_and_range(tmp_path, form, words):
    report = check_dataset(write_dataset(tmp_path / "mine", form))
    stored = [
        images_of(b, c, s, "BF", count=n)
        for b in BATCHES
        for c in CLASSES
        for s, n in COUNTS.items()
    ]
    low, high = (f(x.min() if f is min else x.max() for x in stored) for f in (min, max))
    note = next(note for note in report.notes if note.startswith("light: "))
    assert words in note and f"values {low} to {high}" in note


def test_a_scale_is_proposed_for_integers(tmp_path):
    root = write_dataset(tmp_path / "mine", "OME-TIFF")
    describe(root, FORMATS["OME-TIFF"][0], FORMATS["OME-TIFF"][0], scale=1)
    notes = [note for note in check_dataset(root).notes if "write scale = 0.001" in note]
    assert len(notes) == 2 and "[[input]] of light" in notes[0]


def test_names_are_ordered_by_their_numbers_and_hidden_files_left_out(tmp_path):
    for name in ("c10.tif", "c9.TIF", "c9b.tif", ".c1.tif", "_c1.tif", "c1.txt", "d1.tif"):
        (tmp_path / name).touch()
    assert [path.name for path in matching(tmp_path / "C*.tif")] == ["c9.TIF", "c9b.tif", "c10.tif"]
    assert matching(tmp_path / "e*.tif") == [] == matching(tmp_path / "nowhere" / "*.tif")


# --- Pairs -----------------------------------------------------------------------------------


def test_cells_without_a_partner_are_named(tmp_path):
    root = write_dataset(tmp_path / "mine", "a npy per cell")
    folder = root / "Day1" / "G2" / "Valid"
    (folder / "1_BF.npy").rename(folder / "7_BF.npy")
    with pytest.raises(DatasetError, match=r"differ in the names.*in cell 2: '2' and '1'"):
        load_cells(root, "Valid")
    (folder / "7_BF.npy").unlink()
    with pytest.raises(DatasetError, match="2 cells of 8 x 8.*3 cells of 8 x 8"):
        load_cells(root, "Valid")


def test_montages_with_other_empty_tiles_do_not_pair(tmp_path):
    root = write_dataset(tmp_path / "mine", "montage")
    path = root / "Day1" / "G1" / "Test" / "G1_DNA.tif"
    montage = tifffile.imread(path)
    montage[:SIZE, 2 * SIZE : 3 * SIZE] = montage[:SIZE, :SIZE]  # fill an empty tile
    montage[:SIZE, :SIZE] = 0
    tifffile.imwrite(path, montage)
    with pytest.raises(DatasetError, match="in cell 1: 'tile 1' and 'tile 2'"):
        load_cells(root, "Test")


# --- Words -----------------------------------------------------------------------------------

STACK = images_of("a", count=5)
COLOURS = np.stack([STACK] * 3, axis=1)


def structured(path, images):
    array = np.zeros(len(images), [("img", "u2", (SIZE, SIZE)), ("day", "f4")])
    write_npy(path, array)


def objects(path, images):
    array = np.empty(len(images), object)
    array[:] = list(images)
    np.save(path, array, allow_pickle=True)


def cut(path, images):
    write_tiff(path, images) if path.suffix == ".tif" else write_npy(path, images)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_pixels(path, images):
    write_tiff(path, images[0])
    path.write_bytes(path.read_bytes()[:-40])


def with_gap(path, images):
    """Declare that the last page has no bytes; some programs leave out empty parts that way."""
    write_tiff(path, images, compression="zlib", metadata={"axes": "ZYX"})
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        entry = file.pages[4].tags["StripByteCounts"]
    struct.pack_into("<HII", content, entry.offset + 2, 4, 1, 0)
    path.write_bytes(content)


def npy_header(path, images):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 512, 512), }"
    header = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


def tiff_header(path, images):
    write_tiff(path, images[0], metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag, value in (("ImageWidth", 2**20), ("ImageLength", 2**20)):
            entry = file.pages[0].tags[tag]
            content[entry.valueoffset : entry.valueoffset + 4] = struct.pack("<I", value)[
                : 2 if entry.dtype == 3 else 4
            ].ljust(4, b"\0")
            struct.pack_into("<HI", content, entry.offset + 2, 4, 1)
    path.write_bytes(content)


WORDS = {
    "objects": (".npy", objects, r"Python objects.*run code.*numpy.stack\(list\(a\)\)"),
    "struct": (".npy", structured, r"save the field.*a\['img'\]"),
    "complex": (".npy", lambda p, a: write_npy(p, a * 1j), "complex.*numpy.angle|complex.*phase"),
    "truth values": (".npy", lambda p, a: write_npy(p, a > 3), r"type bool.*a.astype\('float32'\)"),
    "text": (".npy", lambda p, a: write_npy(p, np.array(["a"])), "Expected an array of real"),
    "squeeze": (".npy", lambda p, a: write_npy(p, a[None]), r"a = numpy.squeeze\(a\)"),
    "colours": (".npy", lambda p, a: write_npy(p, COLOURS), r"a\[:, 0\], or make the images gray"),
    "one axis": (".npy", lambda p, a: write_npy(p, a.ravel()), "cells x height x width.*reshape"),
    "no cells": (".npy", lambda p, a: write_npy(p, a[:0]), "0 x 8 x 8.*at least one cell"),
    "cut short": (".npy", cut, "declares 640 bytes, but the file stores 256"),
    "a terabyte": (".npy", npy_header, "declares 1,099,511,627,776 bytes"),
    "empty": (".npy", lambda p, a: p.touch(), r"empty \(0 bytes\)"),
    "no npy": (".npy", lambda p, a: p.write_text("no" * 99), "does not start like a .npy file"),
    "TIFF colours": (
        ".tif",
        lambda p, a: write_tiff(p, np.moveaxis(COLOURS, 1, -1), photometric="rgb"),
        "colours or channels.*separate inputs",
    ),
    "TIFF channels": (
        ".tif",
        lambda p, a: write_tiff(p, a, metadata={"axes": "CYX"}),
        'colours or channels.*axes = "NYX" if these are cells',
    ),
    "TIFF cut short": (".tif", cut, "invalid page offset.*damaged or cut short.*again"),
    "TIFF pixels cut short": (".tif", cut_pixels, "stores fewer pixels than it declares.*again"),
    "TIFF with gaps": (".tif", with_gap, "stores fewer pixels than it declares"),
    "TIFF terabyte": (".tif", tiff_header, "declares 2,199,02|incorrect StripByteCounts"),
    "no TIFF": (".tif", lambda p, a: p.write_text("no" * 99), "does not start like a .tif file"),
    "TIFF complex": (".tif", lambda p, a: write_tiff(p, a.astype("c8")), "complex"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_a_wrong_file_is_refused_with_its_remedy(tmp_path, name):
    suffix, write, words = WORDS[name]
    path = tmp_path / f"G1_BF{suffix}"
    write(path, STACK)
    with pytest.raises(ImageFileError, match=words) as caught:
        read_stack(inspect_stack(path))
    assert str(path) in str(caught.value) and "Expected" in str(caught.value)


def test_two_series_in_one_tiff(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(STACK)
        file.write(STACK[:, :4])
    with pytest.raises(ImageFileError, match="2 series of images .5 x 8 x 8; 5 x 4 x 8"):
        inspect_stack(tmp_path / "a.tif")


def test_images_in_other_files_are_not_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "ZYX"})
    text = tifffile.TiffFile(tmp_path / "a.ome.tif").ome_metadata
    name = tifffile.TiffFile(tmp_path / "a.ome.tif").filename
    other = text.replace(name, "b.ome.tif")
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{n}" PlaneCount="1"><UUID FileName="b{n}.ome.tif">'
        f"urn:uuid:{n:032x}</UUID></TiffData>"
        for n in range(5)
    )
    start, end = other.index("<TiffData"), other.index("</Pixels>")
    for number in range(5):
        description = (other[:start] + planes + other[end:]).encode()
        tifffile.imwrite(
            tmp_path / f"b{number}.ome.tif", STACK[number], description=description, metadata=None
        )
    with pytest.raises(ImageFileError, match="in other files"):
        read_stack(inspect_stack(tmp_path / "b0.ome.tif"))


@pytest.mark.parametrize("axes", ["NYX", "YX"])
def test_stated_axes_must_fit(tmp_path, axes):
    np.save(tmp_path / "a.npy", STACK if axes == "YX" else STACK[0])
    with pytest.raises(ImageFileError, match=f'axes = "{axes}" is stated.*correct axes'):
        inspect_stack(tmp_path / "a.npy", axes=axes)


def test_a_montage_that_the_tiles_do_not_fill(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((30, 24)))
    with pytest.raises(ImageFileError, match="30 x 24 pixels, which tiles of 8 x 8 do not fill"):
        inspect_stack(tmp_path / "a.npy", tile=8)
    with pytest.raises(ImageFileError, match="empty tiles only"):
        inspect_stack(tmp_path / "a.npy", tile=6)


def test_files_of_other_sizes_in_a_series(tmp_path):
    write_cells(tmp_path / "c*.tif", STACK)
    tifffile.imwrite(tmp_path / "c3.tif", STACK[0, :4])
    with pytest.raises(ImageFileError, match="c3.tif has images of 4 x 8.*c0.tif beside it has 8"):
        inspect_stack(tmp_path / "c*.tif")


def test_turned_axes_are_told_with_the_line_to_write(tmp_path):
    """ImageJ's axes say cells x height x width, but the array was saved the other way round."""
    root = write_dataset(tmp_path / "mine", "TIFF, axes stated")
    described = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(described.replace('axes = "YXN"', 'axes = "NYX"'))
    with pytest.raises(DatasetError, match='looks like height x width x cells.*axes = "YXN"'):
        load_cells(root, "Train")


def test_nan_is_named_by_cell_and_file(tmp_path):
    images = STACK.astype("float32")
    images[3, 2, 2] = np.nan
    write_cells(tmp_path / "c*.npy", images)
    with pytest.raises(
        ImageFileError, match=r"1 pixels in 1 of the 5 cells.*first in cell 4.*\(3\)"
    ):
        read_stack(inspect_stack(tmp_path / "c*.npy"))


def test_a_compression_that_needs_another_package_says_so(tmp_path):
    write_tiff(tmp_path / "a.tif", STACK, metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        for page in file.pages:
            struct.pack_into("<H", content, page.tags["Compression"].valueoffset, 5)  # LZW
    (tmp_path / "a.tif").write_bytes(content)
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(ImageFileError, match="LZW.*install imagecodecs"):
            read_stack(inspect_stack(tmp_path / "a.tif"))


def test_only_the_asked_pages_are_read(tmp_path):
    """Damage one cell's page: the others are still read, that one is refused."""
    write_tiff(tmp_path / "a.tif", STACK, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place, size = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[place : place + size] = bytes(size)
    (tmp_path / "a.tif").write_bytes(content)
    info = inspect_stack(tmp_path / "a.tif")
    assert not info.whole
    np.testing.assert_array_equal(read_stack(info, [4, 2]), STACK[[4, 2]])
    with pytest.raises(CytomadError, match="cannot be read.*damaged"):
        read_stack(info, [1])


def test_what_reads_a_part_and_what_does_not(tmp_path):
    streams = {"mat", "npy", "npy, axes stated", "TIFF", "TIFF, compressed", "a TIFF per cell"}
    for form in (*streams, "mat v5", "mat, axes stated", "montage"):
        root = write_dataset(tmp_path / form, form)
        if form in streams:
            CellFiles(root, "Test").check_streams()
        else:
            with pytest.raises(DatasetError, match="can only be read as a whole"):
                CellFiles(root, "Test").check_streams()
