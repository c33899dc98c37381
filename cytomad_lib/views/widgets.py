"""Explorers: small instruments with sliders, to look at cells, features and the microscope.

Each is used in one line, as the last of a cell in a notebook:

- `browse_cells(cells)`: one cell after another, by batch and class.
- `explore_map(coordinates, cells)`: a map of cells whose points show their cell.
- `traverse_bottleneck(generator, cells)`: change a bottleneck feature and watch the image.
- `explore_features(features, cells)`: what does a feature follow?
- `turn_dials(generators)`: turn the dials of the simulated microscope.

All controls work by keyboard: Tab moves on, the arrow keys move a slider or choose from a list.
What is shown is in public attributes: `image` (PNG) and `text` (HTML), the sliders and lists by
their names, `figure` (the last one drawn), and `row`, the number of the cell shown.
So a program can use an explorer as a person does:

>>> explorer = browse_cells(cells)                       # doctest: +SKIP
>>> explorer.class_name.value = "H69"                    # doctest: +SKIP
>>> explorer.cell.value = 3                              # doctest: +SKIP
>>> explorer.row, explorer.text.value                    # doctest: +SKIP

The calculations are elsewhere, for use without sliders: `models.bottleneck`, `analysis.biophysics`,
`simulation.dials`, `analysis.dial_sweep`; the figures are those of `views.explorer_figures`.
"""

import base64
import html
import io
import sys
from contextlib import contextmanager

import ipywidgets
import numpy as np
import pandas as pd

from cytomad_lib.analysis import biophysics
from cytomad_lib.analysis.image_quality import dry_mass_pg, foreground_mask, image_scores
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.models.bottleneck import split_generator
from cytomad_lib.prediction import predict
from cytomad_lib.simulation.dials import DIALS, DialledCells, day_settings
from cytomad_lib.simulation.morphology import LUNG_LINES
from cytomad_lib.views import explorer_figures
from cytomad_lib.views.explorer_figures import MEASURE_LABELS, Panel

ALL = "all"
OWN_CHOICE = "the one it follows most"
SKIPS = {
    "kept": "as they are",
    "average": "those of the average cell",
    "none": "none: zeros",
}
LIGHT_DIALS = (
    "defocus_um", "na", "gain", "offset", "oblique_x", "oblique_y", "fringe", "read_noise",
)  # fmt: skip
PHASE_DIALS = ("qpi_scale", "qpi_blur_um", "qpi_tilt_x", "qpi_tilt_y", "qpi_noise")
NEIGHBOURS = 10
EXAMPLES = 4
_WIDGET = "application/vnd.jupyter.widget-view+json"


