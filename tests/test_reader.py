"""The child process that reads HDF5: it dies alone, is started again, and leaves no orphan."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reader_jobs
from mutations import FAULTS, WRITERS, run

from cytomad_lib.data import matfiles, reader
from cytomad_lib.data.errors import ImageFileError
from cytomad_lib.data.matfiles import read_mat, write_mat
from cytomad_lib.data.stackfiles import inspect_stack

STACK = np.arange(6 * 5 * 7, dtype=np.float32).reshape(6, 5, 7)
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")


@pytest.fixture
def path(tmp_path):
    write_mat(tmp_path / "H69_BF.mat", {"BF": STACK})
    return tmp_path / "H69_BF.mat"


def child_id():
    return reader._child._process.pid


@pytest.mark.parametrize("form", WRITERS)
def test_damaged_bytes_end_in_an_array_or_an_error(form, capsys):
    counts = run(form, 300)
    assert {fault: counts[fault] for fault in FAULTS} == dict.fromkeys(FAULTS, 0), (
        capsys.readouterr()
    )
    assert counts["refused"] > 50 and counts["same"] + counts["values"] > 3


@posix
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_while_reading_is_an_error_that_names_the_file(path, number):
    with pytest.raises(
        ImageFileError, match=r"H69_BF.mat cannot be read: the HDF5 library crashed"
    ):
        reader.ask(reader_jobs.crash, path, ImageFileError, "file", number=number)
    np.testing.assert_array_equal(read_mat(path, "BF"), np.moveaxis(STACK, 2, 0))


@posix
def test_a_child_that_died_meanwhile_is_started_again(path):
    read_mat(path, "BF")
    os.kill(child_id(), signal.SIGKILL)
    time.sleep(0.1)
    assert len(read_mat(path, "BF")) == 7


def test_limits_on_time(path, monkeypatch):
    """By the processor's clock where there is one, and by the wall's everywhere."""
    inspect_stack(path, "BF")
    with monkeypatch.context() as shorter:
        shorter.setattr(reader, "WALL_FACTOR", 0.3)
        with pytest.raises(ImageFileError, match="took too long"):
            reader.ask(reader_jobs.wait, path, ImageFileError, "file")
    if sys.platform == "linux":
        start = time.perf_counter()
        with pytest.raises(ImageFileError, match="took too long .more than 1 s"):
            reader.ask(reader_jobs.compute, path, ImageFileError, "file")
        assert time.perf_counter() - start < 20
    assert len(read_mat(path, "BF")) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory is Linux's")
def test_limit_on_memory(path):
    with pytest.raises(ImageFileError, match="takes more than 1 GB of memory"):
        reader.ask(reader_jobs.fill, path, ImageFileError, "file")


def test_threads_may_read_at_the_same_time(path):
    found = {}

    def read(number):
        for cell in range(7):
            found[number, cell] = read_mat(path, "BF", [cell])[0]

    threads = [threading.Thread(target=read, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 28
    for (_, cell), image in found.items():
        np.testing.assert_array_equal(image, STACK[..., cell])


def test_what_is_printed_is_no_answer(path):
    result, arrays = reader.ask(reader_jobs.talk, path, ImageFileError, "file")
    assert (result, [bytes(array) for array in arrays]) == ("said", [b"numbers"])


def test_other_errors_are_told_in_one_line(path):
    with pytest.raises(ImageFileError) as caught:
        reader.ask(reader_jobs.fail, path, ImageFileError, "v7.3 file")
    assert str(caught.value) == (
        f"{path} cannot be read: two lines. Expected a complete v7.3 file; it is damaged or cut "
        "short. Copy or download the file again."
    )


def test_an_interrupted_answer_is_not_taken_for_the_next(path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    inspect_stack(path, "BF")
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            read_mat(path, "BF", [3])
    np.testing.assert_array_equal(read_mat(path, "BF", [5])[0], STACK[..., 5])


def test_a_file_that_changed_in_between_is_refused(path, monkeypatch):
    info = inspect_stack(path, "BF")
    write_mat(path, {"BF": STACK.transpose(1, 0, 2)})
    monkeypatch.setattr(matfiles, "inspect_stack", lambda *_: info)
    with pytest.raises(ImageFileError, match="has changed since"):
        read_mat(path, "BF")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_has_a_child_of_its_own(path):
    read_mat(path, "BF")
    mine, (here, there) = child_id(), os.pipe()
    forked = os.fork()
    if not forked:  # nothing may leave this branch
        read_mat(path, "BF")
        os.write(there, b"own" if child_id() != mine else b"shared")
        reader._child.stop()
        os._exit(0)
    os.waitpid(forked, 0)
    assert os.read(here, 10) == b"own"
    assert len(read_mat(path, "BF")) == 7 and child_id() == mine


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_is_left(path, number):
    code = (
        "import sys, time; from cytomad_lib.data import matfiles, reader;"
        f"matfiles.read_mat({str(path)!r}, 'BF');"
        "print(reader._child._process.pid, flush=True); time.sleep(60)"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    child = int(program.stdout.readline())
    os.kill(child, signal.SIGINT)  # Ctrl-C is the program's alone
    os.kill(child, 0)
    os.kill(program.pid, number)
    program.wait()
    program.stdout.close()
    for _ in range(50):
        if not is_running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")


def is_running(process):
    """Whether a process is there, and not only its exit code, which nobody may have asked for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = f"/proc/{process}/status"
    return not (os.path.exists(status) and "State:\tZ" in open(status).read())


def test_modules_in_the_working_folder_are_not_run(path, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not NumPy')")
    code = (
        f"from cytomad_lib.data.matfiles import read_mat; print(len(read_mat({str(path)!r}, 'BF')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "7", done.stderr


def test_a_locked_file_is_named(path):
    """Another program has it open for writing."""
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print('locked', flush=True); input()"
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout.readline().strip() == b"locked"
    try:
        with pytest.raises(ImageFileError, match="open in another program.*USE_FILE_LOCKING"):
            inspect_stack(path, "BF")
    finally:
        program.communicate(b"\n")
    assert inspect_stack(path, "BF").shape == (6, 5, 7)
