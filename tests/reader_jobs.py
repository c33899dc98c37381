"""Functions that `test_reader` runs in the child process."""

import os
import time

import numpy as np


def crash(path, number):
    """End by a signal."""
    os.kill(os.getpid(), number)
    yield None


def wait(path):
    """Take time, but not the processor's."""
    time.sleep(60)
    yield None


def compute(path):
    """Loop for ever."""
    while True:
        pass
    yield None


def fill(path):
    """Take 4 GB."""
    yield int(np.ones(2**29).sum())


def talk(path):
    """Print into the answer."""
    print("not an answer")
    yield "said"
    yield np.frombuffer(b"numbers", np.uint8)


def fail(path):
    """Raise what no reader foresees."""
    raise ZeroDivisionError("two\n  lines")
    yield None
