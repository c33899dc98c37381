"""A child process that reads image files, so that a damaged one cannot take the program with it.

HDF5 is a large library in C. A wrong byte can crash it, make it loop for ever or make it ask for
all the memory there is, and no program can catch that in its own process. So one child process
(`python -m cytomad_lib.data.reader`) opens these files, and those of other formats. It starts with
the first file and stays.
Each request has a limit on processor time, on time by the clock and, where the system has such
limits, on memory. A child that died is started again for the next request. The child ends when its
input closes, so it never outlives the program.

A request is a line of JSON. The answer is a sequence of messages, each with its kind and size:
`J` a result in JSON, `B` the bytes of an array, `E` an error, `.` the end. Nothing is pickled.

Example
-------
>>> ask(hdf5.stack, "H69_BF.mat", ImageFileError, "v7.3 file", variable="BF")  # doctest: +SKIP
({'shape': [64, 64, 96], 'dtype': 'float32'}, [])
"""

import atexit
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import cytomad_lib
from cytomad_lib.data.errors import CytomadError

MEMORY = 2**30  # bytes that the child may take, its own 0.2 GB included
CPU_SECONDS = 1.0  # for a request without arrays; it takes a few milliseconds
WALL_FACTOR = 40  # a disk may be slow, or asleep
BYTES_PER_SECOND = 20e6  # read and inflated at least: a tenth of what a laptop does
HEADER = struct.Struct("<cQ")  # kind and size of a message
GET_AGAIN = "Copy or download the file again."


