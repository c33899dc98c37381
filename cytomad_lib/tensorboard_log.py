"""The losses of a run for TensorBoard: `tensorboard --logdir RUN/tensorboard`.

`history.csv` stays what counts. This log repeats it: from the first epoch each time a training
starts, so an interrupted run leaves no gap and no epoch twice, then epoch by epoch.

TensorBoard's own writer is used, and not Keras' callback: it needs no TensorFlow, so runs on
PyTorch have a log, too, and it takes epochs that are already over.

Example
-------
>>> log = TensorBoardLog(run)
>>> pretrain(run, train, valid, callbacks=[log])
>>> log.close()
"""

import shutil

from cytomad_lib.backend import keras
from cytomad_lib.packages import find_package
from cytomad_lib.runs import CLASSIFIER_FOLDERS, IMAGES, STAGES

FOLDER = "tensorboard"  # in the run's


class TensorBoardLog(keras.callbacks.Callback):
    """Copy the losses of all stages into event files, after each epoch.

    Parameters
    ----------
    run : Run
        An earlier log of it is replaced.

    Raises
    ------
    PackageError
        If the package tensorboard is missing.
    """

    def __init__(self, run):
        super().__init__()
        self.run = run
        self._writer = find_package("tensorboard.summary", "log").Writer
        self._writers, self._written = {}, {}
        shutil.rmtree(run.folder / FOLDER, ignore_errors=True)
        self.update()

    def on_epoch_end(self, epoch, logs=None):
        """Copy the epoch, which is already in `history.csv`; Keras calls this."""
        self.update()

    def update(self):
        """Copy the epochs that are not copied yet, of all stages."""
        for stage in (*STAGES, IMAGES, *CLASSIFIER_FOLDERS):
            history = self.run.history(stage)
            new = history.iloc[self._written.get(stage, 0) :]
            if not len(new):
                continue
            if stage not in self._writers:
                self._writers[stage] = self._writer(str(self.run.folder / FOLDER / stage))
            for row in new.to_dict("records"):
                epoch = int(row.pop("epoch"))
                for name, value in row.items():
                    self._writers[stage].add_scalar(name, value, epoch)
            self._writers[stage].flush()
            self._written[stage] = len(history)

    def close(self):
        """Copy what is left, and close the files."""
        self.update()
        for writer in self._writers.values():
            writer.close()
