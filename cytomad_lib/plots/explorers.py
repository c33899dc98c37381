"""Explorers: figures with sliders, to look at cells, features and the microscope.

Each is used in one line, as the last of a cell in a notebook:

- `browse_cells(cells)`: one cell after another, by batch and class.
- `explore_map(coordinates, cells)`: a map of cells whose points show their cell.
- `traverse_bottleneck(generator, cells)`: change a bottleneck feature and watch the image.
- `explore_features(features, cells)`: which measure of the cell does a feature follow?
- `explore_settings(generators)`: change the settings of the simulated microscope.

All controls work by keyboard: Tab moves on, the arrow keys move a slider or choose from a list. All
have names for screen readers, and the words below a figure are announced when they change.
A program can use an explorer, too: `explorer.cell.value = 3` moves a slider. What is shown is in
`image` (PNG), `text` (HTML), `figure` (the last one drawn), and `row`, the number of the cell.

The calculations are elsewhere, for use without sliders: `evaluation.bottleneck`,
`evaluation.biophysics`, `simulation.microscope_settings`, `evaluation.settings_sweep`; so are the
figures, in `plots.cells`
and `plots.explorer_figures`.
"""

import html

import numpy as np
import pandas as pd

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation import biophysics
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.evaluation.image_quality import dry_mass_pg, foreground_mask, image_scores
from cytomad_lib.plots import explorer_figures, widgets
from cytomad_lib.plots.cells import image_grid, limits_of
from cytomad_lib.plots.explorer_figures import MEASURE_LABELS
from cytomad_lib.plots.settings_explorer import SettingsExplorer
from cytomad_lib.plots.widgets import ALL

STRONGEST = "the one it follows most"
SKIPS = {
    "kept": "unchanged",
    "average": "those of the average cell",
    "none": "none: zeros",
}
NEIGHBOURS = 10
EXAMPLES = 4


class CellBrowser(widgets.CellExplorer):
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
        self.limits = limits_of(cells)
        self._start(self._choose_from(cells))

    def _show(self):
        cells, row = self.cells, self.row
        images = self._images()
        reference = cells.qpi if cells.truth is None else cells.truth
        words = [self._name(), _cell_words(reference[row], cells)]
        for title, prediction in self.predictions.items():
            images[title] = prediction.images[[row]]
            scores = image_scores(prediction.images[[row]], reference[[row]], data_range=3.0)
            against = "the measured phase" if cells.truth is None else "the batch-free truth"
            words.append(
                f"{html.escape(title)}: mean absolute error {scores['mae_rad'][0]:.3f} rad, "
                f"r = {scores['pearson_r'][0]:.3f} with {against}."
            )
        figure = image_grid(images, cells.pixel_size_um, limits=self.limits)
        return figure, "<br>".join(words)


class MapExplorer(widgets.CellExplorer):
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
        self.map = widgets.choice("map", list(self.maps))
        self.limits = limits_of(cells)
        self.colour_by = widgets.choice("colour by", [("class", "class_name"), ("batch", "batch")])
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
        images = self._images()
        images.pop("batch-free truth", None)  # there is no room for it
        scale = cells.pixel_size_um, self.limits
        figure = explorer_figures.map_and_cell(
            self.coordinates, labels, row, images, *scale, self.colour_by.value
        )
        near = labels.iloc[self.neighbours()]
        alike = {
            name: int((near[name] == labels[name][row]).sum()) for name in ("class_name", "batch")
        }
        words = (
            f"Of its {len(near)} nearest neighbours on the map, {alike['class_name']} are of its "
            f"class and {alike['batch']} of its batch."
        )
        return figure, "<br>".join([self._name(), words])


class BottleneckTraversal(widgets.CellExplorer):
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
        parts = cells.in_slices(at_once=100)
        self.features = np.concatenate(
            [self.split.encode(part.brightfield).bottleneck for part in parts]
        )
        self.limits = limits_of(cells)
        spread = self.features.std(axis=0)
        alive = [int(number) for number in np.argsort(-spread) if spread[number] > 0]
        if not alive:
            raise CytomadError(
                "All bottleneck features are the same for all of these cells. Expected a trained "
                "generator and more than one cell."
            )
        self.feature = widgets.choice(
            "feature", [(f"feature {number}", number) for number in alive]
        )
        self.value = widgets.number_slider("value", 0.0, 1.0, 0.0)
        self.skips = widgets.choice("skips", [(words, name) for name, words in SKIPS.items()])
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
        low, high = float(values.min()), float(values.max())
        self.value.max = max(high, self.value.max)  # an end must never pass the other one
        self.value.min, self.value.max = low, high
        self.value.step = (high - low) / 50
        self.value.value = float(values[self.row])

    def _show(self):
        cells, number = self.cells, self.feature.value
        own = float(self.features[self.row, number])
        before, after = self.decode(), self.decode(self.value.value)
        name = f"feature {number}"
        images = {
            "brightfield": cells.brightfield[[self.row]],
            "decoded": before[None],
            f"{name} changed": after[None],
            "change": (after - before)[None],
        }
        spread = self.features[:, number], own, self.value.value, name
        figure = explorer_figures.traversal(images, cells.pixel_size_um, self.limits, *spread)
        values, change = self.features[:, number], np.abs(after - before)
        deviations = (self.value.value - values.mean()) / values.std()
        words = (
            f"Feature {number} of this cell is {own:.3f}; it is set to {self.value.value:.3f}. "
            f"This is {deviations:+.1f} standard deviations from the mean of all cells."
        )
        result = (
            f"As set: {_cell_words(after[..., None], cells)} Unchanged: "
            f"{_cell_words(before[..., None], cells)} This changes the image by "
            f"{change.mean():.4f} rad on average, and by {change.max():.3f} rad at most. "
            f"Skips: {SKIPS[self.skips.value]}."
        )
        return figure, "<br>".join([words, result, self._name()])


class FeatureExplorer(widgets.Explorer):
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
            measures = biophysics.measure_images(self._phase, cells)
        self.measures, self.limits = measures, limits_of(cells)
        self._rows = np.arange(len(cells))
        self.correlations = self._correlate()
        strength = self.correlations.abs().max(axis=1).dropna().sort_values(ascending=False)
        if strength.empty:
            raise CytomadError(
                "No feature varies over these cells. Expected features of a trained generator."
            )
        self.feature = widgets.choice(
            "feature", [(f"feature {number}", number) for number in strength.index]
        )
        names = [
            (explorer_figures.MEASURE_LABELS.get(name, name), name) for name in measures.columns
        ]
        self.measure = widgets.choice("measure", [(STRONGEST, STRONGEST), *names], width="24em")
        self.class_name = widgets.choice(
            "class", [ALL, *widgets.present(cells.labels["class_name"])]
        )
        self._start([self.feature, self.measure, self.class_name])

    @property
    def chosen_measure(self):
        """Name of the measure that is shown."""
        if self.measure.value != STRONGEST:
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
        return figure, "<br>".join([words, f"Cells were measured on the {on}."])


browse_cells = CellBrowser
explore_map = MapExplorer
traverse_bottleneck = BottleneckTraversal
explore_features = FeatureExplorer
explore_settings = SettingsExplorer


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
