"""One training per folder: a second one is refused by name, a killed one leaves no refusal."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from training_cells import environment_of_a_program

from cytomad_lib import locks
from cytomad_lib.data.errors import WriteError
from cytomad_lib.locks import LOCK, LockedError, check_free, locked

HOLD = """
import sys, time
from cytomad_lib.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another program that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env=environment_of_a_program(),
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_program_is_named_and_the_next_comes_in_when_it_was_killed(holder, tmp_path):
    for refused in (lambda: check_free(tmp_path), locked(tmp_path).__enter__):
        with pytest.raises(LockedError) as caught:
            refused()
        for words in (f"process {holder.pid} on ", "since 2", "wait until", "another folder"):
            assert words in str(caught.value)
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()  # it could not tidy up
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_who_holds_a_folder_may_ask_again_but_not_from_another_thread(tmp_path):
    errors = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except LockedError as error:
            errors.append(error)

    with locked(tmp_path):
        with locked(tmp_path):
            check_free(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    with locked(tmp_path):
        pass


def test_nothing_is_made_where_nobody_is(tmp_path):
    check_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"), locked(tmp_path / "file"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="stands for a drive that Linux or macOS mounts")
def test_a_drive_without_locks_goes_by_what_is_written(holder, tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(LockedError, match=f"process {holder.pid} .*remove .*{LOCK}"):
        check_free(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        text = (tmp_path / LOCK).read_text()
    (tmp_path / LOCK).write_text(text.replace(json.loads(text)["machine"], "elsewhere"))
    with pytest.raises(LockedError, match="on elsewhere.*If that training is over, remove"):
        check_free(tmp_path)
