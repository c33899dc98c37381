"""Writing and reading .mat files: exact, in slices, and safe with files from anywhere."""

import logging
import os
import struct
import tracemalloc
import zlib

import h5py
import hdf5storage
import mat73
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytomad_lib.data import matfiles
from cytomad_lib.data.errors import ImageFileError, WriteError
from cytomad_lib.data.matfiles import read_mat, write_mat
from cytomad_lib.data.stackfiles import inspect_stack

TYPES = sorted(matfiles.MATLAB_CLASSES)


def stacks(dtypes, least_side=1):
    """Image stacks (height, width, cells) of every kind that may be written."""

    def fill(dtype, shape):
        limits = {"min_value": -1000, "max_value": 1000}
        if np.dtype(dtype).kind == "f":
            limits["width"] = 32
            elements = st.floats(**limits)
        elif np.dtype(dtype).kind == "u":
            elements = st.integers(0, 200)
        else:
            elements = st.integers(-100, 100)
        return hnp.arrays(dtype, shape, elements=elements)

    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=least_side, max_side=5)
    return st.tuples(st.sampled_from(dtypes), shapes).flatmap(lambda pair: fill(*pair))


many = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "H69_BF.mat"


@pytest.fixture
def stack():
    """Height 6, width 5, 7 cells: no two axes alike, no two pixels alike."""
    return np.arange(6 * 5 * 7, dtype=np.float32).reshape(6, 5, 7)


