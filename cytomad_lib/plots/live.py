"""Watch a training: losses and the images of a few fixed cells, redrawn after every epoch.

- `LiveView`: a Keras callback for any model of the kit. In a notebook it redraws one picture in
  place, and a line of words above it, so that the saved notebook holds the last ones only.
  Elsewhere it draws nothing and keeps losses and images all the same.
- `StopAfter`: a Keras callback that interrupts after an epoch, as a notebook's stop button does.

Example
-------
>>> live = LiveView(test_cells.select([0, 30, 60]), names=("loss", "mae"))
>>> pretrain(run, train, valid, callbacks=[live])
>>> live.film()                          # the same cells after some of the epochs, side by side
"""

import sys

import numpy as np
import pandas as pd

from cytomad_lib.backend import keras
from cytomad_lib.plots.cells import image_grid, limits_of
from cytomad_lib.plots.style import live_region, new_figure
from cytomad_lib.plots.training import draw_losses
from cytomad_lib.training.steps import without_gradients

MOST_CELLS = 6  # side by side in one picture; more would be too small to see
MOST_LOSSES = 3
USUAL_LOSSES = ("loss", "mae", "discriminator_loss", "accuracy")  # shown first, where there are


class LiveView(keras.callbacks.Callback):
    """Redraw losses, and the generated images of a few cells, after every epoch.

    Pass it to `Run.pretrain`, `Run.remove_batches` or to `fit`. Pass the same one again when an
    interrupted training continues: its losses then continue, too.

    Parameters
    ----------
    cells : CellImages, optional
        The cells to follow, 6 at most; without them, or if the model has no generator, only losses
        are drawn.
    names : sequence of str, optional
        Losses to draw, without "val_", at most 3. By default `loss` and those next to it.
    every : int
        Draw after every so many epochs. The last epoch is always drawn.
    show : bool
        If false, nothing is drawn, and losses and images are kept all the same.

    Attributes
    ----------
    images : dict
        Number of the epoch (0 is before the training) to the generated images of the cells,
        (cells, height, width, 1) in rad.
    model : keras.Model
        The model that is, or was, trained.

    Raises
    ------
    ValueError
        If there are too many cells or names.
    """

    def __init__(self, cells=None, names=None, every=1, show=True):
        super().__init__()
        for what, values, most in (("cells", cells, MOST_CELLS), ("names", names, MOST_LOSSES)):
            if values is not None and not 0 < len(values) <= most:
                raise ValueError(
                    f"Found {len(values)} {what} to follow. Expected 1 to {most}; select fewer."
                )
        self.cells = cells
        self.names = names
        self.every = every
        self.show = show
        self.images = {}
        self._rows = {}
        self._started = False
        self._kind = None

    @property
    def history(self):
        """Losses seen so far: a DataFrame with one row per epoch, `epoch` counted from 1."""
        rows = [{"epoch": number} | self._rows[number] for number in sorted(self._rows)]
        return pd.DataFrame(rows)

    def on_train_begin(self, logs=None):
        """Take a new place in the notebook; Keras calls this."""
        self._screen = _Screen()
        self._started = False

    def on_epoch_begin(self, epoch, logs=None):
        """Show the cells before the first step, which takes long to prepare; Keras calls this."""
        if self._started:
            return
        self._started = True
        kind = self.model.name, *(metric.name for metric in self.model.metrics)
        if epoch == 0 or kind != self._kind:  # else the same training continues
            self.images, self._rows = {}, {}
        self._kind = kind
        if epoch not in self.images:
            self._look(epoch)
        self._draw()

    def on_epoch_end(self, epoch, logs=None):
        """Take the epoch's losses and images and redraw; Keras calls this."""
        number = epoch + 1
        self._rows[number] = {name: float(value) for name, value in (logs or {}).items()}
        if number % self.every == 0 or number == self._epochs():
            self._look(number)
            self._draw()

    def figure(self):
        """Draw the present state: losses above, cells below.

        Returns
        -------
        Figure
        """
        names = self._names()
        rows = bool(names) + bool(self.images)
        heights = [2.6] * bool(names) + [4.6] * bool(self.images)
        figure = new_figure(9, sum(heights) + 0.4, self._title())
        parts = np.atleast_1d(figure.subfigures(max(rows, 1), height_ratios=heights or None))
        if names:
            self._draw_losses(parts[0], names)
        if self.images:
            self._draw_cells(parts[-1])
        return figure

    def words(self):
        """Describe the present state: the epoch and its losses.

        Returns
        -------
        str
        """
        latest = self._rows.get(max(self._rows, default=0), {})
        losses = []
        for name in self._names():
            losses.append(f"{name.replace('_', ' ')} {latest[name]:.3g}")
            if f"val_{name}" in latest:
                losses[-1] += f" (validation {latest[f'val_{name}']:.3g})"
        return f"{self._title()}: {', '.join(losses)}." if losses else f"{self._title()}."

    def film(self, epochs=None, cells=4):
        """Show the same cells after some epochs, between brightfield and measured phase.

        Parameters
        ----------
        epochs : sequence of int, optional
            By default up to five, from before the training to its end.
        cells : int
            How many of the cells.

        Returns
        -------
        Figure

        Raises
        ------
        ValueError
            If there are no images of one of the epochs.
        """
        if epochs is None:
            seen = sorted(self.images)
            places = np.linspace(0, len(seen) - 1, min(5, len(seen))).round().astype(int)
            epochs = [seen[place] for place in places]
        missing = [number for number in epochs if number not in self.images]
        if missing or not epochs:
            raise ValueError(
                f"There are no images of epochs {missing}. Expected some of {sorted(self.images)}; "
                "train with this view first."
            )
        columns = {"Brightfield": self.cells.brightfield[:cells, ..., :1]}
        for number in epochs:
            name = f"epoch {number}" if number else "untrained"
            columns[name] = self.images[number][:cells]
        columns["Measured phase"] = self.cells.qpi[:cells]
        labels = _cell_names(self.cells.labels)[:cells]
        return image_grid(columns, self.cells.pixel_size_um, labels, limits=self._limits())

    def _epochs(self):
        return (self.params or {}).get("epochs") or 1

    def _look(self, number):
        generator = getattr(self.model, "generator", None)
        if self.cells is not None and generator is not None:
            with without_gradients():
                made, _ = generator(self.cells.brightfield, training=False)
            self.images[number] = keras.ops.convert_to_numpy(made)

    def _draw(self):
        if self.show and self._screen.is_there:  # elsewhere there is no place for a figure
            self._screen.show(self.figure(), self.words())

    def _names(self):
        there = dict.fromkeys(
            name.removeprefix("val_") for row in self._rows.values() for name in row
        )
        if self.names is not None:
            return [name for name in self.names if name in there]
        usual = [name for name in USUAL_LOSSES if name in there]
        return (usual + [name for name in there if name not in usual])[:MOST_LOSSES]

    def _title(self):
        if not self._started or not self._rows:
            return "The first step is being prepared: this takes up to half a minute"
        return f"After epoch {max(self._rows)} of {self._epochs()}"

    def _draw_losses(self, part, names):
        panels = part.subplots(1, len(names), squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            draw_losses(panel, self.history, name, self._epochs())
            panel.set(title=name.replace("_", " "), ylabel="")
            # Epochs to come have their place, so that the curves grow and do not shrink.
            panel.set_xlim(0.7, max(self._epochs(), 2) + 0.3)
        panels[0].legend(frameon=False)

    def _draw_cells(self, part):
        latest = max(self.images)
        rows = {
            "Brightfield": self.cells.brightfield[..., :1],
            f"Epoch {latest}": self.images[latest],
            "Measured phase": self.cells.qpi,
        }
        names = _cell_names(self.cells.labels)
        options = {"cells_in": "columns", "limits": self._limits(), "figure": part}
        image_grid(rows, self.cells.pixel_size_um, names, **options)

    def _limits(self):
        """Return one phase scale for all epochs, so that nothing flickers."""
        low, high = limits_of(self.cells)["phase"]
        return {"phase": (min(low, 0), high)}


class StopAfter(keras.callbacks.Callback):
    """Interrupt a training after an epoch, as the stop button of a notebook does.

    Parameters
    ----------
    epoch : int
        Counted from 1.

    Raises
    ------
    KeyboardInterrupt
        When that epoch is done.
    """

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        """Interrupt, if this was the epoch; Keras calls this."""
        if epoch + 1 == self.epoch:
            raise KeyboardInterrupt(f"stopped after epoch {self.epoch}, as asked")


class _Screen:
    """One place in a notebook's output: words that a screen reader announces, and a figure."""

    def __init__(self):
        # In a notebook, IPython is imported already; elsewhere it is not needed.
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.is_there = shell is not None and getattr(shell, "kernel", None) is not None
        self._handles = []

    def show(self, figure, words):
        from IPython.display import HTML, display

        shown = HTML(live_region(words)), figure
        if self._handles:
            for handle, one in zip(self._handles, shown, strict=True):
                handle.update(one)
        else:
            self._handles = [display(one, display_id=True) for one in shown]


def _cell_names(labels):
    return [f"{row.class_name}, {row.batch}" for row in labels.itertuples()]
