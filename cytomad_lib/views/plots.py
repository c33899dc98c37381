"""Every figure of the kit, one function each; each returns the figure.

- `image_grid`: cells in rows, brightfield and phase images in columns, one phase scale for all.
- `loss_curves`: training and validation losses by epoch.
- `embedding`: one map of cells, coloured by batch and by class.
- `confusion_matrix`, `confusion_matrices`: what is taken for what.
- `score_bars`: methods side by side, with chance and null; `score_rows`: many, with long names.
- `correlation_map`: which feature follows which measure of the cell.
- `dose_response`: how far treated cells are from untreated ones, dose by dose.
- `save_figure`: to a file, complete or not at all.

Figures do not belong to pyplot: nothing to close, nothing shown twice. In a notebook, a figure that
is the last value of a cell is displayed.

Example
-------
>>> figure = loss_curves({"loss": [3, 2, 1], "val_loss": [3, 2, 2.5]}, title="Pretraining")
>>> [axes.get_xlabel() for axes in figure.axes]
['epoch']
"""

import io
import itertools
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import figure as mpl_figure
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, MaxNLocator

from cytomad_lib.data.files import written_beside

PHASE_MAP = "viridis"
ERROR_MAP = "RdBu_r"

# Both palettes can be told apart by colour-blind readers; they share no colour, so that a batch is
# never mistaken for a class. Sources: Okabe & Ito (2008), "Color universal design"; Tol (2021),
# "Colour schemes", muted.
BATCH_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000")
CLASS_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#AA4499", "#999999")
METHOD_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Figure(mpl_figure.Figure):
    """A matplotlib figure that a notebook displays without pyplot being imported."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def image_grid(
    columns,
    pixel_size_um,
    row_labels=None,
    brightfield=("Brightfield", "BF"),
    error_of=None,
    phase_limits=None,
    title="",
    quantity="phase (rad)",
):
    """Show cells in rows, kinds of image in columns.

    Parameters
    ----------
    columns : dict
        Title to images, (cells, height, width[, 1]), in the order shown. All of the same cells.
    pixel_size_um : float
        Micrometres per pixel; the scale bar is 10 um.
    row_labels : sequence of str, optional
        One per cell, for instance "H69, Batch1".
    brightfield : sequence of str
        Titles of the columns that are brightfield; all other columns are phase in radians.
    error_of : tuple of str, optional
        Titles (a, b): adds a column with the difference a - b.
    phase_limits : tuple of float, optional
        Radians at the ends of the colour scale. By default the 0.5 and 99.95 % quantiles of all
        phase pixels shown. Give it to compare several figures.
    title : str
    quantity : str
        What the columns other than brightfield show, with its unit in brackets.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If columns differ in shape, or a column named in `error_of` is missing.
    """
    images = {name: squeezed(stack) for name, stack in columns.items()}
    shapes = {name: stack.shape for name, stack in images.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"Columns have shapes {shapes}; expected the same cells at the same size.")
    n_cells, height, width = next(iter(shapes.values()))
    if row_labels is not None and len(row_labels) != n_cells:
        raise ValueError(f"Found {len(row_labels)} row labels for {n_cells} cells; give one each.")
    phase_names = [name for name in images if name not in brightfield]
    norms = {name: colour_limits(images[name]) for name in images if name in brightfield}
    if phase_names:
        shown = np.stack([images[name] for name in phase_names])
        norm = Normalize(*phase_limits) if phase_limits else colour_limits(shown)
        norms |= dict.fromkeys(phase_names, norm)
    maps = {name: PHASE_MAP if name in phase_names else "gray" for name in images}
    error_name = None
    if error_of is not None:
        missing = [name for name in error_of if name not in images]
        if missing:
            raise ValueError(f"Column {missing} is not there to compare; there are {list(images)}.")
        error_name = f"{error_of[0]} − {error_of[1]}"
        images[error_name] = images[error_of[0]] - images[error_of[1]]
        limit = np.quantile(np.abs(images[error_name]), 0.998)
        norms[error_name] = CenteredNorm(0, limit or 1)
        maps[error_name] = ERROR_MAP

    bars = bool(phase_names) + bool(error_name)
    figure = Figure(
        figsize=(1.7 * len(images) + 0.8 * bars + 0.9, 1.75 * n_cells + 0.7), layout="constrained"
    )
    axes = figure.subplots(n_cells, len(images), squeeze=False)
    extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
    for column, (name, stack) in zip(axes.T, images.items(), strict=True):
        column[0].set_title(textwrap.fill(name, 16), fontsize=10)
        for panel, image in zip(column, stack, strict=True):
            drawn = panel.imshow(
                image,
                cmap=maps[name],
                norm=norms[name],
                extent=extent,
                interpolation=interpolation_of(width),
            )
            panel.set(xticks=[], yticks=[])
        colour = "black" if name == error_name else "white"
        scale_bar(column[0], 10, extent, colour)
        if phase_names and name == phase_names[-1]:
            figure.colorbar(drawn, ax=axes[:, -1], label=quantity, shrink=0.9, aspect=30)
        if name == error_name:
            _, bracket, unit = quantity.partition("(")
            label = f"difference {bracket}{unit}".strip()
            figure.colorbar(drawn, ax=axes[:, -1], label=label, shrink=0.9, aspect=30)
    for panel, text in zip(axes[:, 0], row_labels or [], strict=False):
        panel.set_ylabel(text.replace(", ", "\n"), fontsize=10)
    if title:
        figure.suptitle(title)
    return figure


def loss_curves(history, names=None, best_by="val_loss", title=""):
    """Plot losses or metrics by epoch, training and validation together.

    Parameters
    ----------
    history : dict or pandas.DataFrame
        Name to one value per epoch, as Keras writes it: `loss`, `val_loss`, … Epochs are numbered
        from 1. `seconds`, which runs add, is not drawn.
    names : sequence of str, optional
        What to show, without "val_", one panel each. By default everything.
    best_by : str
        The epoch where this is lowest is marked, if it is there; None marks no epoch.
    title : str

    Returns
    -------
    Figure
        A panel has a logarithmic axis if its values are positive and span more than a factor of 10.

    Raises
    ------
    ValueError
        If nothing in `history` can be shown.
    """
    table = pd.DataFrame(history).drop(columns=["epoch", "seconds"], errors="ignore")
    if names is None:
        names = list(dict.fromkeys(str(c).removeprefix("val_") for c in table.columns))
    unknown = [n for n in names if n not in table and f"val_{n}" not in table]
    if not names or unknown or table.empty:
        raise ValueError(
            f"The history has {list(table.columns)} over {len(table)} epochs; {unknown or names} "
            "cannot be shown. Name columns that are there, without `val_`."
        )
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(1.2 + 3.6 * n_columns, 3.0 * n_rows + 0.6), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    epochs = np.arange(1, len(table) + 1)
    # A short run shows its points: one epoch alone would draw no line.
    marker = "o" if len(table) <= 20 else None
    for panel, name in zip(axes, names, strict=False):
        values = table[[c for c in (name, f"val_{name}") if c in table]]
        for column in values:
            kind = "validation" if column.startswith("val_") else "training"
            style = {"training": ("-", "#0072B2"), "validation": ("--", "#D55E00")}[kind]
            panel.plot(
                epochs,
                values[column],
                style[0],
                color=style[1],
                label=kind,
                marker=marker,
                markersize=3,
            )
        low, high = values.min().min(), values.max().max()
        if low > 0 and high > 10 * low:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(LogFormatter())
            panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        if best_by in table and table[best_by].notna().any():
            best = int(np.nanargmin(table[best_by])) + 1
            panel.axvline(best, color="0.4", linestyle=":", label=f"best epoch: {best}")
        panel.set(xlabel="epoch", ylabel=name.replace("_", " "))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.25)
    for panel in axes[len(names) :]:
        panel.remove()
    entries = {}
    for panel in figure.axes:
        entries |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def embedding(coordinates, labels, title=""):
    """Draw one map of cells twice: coloured by batch, and by class.

    Parameters
    ----------
    coordinates : array, (cells, 2)
        For instance from `umap_coordinates`.
    labels : pandas.DataFrame
        Columns `batch` and `class_name`, one row per cell.
    title : str

    Returns
    -------
    Figure
        Categories keep their colour and marker as long as the categories of the column are the
        same, also if some have no cells here.
    """
    coordinates = np.asarray(coordinates)
    if coordinates.shape != (len(labels), 2):
        raise ValueError(
            f"Found coordinates of shape {coordinates.shape} for {len(labels)} rows of labels; "
            f"expected ({len(labels)}, 2)."
        )
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = (("batch", "by batch", BATCH_COLOURS), ("class_name", "by class", CLASS_COLOURS))
    # Cells are drawn in mixed portions: category by category, the last would hide the first.
    portions = np.array_split(np.random.default_rng(0).permutation(len(labels)), 10)
    for panel, (column, heading, palette) in zip(figure.subplots(1, 2), panels, strict=True):
        values = labels[column].astype("category").cat
        codes = values.codes.to_numpy()
        colours = category_colours(values.categories, palette)
        markers = dict(zip(colours, MARKERS, strict=False))
        for portion in portions:
            for code, (name, colour) in enumerate(colours.items()):
                cells = portion[codes[portion] == code]
                panel.scatter(
                    *coordinates[cells].T,
                    s=18,
                    marker=markers[name],
                    color=colour,
                    linewidths=0.2,
                    edgecolors="white",
                    alpha=0.85,
                )
        handles = [
            Line2D([], [], linestyle="", marker=markers[name], color=colour, label=name)
            for code, (name, colour) in enumerate(colours.items())
            if (codes == code).any()
        ]
        panel.set(title=heading, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
        panel.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def category_colours(names, palette):
    """Return {name: colour}; a palette that is too short is an error, not a repeated colour."""
    if len(names) > len(palette):
        raise ValueError(
            f"Found {len(names)} categories ({list(names)}), more than the {len(palette)} colours "
            "that can be told apart. Show fewer at a time."
        )
    return dict(zip(names, palette, strict=False))


def confusion_matrix(confusion, title=""):
    """Draw which label is taken for which, in percent of each true label.

    Parameters
    ----------
    confusion : pandas.DataFrame
        Cells counted by true (rows) and predicted (columns) label, as in `ProbeResult.confusion`.
    title : str

    Returns
    -------
    Figure
    """
    return confusion_matrices({title: confusion})


def confusion_matrices(confusions):
    """Draw several confusion matrices side by side, with one colour scale.

    Parameters
    ----------
    confusions : dict
        Title to table, see `confusion_matrix`.

    Returns
    -------
    Figure
    """
    sides = [len(table) for table in confusions.values()]
    size = 0.55 * max(sides) + 1.6
    figure = Figure(figsize=(size * len(sides) + 0.8, size), layout="constrained")
    axes = figure.subplots(1, len(sides), squeeze=False)[0]
    for panel, (title, table) in zip(axes, confusions.items(), strict=True):
        counts = table.to_numpy(dtype=float)
        totals = counts.sum(axis=1, keepdims=True)
        percent = 100 * np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
        drawn = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(percent):
            panel.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value > 55 else "black" if value >= 0.5 else "0.7",
            )
        rows = [f"{name} ({n:.0f})" for name, n in zip(table.index, totals[:, 0], strict=True)]
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xticks(
            range(len(table.columns)),
            table.columns,
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )
        panel.set(xlabel="predicted", title=title)
    axes[0].set_ylabel("true (cells)")
    figure.colorbar(drawn, ax=axes, label="% of true label", shrink=0.8)
    return figure


# How to read each measure of `probes`, as a line under its name.
_READING = {
    "batch within class": "lower is better",
    "batch within class, images": "lower is better",
    "class": "higher is better",
    "class, unseen batch": "higher is better",
}


def score_bars(table):
    """Compare methods, one panel per measure, with chance and the null of each.

    Parameters
    ----------
    table : pandas.DataFrame
        From `probes.score_table`: `method`, `measure`, `accuracy`, `chance`, `null_95`. If a method
        has several rows (seeds) per measure, the bar is their mean with the standard deviation.

    Returns
    -------
    Figure
        The grey box over each bar reaches from chance to the 95 % quantile of the null: an accuracy
        inside it cannot be told from knowing nothing.
    """
    methods = list(dict.fromkeys(table["method"]))
    measures = list(dict.fromkeys(table["measure"]))
    # Methods are named below the bars, so a palette that starts again misleads nobody.
    colours = dict(zip(methods, itertools.cycle(METHOD_COLOURS), strict=False))
    width = 1.2 + 0.55 * len(methods)
    # Four panels beside each other would be shrunk on a page until nobody can read them.
    n_columns = len(measures) if len(measures) <= 3 else 2
    n_rows = -(-len(measures) // n_columns)
    figure = Figure(figsize=(width * n_columns + 0.6, 4.2 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for panel in axes.ravel()[len(measures) :]:
        panel.remove()
    for panel, measure in zip(axes.ravel(), measures, strict=False):
        rows = table[table["measure"] == measure]
        chance = rows["chance"].iloc[0]
        for x, method, mean, spread, null in _over_seeds(rows, methods):
            panel.bar(x, mean, 0.7, color=colours[method], yerr=spread, capsize=3)
            top = max(mean + (spread or 0), null)
            panel.text(x, top + 0.015, f"{mean:.2f}", ha="center", va="bottom", fontsize=9)
            panel.add_patch(_null_box((x - 0.45, chance), 0.9, null - chance))
        panel.axhline(chance, **_CHANCE_LINE)
        _set_heading(panel, measure)
        panel.set_xticks(
            range(len(methods)), methods, rotation=35, ha="right", rotation_mode="anchor"
        )
        panel.set(xlim=(-0.6, len(methods) - 0.4), ylim=(0, 1.12))
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 0]:
        panel.set(ylabel="accuracy of the strongest probe", yticks=np.arange(0, 1.01, 0.2))
    figure.legend(
        handles=_null_handles(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    return figure


def score_rows(table, faded=()):
    """Compare many methods: a row per method, a panel per measure, with chance and null.

    Parameters
    ----------
    table : pandas.DataFrame
        As for `score_bars`.
    faded : sequence of str
        Methods that are no competitors; their bars are pale.

    Returns
    -------
    Figure
        The grey box reaches from chance to the 95 % quantile of the null, as in `score_bars`.
    """
    methods = list(dict.fromkeys(table["method"]))
    measures = list(dict.fromkeys(table["measure"]))
    figure = Figure(
        figsize=(2.6 + 2.5 * len(measures), 0.36 * len(methods) + 1.5), layout="constrained"
    )
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(axes, measures, strict=True):
        rows = table[table["measure"] == measure]
        chance = rows["chance"].iloc[0]
        for y, method, mean, spread, null in _over_seeds(rows, methods):
            colour = "#A9C0DC" if method in faded else METHOD_COLOURS[0]
            panel.barh(y, mean, 0.7, color=colour, xerr=spread, capsize=2)
            end = max(mean + (spread or 0), null)
            panel.text(end + 0.02, y, f"{mean:.2f}", va="center", fontsize=9)
            panel.add_patch(_null_box((chance, y - 0.45), null - chance, 0.9))
        panel.axvline(chance, **_CHANCE_LINE)
        _set_heading(panel, measure)
        panel.set(xlim=(0, 1.15), xticks=np.arange(0, 1.01, 0.2))
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    axes[len(axes) // 2].set_xlabel("accuracy of the strongest probe")
    figure.legend(handles=_null_handles(), loc="outside lower center", ncols=2, frameon=False)
    return figure


_CHANCE_LINE = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 4}


def _over_seeds(rows, methods):
    """Give place, name, mean accuracy, its spread (None of a single seed) and null of each."""
    for place, method in enumerate(methods):
        own = rows[rows["method"] == method]
        if not own.empty:
            spread = own["accuracy"].std() if len(own) > 1 else None
            yield place, method, own["accuracy"].mean(), spread, own["null_95"].mean()


def _null_box(corner, width, height, label=None):
    colours = {"facecolor": "0.5", "alpha": 0.55, "edgecolor": "none"}
    return Rectangle(corner, width, height, **colours, zorder=3, label=label)


def _set_heading(panel, measure):
    panel.set_title("\n".join(filter(None, (measure, _READING.get(measure)))), fontsize=10)


def _null_handles():
    return [
        Line2D([], [], **_CHANCE_LINE, label="chance"),
        _null_box((0, 0), 1, 1, "null, up to its 95 % quantile"),
    ]


def correlation_map(table, title=""):
    """Draw which features follow which measures of the cells.

    Parameters
    ----------
    table : pandas.DataFrame
        Correlations, (features, measures), from `biophysics.correlate_features`.
    title : str

    Returns
    -------
    Figure
        Features are ordered by the measure that they follow most strongly (in either direction),
        then by how strongly; those that follow none come last, in grey. Up to 40 features are
        named, and the strongest measure of each is boxed.

    Raises
    ------
    ValueError
        If the table is empty or holds anything but numbers from -1 to 1.
    """
    values = table.to_numpy(dtype=float)
    if not values.size or np.any(np.abs(values) > 1 + 1e-9):
        raise ValueError(
            f"Found a table of {values.shape[0]} features and {values.shape[1]} measures that is "
            "empty or has values outside -1 to 1; expected correlations."
        )
    strength = np.nan_to_num(np.abs(values), nan=-1.0)
    best, highest = strength.argmax(axis=1), strength.max(axis=1)
    best[highest < 0] = values.shape[1]
    order = np.lexsort((-highest, best))

    n_features, n_measures = values.shape
    named = n_features <= 40
    height = 0.22 * n_features if named else 8.8
    # The names of the measures need two inches below.
    figure = Figure(figsize=(0.34 * n_measures + 3.2, max(height, 1.6) + 2.6), layout="constrained")
    panel = figure.subplots()
    colours = colormaps[ERROR_MAP].with_extremes(bad="0.8")
    drawn = panel.imshow(
        values[order], cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    names = [str(table.index[k]) for k in order]
    panel.set_yticks(range(n_features) if named else [], names if named else [])
    for row, feature in enumerate(order if named else []):
        if highest[feature] >= 0:
            panel.add_patch(Rectangle((best[feature] - 0.5, row - 0.5), 1, 1, fill=False))
    panel.set_xticks(
        range(n_measures), table.columns, rotation=60, ha="right", rotation_mode="anchor"
    )
    panel.tick_params(labelsize=9)
    count = "" if named else f" ({n_features})"
    boxed = " (boxed)" if named else ""
    panel.set(
        xlabel="measure",
        ylabel=f"features{count}, by the measure\nthey follow most{boxed}",
        title=title,
    )
    figure.colorbar(drawn, ax=panel, label="correlation", shrink=0.8)
    return figure


def save_figure(figure, path, dpi=150):
    """Write the figure to `path` (.png, .pdf or .svg); a file that is there is replaced.

    It is written to a temporary file beside first, so that no half-written file is left.

    Returns
    -------
    pathlib.Path
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"Cannot save a figure as {path.name!r}; use .png, .pdf or .svg.")
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=dpi)
    return path


