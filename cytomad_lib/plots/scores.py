"""Figures of an evaluation: scores with intervals, maps of cells, confusions and correlations.

- `score_bars`: methods side by side, with chance and null; `score_rows`: many, with long names.
- `embedding`: one map of cells, coloured by batch and by class.
- `confusion_matrices`: which label is predicted for which.
- `correlation_map`: which feature follows which measure of the cell.

Example
-------
>>> import pandas as pd
>>> table = pd.DataFrame({"method": ["a", "b"], "measure": "class", "accuracy": [0.5, 0.9]})
>>> figure = score_bars(table.assign(chance=0.14, null_95=0.2))
>>> figure.axes[0].get_ylabel()
'accuracy of the strongest probe'
"""

import itertools

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cytomad_lib.plots import style

# How to read each measure of `probes`, as a line under its name.
_READING = {
    "batch within class": "lower is better",
    "batch within class, images": "lower is better",
    "class": "higher is better",
    "class, unseen batch": "higher is better",
}
_NULL = {"facecolor": "0.5", "alpha": 0.55, "edgecolor": "none", "zorder": 3}
MOST_NAMED = 40  # features that have room for their name


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
        inside it is no better than that of shuffled labels.
    """
    methods, measures = (list(dict.fromkeys(table[name])) for name in ("method", "measure"))
    # Methods are named below the bars, so colours may repeat.
    colours = dict(zip(methods, itertools.cycle(style.METHOD_COLOURS), strict=False))
    # On a page, four panels side by side would be too small to read.
    n_columns = len(measures) if len(measures) <= 3 else 2
    n_rows = -(-len(measures) // n_columns)
    width = (1.2 + 0.55 * len(methods)) * n_columns + 0.6
    figure = style.new_figure(max(width, 4.6), 4.2 * n_rows)  # the legend needs 4.6 inches
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for panel in axes.ravel()[len(measures) :]:
        panel.remove()
    for panel, measure in zip(axes.ravel(), measures, strict=False):
        _draw_scores(panel, table[table["measure"] == measure], colours, upright=True)
        look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        panel.set_xticks(range(len(methods)), methods, **look)
        panel.set(xlim=(-0.6, len(methods) - 0.4), ylim=(0, 1.15), xlabel="")
    for panel in axes[:, 0]:
        panel.set(ylabel="accuracy of the strongest probe", yticks=np.arange(0, 1.01, 0.2))
    style.legend_below(figure, _null_handles(), ncols=2)
    return figure


def score_rows(table, faded=()):
    """Compare many methods: a row per method, a panel per measure, with chance and null.

    Parameters
    ----------
    table : pandas.DataFrame
        As for `score_bars`.
    faded : sequence of str
        Methods outside the comparison, such as oracles; their bars are pale.

    Returns
    -------
    Figure
        The grey box reaches from chance to the 95 % quantile of the null, as in `score_bars`.
    """
    methods, measures = (list(dict.fromkeys(table[name])) for name in ("method", "measure"))
    colours = {name: style.PALE if name in faded else style.METHOD_COLOURS[0] for name in methods}
    figure = style.new_figure(2.6 + 2.5 * len(measures), 0.36 * len(methods) + 1.5)
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(axes, measures, strict=True):
        _draw_scores(panel, table[table["measure"] == measure], colours, upright=False)
        panel.set(xlim=(0, 1.2), xticks=np.arange(0, 1.01, 0.2), xlabel="", ylabel="")
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    axes[len(axes) // 2].set_xlabel("accuracy of the strongest probe")
    style.legend_below(figure, _null_handles(), ncols=2)
    return figure


def _draw_scores(panel, rows, colours, upright):
    """Draw the bars of one measure over `method` (upright) or beside it."""
    along, across = ("x", "y") if upright else ("y", "x")
    methods, chance = list(colours), rows["chance"].iloc[0]
    look = {"errorbar": "sd", "capsize": 0.2, "err_kws": {"linewidth": 1.5, "color": "black"}}
    order = {"hue": "method", "order": methods, "hue_order": methods, "palette": colours}
    axes = {along: "method", across: "accuracy"}
    sns.barplot(rows, **axes, **order, **look, width=0.7, saturation=1, legend=False, ax=panel)
    turn = 1 if upright else -1  # x and y change places
    for method, own in rows.groupby("method", observed=True):
        place, mean, null = methods.index(method), own["accuracy"].mean(), own["null_95"].mean()
        end = max(mean + np.nan_to_num(own["accuracy"].std()), null)
        box = (place - 0.45, chance)[::turn], *(0.9, null - chance)[::turn]
        panel.add_patch(Rectangle(*box, **_NULL))
        beside = {"ha": "center", "va": "bottom"} if upright else {"ha": "left", "va": "center"}
        panel.text(*(place, end + 0.02)[::turn], f"{mean:.2f}", **beside)
    (panel.axhline if upright else panel.axvline)(chance, **style.CHANCE_LINE)
    name = rows["measure"].iloc[0]
    panel.set_title("\n".join(filter(None, (name, _READING.get(name)))), fontsize=10)
    style.plain(panel)


def _null_handles():
    return [
        Line2D([], [], **style.CHANCE_LINE, label="chance"),
        Rectangle((0, 0), 1, 1, **_NULL, label="null, up to its 95 % quantile"),
    ]


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
    figure = style.new_figure(10.5, 4.4, title)
    panels = zip(figure.subplots(1, 2), ("batch", "class_name"), ("batch", "class"), strict=True)
    for panel, column, name in panels:
        style.scatter(panel, *coordinates.T, labels[column].astype("category"), s=20)
        panel.set(title=f"by {name}", xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    return figure


def confusion_matrices(confusions):
    """Draw which label is predicted for which, in percent of each true label, side by side.

    Parameters
    ----------
    confusions : dict
        Title to a table of cells counted by true (rows) and predicted (columns) label, as in
        `ProbeResult.confusion`.

    Returns
    -------
    Figure
        One colour scale for all.
    """
    size = 0.58 * max(map(len, confusions.values())) + 1.6
    figure = style.new_figure(size * len(confusions) + 0.8, size)
    axes = figure.subplots(1, len(confusions), squeeze=False)[0]
    for panel, (title, counts) in zip(axes, confusions.items(), strict=True):
        totals = counts.sum(axis=1)
        percent = (100 * counts.div(totals, axis=0)).fillna(0)
        percent.index = [f"{name} ({n:.0f})" for name, n in totals.items()]
        style.percent_map(panel, percent, square=True)
        panel.set(xlabel="predicted", title=title)
    axes[0].set_ylabel("true (cells)")
    figure.colorbar(axes[-1].collections[0], ax=axes, label="% of true label", shrink=0.8)
    return figure


def correlation_map(table, title="", ax=None):
    """Draw which features follow which measures of the cells.

    Parameters
    ----------
    table : pandas.DataFrame
        Correlations, (features, measures), from `biophysics.correlate_features`.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
        Features are ordered by the measure that they follow most strongly (in either direction),
        then by how strongly; those that follow none come last, in grey. Up to 40 features are
        named, and the strongest measure of each is boxed.
    """
    values = table.to_numpy(dtype=float)
    n_features, n_measures = values.shape
    strength = np.nan_to_num(np.abs(values), nan=-1.0)
    best, highest = strength.argmax(axis=1), strength.max(axis=1)
    best[highest < 0] = n_measures
    order = np.lexsort((-highest, best))
    named = n_features <= MOST_NAMED
    # The names of the measures need two inches below.
    height = 2.6 + max(0.24 * n_features if named else 8.8, 1.6)
    figure, panel = style.panel_of(ax, 0.36 * n_measures + 3.2, height)
    bar = {"label": "correlation", "shrink": 0.8}
    look = {"cmap": style.ERROR_MAP, "vmin": -1, "vmax": 1, "cbar": True, "cbar_kws": bar}
    style.heatmap(panel, table.iloc[order], 60, yticklabels=named or [], **look)
    panel.set_facecolor("0.8")  # seen where the correlation is missing
    for row, feature in enumerate(order if named else []):
        if highest[feature] >= 0:
            panel.add_patch(Rectangle((best[feature], row), 1, 1, fill=False))
    count, boxed = ("", " (boxed)") if named else (f" ({n_features})", "")
    ylabel = f"features{count}, by the measure\nthey follow most{boxed}"
    panel.set(xlabel="measure", ylabel=ylabel, title=title)
    return figure