def hdf5_file(path, data=None, matlab_class=b"single", **options):
    """An HDF5 file with one dataset "BF", as somebody else might write it."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("BF", data=data, **options)
        if matlab_class is not None:
            dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)


# --- Exact -----------------------------------------------------------------------------------


@many
@given(array=stacks(TYPES), version=st.sampled_from(["7.3", "5"]))
def test_what_is_written_is_read(path, array, version):
    write_mat(path, {"BF": array}, version)
    info = inspect_stack(path, "BF")
    assert (info.shape, info.dtype, info.version) == (array.shape, array.dtype.name, version)
    cells = read_mat(path, "BF")
    assert cells.dtype == np.float32
    np.testing.assert_array_equal(cells, np.moveaxis(array, 2, 0).astype(np.float32))


@many
@given(array=stacks(TYPES, least_side=2))
def test_mat73_and_hdf5storage_read_the_same(path, array):
    write_mat(path, {"BF": array, "features": array[:, :, 0]})
    for oracle in (mat73.loadmat(path), hdf5storage.loadmat(str(path))):
        np.testing.assert_array_equal(oracle["BF"], array)
        np.testing.assert_array_equal(oracle["features"], array[:, :, 0])
        assert oracle["BF"].dtype == array.dtype


@many
@given(array=stacks(TYPES, least_side=2))
def test_scipy_reads_our_v5(path, array):
    write_mat(path, {"BF": array}, version="5")
    read = scipy.io.loadmat(path)["BF"]
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


def test_reads_what_others_wrote(path, stack):
    hdf5storage.savemat(str(path), {"BF": stack}, format="7.3")
    np.testing.assert_array_equal(read_mat(path, "BF"), np.moveaxis(stack, 2, 0))
    scipy.io.savemat(path, {"BF": stack}, do_compression=False)
    np.testing.assert_array_equal(read_mat(path, "BF"), np.moveaxis(stack, 2, 0))


def test_big_endian_and_transposed_arrays_are_written_by_value(path, stack):
    write_mat(path, {"BF": stack.astype(">f4"), "QPI": stack.T})
    np.testing.assert_array_equal(mat73.loadmat(path)["BF"], stack)
    np.testing.assert_array_equal(mat73.loadmat(path)["QPI"], stack.T)


def test_matlab_header_and_attributes(path, stack):
    write_mat(path, {"BF": stack, "QPI": stack.astype(float)})
    start = path.read_bytes()[:520]
    assert start.startswith(b"MATLAB 7.3 MAT-file")
    assert start[116:128] == bytes(8) + b"\x00\x02IM"
    assert start[128:512] == bytes(384) and start[512:520] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(path) as file:
        assert file["BF"].shape == (7, 5, 6)
        assert file["BF"].attrs["MATLAB_class"] == b"single"
        assert file["QPI"].attrs["MATLAB_class"] == b"double"
        assert file["BF"].compression == "gzip" and file["BF"].shuffle


def test_mat73_finds_nothing_to_complain_about(path, stack, caplog):
    write_mat(path, {"BF": stack})
    with caplog.at_level(logging.WARNING):
        mat73.loadmat(path)
    assert not caplog.records


@pytest.mark.parametrize("version", ["7.3", "5"])
def test_same_arrays_give_same_bytes(tmp_path, stack, version, monkeypatch):
    write_mat(tmp_path / "a.mat", {"BF": stack}, version)
    monkeypatch.setattr("time.asctime", lambda *_: "another day")  # what SciPy writes
    write_mat(tmp_path / "b.mat", {"BF": stack}, version)
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()


# --- Slices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["7.3", "5"])
@pytest.mark.parametrize(
    "cells", [slice(2, 5), slice(None, None, -2), [6, 0, 1, 2, 2], np.array([3]), [], slice(0, 0)]
)
def test_cells_come_in_the_order_asked(path, stack, version, cells):
    write_mat(path, {"BF": stack}, version)
    expected = np.moveaxis(stack, 2, 0)[cells]
    np.testing.assert_array_equal(read_mat(path, "BF", cells), expected)


def test_a_few_cells_cost_little_of_a_large_file(path):
    rng = np.random.default_rng(0)
    write_mat(path, {"BF": rng.normal(size=(128, 128, 200)).astype(np.float32)})
    with h5py.File(path) as file:
        assert file["BF"].chunks == (1, 128, 128)
    tracemalloc.start()
    read_mat(path, "BF", [150, 3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 128 * 128 * 4  # the whole is 200 cells


def test_only_the_asked_cells_are_decompressed(path):
    """Damage one cell's bytes: the others are still read, that one is refused."""
    large = np.random.default_rng(0).normal(size=(128, 128, 3)).astype(np.float32)
    write_mat(path, {"BF": large})
    with h5py.File(path) as file:
        chunk = file["BF"].id.get_chunk_info(1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(damaged)
    np.testing.assert_array_equal(read_mat(path, "BF", [2, 0])[0], large[:, :, 2])
    with pytest.raises(ImageFileError, match="damaged"):
        read_mat(path, "BF", [1])


@pytest.mark.parametrize("cells", [[0, 7], [-1], [100]])
def test_cells_beyond_the_file(path, stack, cells):
    write_mat(path, {"BF": stack})
    with pytest.raises(ImageFileError, match=r"H69_BF.*has 7.*from 0 to 6.*fewer"):
        read_mat(path, "BF", cells)


def test_wrong_cells_are_a_programming_error(path, stack):
    write_mat(path, {"BF": stack})
    for cells in ([0.5], [[1]], np.ones(7, bool)):
        with pytest.raises(ValueError, match="expected a slice or a list"):
            read_mat(path, "BF", cells)


# --- Guards ----------------------------------------------------------------------------------


def refused(path, *words):
    """Both doors refuse the file, naming it and these words."""
    for read in (inspect_stack, read_mat):
        with pytest.raises(ImageFileError) as caught:
            read(path, "BF")
        text = str(caught.value)
        assert all(word in text for word in (str(path), "Expected", *words)), text


def test_missing_folder_empty_and_text(tmp_path, path):
    refused(path, "does not exist")
    refused(tmp_path, "is a folder")
    path.write_bytes(b"")
    refused(path, "empty (0 bytes)")
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 5)
    refused(path, "does not start like a .mat file")


