"""One training shared by several devices, of one machine or of several; on TensorFlow.

Each device gets its part of every minibatch, all hold the same weights, and the gradients are
summed over the devices. So the minibatch stays the one of the preset, and so does the loss curve,
but for rounding and for which units dropout drops.

* One machine: `find_devices(4)` takes four GPUs or, where there is none, makes four devices of the
  CPU, which trains no faster: that is to try things out.
* Several machines: TensorFlow's own setting, the environment variable `TF_CONFIG`, lists them. The
  same program is started on each, at about the same time, and `find_devices(2)` takes two GPUs of
  each. The first machine alone writes files; all must see the same folder.

What a training has to see to: networks, metrics and optimizers are made inside of `scope()`;
losses are Keras' own, which divide by the number of devices; what is reported is multiplied by it
again (`replicas`); batch normalisation looks at the whole minibatch (`networks._batch_norm`).

Example
-------
>>> devices = find_devices(2)
>>> with devices.scope():
...     model = Pix2Pix(build_generator(64, 8), build_discriminator(64, 8), DEMO)
...     model.compile()
>>> devices.drop_differently(model.generator)
>>> model.fit(Minibatches.of_cells(cells, 10), epochs=20, shuffle=False)
"""

import json
import os
from contextlib import nullcontext

from cytomad_lib.backend import keras
from cytomad_lib.data.errors import CytomadError

CLUSTER = "TF_CONFIG"
MOST_PARTS = 64  # of the CPU, which are to try things out; TensorFlow makes each at a price


class DevicesError(CytomadError):
    """There are no such devices, or they cannot share this training."""


class Devices:
    """What trains: one device, or several under a strategy of TensorFlow; see `find_devices`.

    Parameters
    ----------
    strategy : tf.distribute.Strategy, optional
        None is one device, and whatever Keras does by itself.
    machine, machines : int
        Number of this machine, from 0, and how many there are.
    """

    def __init__(self, strategy=None, machine=0, machines=1):
        self.strategy = strategy
        self.machine = machine
        self.machines = machines

    def __len__(self):
        """Count the devices, of all machines together."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    @property
    def writes(self):
        """Whether this machine writes files: the first one does."""
        return self.machine == 0

    def scope(self):
        """Return the context in which networks, metrics and optimizers are to be made."""
        return nullcontext() if self.strategy is None else self.strategy.scope()

    def wait(self):
        """Wait until all machines are here."""
        if self.machines == 1:
            return
        import tensorflow as tf

        @tf.function
        def count():
            ones = self.strategy.run(lambda: keras.ops.ones(()))
            return self.strategy.reduce("SUM", ones, axis=None)

        float(count())

    def check_minibatch(self, cells, what):
        """Refuse a number of cells per minibatch that is no multiple of the devices.

        Means over unequal parts would weigh cells unequally.

        Raises
        ------
        DevicesError
        """
        if cells % len(self):
            raise DevicesError(
                f"{what} takes {cells} cells per minibatch, there are {len(self)} devices. "
                f"Expected a number of devices that divides {cells}, so that all get as many."
            )

    def evaluation_minibatch(self, n, most):
        """Return how many of n cells to evaluate at a time, so that no device is ever without.

        Parameters
        ----------
        n : int
            Number of cells.
        most : int
            How many at most.

        Raises
        ------
        DevicesError
            If there are too few cells for that.
        """
        for cells in range(min(n, most), 0, -1):
            if self._all_busy(cells) and (n % cells == 0 or self._all_busy(n % cells)):
                return cells
        raise DevicesError(
            f"There are {n} cells for validation and {len(self)} devices. Expected cells for each; "
            "give more cells, or take fewer devices."
        )

    def _all_busy(self, cells):
        """Say whether all devices get cells when TensorFlow cuts a minibatch into parts."""
        part = -(-cells // len(self))
        return cells > part * (len(self) - 1)

    def drop_differently(self, network):
        """Make the dropout of a network drop different units on each device."""
        if len(self) > 1:
            for layer in network.layers:
                if hasattr(layer, "seed_generator"):
                    _draw_by_replica(layer.seed_generator)


ONE = Devices()


def find_devices(n=1):
    """Find the devices to train on.

    Call it before anything is computed: TensorFlow cannot divide the CPU, or join other machines,
    once it has begun.

    Parameters
    ----------
    n : int
        How many, on each machine.

    Returns
    -------
    Devices

    Raises
    ------
    DevicesError
        If there are not as many, or Keras runs on PyTorch.
    """
    machines, own = _cluster()
    if n == 1 and machines == 1:
        return ONE
    if keras.backend.backend() != "tensorflow":
        raise DevicesError(
            f"Several devices are asked for, and Keras runs on {keras.backend.backend()}. Expected "
            "TensorFlow, the only engine on which this kit shares a training; use one device, or "
            "set KERAS_BACKEND=tensorflow."
        )
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if machines > 1:
        _check_number(n, len(gpus) or 1, "GPUs" if gpus else "device of the CPU")
        tf.config.set_visible_devices(gpus[:n], "GPU")
        return Devices(tf.distribute.MultiWorkerMirroredStrategy(), own, machines)
    if not gpus:
        _divide_cpu(n)
    _check_number(n, len(gpus) or n, "GPUs")
    kind = "GPU" if gpus else "CPU"
    return Devices(tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(n)]))


def find_gpus():
    """List the GPUs that the engine under Keras can use; empty if none."""
    if keras.backend.backend() != "torch":
        return keras.distribution.list_devices("gpu")
    import torch  # for it, Keras lists no devices

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def _cluster():
    """Return how many machines `TF_CONFIG` lists, and the number of this one."""
    text = os.environ.get(CLUSTER)
    if not text:
        return 1, 0
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        chiefs, workers = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
        own = int(task["index"]) + (chiefs if task["type"] == "worker" else 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DevicesError(
            f"The environment variable {CLUSTER} cannot be used ({type(error).__name__}: {error}). "
            'Expected JSON such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}; unset it to train on this machine alone.'
        ) from error
    return max(chiefs + workers, 1), own


def _check_number(n, there, of_what):
    if not 1 <= n <= there:
        raise DevicesError(f"{n} devices are asked for, this machine has {there} {of_what}.")


def _divide_cpu(n):
    import tensorflow as tf

    if n > MOST_PARTS:
        raise DevicesError(
            f"{n} devices are asked for, and this machine has no GPU. Expected up to {MOST_PARTS} "
            "parts of the CPU; take fewer."
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(n)]
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:  # too late, unless it was divided before
        if len(tf.config.list_logical_devices("CPU")) < n:
            raise DevicesError(
                f"The CPU cannot be divided into {n} devices any more, as TensorFlow has begun to "
                "compute. Ask for the devices first, in a new process."
            ) from error


def _draw_by_replica(generator):
    """Let a seed generator draw other numbers on each device; its state stays the same on all."""
    import tensorflow as tf

    draw = generator.next

    def next_of_replica(ordered=True):
        seed = draw(ordered)
        context = tf.distribute.get_replica_context()
        if context is None:
            return seed
        number = keras.ops.cast(context.replica_id_in_sync_group, seed.dtype)
        return seed + keras.ops.stack([number * 7919, keras.ops.zeros_like(number)])

    generator.next = next_of_replica
