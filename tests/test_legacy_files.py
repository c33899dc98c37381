"""Whatever a file is, reading it ends in a network or in an error that names the file."""

import shutil
import zipfile

import h5py
import numpy as np
import pytest
from tf24_files import FILES, edited, genuine, layer_of, write_weights

from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.legacy import LegacyFileError, inspect_legacy, load_legacy
from cytomad_lib.networks import build_batch_mlp

KERNEL = "model_weights/dense_2/dense_2/kernel:0"


@pytest.fixture
def path(tmp_path):
    """A copy of the genuine batch MLP, to be spoilt."""
    return shutil.copy(genuine("batch_mlp"), tmp_path / FILES["batch_mlp"])


def refused(path, message):
    with pytest.raises(LegacyFileError, match=message) as caught:
        load_legacy(path)
    assert str(path) in str(caught.value)


# --- what is no such file -----------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "none.h5", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "is empty")


def test_a_file_that_may_not_be_read(path, monkeypatch):
    def refuse(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    refused(path, "cannot be opened .Permission denied.*permissions")


@pytest.mark.parametrize("content", [b"not a network", bytes(1000)])
def test_a_file_that_is_no_hdf5(content, tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    refused(path, "does not start like an HDF5 file")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short(part, path):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "damaged or cut short.*Copy or download")


def test_matlab_files(tmp_path):
    write_mat(tmp_path / "H69_BF.mat", {"BF": np.zeros((4, 4, 3), "float32")})
    refused(tmp_path / "H69_BF.mat", "is a MATLAB file")


def test_files_of_keras_3(tmp_path):
    network = build_batch_mlp(3, 8)
    network.save(tmp_path / "model.keras")
    refused(tmp_path / "model.keras", "Keras 3 writes as .keras file.*run's folder")
    network.save_weights(tmp_path / "model.weights.h5")
    refused(tmp_path / "model.weights.h5", "written by Keras 3.*run's folder")
    network.save(tmp_path / "model.h5")
    refused(tmp_path / "model.h5", "written by Keras 3")
    with zipfile.ZipFile(tmp_path / "other.h5", "w") as archive:
        archive.writestr("a.txt", "a")
    refused(tmp_path / "other.h5", "is a zip archive")


def test_hdf5_files_without_a_network(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    refused(tmp_path / "other.h5", "holds no network .found: images")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    refused(tmp_path / "empty.h5", "holds no network .found: nothing")


def test_a_network_without_weights(path, tmp_path):
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        group.attrs["layer_names"] = np.zeros(0)  # as TensorFlow writes an empty list
    refused(path, "holds no weights")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_weights(file, {"input_1": {}})
    refused(tmp_path / "weights.h5", "holds no weights")


def test_several_networks_in_one(tmp_path):
    def nest(config):
        layer_of(config, "dense_3")["config"]["layers"] = []

    refused(edited("batch_mlp", tmp_path / "m.h5", nest), "networks within a network .dense_3")
    with h5py.File(tmp_path / "weights.h5", "w") as file:  # as `save_weights` of a composite
        write_weights(file, {"model": {"a/kernel": np.zeros((2, 2)), "b/kernel": np.zeros((2, 2))}})
    refused(tmp_path / "weights.h5", "networks within a network .model")


# --- descriptions that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "null",
        '{"config": {"layers": 5}}',
        '{"config": {"layers": [3]}}',
        '{"config": {"layers": [{"name": "a", "config": []}]}}',
        '{"config": {"layers": [{"name": "a", "class_name": "Dense", "config": {"name": "a"}}]}}',
        "[" * 100_000,
        '{"config": ' + "9" * 5000 + "}",
    ],
)
def test_descriptions_that_are_not_tensorflows(text, path):
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs["model_config"] = text.encode()
    refused(path, "description of its layers cannot be used")


def test_a_layer_that_is_used_twice(tmp_path):
    def share(config):
        layer_of(config, "dense_3")["inbound_nodes"] *= 2

    refused(edited("batch_mlp", tmp_path / "m.h5", share), "dense_3 is used 2 times")


@pytest.mark.parametrize("source", ["dense_3", "dense_4", "nowhere"])
def test_a_layer_that_nothing_feeds(source, tmp_path):
    def loop(config):
        layer_of(config, "dense_3")["inbound_nodes"] = [[[source, 0, 0, {}]]]

    refused(
        edited("batch_mlp", tmp_path / "m.h5", loop),
        "'dense_3', differs. Found input from|'nowhere' is not in list",
    )


def test_more_layers_than_any_published_network(tmp_path):
    def repeat(config):
        config["layers"] *= 50

    refused(edited("batch_mlp", tmp_path / "m.h5", repeat), "names 250 layers, the weights 5")