def first_bytes(path, n, error, expected):
    """Return the first bytes of a file, after making sure that it is one.

    A pipe or a device would block whoever opens it.

    Parameters
    ----------
    path : pathlib.Path
    n : int
        How many bytes.
    error : type
        Of the exception.
    expected : str
        What the file should be, such as "a .mat file".

    Raises
    ------
    error
        If the path is missing, a folder, a pipe or a device, empty, or may not be read.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise error(f"{path} is a folder. Expected {expected}; name a file in it.")
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path} is a pipe or a device. Expected {expected}; give a regular file.")
        with path.open("rb") as file:
            start = file.read(n)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist. Expected {expected}; check the path.") from None
    except OSError as problem:
        raise error(
            f"{path} cannot be opened ({problem.strerror}). Expected {expected} that you may read; "
            "check its permissions."
        ) from problem
    if not start:
        raise error(f"{path} is empty (0 bytes). Expected {expected}. {GET_AGAIN}")
    return start


# --- Parent ----------------------------------------------------------------------------------


def ask(function, path, error, expected, out=None, n_bytes=0, **arguments):
    """Read a file in the child process.

    Parameters
    ----------
    function : generator function
        Such as those in `cytomad_lib.data.hdf5`; the child finds it by its module and name. It
        takes the path, and yields a result that fits into JSON, then contiguous arrays.
    path : path
    error : type
        Of the exception.
    expected : str
        What the file should be, for the message.
    out : C-contiguous array, optional
        Where the bytes of all arrays go, one after the other.
    n_bytes : int
        About how many bytes are read; gives more time.
    arguments
        More arguments of the function; they must fit into JSON.

    Returns
    -------
    result : object
    arrays : list of bytearray
        Empty where `out` is given.

    Raises
    ------
    error
        If the function refuses the file, fails, crashes, or exceeds a limit.
    """
    seconds = CPU_SECONDS + n_bytes / BYTES_PER_SECOND
    request = {
        "function": (function.__module__, function.__name__),
        "seconds": seconds,
        "arguments": {"path": str(path)} | arguments,
    }
    target = None if out is None else memoryview(out).cast("B")
    refusal, failure, *answer = _child.answer(request, target)
    if refusal:
        raise error(refusal)
    if failure:
        raise error(
            f"{path} cannot be read: {failure}. Expected a complete {expected}; it is damaged or "
            f"cut short. {GET_AGAIN}"
        )
    return answer


class _Child:
    """The process, and a lock: threads that fetch cells in advance ask, too."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process = None

    def answer(self, request, target):
        """Return (refusal or None, failure or None, result, arrays)."""
        with self._lock:
            process = self._started()
            too_late = threading.Event()
            limit = WALL_FACTOR * request["seconds"]
            watch = threading.Timer(limit, lambda: (too_late.set(), process.kill()))
            watch.daemon = True
            watch.start()
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                answer = _receive(process.stdout, target)
            except (EOFError, OSError):
                code = self.stop()
                answer = (None, _why(code, too_late.is_set(), request["seconds"]), None, [])
            except BaseException:  # Ctrl-C: the rest of this answer must not be taken for the next
                self.stop()
                raise
            finally:
                watch.cancel()
            if too_late.is_set():
                self.stop()
            return answer

    def stop(self):
        """End the process; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _started(self):
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        # -P: a numpy.py in the working folder is not NumPy. This library comes first.
        command = [sys.executable, "-P", "-m", __name__]
        paths = [str(Path(cytomad_lib.__file__).parents[1]), *filter(None, sys.path)]
        own_group = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )  # so that Ctrl-C reaches the program alone
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            **own_group,
        )
        try:
            _receive(process.stdout, None)  # ready
        except EOFError:
            raise CytomadError(
                f"The process that reads image files ended at its start (exit code {self.stop()}). "
                f"Expected {sys.executable} to run; see what {' '.join(command)} prints."
            ) from None
        return process


def _receive(stream, target):
    """Read messages up to the end of an answer."""
    refusal = failure = result = None
    arrays, filled = [], 0
    while True:
        kind, size = HEADER.unpack(_exactly(stream, bytearray(HEADER.size)))
        if kind == b".":
            return refusal, failure, result, arrays
        if kind == b"B" and target is not None:
            if filled + size > len(target):
                raise EOFError  # the file has changed in between
            _exactly(stream, target[filled : filled + size])
            filled += size
            continue
        content = _exactly(stream, bytearray(size))
        if kind == b"B":
            arrays.append(content)
        elif kind == b"J":
            result = json.loads(content)
        else:
            refusal, failure = json.loads(content)


def _exactly(stream, target):
    if stream.readinto(target) != len(target):
        raise EOFError
    return target


def _why(code, too_late, seconds):
    if too_late or code == -getattr(signal, "SIGPROF", 0):
        return f"reading it took too long (more than {seconds:.0f} s)"
    return f"the HDF5 library crashed on it (exit code {code})"


_child = _Child()
atexit.register(lambda: _child.stop())
if hasattr(os, "register_at_fork"):  # a forked process needs a child of its own

    def _renew():
        global _child
        _child = _Child()

    os.register_at_fork(after_in_child=_renew)


# --- Child -----------------------------------------------------------------------------------


def _serve():
    """Answer requests until the input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that no library prints into the answers
    import_module("cytomad_lib.data.stackfiles")  # before any limit on time
    _limit_memory()
    _send(answers, b".")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_time(request["seconds"])
        try:
            module, name = request["function"]
            parts = getattr(import_module(module), name)(**request["arguments"])
            _send(answers, b"J", json.dumps(next(parts)).encode())
            for array in parts:
                _send(answers, b"B", array)
        except Exception as error:  # damaged files raise errors of almost any kind
            refusal, failure = None, " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, CytomadError):
                refusal = str(error)
            elif isinstance(error, MemoryError):
                failure = f"it takes more than {MEMORY / 1e9:.0f} GB of memory"
            _send(answers, b"E", json.dumps([refusal, failure]).encode())
        _limit_time(0)
        _send(answers, b".")


def _send(answers, kind, content=b""):
    view = memoryview(content).cast("B")
    answers.write(HEADER.pack(kind, len(view)))
    answers.write(view)
    if kind == b".":
        answers.flush()


def _limit_memory():
    """Limit the memory where the system can; leave no core file behind after a crash."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_time(seconds):
    """End this process after so much processor time; a slow disk takes none. 0 lifts the limit."""
    if hasattr(signal, "ITIMER_PROF"):  # elsewhere there is the parent's clock
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    _serve()
