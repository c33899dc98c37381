"""What the measurements are made on: hardware, versions, the rate of a matrix product, memory.

Example
-------
>>> product = MatrixProduct(PRODUCT_SIZE)
>>> product.rate() / 1e9   # GFLOP/s
"""

import os
import platform
import time
from importlib import import_module, metadata
from pathlib import Path

from cytomad_lib.backend import keras
from cytomad_lib.runs import versions

PRODUCT_SIZE = 4096  # rows and columns of the matrices whose product measures the machine
PRODUCT_SECONDS = 0.3  # shorter products are repeated until they take so long


class MatrixProduct:
    """Measures the rate of a float32 product of two matrices, through Keras' backend.

    Parameters
    ----------
    size : int
        Rows and columns.
    """

    def __init__(self, size):
        self.operations = 2 * size**3
        self.factors = [keras.random.normal((size, size), seed=seed) for seed in (0, 1)]
        self.products = 1
        self._seconds()  # the first one sets things up
        self.products = max(1, round(PRODUCT_SECONDS / self._seconds()))

    def rate(self):
        """Return operations per second, as they are now."""
        return self.products * self.operations / self._seconds()

    def _seconds(self):
        start = time.perf_counter()
        for _ in range(self.products):
            product = keras.ops.matmul(*self.factors)
        keras.ops.convert_to_numpy(product[0, 0])  # a GPU computes on until it is asked
        return time.perf_counter() - start


def machine_facts():
    """Say on what is measured: hardware and versions, no names of machine, user or folders."""
    backend, packages = keras.backend.backend(), ("h5py", "mat73", "scikit-image")
    # TensorFlow has distributions of several names, so it is asked itself.
    engine = {backend: import_module(backend).__version__}
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError):  # Windows
        memory = None
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": memory,
            "gpu": accelerator(),
            "system": f"{platform.system()} {platform.machine()}",
            # Jobs that want a core when the measurements begin: well above 0, others work here.
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "versions": versions() | engine | {name: metadata.version(name) for name in packages},
    }


def _cpu_model():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory():
    """Return the most memory this process had, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`: on Linux that remembers the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def accelerator():
    """Return the name of the GPU that the backend computes on, or None if it has none."""
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "Apple GPU (MPS)" if torch.backends.mps.is_available() else None
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    details = tf.config.experimental.get_device_details(devices[0])
    return details.get("device_name", devices[0].name)


def accelerator_peak():
    """Return the most memory in use on the GPU since the last call, in bytes; None if not known."""
    if keras.backend.backend() == "torch":
        import torch

        if not torch.cuda.is_available():
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    return peak
