"""One stage of a training: a model is fitted into a folder, epoch by epoch, and resumed.

Example
-------
>>> stage = Stage("results/run/pretraining", model, {"generator": generator}, epochs=8)
>>> history = stage.fit(feed, valid_feed, verbose=1)          # losses per epoch
"""

import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.backend import keras
from cytomad_lib.data.errors import RunError
from cytomad_lib.data.files import FileInMemory, write_table
from cytomad_lib.devices import ONE
from cytomad_lib.history import HISTORY, SECONDS, best_epoch, read_history
from cytomad_lib.runs import weights_name
from cytomad_lib.weights import load_run_weights


class Stage:
    """One model fitted into one folder: epochs are kept, resumed, and the best one restored.

    Parameters
    ----------
    folder : path
    model : keras.Model
        Compiled.
    networks : dict of keras.Model
        What is kept of the best epoch, by name.
    epochs : int
    last : bool
        Keep the last epoch, not the one of the lowest validation loss.
    """

    def __init__(self, folder, model, networks, epochs, last=False):
        self.folder = Path(folder)
        self.last = last
        self.model = model
        self.networks = networks
        self.epochs = epochs
        self.epochs_done = len(read_history(self.folder))

    def fit(self, feed, valid_feed, verbose=0, callbacks=(), watching=(), devices=ONE):
        """Fit to the end of the epochs, from where an earlier call stopped; return the history.

        `watching` callbacks run after an epoch is written, so they cannot lose it.
        """
        if devices.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
        if 0 < self.epochs_done < self.epochs:
            say(verbose, f"Going on after epoch {self.epochs_done} of {self.epochs}")
            load_run_weights(self.model, self.folder / weights_name("checkpoint", self.epochs_done))
        if self.epochs_done < self.epochs:
            with _kept_in(self.folder, devices) as folder:
                keep = KeepEpoch(self, folder)
                self._fit(feed, valid_feed, verbose, [*callbacks, keep, *watching])
        devices.wait()  # until the last epoch is written
        history = read_history(self.folder)
        best = best_epoch(history, self.last)
        for name, network in self.networks.items():
            load_run_weights(network, self.folder / weights_name(name, best))
        return history

    def _fit(self, feed, valid_feed, verbose, callbacks):
        try:
            self.model.fit(
                feed,
                validation_data=valid_feed,
                initial_epoch=self.epochs_done,
                epochs=self.epochs,
                shuffle=False,  # the feed does, by the run's seed
                verbose=verbose,
                callbacks=callbacks,
            )
        except Exception as error:
            # A damaged file, in the words of whoever met it, not in those of the engine.
            raise feed.error or valid_feed.error or error from None


@contextmanager
def _kept_in(folder, devices):
    """Give the folder for the epochs: of machines that write nothing one that is thrown away.

    They have to save, too: to read the metrics, all machines must add up theirs.
    """
    if devices.writes:
        yield folder
        return
    with tempfile.TemporaryDirectory() as thrown_away:
        yield Path(thrown_away)


class KeepEpoch(keras.callbacks.Callback):
    """Write an epoch's checkpoint, its networks if they are the best so far, then its losses."""

    def __init__(self, stage, folder):
        super().__init__()
        self.stage = stage
        self.folder = folder

    def on_train_begin(self, logs=None):
        """Start the clock; Keras calls this."""
        self.since = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Write the epoch; Keras calls this."""
        number, folder = epoch + 1, self.folder
        row = {"epoch": number} | {name: float(value) for name, value in logs.items()}
        # Since the last epoch's end: what other callbacks do before an epoch is training, too.
        now = time.perf_counter()
        row[SECONDS], self.since = round(now - self.since, 3), now
        if not np.isfinite(list(row.values())).all():
            raise RunError(
                f"A loss became infinite or not a number in epoch {number}: {row}. The run in "
                f"{folder} holds the epochs before; lower the learning rates, or check the "
                "images' units with `check`."
            )
        history = pd.concat([read_history(folder), pd.DataFrame([row])], ignore_index=True)
        best = best_epoch(history, self.stage.last)
        save_weights(self.model, folder / weights_name("checkpoint", number))
        if best == number:
            with getattr(self.model, "delivered", nullcontext)():
                for name, network in self.stage.networks.items():
                    save_weights(network, folder / weights_name(name, number))
        write_table(history, folder / HISTORY, index=False)
        self._forget_others(number, best)

    def _forget_others(self, last, best):
        keep = dict.fromkeys(self.stage.networks, best) | {"checkpoint": last}
        for name, epoch in keep.items():
            # What this class wrote, and no file of the user's.
            for path in self.folder.glob(f"{name}_{'[0-9]' * 6}.weights.h5"):
                if path.name != weights_name(name, epoch):
                    path.unlink()


def save_weights(model, path):
    """Write weights in one piece."""
    file = FileInMemory(path)
    model.save_weights(file)
    file.save()


def say(verbose, text):
    """Print a line at once, unless `verbose` is 0."""
    if verbose:
        print(text, flush=True)