@pytest.mark.parametrize("kept", [130, 600, 0.5, 0.99])
def test_v73_cut_short(path, stack, kept):
    write_mat(path, {"BF": np.tile(stack, (4, 4, 4))})
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept > 1 else int(kept * len(whole))])
    refused(path, "HDF5", "again")


@pytest.mark.parametrize("kept", [130, 0.5, 0.99])
@pytest.mark.parametrize("compressed", [True, False])
def test_v5_cut_short(path, kept, compressed):
    stack = np.random.default_rng(0).normal(size=(9, 8, 7))
    scipy.io.savemat(path, {"BF": stack}, do_compression=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept > 1 else int(kept * len(whole))])
    with pytest.raises(ImageFileError, match=r"H69_BF.*Expected"):
        read_mat(path, "BF")


@pytest.mark.parametrize("version", ["7.3", "5"])
def test_wrong_variable_lists_the_ones_there(path, stack, version):
    write_mat(path, {"QPI": stack, "other": stack}, version)
    refused(path, "no variable 'BF'", "Variables in it: QPI, other.")


@pytest.mark.parametrize("version", ["7.3", "5"])
def test_one_image_is_not_a_stack(path, stack, version):
    write_mat(path, {"BF": stack[:, :, 0]}, version)
    refused(path, "shape 6 x 5", "height x width x cells", "two or more")


@pytest.mark.parametrize("kind", ["text", "logical", "cell", "struct", "empty", "complex"])
@pytest.mark.parametrize("format", ["7.3", "5"])
def test_not_real_numbers(path, stack, kind, format):
    value = {
        "text": "hello",
        "logical": stack > 3,
        "cell": np.array([1, "two"], dtype=object),
        "struct": {"a": stack},
        "empty": np.zeros((3, 3, 0)),
        "complex": stack + 1j,
    }[kind]
    if format == "5":
        scipy.io.savemat(path, {"BF": value})
    else:
        hdf5storage.savemat(str(path), {"BF": value}, format="7.3")
    expected = {"empty": "at least one cell", "complex": "complex"}.get(kind, "real numbers")
    with pytest.raises(ImageFileError, match=expected):
        read_mat(path, "BF")


def test_object_references_and_compounds(path):
    hdf5_file(path, shape=(2, 2, 2), dtype=h5py.ref_dtype)
    refused(path, "'cell'")
    hdf5_file(path, np.zeros((2, 2, 2), [("a", "f4"), ("b", "f4")]))
    refused(path, "real numbers")
    with h5py.File(path, "w") as file:
        file.create_group("BF").attrs["MATLAB_sparse"] = 3
    refused(path, "'sparse'", "BF = full(BF)")


def test_unknown_order_of_axes(path, stack):
    hdf5_file(path, stack, matlab_class=None)
    refused(path, "MATLAB_class", "order of its axes")


def test_half_precision_and_plain_hdf5_are_read(path, stack):
    hdf5_file(path, stack.T.astype(np.float16))
    np.testing.assert_array_equal(read_mat(path, "BF"), np.moveaxis(stack, 2, 0))


def test_zero_cells(path):
    hdf5_file(path, np.zeros((0, 4, 4), np.float32))
    refused(path, "4 x 4 x 0", "at least one cell")


@pytest.mark.parametrize("version", ["7.3", "5"])
def test_nan_and_infinity(path, stack, version):
    stack[0, :2, 3] = np.nan
    stack[1, 1, 5] = -np.inf
    write_mat(path, {"BF": stack}, version)
    with pytest.raises(
        ImageFileError, match="3 pixels.*2 of the 7 cells.*first in cell 4, counted from 1"
    ):
        read_mat(path, "BF")
    with pytest.raises(ImageFileError, match="1 pixels.*first in cell 6"):
        read_mat(path, "BF", [6, 5])
    assert len(read_mat(path, "BF", [0, 1, 2, 4, 6])) == 5


