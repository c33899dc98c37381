"""Weights of a run are checked before Keras opens them."""

import os
import shutil

import h5py
import numpy as np
import pytest

from cytomad_lib.config import PRESETS
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.networks import build_batch_mlp, build_discriminator
from cytomad_lib.networks import build_generator as build
from cytomad_lib.training.pix2pix import Pix2Pix
from cytomad_lib.weights import WeightsError, load_run_weights

KERNEL = "layers/dense_1/vars/0"


@pytest.fixture
def path(tmp_path):
    build_batch_mlp(3, 8, seed=1).save_weights(tmp_path / "mlp_000003.weights.h5")
    return tmp_path / "mlp_000003.weights.h5"


def refused(path, message):
    network = build_batch_mlp(3, 8, seed=2)
    before = network.get_weights()
    with pytest.raises(WeightsError, match=message) as caught:
        load_run_weights(network, path)
    text = str(caught.value)
    assert str(path) in text and "Copy the run's folder again, or train that stage again." in text
    assert isinstance(caught.value, CytomadError)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_come_back(path):
    network = load_run_weights(build_batch_mlp(3, 8, seed=2), path)
    expected = build_batch_mlp(3, 8, seed=1).get_weights()
    for found, wanted in zip(network.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_checkpoint_with_its_optimizers_comes_back(tmp_path):
    models = []
    for seed in (1, 2):
        networks = build(16, 2, seed=seed), build_discriminator(16, 2, seed=seed)
        models.append(Pix2Pix(*networks, PRESETS["demo"]))
        models[-1].compile()
    models[0].save_weights(tmp_path / "checkpoint_000001.weights.h5")
    load_run_weights(models[1], tmp_path / "checkpoint_000001.weights.h5")
    weights = [model.generator.get_weights()[0] for model in models]
    np.testing.assert_array_equal(*weights)

    with h5py.File(tmp_path / "checkpoint_000001.weights.h5", "r+") as file:
        optimizer = file["generator_optimizer/vars"]
        del optimizer[max(optimizer, key=int)]
    with pytest.raises(WeightsError, match="does not fit the network .pix2pix."):
        load_run_weights(models[1], tmp_path / "checkpoint_000001.weights.h5")


def test_what_is_no_file(path, tmp_path):
    refused(tmp_path / "none.weights.h5", "does not exist")
    refused(tmp_path, "is a folder")
    path.write_bytes(b"")
    refused(path, "is empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.weights.h5")
    refused(tmp_path / "pipe.weights.h5", "is a pipe or a device")


@pytest.mark.parametrize("part", [0.1, 0.9, 0.999])
def test_a_file_that_was_cut_short(part, path):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "cannot be read: .*damaged or cut short")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad, path):
    with h5py.File(path, "r+") as file:
        file[KERNEL][3, 5] = bad
    refused(path, f"1 of 3750 numbers in /{KERNEL} are NaN or infinite")


def test_foreign_files(path, tmp_path):
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    refused(path, "holds no weights of Keras 3 .found: images")
    path.write_text("no HDF5 at all")
    refused(path, "cannot be read")


def test_weights_of_another_network(path):
    build_batch_mlp(5, 8).save_weights(path)
    network = build_batch_mlp(3, 8)
    with pytest.raises(WeightsError, match="does not fit the network 'batch_mlp'.*train that"):
        load_run_weights(network, path)


def test_links_and_data_in_other_files(path, tmp_path):
    shutil.copy(path, tmp_path / "other.weights.h5")
    for link in (
        h5py.SoftLink("/layers/dense/vars/0"),
        h5py.ExternalLink("other.weights.h5", KERNEL),
    ):
        with h5py.File(path, "r+") as file:
            del file[KERNEL]
            file[KERNEL] = link
        refused(path, f"link to another place .{type(link).__name__}")
    (tmp_path / "raw.bin").write_bytes(bytes(75 * 50 * 4))
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        storage = [(str(tmp_path / "raw.bin"), 0, 75 * 50 * 4)]
        file.create_dataset(KERNEL, (75, 50), "float32", external=storage)
    refused(path, "keeps its data in other files")


def test_a_terabyte_that_is_not_there(path):
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, (2**20, 2**18), "float32")
    refused(path, "declares 1,099,511,627,776 bytes")


def test_groups_in_a_circle(path):
    with h5py.File(path, "r+") as file:
        file["layers/again"] = file["layers"]
    refused(path, "more groups than a network has")
