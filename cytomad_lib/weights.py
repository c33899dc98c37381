"""Loading the weights of a run, after a check of our own.

Keras opens a `.weights.h5` file with HDF5 in this process, where a damaged file can crash it, and
it takes NaN as any other number. So the child process (`data.reader`) reads the file once before.

Example
-------
>>> load_run_weights(generator, "RUN/pretraining/generator_000008.weights.h5")  # doctest: +SKIP
"""

import warnings
from pathlib import Path

from cytomad_lib.data import hdf5
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.reader import ask, first_bytes

REMEDY = "Copy the run's folder again, or train that stage again."


class WeightsError(CytomadError):
    """A file of weights of a run is missing, damaged, unsafe, or of another network."""


def check_run_weights(path):
    """Refuse a file of weights that is not safe to load, or holds what is no number.

    Parameters
    ----------
    path : path
        A `.weights.h5` file.

    Raises
    ------
    WeightsError
        If it is missing, no regular file, damaged, foreign, has links or data in other files,
        declares more than it stores, or holds NaN or infinite numbers.
    """
    path, what = Path(path), "a .weights.h5 file of Keras 3"
    try:
        first_bytes(path, 1, WeightsError, what)
        ask(hdf5.run_weights, path, WeightsError, what, n_bytes=4 * path.stat().st_size)
    except WeightsError as error:
        raise WeightsError(f"{error} {REMEDY}") from None


def load_run_weights(network, path):
    """Load the weights of a run into a network.

    Parameters
    ----------
    network : keras.Model
    path : path
        A `.weights.h5` file.

    Returns
    -------
    keras.Model
        The network.

    Raises
    ------
    WeightsError
        As `check_run_weights`; also if the weights are those of another network.
    """
    check_run_weights(path)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            network.load_weights(path)
        # Keras only warns where it skips a part, which then keeps its first, random weights.
        skipped = [str(one.message) for one in heard if "Skipping" in str(one.message)]
        if skipped:
            raise ValueError(skipped[0])
    except (ValueError, TypeError, KeyError, OSError) as error:
        reason = [*str(error).split("\n\n"), ""][1] or str(error)  # Keras' first part is general
        raise WeightsError(
            f"{path} does not fit the network '{network.name}': {' '.join(reason.split())[:200]} "
            f"Expected the weights of this run. {REMEDY}"
        ) from error
    return network
