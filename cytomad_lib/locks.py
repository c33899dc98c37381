"""One training per folder at a time.

The lock is a file in the folder that the system locks for this process. The system frees it
whatever ends the process, so a killed training leaves nothing that refuses the next one. The file
also says who holds it: for the message to another training, and for network drives that know no
locks.

Example
-------
>>> with locked("results/run"):
...     ...                       # a second `locked("results/run")` elsewhere raises LockedError
"""

import json
import os
import platform
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cytomad_lib.data.errors import RunError
from cytomad_lib.data.files import named_write_errors

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

LOCK = "training.lock"
FAR = 2**30  # the byte that Windows locks: behind the text, which others have to read

_held = {}  # lock file -> thread of this process that holds it


class LockedError(RunError):
    """Another training holds the folder."""


@contextmanager
def locked(folder):
    """Hold a folder, which is made if needed, as long as the context lasts.

    Parameters
    ----------
    folder : path
        Who holds it already, in the same thread, may ask again.

    Raises
    ------
    LockedError
        If another process, or thread, holds it.
    WriteError
        If the folder cannot be written to.
    """
    path = Path(folder).resolve() / LOCK
    if _held.get(path) == threading.get_ident():
        yield
        return
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    _held[path] = threading.get_ident()
    try:
        yield
    finally:
        del _held[path]
        _give_back(path, file)


def check_free(folder):
    """Refuse a folder that another training holds; make nothing.

    Raises
    ------
    LockedError
    """
    if (Path(folder) / LOCK).exists():
        with locked(folder):
            pass


def _take(path):
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(path, file)
            # Whoever held it until just now has removed the file: then the lock is on nothing.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                holder = {"process": os.getpid(), "machine": platform.node(), "since": since}
                json.dump(holder, file)
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(path, file):
    """Lock the open file, or refuse."""
    try:
        if os.name == "nt":
            os.lseek(file.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise LockedError(_refusal(path, _holder(file))) from None
    except OSError:  # a drive without locks: what is written there must do
        holder = _holder(file)
        if holder and not _is_gone(holder):
            remedy = f"If that training is over, remove {path}."
            raise LockedError(f"{_refusal(path, holder)} {remedy}") from None


def _give_back(path, file):
    # Windows removes no open file, and elsewhere it must be gone before another may lock it.
    if os.name == "nt":
        file.close()
    with suppress(OSError):
        path.unlink()
    file.close()


def _holder(file):
    """Return what the file says of who holds it; empty if nothing."""
    try:
        file.seek(0)
        return dict(json.loads(file.read()))
    except (ValueError, OSError):
        return {}


def _is_gone(holder):
    """Say whether the holder is known to have ended; of other machines nothing is known."""
    process, here = holder.get("process"), holder.get("machine") == platform.node()
    return here and (process == os.getpid() or not psutil.pid_exists(process))


def _refusal(path, holder):
    process, machine = holder.get("process", "unknown"), holder.get("machine", "unknown")
    return (
        f"{path.parent} is in use: process {process} on {machine} trains there since "
        f"{holder.get('since', 'unknown')}. Expected one training per folder at a time; wait "
        "until it has ended, or give another folder."
    )