def test_too_large_for_float32(path):
    write_mat(path, {"BF": np.full((2, 2, 2), 1e300)})
    with pytest.raises(ImageFileError, match="infinite"):
        read_mat(path, "BF")


TERABYTE = (2**20, 512, 512)  # float32


@pytest.mark.parametrize(
    "options",
    [
        {},  # contiguous, never written
        {"chunks": (1, 512, 512)},
        {"chunks": (1, 512, 512), "compression": "gzip"},
        {"chunks": (1, 512, 512), "compression": "gzip", "fillvalue": 3},
    ],
)
def test_a_terabyte_that_is_not_there(path, options):
    hdf5_file(path, shape=TERABYTE, dtype="f4", **options)
    if "chunks" in options:
        with h5py.File(path, "r+") as file:
            file["BF"][0] = 1
    assert path.stat().st_size < 5_000_000
    refused(path, "declares 1,099,511,627,776 bytes")


def test_a_chunk_far_larger_than_its_dataset(path):
    """The memory goes into the chunk, whatever little of it the shape shows."""
    options = {"shape": (1, 4, 4), "dtype": "f4", "maxshape": (None, None, None)}
    hdf5_file(path, chunks=(4, 4096, 4096), **options)
    refused(path, "declares 268,435,456 bytes")