class Explorer:
    """What all explorers share: controls, a picture, a sentence, and how they follow each other.

    A subclass makes its controls, calls `_start`, and says in `_show` what they stand for.

    Attributes
    ----------
    image : ipywidgets.Image
        The figure as PNG.
    text : ipywidgets.HTML
        What it shows, in words.
    figure : Figure
        The last one drawn.
    """

    def _start(self, *rows):
        """Stack rows of controls, the picture and the words, and draw for the first time."""
        # At its own size: stretched to the width of the page, it would be blurred.
        self.image = ipywidgets.Image(
            format="png", layout={"max_width": "100%", "align_self": "flex-start"}
        )
        self.text = ipywidgets.HTML()
        self._quiet = False
        for control in [control for row in rows for control in row]:
            control.observe(self._changed, names="value")
        lines = [ipywidgets.HBox(list(row), layout={"flex_flow": "row wrap"}) for row in rows]
        self.box = ipywidgets.VBox([*lines, self.image, self.text])
        self.update()

    def update(self):
        """Draw anew, as the controls are now."""
        self.figure, words = self._show()
        self.image.value = _as_png(self.figure, dpi=80)
        self.text.value = words

    def _changed(self, change):
        if self._quiet:
            return
        try:
            with self._together():
                self._follow(change["owner"])
            self.update()
        except Exception as error:
            # Jupyter hides errors of callbacks in a log that nobody opens.
            self.text.value = f"<b>This did not work:</b> {html.escape(str(error))}"
            raise

    def _follow(self, moved):
        """Set other controls right after one was moved; nothing by default."""

    @contextmanager
    def _together(self):
        """Let several controls move as one."""
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def _repr_mimebundle_(self, **_):
        """Be displayed by a notebook; where there are no widgets (GitHub), as a picture."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        bundle = {"text/plain": f"{type(self).__name__}: use the sliders", _WIDGET: view}
        if "google.colab" not in sys.modules:  # which might prefer the picture
            # Small, as the saved notebook holds it beside the widget's own.
            picture = _as_png(self.figure, dpi=56)
            bundle["image/png"] = base64.b64encode(picture).decode()
        return bundle


class _CellExplorer(Explorer):
    """An explorer of one cell at a time, which is chosen by batch, class and number."""

    def _choose_from(self, cells):
        """Make the controls `batch`, `class_name` and `cell`; return them as a row."""
        self.cells = cells
        labels = cells.labels
        self.batch = _list("batch", [ALL, *_present(labels["batch"])])
        self.class_name = _list("class", [ALL, *_present(labels["class_name"])])
        self._rows = np.arange(len(labels))
        self.cell = _whole("cell", 0, len(labels) - 1)
        return self.batch, self.class_name, self.cell

    @property
    def row(self):
        """Number of the cell that is shown: its row in `cells`."""
        return int(self._rows[self.cell.value])

    def _follow(self, moved):
        if moved is self.batch:
            # Not every class was measured in every batch: offer those that were.
            own = self.cells.labels["class_name"][self._in("batch", self.batch.value)]
            chosen, options = self.class_name.value, (ALL, *_present(own))
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

    def _name(self):
        """Say which cell it is, as HTML."""
        own = self.cells.labels.iloc[self.row]
        group = ", ".join(str(own[name]) for name in ("class_name", "batch", "dose") if name in own)
        of = f"cell {self.cell.value} of {len(self._rows)} (0 to {len(self._rows) - 1})"
        return f"<b>{html.escape(group)}</b>, cell {own['cell']} of its file; here {of}."


class CellBrowser(_CellExplorer):
    """Show one cell after another: brightfield, measured phase, truth and predictions.

    Parameters
    ----------
    cells : CellImages
        The truth is shown if it is there.
    predictions : dict, optional
        Title to `Prediction` of the same cells.

    Attributes
    ----------
    batch, class_name : Dropdown
        Which cells the slider goes through.
    cell : IntSlider
    """

    def __init__(self, cells, predictions=None):
        self.predictions = _checked_predictions(predictions, cells)
        self.limits = explorer_figures.limits_of(cells)
        self._start(self._choose_from(cells))

    def _show(self):
        cells, row = self.cells, self.row
        panels = _panels_of(cells, row)
        reference = cells.qpi if cells.truth is None else cells.truth
        words = [self._name(), _cell_words(reference[row], cells)]
        for title, prediction in self.predictions.items():
            panels.append(Panel(title, prediction.images[row, ..., 0], "phase"))
            scores = image_scores(prediction.images[[row]], reference[[row]], data_range=3.0)
            against = "the measured phase" if cells.truth is None else "the batch-free truth"
            words.append(
                f"{html.escape(title)}: mean absolute error {scores['mae_rad'][0]:.3f} rad, "
                f"r = {scores['pearson_r'][0]:.3f} with {against}."
            )
        return explorer_figures.image_row(panels, cells.pixel_size_um, self.limits), _lines(words)


class MapExplorer(_CellExplorer):
    """Show a map of cells (UMAP, or any other) whose points show their cell.

    Parameters
    ----------
    coordinates : array (cells, 2) or dict
        For instance of `umap_coordinates`; or several, title to array.
    cells : CellImages
        In the same order.

    Attributes
    ----------
    batch, class_name : Dropdown
    cell : IntSlider
    map : Dropdown
        Which of the maps.
    colour_by : Dropdown
        "class" or "batch".
    """

    def __init__(self, coordinates, cells):
        named = coordinates if isinstance(coordinates, dict) else {"map": coordinates}
        self.maps = {title: np.asarray(places) for title, places in named.items()}
        for title, places in self.maps.items():
            if places.shape != (len(cells), 2):
                raise CytomadError(
                    f"The coordinates of {title!r} are of shape {places.shape}. Expected "
                    f"({len(cells)}, 2), two numbers for each cell, in the order of the cells."
                )
        self.map = _list("map", list(self.maps))
        self.limits = explorer_figures.limits_of(cells)
        self.colour_by = _list("colour by", [("class", "class_name"), ("batch", "batch")])
        self._start(self._choose_from(cells), [self.map, self.colour_by])

    @property
    def coordinates(self):
        """The map that is shown: array (cells, 2)."""
        return self.maps[self.map.value]

    def neighbours(self):
        """Return the rows of the cells next to the marked one on the map, nearest first."""
        distance = np.hypot(*(self.coordinates - self.coordinates[self.row]).T)
        distance[self.row] = np.inf
        return np.argsort(distance, kind="stable")[: min(NEIGHBOURS, len(distance) - 1)]

    def _show(self):
        cells, labels, row = self.cells, self.cells.labels, self.row
        figure = explorer_figures.map_and_cell(
            self.coordinates,
            labels,
            row,
            _panels_of(cells, row)[:2],
            cells.pixel_size_um,
            self.limits,
            self.colour_by.value,
        )
        near = labels.iloc[self.neighbours()]
        alike = {
            name: int((near[name] == labels[name][row]).sum()) for name in ("class_name", "batch")
        }
        words = (
            f"Of its {len(near)} nearest neighbours on the map, {alike['class_name']} are of its "
            f"class and {alike['batch']} of its batch."
        )
        return figure, _lines([self._name(), words])


class BottleneckTraversal(_CellExplorer):
    """Change one bottleneck feature of a cell and watch the image that is decoded from it.

    Parameters
    ----------
    generator : keras.Model
        Of the conditional recipe, the part that makes the image is used.
    cells : CellImages
        Their features say how far a feature can be changed, and what the average cell is.

    Attributes
    ----------
    batch, class_name, feature, skips : Dropdown
        Features that are the same for all cells are left out; the ones that vary most come first.
        The skips can be "kept", those of the "average" cell, or "none".
    cell : IntSlider
    value : FloatSlider
        What the feature is set to. It begins at the cell's own value.
    """

    def __init__(self, generator, cells):
        self.split = split_generator(generator)
        self._average = self.split.mean_code(cells.brightfield)
        made = [
            self.split.encode(part.brightfield).bottleneck for part in cells.in_slices(at_once=100)
        ]
        self.features = np.concatenate(made)
        self.limits = explorer_figures.limits_of(cells)
        spread = self.features.std(axis=0)
        alive = [int(number) for number in np.argsort(-spread) if spread[number] > 0]
        if not alive:
            raise CytomadError(
                "All bottleneck features are the same for all of these cells. Expected a trained "
                "generator and more than one cell."
            )
        self.feature = _list("feature", [(f"feature {number}", number) for number in alive])
        self.value = _number("value", 0.0, 1.0, 0.0)
        self.skips = _list("skips", [(words, name) for name, words in SKIPS.items()])
        chooser = self._choose_from(cells)
        self._set_value()
        self._start(chooser, [self.feature, self.value, self.skips])

    def decode(self, value=None):
        """Decode the chosen cell, its feature set to `value` (None: left alone): (h, w), in rad."""
        code = self.split.encode(self.cells.brightfield[[self.row]])
        if self.skips.value == "none":
            code = code.without_skips()
        if self.skips.value == "average":
            code = code.with_skips_of(self._average)
        if value is not None:
            code = code.with_feature(self.feature.value, value)
        return self.split.decode(code)[0, ..., 0]

    def _follow(self, moved):
        super()._follow(moved)
        if moved not in (self.value, self.skips):
            self._set_value()

    def _set_value(self):
        """Put the slider to the cell's own value, its ends to those of all cells."""
        values = self.features[:, self.feature.value]
        low, high = _rounded_ends(values)
        self.value.max = max(high, self.value.max)  # an end must never pass the other one
        self.value.min, self.value.max = low, high
        self.value.step = (high - low) / 50
        self.value.value = float(values[self.row])

    def _show(self):
        cells, number = self.cells, self.feature.value
        own = float(self.features[self.row, number])
        before, after = self.decode(), self.decode(self.value.value)
        panels = [
            Panel("brightfield", cells.brightfield[self.row, ..., 0], "brightfield"),
            Panel("decoded", before, "phase"),
            Panel(f"feature {number} changed", after, "phase"),
            Panel("change", after - before, "difference"),
        ]
        name = f"feature {number}"
        figure = explorer_figures.traversal(
            panels,
            cells.pixel_size_um,
            self.limits,
            self.features[:, number],
            own,
            self.value.value,
            name,
        )
        words = (
            f"Feature {number} of this cell is {own:.3f}; it is set to {self.value.value:.3f}. "
            f"That changes the image by {np.abs(after - before).mean():.4f} rad on average, and by "
            f"{np.abs(after - before).max():.3f} rad at most. Skips: {SKIPS[self.skips.value]}."
        )
        return figure, _lines([self._name(), words])


