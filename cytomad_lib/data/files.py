"""Files that are either whole or not there, and arrays too large for memory.

Example
-------
>>> with written_beside("results/scores.csv") as path:
...     table.to_csv(path)
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cytomad_lib.data.errors import CytomadError


@contextmanager
def written_beside(path):
    """Give a temporary path beside `path`, which becomes `path` only if all goes well.

    The folder is made if needed. The temporary name keeps the ending of the real one, as many
    writers go by it.

    Parameters
    ----------
    path : path
        A file that is there is replaced.

    Yields
    ------
    pathlib.Path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:  # also when the user presses Ctrl-C
        beside.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """Write a text file in one piece, with the same line ends on every system."""
    with written_beside(path) as beside:
        beside.write_bytes(text.encode("utf-8"))


def write_table(table, path, **options):
    """Write a DataFrame as CSV in one piece; the options are those of `to_csv`."""
    with written_beside(path) as beside:
        table.to_csv(beside, **options)


class StoredArray:
    """An array in a `.npy` file, of which only the rows that are asked for come into memory.

    Parameters
    ----------
    path : path
        Where it was written, see `StoredArray.write`.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.shape = self._mapped().shape

    @classmethod
    def write(cls, path, parts, shape):
        """Write an array that comes in parts.

        Parameters
        ----------
        path : path
            A file that is there is replaced.
        parts : iterable of float32 arrays
            The rows, some at a time.
        shape : tuple of int
            Of the whole.

        Raises
        ------
        CytomadError
            If the disk has no room for it. Nothing is written then.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = 4 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
        if needed > free:
            raise CytomadError(
                f"{path} would take {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left. "
                "Expected room for it until the training is done; free some, or give a folder on "
                "another disk."
            )
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        with written_beside(path) as beside, beside.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, "<f4").tobytes())
        return cls(path)

    def __len__(self):
        """Count the rows."""
        return self.shape[0]

    @property
    def row_bytes(self):
        """Memory for one row."""
        return 4 * int(np.prod(self.shape[1:]))

    def __getitem__(self, rows):
        """Read rows by their numbers, or by a slice."""
        # Mapped for the moment only: the pages of a map count as memory of the process.
        return np.array(self._mapped()[rows])

    def _mapped(self):
        return np.load(self.path, mmap_mode="r", allow_pickle=False)