def test_missing_chunks(path):
    hdf5_file(path, shape=(10, 64, 64), dtype="f4", chunks=(1, 64, 64), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["BF"][:9] = np.random.default_rng(0).normal(size=(9, 64, 64))
    refused(path, "declares 163,840 bytes")


def test_honest_high_compression_is_read(path):
    write_mat(path, {"BF": np.full((512, 512, 20), 2, np.float64)})
    assert 512 * 512 * 20 * 8 > 400 * path.stat().st_size
    assert (read_mat(path, "BF", [19]) == 2).all()


def v5_file(path, elements, order="<"):
    """A v5 file of these top-level elements, each (type code, bytes)."""
    start = b"MATLAB 5.0 MAT-file".ljust(124)
    start += {"<": b"\x00\x01IM", ">": b"\x01\x00MI"}[order]
    for code, content in elements:
        start += struct.pack(order + "II", code, len(content)) + content
    path.write_bytes(start)


def v5_matrix(shape, numbers, name=b"BF", flags=7, stored_as=7, order="<"):
    """The content of a v5 variable; its class is in the low byte of the flags."""
    parts = [
        (6, struct.pack(order + "II", flags, 0)),
        (5, struct.pack(f"{order}{len(shape)}i", *shape)),
        (1, name),
        (stored_as, numbers),
    ]
    return b"".join(
        struct.pack(order + "II", code, len(content)) + content + bytes(-len(content) % 8)
        for code, content in parts
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [True, False])
def test_v5_element_by_element(path, order, compressed):
    numbers = np.arange(24, dtype=order + "f4")
    content = v5_matrix((2, 3, 4), numbers.tobytes(), order=order)
    element = (14, content)
    if compressed:
        element = (15, zlib.compress(struct.pack(order + "II", *(14, len(content))) + content))
    v5_file(path, [element], order)
    np.testing.assert_array_equal(read_mat(path, "BF"), numbers.reshape(4, 3, 2).transpose(0, 2, 1))


def test_doubles_are_read_that_matlab_stores_as_small_integers(path):
    v5_file(path, [(14, v5_matrix((2, 2, 2), bytes(range(8)), flags=6, stored_as=2))])
    assert inspect_stack(path, "BF").dtype == "float64"
    np.testing.assert_array_equal(read_mat(path, "BF")[1], [[4, 6], [5, 7]])


@pytest.mark.parametrize(
    "content, message",
    [
        (v5_matrix((2**20, 512, 512), bytes(8)), "declares 1,099,511,627,776 bytes"),
        (v5_matrix((2, 2, 2), bytes(32), stored_as=250), "stored as type 250"),
        (v5_matrix((2, 2, 2), bytes(32), stored_as=5), "stored as type 5"),
        (v5_matrix((2, 2, 2), bytes(28)), "stored in 28 bytes"),
        (v5_matrix((2, 2, 2), bytes(36)), "stored in 36 bytes"),
        (v5_matrix((2, -2, -2), bytes(32)), "shape 2 x -2 x -2"),
        (v5_matrix((2, 2, 2), bytes(32), name=b"B" * 5000), "declares 5000 bytes"),
        (v5_matrix((2, 2, 2), bytes(32), flags=99), "class 99"),
    ],
)
def test_v5_elements_that_cannot_be(path, content, message):
    v5_file(path, [(14, content)])
    refused(path, message)


def test_v5_elements_of_other_types(path):
    content = v5_matrix((2, 2, 2), bytes(32))
    v5_file(path, [(14, content), (99, b"")])
    refused(path, "an element of type 99")
    v5_file(path, [(15, zlib.compress(struct.pack("<II", 99, len(content)) + content))])
    refused(path, "a compressed element of type 99")


def test_v5_variables_of_one_name(path):
    """One reader would take the first, another one the last."""
    v5_file(path, [(14, v5_matrix((1, 4), bytes(16))), (14, v5_matrix((2, 2, 2), bytes(32)))])
    refused(path, "'BF' is in it 2 times")


def test_v5_that_inflates_to_more_than_it_declares(path):
    content = v5_matrix((2, 2, 2), bytes(32)) + bytes(10_000_000)
    v5_file(path, [(15, zlib.compress(struct.pack("<II", 14, len(content)) + content))])
    inspect_stack(path, "BF")
    with pytest.raises(ImageFileError, match="inflates to more than it declares"):
        read_mat(path, "BF")


def test_v5_damage_in_compressed_numbers_is_found(path):
    """zlib's checksum is at the end: it is read, whichever cells are asked."""
    content = v5_matrix((2, 2, 2), np.arange(8, dtype="<f4").tobytes())
    packed = zlib.compress(struct.pack("<II", 14, len(content)) + content)
    v5_file(path, [(15, packed[:-1] + bytes([packed[-1] ^ 1]))])
    with pytest.raises(ImageFileError, match="cannot be read as MATLAB v5.*check"):
        read_mat(path, "BF", [0])


def test_a_string_beside_the_stack_does_not_matter(path, stack):
    """MATLAB's string: flags, no axes, name, then a system and a class name, then data."""
    string = struct.pack("<IIII", 6, 8, 17, 0) + struct.pack("<HH4s", 1, 4, b"name")
    string += struct.pack("<HH4s", 1, 4, b"MCOS") + struct.pack("<II8s", 1, 6, b"string")
    numbers = stack.T.tobytes()
    v5_file(path, [(14, string), (14, v5_matrix(stack.shape, numbers)), (14, string[:16])])
    with pytest.raises(ImageFileError, match="cut short"):
        read_mat(path, "BF")
    v5_file(path, [(14, string), (14, v5_matrix(stack.shape, numbers))])
    np.testing.assert_array_equal(read_mat(path, "BF"), np.moveaxis(stack, 2, 0))
    with pytest.raises(ImageFileError, match="'name' is of MATLAB class 'string'"):
        read_mat(path, "name")


@pytest.mark.parametrize("version", ["7.3", "5"])
@pytest.mark.parametrize(
    "shape, remedy",
    [
        ((4, 4, 1, 3), "BF = squeeze(BF)"),
        ((4, 4, 3, 5), "squeeze(BF(:, :, 1, :)), or make the images gray"),
        ((4, 4), "two or more cells"),
    ],
)
def test_other_numbers_of_axes_get_their_remedy(path, version, shape, remedy):
    write_mat(path, {"BF": np.ones(shape)}, version)
    refused(path, "Expected height x width x cells", remedy)


@pytest.mark.parametrize("format", ["7.3", "5"])
def test_what_is_no_array_gets_its_remedy(path, stack, format):
    images = np.empty(2, dtype=object)
    images[:] = [stack[..., 0], stack[..., 1]]
    values = {"cells": images, "measured": {"img": stack, "day": 3.0}}
    if format == "5":
        scipy.io.savemat(path, values | {"thin": scipy.sparse.csc_array(stack[..., 0])})
    else:
        hdf5storage.savemat(str(path), values, format="7.3")
    with pytest.raises(ImageFileError, match=r"'cell'.*cells = cat\(3, cells\{:\}\)"):
        read_mat(path, "cells")
    with pytest.raises(ImageFileError, match=r"fields .*img.*measured = measured\.(img|day)"):
        read_mat(path, "measured")
    if format == "5":
        with pytest.raises(ImageFileError, match=r"'sparse'.*thin = full\(thin\)"):
            read_mat(path, "thin")


def test_links_and_storage_elsewhere(tmp_path, path, stack):
    other = tmp_path / "secret.h5"
    hdf5_file(other, stack)
    with h5py.File(path, "w") as file:
        file["BF"] = h5py.ExternalLink("secret.h5", "/BF")
    refused(path, "link")

    with h5py.File(path, "w") as file:
        file["data"] = stack
        file["BF"] = h5py.SoftLink("/data")
    refused(path, "link")

    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(4 * 8))
    hdf5_file(path, shape=(2, 2, 2), dtype="f4", external=[("raw.bin", 0, 32)])
    refused(path, "other files")

    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout(stack.shape, "f4")
        layout[...] = h5py.VirtualSource("secret.h5", "BF", stack.shape)
        file.create_virtual_dataset("BF", layout)
    refused(path, "other files")


