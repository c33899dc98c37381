"""Several devices, or machines, that share a training give the loss curve of one device.

The devices are two parts of the CPU, and two processes that find each other by `TF_CONFIG`. Each
training runs in a process of its own, as TensorFlow divides its devices once per process: this
file, started as a program. No unit is dropped (rate 0), as devices drop others than one would.
"""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from training_cells import TINY, environment_of_a_program, make_cells

from cytomad_lib import networks, runs
from cytomad_lib.backend import replicas
from cytomad_lib.devices import ONE, Devices, DevicesError, find_devices
from cytomad_lib.training import recipes
from cytomad_lib.training.recipes import fit_classifiers, pretrain, remove_batches

TIME_LIMIT = 900  # seconds; machines that miss one another wait for ever
PRESET = replace(TINY, pretraining_epochs=2, removal_epochs=2, classifier_epochs=1)
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="several devices are for TensorFlow only"
)


class Several(Devices):
    """Stands for some devices, without a strategy."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def __len__(self):
        return self.n


# --- what is refused ---------------------------------------------------------------------------


def test_one_device_is_what_keras_does_by_itself(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert find_devices(1) is ONE and len(ONE) == 1 and ONE.writes
    assert replicas() == 1
    ONE.check_minibatch(7, "The preset")
    assert ONE.evaluation_minibatch(7, 100) == 7


def test_pytorch_trains_on_one_device(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(DevicesError, match="runs on torch. Expected TensorFlow"):
        find_devices(2)
    assert replicas() == 1


def test_a_minibatch_is_cut_into_equal_parts_only():
    Several(5).check_minibatch(10, "The preset")
    with pytest.raises(DevicesError, match="10 cells per minibatch, there are 4 devices"):
        Several(4).check_minibatch(10, "The preset")


@pytest.mark.parametrize("n, most, n_devices", [(101, 100, 2), (16, 100, 2), (9, 4, 2), (9, 4, 3)])
def test_no_device_is_without_a_cell_in_validation(n, most, n_devices):
    at_once = Several(n_devices).evaluation_minibatch(n, most)
    assert 1 <= at_once <= most
    for cells in {at_once, n % at_once or at_once}:
        part = -(-cells // n_devices)
        assert cells - part * (n_devices - 1) > 0


def test_fewer_cells_than_devices_are_refused():
    with pytest.raises(DevicesError, match="3 cells for validation and 4 devices"):
        Several(4).evaluation_minibatch(3, 100)


def test_the_conditional_recipe_takes_one_device():
    recipes.check_devices("conditional", ONE)
    recipes.check_devices("published", Several(2))
    with pytest.raises(DevicesError, match="conditional recipe is trained on one device"):
        recipes.check_devices("conditional", Several(2))


def test_a_cluster_that_cannot_be_read_is_refused(monkeypatch):
    for text in ("[1, 2", '{"cluster": {}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(DevicesError, match="TF_CONFIG cannot be used"):
            find_devices(1)
    alone = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert find_devices(1) is ONE


# --- the loss curve ----------------------------------------------------------------------------


def start(folder, n=1, cluster=None):
    changed = {} if cluster is None else {"TF_CONFIG": json.dumps(cluster)}
    environment = environment_of_a_program(**changed)
    command = [sys.executable, __file__, str(folder), str(n)]
    # A file takes whatever a machine says; a full pipe would stop it, and all that wait for it.
    said = tempfile.NamedTemporaryFile("w+", dir=folder)
    process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    return process, said


def finish(*started):
    try:
        codes = [process.wait(timeout=TIME_LIMIT) for process, _ in started]
    finally:
        for process, _ in started:
            process.kill()
    shown = []
    for _, said in started:
        said.seek(0)
        shown.append(said.read())
        said.close()
    assert codes == [0] * len(started), shown[0][-3000:]
    return shown


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder))
    return folder


def prepared(folder, alone):
    """Let the removal begin with the networks of the other run, so that it alone is compared."""
    folder.mkdir()
    shutil.copytree(alone / "run", folder / "removal", ignore=lambda *_: ["published"])
    return folder


def check_same_curves(folder, alone):
    for stage, run in (("pretraining", "run"), ("published", "removal")):
        found = pd.read_csv(folder / run / stage / "history.csv").drop(columns="seconds")
        wanted = pd.read_csv(alone / "run" / stage / "history.csv").drop(columns="seconds")
        assert list(found) == list(wanted) and len(found) == 2
        # Rounding grows with the steps of the removal: on some processors to 0.3 % in its second
        # epoch.
        later = 1e-2 if stage == "published" else 1e-3
        for epoch, rtol in ((0, 1e-3), (1, later)):
            np.testing.assert_allclose(
                found.iloc[epoch], wanted.iloc[epoch], rtol, err_msg=f"{stage}: {list(found)}"
            )


def free_port():
    with socket.socket() as tried:
        tried.bind(("localhost", 0))
        return tried.getsockname()[1]


@on_tensorflow
def test_two_devices_give_the_losses_of_one(alone, tmp_path):
    folder = prepared(tmp_path / "two", alone)
    (shown,) = finish(start(folder, n=2))
    assert "devices: 2" in shown and "other units: True" in shown
    check_same_curves(folder, alone)


@on_tensorflow
def test_two_machines_give_the_losses_of_one_and_the_first_writes(alone, tmp_path):
    folder = prepared(tmp_path / "machines", alone)
    workers = [f"localhost:{free_port()}" for _ in range(2)]
    tasks = [{"type": "worker", "index": number} for number in range(2)]
    shown = finish(
        *(start(folder, cluster={"cluster": {"worker": workers}, "task": task}) for task in tasks)
    )
    assert all("devices: 2" in lines for lines in shown)
    check_same_curves(folder, alone)
    assert "writes: True" in shown[0] and "writes: False" in shown[1]


# --- what runs in the other processes ----------------------------------------------------------


def train(folder, n):
    import tensorflow as tf
    from conftest import POLISHING

    own = find_devices(n)
    tf.config.optimizer.set_experimental_options(dict.fromkeys(POLISHING, False))
    print(f"devices: {len(own)}, writes: {own.writes}")
    if n > 1:
        print(f"other units: {drop_other_units(own)}")
    runs.build_generator = partial(runs.build_generator, dropout=0.0)
    # Several devices normalise as Keras does. One does it sooner, and rounds otherwise, which two
    # epochs of removal blow up to a thousandth; `test_batch_norm` holds the two together.
    networks.BatchNormalization = keras.layers.BatchNormalization
    cells, valid = make_cells(), make_cells(per_group=2, seed=1)
    if not own.writes:
        own.wait()
    run = runs.Run.create(folder / "run", PRESET, cells, "lung", devices=own)
    if own.writes:
        own.wait()
    pretrain(run, cells, valid)
    if n == 1:  # of several devices one fits them; of several machines the others wait
        fit_classifiers(run, cells, valid)
    if (folder / "removal").exists():
        run = runs.Run.open(folder / "removal", own)
    remove_batches(run, cells, valid)


def drop_other_units(own):
    """Say whether two devices drop other units, and each others from call to call."""
    with own.scope():
        layer = keras.layers.Dropout(0.5, seed=1)
        network = keras.Sequential([keras.Input((64,)), layer])
    own.drop_differently(network)
    drops = [
        np.asarray(part)
        for _ in range(2)
        for part in own.strategy.run(lambda: network(np.ones((1, 64)), training=True)).values
    ]
    return len({part.tobytes() for part in drops}) == 4


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
