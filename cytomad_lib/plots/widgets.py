"""The parts of explorers: controls, and the classes that redraw a figure when one is moved.

- `Explorer`: controls, a figure, and a sentence below it.
- `CellExplorer`: the same, with controls that choose one cell by batch, class and number.
- `choice`, `integer_slider`, `number_slider`, `setting_slider`: the controls.

An explorer also displays `widget_names.js`, which gives each slider its name for screen readers.

Example
-------
>>> slider = integer_slider("cell", 0, 9)
>>> slider.max
9
"""

import base64
import html
import sys
from contextlib import contextmanager
from importlib import resources

import ipywidgets
import numpy as np
from IPython.display import display

from cytomad_lib.plots.explorer_figures import setting_label
from cytomad_lib.plots.style import CSS_PIXELS_PER_INCH, alt_text, as_png, live_region

ALL = "all"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NAMES = resources.files("cytomad_lib.plots").joinpath("widget_names.js")


class Explorer:
    """What all explorers share: controls, a figure, and a sentence below it.

    A subclass makes its controls and calls `_start`. Its `_show` returns the figure and the words.

    Attributes
    ----------
    image : ipywidgets.Image
        The figure as PNG.
    text : ipywidgets.HTML
        What the figure shows, in words: a live region.
    figure : Figure
        The last one drawn.
    """

    def _start(self, *rows):
        """Stack the rows of controls, the figure and the words, and draw."""
        self.image = ipywidgets.Image(
            format="png", layout={"max_width": "100%", "align_self": "flex-start"}
        )
        self.text = ipywidgets.HTML()
        self.text.add_class("cytomad-words")
        self._quiet = False
        for control in [control for row in rows for control in row]:
            control.observe(self._changed, names="value")
        lines = [ipywidgets.HBox(list(row), layout={"flex_flow": "row wrap"}) for row in rows]
        self.box = ipywidgets.VBox([*lines, self.image, self.text])
        self.box.add_class("cytomad-explorer")
        self.update()

    def update(self):
        """Redraw for the present values of the controls."""
        self.figure, words = self._show()
        # At its size in inches: stretched to the width of the page, it would be blurred.
        self.image.width = f"{self.figure.get_figwidth() * CSS_PIXELS_PER_INCH:.0f}"
        self.image.value = as_png(self.figure)
        self.text.value = live_region(words)

    def _changed(self, change):
        if self._quiet:
            return
        try:
            with self._together():
                self._follow(change["owner"])
            self.update()
        except Exception as error:
            # Jupyter writes errors of callbacks to a log that is hidden by default.
            words = f"<b>This did not work:</b> {html.escape(str(error))}"
            self.text.value = live_region(words)
            raise

    def _follow(self, moved):
        """Adjust other controls after one was moved; by default none."""

    @contextmanager
    def _together(self):
        """Change several controls with one update."""
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def _ipython_display_(self):
        """Display the widget, and the script that names its sliders."""
        display({"application/javascript": _NAMES.read_text(encoding="utf-8")}, raw=True)
        bundle, about = self._repr_mimebundle_()
        display(bundle, raw=True, metadata=about)

    def _repr_mimebundle_(self, **_):
        """Return the widget, and a picture for pages without widgets, such as GitHub's."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        bundle = {"text/plain": f"{type(self).__name__}: use the sliders", _WIDGET: view}
        if "google.colab" not in sys.modules:  # which might prefer the picture
            bundle["image/png"] = base64.b64encode(self.image.value).decode()
        return bundle, {"image/png": {"alt": alt_text(self.figure)}}


class CellExplorer(Explorer):
    """An explorer of one cell at a time, which is chosen by batch, class and number."""

    def _choose_from(self, cells):
        """Make the controls `batch`, `class_name` and `cell`; return them as a row."""
        self.cells = cells
        labels = cells.labels
        self.batch = choice("batch", [ALL, *present(labels["batch"])])
        self.class_name = choice("class", [ALL, *present(labels["class_name"])])
        self._rows = np.arange(len(labels))
        self.cell = integer_slider("cell", 0, len(labels) - 1)
        return self.batch, self.class_name, self.cell

    @property
    def row(self):
        """Number of the cell shown: its row in `cells`."""
        return int(self._rows[self.cell.value])

    def _follow(self, moved):
        if moved is self.batch:
            # Not every class was measured in every batch: offer those that were.
            own = self.cells.labels["class_name"][self._in("batch", self.batch.value)]
            chosen, options = self.class_name.value, (ALL, *present(own))
            self.class_name.options = options
            self.class_name.value = chosen if chosen in options else ALL
        if moved in (self.batch, self.class_name):
            in_batch = self._in("batch", self.batch.value)
            in_class = self._in("class_name", self.class_name.value)
            self._rows = np.flatnonzero(in_batch & in_class)
            self.cell.value = 0
            self.cell.max = len(self._rows) - 1

    def _in(self, column, value):
        labels = self.cells.labels
        return np.ones(len(labels), bool) if value == ALL else (labels[column] == value).to_numpy()

    def _images(self):
        """Return the images of the cell: brightfield, measured phase, and the truth if known."""
        cells, row = self.cells, [self.row]
        images = {"brightfield": cells.brightfield[row], "measured phase": cells.qpi[row]}
        return images if cells.truth is None else images | {"batch-free truth": cells.truth[row]}

    def _name(self):
        """Return which cell is shown, as HTML."""
        own = self.cells.labels.iloc[self.row]
        group = ", ".join(str(own[name]) for name in ("class_name", "batch", "dose") if name in own)
        of = f"cell {self.cell.value} of {len(self._rows)} (0 to {len(self._rows) - 1})"
        return f"<b>{html.escape(group)}</b>, cell {own['cell']} of its file; here {of}."


def choice(description, options, value=None, width="16em"):
    """Return a list to choose from; `options` are values, or pairs of text and value."""
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return ipywidgets.Dropdown(
        options=options,
        value=first if value is None else value,
        description=description,
        layout={"width": width},
    )


def integer_slider(description, low, high):
    """Return a slider over whole numbers."""
    return ipywidgets.IntSlider(
        value=low,
        min=low,
        max=high,
        description=description,
        continuous_update=False,  # drawing takes a moment
        layout={"width": "24em"},
    )


def number_slider(description, low, high, value, step=0.02, digits=".3f"):
    """Return a slider over decimal numbers."""
    return ipywidgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=description,
        readout_format=digits,
        continuous_update=False,
        layout={"width": "26em"},
    )


def setting_slider(setting):
    """Return a slider for one `Setting` of the microscope, from its lower to its upper limit."""
    step = (setting.most - setting.least) / 60
    digits = ".4f" if step < 5e-4 else ".3f" if step < 0.05 else ".2f"
    label = setting_label(setting.name)
    slider = number_slider(label, setting.least, setting.most, setting.nominal, step, digits)
    slider.style.description_width = "10em"
    slider.layout.width = "28em"
    return slider


def present(column):
    """Return the categories that have cells, in their order."""
    there = set(column.unique())
    return [name for name in column.cat.categories if name in there]