def squeezed(images):
    """Return images (cells, height, width[, 1]) without the last axis; others are refused."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or not len(images):
        raise ValueError(
            f"Found images of shape {images.shape}; expected (cells, height, width) or "
            "(cells, height, width, 1), one cell at least."
        )
    return images


def colour_limits(images):
    """Return the colour scale of images: from the 0.5 to the 99.95 % quantile of all pixels."""
    low, high = np.quantile(images, (0.005, 0.9995))
    return Normalize(low, high if high > low else low + 1)


def interpolation_of(width):
    """Return how images of so many pixels are to be enlarged, for `imshow`."""
    # Small images are enlarged so much that their pixels can be shown as they are: that is
    # honest, and a third of the size in a saved notebook.
    return "nearest" if width <= 64 else None


def scale_bar(panel, length_um, extent, colour):
    """Draw a bar of `length_um` at the lower right of a panel whose axes are in micrometres."""
    width, height = extent[1], extent[2]
    left, bottom = 0.95 * width - length_um, 0.95 * height
    thickness = 0.025 * height
    panel.add_patch(
        Rectangle(
            (left, bottom - thickness), length_um, thickness, facecolor=colour, edgecolor="none"
        )
    )
    panel.text(
        left + length_um / 2,
        bottom - 1.5 * thickness,
        f"{length_um} µm",
        color=colour,
        ha="center",
        va="bottom",
        fontsize=8,
    )


def dose_response(table, title=""):
    """Draw the distance from untreated cells by dose: a panel per drug, a line per batch.

    Parameters
    ----------
    table : pandas.DataFrame
        From `dose_response.dose_distances`: `class_name`, `batch`, `dose`, `level`, `distance`
        with its band `low` to `high`, and `null_95`.
    title : str

    Returns
    -------
    Figure
        The band of each line is that of the table. Dotted, in the colour of the batch: the 95 %
        quantile of the null; a distance below it shows nothing. One scale for all drugs.

    Raises
    ------
    ValueError
        If columns are missing or there are no rows.
    """
    needed = ["class_name", "batch", "dose", "level", "distance", "low", "high", "null_95"]
    missing = [name for name in needed if name not in table]
    if missing or not len(table):
        raise ValueError(
            f"The table has {len(table)} rows and lacks the columns {missing}; expected the table "
            "of `dose_distances`."
        )
    drugs = list(dict.fromkeys(table["class_name"]))
    looks = category_colours(list(dict.fromkeys(table["batch"])), BATCH_COLOURS)
    markers = dict(zip(looks, MARKERS, strict=False))
    figure = Figure(figsize=(1.0 + 3.2 * len(drugs), 3.9), layout="constrained")
    axes = figure.subplots(1, len(drugs), sharey=True, squeeze=False)[0]
    for panel, drug in zip(axes, drugs, strict=True):
        rows = table[table["class_name"] == drug].sort_values("level")
        for batch, own in rows.groupby("batch", sort=False, observed=True):
            look = {"color": looks[batch]}
            panel.fill_between(own["level"], own["low"], own["high"], alpha=0.2, lw=0, **look)
            panel.plot(own["level"], own["null_95"], ":", lw=1.2, **look)
            panel.plot(
                own["level"], own["distance"], marker=markers[batch], ms=5, label=batch, **look
            )
        ticks = rows.drop_duplicates("level")
        panel.set_xticks(ticks["level"], ticks["dose"])
        panel.axhline(0, color="0.5", linewidth=0.8, zorder=0)
        panel.set(title=drug, xlabel="dose")
        panel.legend(loc="upper left", frameon=False, title="batch")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("distance from untreated cells\n(their standard deviations)")
    null = Line2D([], [], color="0.3", linestyle=":", label="null, 95 % quantile")
    figure.legend(handles=[null], loc="outside lower center", frameon=False)
    if title:
        figure.suptitle(title)
    return figure
