"""Signals end a command as Ctrl-C does, and its workers with it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from training_cells import environment_of_a_program

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Linux and macOS")

# A command that waits, with a half-written file and a worker that has work for a long time.
COMMAND = """
import os, sys, time
from joblib import Parallel, delayed
from cytomad_lib import cli as command_line
from cytomad_lib.data.files import written_beside
from cytomad_lib.stopping import in_worker


@command_line.app.command()
def work(folder: str):
    jobs = (delayed(in_worker)(os.getpid(), time.sleep, 300) for _ in range(2))
    results = Parallel(n_jobs=2, return_as="generator")(jobs)
    with written_beside(folder + "/scores.csv") as beside:
        beside.write_text("half of it")
        time.sleep(4)
        print("at work", flush=True)
        time.sleep(300)

command_line.main()
"""


@pytest.fixture
def command(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "work", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of_a_program(),
        start_new_session=True,
    )
    assert process.stdout.readline() == "at work\n"
    yield process
    process.kill()
    process.communicate()


def workers_left(workers, seconds=3):
    end = time.monotonic() + seconds
    while (left := [one for one in workers if one.is_running()]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_ends_the_command_and_its_workers(command, tmp_path, name):
    workers = psutil.Process(command.pid).children(recursive=True)
    assert len(workers) >= 2
    number = getattr(signal, name)
    command.send_signal(number)
    _, said = command.communicate(timeout=20)
    assert not workers_left(workers)
    if name == "SIGKILL":
        return
    assert command.returncode == 128 + number
    assert said.strip() == (
        f"Stopped by {name}. What is written is whole; the same command, given again, goes on or "
        "begins anew."
    )
    assert not list(tmp_path.iterdir())


def test_what_is_ignored_stays_ignored():
    program = (
        "import signal, os\n"
        "from cytomad_lib.stopping import Stopped, stopped_by_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as nohup does
        "with stopped_by_signals():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment_of_a_program(),
    )
    assert done.stdout == "still here\n" and done.returncode == 128 + signal.SIGTERM
