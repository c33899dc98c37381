"""Files that are complete or absent, and arrays too large for memory.

Example
-------
>>> with written_beside("results/scores.csv") as path:
...     table.to_csv(path)
"""

import io
import os
import re
import shutil
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import psutil

from cytomad_lib.data.errors import CytomadError, WriteError

# What `written_beside` writes, by which process.
PARTIAL = re.compile(r"\.partial-(\d+)-.+", re.DOTALL)

_under_way = set()  # partial files of this process


@contextmanager
def written_beside(path):
    """Give a temporary path beside `path`; it is renamed to `path` on success.

    The folder is made if needed. The temporary name keeps the ending of the real one, as many
    writers go by it. What `path` names is on the disk, not only on its way there, when it appears.
    Temporary files of processes that were killed are removed from the folder.

    Parameters
    ----------
    path : path
        A file that is there is replaced.

    Yields
    ------
    pathlib.Path

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    _under_way.add(beside)
    with named_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            yield beside
            _to_disk(beside)
            os.replace(beside, path)
            _to_disk(path.parent)
        except BaseException:  # also when the user presses Ctrl-C
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        finally:
            _under_way.discard(beside)


@contextmanager
def named_write_errors(path):
    """Turn a system error into one that names the file and a remedy.

    Raises
    ------
    WriteError
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror or error}. Expected a folder that can be "
            "written to, on a disk with room; free some room, or give another folder."
        ) from error


def sweep(folder):
    """Remove the partial files of processes that are gone, as of one that was killed."""
    for path in Path(folder).glob(".partial-*"):
        partial = PARTIAL.fullmatch(path.name)
        if partial and path not in _under_way and not _is_at_work(int(partial[1])):
            with suppress(OSError):  # not ours to remove
                path.unlink()


def _is_at_work(process):
    # One with our number was another: our own files are known.
    return process != os.getpid() and psutil.pid_exists(process)


def _to_disk(path):
    """Wait until a file, or the names in a folder, would survive a power cut."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows opens no folders
    file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        with suppress(OSError) if is_folder else nullcontext():  # some network drives cannot
            os.fsync(file)
    finally:
        os.close(file)


def write_text(path, text):
    """Write a text file in one piece, with the same line ends on every system."""
    with written_beside(path) as beside:
        beside.write_bytes(text.encode("utf-8"))


def write_table(table, path, **options):
    """Write a DataFrame as CSV in one piece; the options are those of `to_csv`."""
    with written_beside(path) as beside:
        table.to_csv(beside, **options)


class FileInMemory(io.BytesIO):
    """Stands for a file while HDF5 writes it; see `save`.

    When a disk is full, HDF5 cannot close the file and crashes the interpreter at its end. So it
    writes into memory, and plain Python onto the disk.

    Parameters
    ----------
    path : path
        Where it will be; Keras asks for the name.
    """

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def __str__(self):
        """Return the name of the file."""
        return str(self.path)

    def save(self):
        """Write the file in one piece."""
        with written_beside(self.path) as beside:
            beside.write_bytes(self.getbuffer())


class StoredArray:
    """An array in a `.npy` file, of which only requested rows are loaded.

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
        """Write an array given in parts.

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
        with named_write_errors(path):
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
