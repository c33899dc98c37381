"""How a command ends early: by Ctrl-C, or by a signal of the system; and what ends with it.

SIGTERM (a computing cluster, a container) and SIGHUP (a closed terminal) end a command as Ctrl-C
does: what is under way is given up, nothing half-written is left, worker processes end, and the
exit code is 128 plus the signal's number.
"""

import os
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from functools import cache

import psutil

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Stopped(SystemExit):
    """A signal asked the program to end.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number):
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name

    def __str__(self):
        """Say what happened, and what now."""
        return (
            f"Stopped by {self.signal}. What is written is whole; the same command, given again, "
            "goes on or begins anew."
        )


@contextmanager
def stopped_by_signals():
    """Let signals raise `Stopped` in here. What is ignored stays so, as SIGHUP after `nohup`.

    A signal that comes once more ends the process at once.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number, frame):
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def stop_workers():
    """End the processes of joblib, which would wait a while for more work."""
    warnings.filterwarnings("ignore", module="joblib")  # what is given up needs no warning
    pools = sys.modules.get("joblib.externals.loky.reusable_executor")
    if pools and pools._executor:
        pools._executor.shutdown(wait=False, kill_workers=True)


def in_worker(asked_by, work, *arguments):
    """Do work in a process that ends when its parent does, also when that is killed.

    Parameters
    ----------
    asked_by : int
        Process that asks for the work. If it does the work itself, that is all.
    work : callable
    arguments
        Of the work.
    """
    if os.getpid() != asked_by:
        _end_with_parent()
    return work(*arguments)


@cache
def _end_with_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent):
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(0.5)
    os._exit(1)