# --- weights that cannot be used ----------------------------------------------------------------


def replace_kernel(path, make):
    """Replace a kernel of the copied MLP; `make(group, name, values)` creates the new one."""
    with h5py.File(path, "r+") as file:
        group, name = file["model_weights/dense_2/dense_2"], "kernel:0"
        values = group[name][...]
        del group[name]
        make(group, name, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad, path):
    with h5py.File(path, "r+") as file:
        file[KERNEL][3, 5] = bad
    inspect_legacy(path)  # which does not read them
    refused(path, "1 of 600 numbers in /model_weights/dense_2/dense_2/kernel:0 are NaN")


def test_weights_too_large_for_float32(path):
    huge = np.full((8, 75), 1e300)
    replace_kernel(path, lambda group, name, values: group.create_dataset(name, data=huge))
    refused(path, "600 of 600 numbers")


def test_weights_that_are_missing(path):
    replace_kernel(path, lambda group, name, values: None)
    refused(path, "'dense_2/kernel:0' is missing")


def test_a_layer_whose_weights_are_not_listed(path):
    with h5py.File(path, "r+") as file:
        file["model_weights/dense_2"].attrs["weight_names"] = [b"dense_2/kernel:0"]
    refused(path, "'dense_2', differs. Found the weights kernel; expected kernel, bias")
    with h5py.File(path, "r+") as file:
        del file["model_weights/dense_2"].attrs["weight_names"]
    refused(path, "cannot be read: .*attribute: 'weight_names'")


def test_weights_that_are_no_numbers(path):
    replace_kernel(path, lambda group, name, values: group.create_group(name))
    refused(path, "dense_2/kernel:0 is no array of numbers")
    replace_kernel_with_text = np.full((8, 75), b"a")
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        file[KERNEL] = replace_kernel_with_text
    refused(path, "dense_2/kernel:0 is no array of numbers")


@pytest.mark.parametrize("kind", ["soft", "external"])
def test_links_to_other_places(kind, path, tmp_path):
    link = {
        "soft": h5py.SoftLink("/model_weights/dense_3/dense_3/kernel:0"),
        "external": h5py.ExternalLink(str(genuine("batch_mlp")), KERNEL),
    }[kind]
    replace_kernel(path, lambda group, name, values: group.__setitem__(name, link))
    refused(path, f"a link to another place .{type(link).__name__}")


def test_weights_stored_in_other_files(path, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(8 * 75 * 4))
    replace_kernel(
        path,
        lambda group, name, values: group.create_dataset(
            name, (8, 75), "float32", external=[(str(secret), 0, 8 * 75 * 4)]
        ),
    )
    refused(path, "keeps its data in other files")


def test_weights_stored_in_pieces(path):
    replace_kernel(
        path,
        lambda group, name, values: group.create_dataset(
            name, data=values, chunks=True, compression="gzip"
        ),
    )
    refused(path, "is not stored as a plain array")


def test_declared_sizes_are_held_against_the_file(path):
    """4 terabytes that were never written."""
    replace_kernel(
        path, lambda group, name, values: group.create_dataset(name, (2**20, 2**20), "float32")
    )
    refused(path, "declares 4,398,046,511,104 bytes, but the file stores 0")


def test_the_same_numbers_do_not_count_twice(path):
    """Many layers that share one array declare more than the file has."""
    with h5py.File(path, "r+") as file:
        weights = {}
        big = file.create_dataset("big", data=np.zeros((100, 75), "float32"))
        for number in range(50):
            weights[f"dense_{number}"] = {}
        del file["model_weights"]
        del file.attrs["model_config"]
        write_weights(file, weights)
        for layer in weights:
            file[layer].attrs["weight_names"] = [b"kernel:0"]
            file[layer]["kernel:0"] = big
    refused(path, "declares 50 arrays of 1,500,000 bytes, but has")


def test_declared_sizes_of_attributes_are_held_against_the_file(path):
    """A list of names that declares 2^40 entries."""
    content = bytearray(path.read_bytes())
    place = content.index(b"layer_names\0")
    place = content.index((5).to_bytes(8, "little"), place)
    content[place : place + 16] = (2**40).to_bytes(8, "little") * 2
    path.write_bytes(content)
    refused(path, "cannot be read")


def test_no_code_is_run(tmp_path):
    """A layer of Python code, as Keras could store it, is text like any other."""

    def slip_in(config):
        layer_of(config, "dense_3")["class_name"] = "Lambda"
        layer_of(config, "dense_3")["config"]["function"] = ["4wEAAAA=", None, None]

    path = edited("batch_mlp", tmp_path / "m.h5", slip_in)
    refused(path, "Found Lambda; expected Dense")