def test_other_filters_are_refused(path, stack):
    hdf5_file(path, stack, compression="lzf")
    refused(path, "filters")


# --- Writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("BF", np.zeros((2, 2), complex), "complex128"),
        ("BF", np.zeros((2, 2), bool), "bool"),
        ("BF", np.array([["a"]]), "convert"),
        ("BF", np.zeros((2, 2), object), "object"),
        ("BF", np.zeros((2, 2), np.float16), "float16"),
        ("BF", np.zeros(3), "two or more axes"),
        ("BF", np.zeros((2, 0, 2)), "two or more axes"),
        ("a/b", np.zeros((2, 2)), "MATLAB name"),
        ("2a", np.zeros((2, 2)), "MATLAB name"),
    ],
)
def test_refused_to_write(path, name, array, words):
    with pytest.raises(ImageFileError, match=words):
        write_mat(path, {"ok": np.ones((2, 2)), name: array})
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("version", ["7.3", "5"])
@pytest.mark.parametrize("moment", ["during", "at the end"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path, stack, version, moment, monkeypatch
):
    write_mat(path, {"BF": stack})
    before = path.read_bytes()

    def disk_full(*args, **kwargs):
        raise OSError("No space left on device")

    if moment == "at the end":
        monkeypatch.setattr(os, "replace", disk_full)
    elif version == "7.3":
        monkeypatch.setattr(h5py.Dataset, "__setitem__", disk_full)
    else:
        monkeypatch.setattr(scipy.io, "savemat", disk_full)
    with pytest.raises(WriteError, match=r"cannot be written.*No space"):
        write_mat(path, {"BF": stack + 1}, version)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_folder_is_made_and_a_file_in_its_place_is_named(tmp_path, stack):
    write_mat(tmp_path / "a" / "b" / "c.mat", {"BF": stack})
    assert len(read_mat(tmp_path / "a" / "b" / "c.mat", "BF")) == 7
    with pytest.raises(WriteError, match="cannot be written"):
        write_mat(tmp_path / "a" / "b" / "c.mat" / "d.mat", {"BF": stack})
    with pytest.raises(ValueError, match="'7.3' or '5'"):
        write_mat(tmp_path / "e.mat", {"BF": stack}, version="4")