class FeatureExplorer(Explorer):
    """Show what a feature follows: its strongest measure, and the cells at both of its ends.

    Parameters
    ----------
    features : array (cells, features)
    cells : CellImages
        In the same order. They are measured on the truth if it is there, else on the measured
        phase, which carries the batch.
    measures : DataFrame, optional
        From `measure_cells`, if it is there already: it saves seconds.

    Attributes
    ----------
    feature : Dropdown
        Those that vary; the closest followers of a measure come first.
    measure : Dropdown
        By default the one that the feature follows most.
    class_name : Dropdown
        All classes, or one of them: differences between classes are gone then.
    correlations : DataFrame
        Spearman's r of features (rows) with measures, over the cells of the chosen class.
    """

    def __init__(self, features, cells, measures=None):
        self.features, self.cells = np.asarray(features), cells
        self._phase = cells.qpi if cells.truth is None else cells.truth
        if measures is None:
            measures = biophysics.measure_cells(
                self._phase,
                cells.pixel_size_um,
                wavelength_um=cells.wavelength_um,
                refraction_increment=cells.refraction_increment,
            )
        self.measures, self.limits = measures, explorer_figures.limits_of(cells)
        self._rows = np.arange(len(cells))
        self.correlations = self._correlate()
        strength = self.correlations.abs().max(axis=1).dropna().sort_values(ascending=False)
        if strength.empty:
            raise CytomadError(
                "No feature varies over these cells. Expected features of a trained generator."
            )
        self.feature = _list(
            "feature", [(f"feature {number}", number) for number in strength.index]
        )
        names = [(MEASURE_LABELS.get(name, name), name) for name in measures.columns]
        self.measure = _list("measure", [(OWN_CHOICE, OWN_CHOICE), *names], width="24em")
        self.class_name = _list("class", [ALL, *_present(cells.labels["class_name"])])
        self._start([self.feature, self.measure, self.class_name])

    @property
    def chosen_measure(self):
        """Name of the measure that is shown."""
        if self.measure.value != OWN_CHOICE:
            return self.measure.value
        own = self.correlations.loc[self.feature.value].abs().dropna()
        return own.idxmax() if len(own) else self.measures.columns[0]

    def _correlate(self):
        table = biophysics.correlate_features(
            self.features[self._rows], self.measures.iloc[self._rows]
        )
        return table.set_axis(range(len(table)), axis=0)

    def _follow(self, moved):
        if moved is self.class_name:
            labels, chosen = self.cells.labels["class_name"], self.class_name.value
            mine = np.ones(len(labels), bool) if chosen == ALL else (labels == chosen).to_numpy()
            self._rows = np.flatnonzero(mine)
            self.correlations = self._correlate()

    def _show(self):
        number, measure, rows = self.feature.value, self.chosen_measure, self._rows
        values = self.features[rows, number]
        order = rows[np.argsort(values, kind="stable")]
        examples = min(EXAMPLES, len(rows) // 2)
        figure = explorer_figures.feature_meaning(
            values,
            self.measures[measure].to_numpy()[rows],
            f"feature {number}",
            measure,
            self.cells.labels.iloc[rows],
            self._phase[order[:examples], ..., 0],
            self._phase[order[::-1][:examples], ..., 0],
            self.cells.pixel_size_um,
            self.limits,
        )
        of = "all classes together" if self.class_name.value == ALL else self.class_name.value
        r = self.correlations.loc[number, measure]
        words = (
            f"<b>Feature {number}</b> and {MEASURE_LABELS.get(measure, measure)}: "
            f"Spearman's r = {r:.2f}, over {len(rows)} cells of {html.escape(of)}."
        )
        if pd.isna(r):
            words = f"<b>Feature {number}</b> is the same for all of these {len(rows)} cells."
        on = "batch-free truth" if self.cells.truth is not None else "measured phase"
        return figure, _lines([words, f"Cells were measured on the {on}."])


class BatchDials(Explorer):
    """Turn the dials of the simulated microscope; see what it measures and the model predicts.

    Parameters
    ----------
    generators : keras.Model or dict
        One, or title to generator. They are to take images of one size and one channel.
    dials : sequence of str, optional
        Which dials, in this order; see `cytomad_lib.simulation.dials.DIALS`.
    seed : int
        Of the dataset whose days can be chosen; the demonstration dataset has 26.

    Attributes
    ----------
    class_name, day, model : Dropdown
        A day sets all dials to what it had; moving a dial makes it "as set by hand".
    cell : IntSlider
    dials : dict
        Name to FloatSlider.
    """

    def __init__(self, generators, dials=LIGHT_DIALS + PHASE_DIALS, seed=26):
        named = generators if isinstance(generators, dict) else {"model": generators}
        unknown = [name for name in dials if name not in DIALS]
        if unknown:
            raise CytomadError(f"There is no dial {unknown[0]!r}. Expected some of {list(DIALS)}.")
        self.generators, self._seed = named, seed
        self._size = next(iter(named.values())).input_shape[1]
        self.class_name = _list("class", list(LUNG_LINES), value="H358")
        self.cell = _whole("cell", 0, 29)
        self.model = _list("model", list(named))
        self._by_hand = "as set by hand"
        self.day = _list("day", ["nominal", *LUNG.batches, self._by_hand])
        self._settings = day_settings(seed, "nominal")
        self.dials = {name: _dial_slider(DIALS[name]) for name in dials}
        self._fetch()
        sliders = list(self.dials.values())
        pairs = [sliders[at : at + 2] for at in range(0, len(sliders), 2)]
        self._start([self.model, self.day, self.class_name, self.cell], *pairs)

    @property
    def settings(self):
        """All settings of the microscope, as `DialledCells.measure` takes them."""
        return dict(self._settings)

    def _fetch(self):
        self._cells = DialledCells(
            self.class_name.value, [self.cell.value], self._seed, image_size=self._size
        )

    def _follow(self, moved):
        if moved in (self.class_name, self.cell):
            self._fetch()
        elif moved is self.day and self.day.value != self._by_hand:
            self._settings = day_settings(self._seed, self.day.value)
            for name, slider in self.dials.items():
                slider.value = self._settings[name]
        elif moved in self.dials.values():
            name = next(name for name, slider in self.dials.items() if slider is moved)
            self._settings[name] = moved.value
            self.day.value = self._by_hand

    def _show(self):
        measured = self._cells.measure(self._settings)
        generator = self.generators[self.model.value]
        predicted = predict(generator, measured).images
        truth, qpi = measured.truth, measured.qpi
        panels = [
            Panel("brightfield", measured.brightfield[0, ..., 0], "brightfield"),
            Panel("measured phase", qpi[0, ..., 0], "phase"),
            Panel("predicted phase", predicted[0, ..., 0], "phase"),
            Panel("batch-free truth", truth[0, ..., 0], "phase"),
            Panel("predicted − truth", (predicted - truth)[0, ..., 0], "difference"),
        ]
        # Fixed ends, the same for all cells and settings: a gain is to be seen as one.
        limits = {"brightfield": (0.3, 1.7), "phase": (-0.3, 4.0), "difference": (-1.0, 1.0)}
        figure = explorer_figures.image_row(panels, measured.pixel_size_um, limits)
        scores = image_scores(np.stack([qpi[0], predicted[0]]), np.repeat(truth, 2, axis=0))
        words = [
            f"<b>{self.class_name.value}, cell {self.cell.value}</b> (simulated), "
            f"{html.escape(str(self.model.value))}.",
            "Mean absolute error against the truth: "
            f"measured phase {scores['mae_rad'][0]:.3f} rad, "
            f"predicted phase {scores['mae_rad'][1]:.3f} rad (r = {scores['pearson_r'][1]:.3f}).",
            self._usual_words(),
        ]
        return figure, _lines(words)

    def _usual_words(self):
        beyond = [
            explorer_figures.dial_label(name)
            for name in self.dials
            if not DIALS[name].is_usual(self._settings[name])
        ]
        if not beyond:
            return "All dials are within the range of the simulated days."
        return f"Beyond what any simulated day had: {', '.join(beyond)}."


# The explorers by what one does with them.
browse_cells = CellBrowser
explore_map = MapExplorer
traverse_bottleneck = BottleneckTraversal
explore_features = FeatureExplorer
turn_dials = BatchDials


def _as_png(figure, dpi):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _list(description, options, value=None, width="16em"):
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return ipywidgets.Dropdown(
        options=options,
        value=first if value is None else value,
        description=description,
        layout={"width": width},
    )


def _whole(description, low, high):
    return ipywidgets.IntSlider(
        value=low,
        min=low,
        max=high,
        description=description,
        continuous_update=False,  # every picture takes a moment
        layout={"width": "24em"},
    )


def _number(description, low, high, value, step=0.02, digits=".3f"):
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


def _dial_slider(dial):
    step = (dial.most - dial.least) / 60
    digits = ".4f" if step < 5e-4 else ".3f" if step < 0.05 else ".2f"
    slider = _number(
        explorer_figures.dial_label(dial.name), dial.least, dial.most, dial.nominal, step, digits
    )
    slider.style.description_width = "10em"
    slider.layout.width = "28em"
    return slider


def _present(column):
    """Return the categories that have cells, in their order."""
    there = set(column.unique())
    return [name for name in column.cat.categories if name in there]


def _panels_of(cells, row):
    """Return the panels that every cell has: brightfield, measured phase, and the truth."""
    panels = [
        Panel("brightfield", cells.brightfield[row, ..., 0], "brightfield"),
        Panel("measured phase", cells.qpi[row, ..., 0], "phase"),
    ]
    if cells.truth is not None:
        panels.append(Panel("batch-free truth", cells.truth[row, ..., 0], "phase"))
    return panels


def _cell_words(phase, cells):
    mask = foreground_mask(phase[None])
    area = f"Area {mask.sum() * cells.pixel_size_um**2:.0f} µm²"
    if cells.wavelength_um is None:
        return f"{area}."
    optics = cells.pixel_size_um, cells.wavelength_um, cells.refraction_increment
    return f"{area}, dry mass {dry_mass_pg(phase[None], mask, *optics)[0]:.0f} pg."


def _checked_predictions(predictions, cells):
    for title, prediction in (predictions or {}).items():
        if len(prediction) != len(cells):
            raise CytomadError(
                f"The prediction {title!r} has {len(prediction)} cells. Expected the "
                f"{len(cells)} that are browsed; predict these."
            )
    return dict(predictions or {})


def _rounded_ends(values):
    low, high = float(np.min(values)), float(np.max(values))
    return low, high if high > low else low + 1.0


def _lines(words):
    return "<br>".join(words)
