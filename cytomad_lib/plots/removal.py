"""Figures of batch removal: what remains of the batch, and what it cost to remove.

- `first_batch_share`: how many cells the recipe's classifiers assign to the first batch.
- `classifiers_beside_probes`: the same beside the accuracy of independent probes.
- `batch_targets`: the batch probabilities that an adversary can be trained towards.
- `batch_clouds`: the batches of one class in the two widest directions of the features.
- `trade_off`: what is kept against how much batch remains, over the settings of a recipe.
- `inference_leak`: the effect of predicting one group at a time.

Example
-------
>>> table = pd.DataFrame({"part": "features", "knob": "weight", "setting": [1, 5]})
>>> table = table.assign(batch_within_class=[0.9, 0.5], class_accuracy=[0.6, 0.7], unseen_batch=0.5)
>>> figure = trade_off(table, "features")
>>> figure.axes[0].get_ylabel()
'class accuracy'
"""

import itertools

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from cytomad_lib.plots import style

# Accuracy of guessing the batch within the class in the lung dataset: 3 batches per class.
LUNG_CHANCE = 1 / 3
_CHANCE = style.CHANCE_LINE | {"zorder": 2}  # over bars, under their numbers
_START = {"color": "0.3", "linestyle": "", "marker": "*", "markersize": 12}  # before removal
_LINES = ("-", "--", "-.", ":")

# Per part of a trade-off table: what is kept, as (column, name, what is better).
_KEPT = {
    "features": [
        ("unseen_batch", "class accuracy on an unseen batch", "higher"),
        ("biology", "biology within class (R²)", "higher"),
    ],
    "images": [
        ("structure_r", "fine structure: r with the truth", "higher"),
        ("mae_rad", "MAE with the truth (rad)", "lower"),
    ],
}


def first_batch_share(scores, share, batch="first batch", ax=None):
    """Draw how many cells each classifier assigns to the first batch, beside how many belong there.

    Parameters
    ----------
    scores : dict
        Name of the moment, such as "after", to a Series: classifier to share, as a run
        reports it. A classifier may be missing at one moment.
    share : float
        The true share.
    batch : str
        Name of the first batch.
    ax : Axes, optional

    Returns
    -------
    Figure
    """
    names = list(max(scores.values(), key=len).index)
    table = 100 * pd.DataFrame(scores).loc[names]
    table.index = [name.replace("_", " ") for name in names]
    table = _long(table, "classifier", "moment", "percent")
    figure, panel = style.panel_of(ax, 7.6, 0.3 * len(table) + 1.3)
    look = {"hue": "moment", "palette": list(style.METHOD_COLOURS[: len(scores)])}
    look["legend"] = len(scores) > 1
    style.labelled_bars(panel, table, "percent", "classifier", "%.0f %%", **look)
    panel.axvline(100 * share, label=f"belong to {batch}", **_CHANCE)
    panel.set(xlabel=f'cells assigned to "{batch}" (%)', xlim=(0, 118), xticks=range(0, 101, 20))
    style.legend_above(panel)
    return figure


def _long(table, row, column, value):
    """Return a wide table with one row per value, for seaborn."""
    table = table.rename_axis(row)
    return table.melt(var_name=column, value_name=value, ignore_index=False).reset_index()


def classifiers_beside_probes(scores, first_batch, results):
    """Draw the output of the recipe's own classifiers beside the accuracy of independent probes.

    Parameters
    ----------
    scores : pandas.Series
        Share of cells that each of the recipe's classifiers assigns to the first batch,
        as a run reports it.
    first_batch : float
        Share of cells that belong to the first batch.
    results : dict
        Method to its `ProbeResult` of "batch within class".

    Returns
    -------
    Figure
    """
    figure = style.new_figure(10.5, 4.4)
    own, independent = figure.subplots(1, 2, width_ratios=[1, 1.6])
    first_batch_share({"share": scores}, first_batch, ax=own)
    own.legend_.remove()
    for bar in own.patches:
        bar.set_color(style.METHOD_COLOURS[3])  # not the colour of a method beside it
    own.text(100 * first_batch + 2, -0.6, "belong there", va="center")
    own.set(ylim=(len(scores) - 0.4, -0.9), title="the recipe's own classifiers")
    table = pd.DataFrame({method: result.per_probe for method, result in results.items()})
    table = _long(table, "probe", "method", "accuracy")
    look = {"hue": "method", "palette": list(style.METHOD_COLOURS[: len(results)]), "legend": True}
    style.labelled_bars(independent, table, "probe", "accuracy", "%.2f", **look)
    chance = next(iter(results.values())).chance
    independent.axhline(chance, label="chance", **_CHANCE)
    independent.set(
        ylim=(0, 1.08),
        ylabel="batch accuracy within class",
        title="independent probes, fitted afterwards",
    )
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 3}
    independent.legend(frameon=False, **below)
    return figure


def batch_targets(shares, classes, batches):
    """Draw three targets that an adversary can be trained towards, class by class.

    Parameters
    ----------
    shares : array, (classes, batches)
        p(batch | class), from `conditional.adversary.batch_shares`.
    classes, batches : sequence of str

    Returns
    -------
    Figure
        Three maps with one scale: all cells "first batch", all batches alike, and p(batch | class).
        A cross marks a batch in which the class was never imaged.
    """
    shares = np.asarray(shares, dtype=float)
    first = np.zeros_like(shares)
    first[:, 0] = 1
    targets = {
        "published recipe:\nall “first batch”": first,
        "uniform:\nall batches alike": np.full_like(shares, 1 / len(batches)),
        "conditional recipe:\np(batch | class)": shares,
    }
    figure = style.new_figure(10.5, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    rows, columns = np.nonzero(shares == 0)
    cross = {"color": "#D55E00", "marker": "x", "linestyle": "", "label": "never imaged together"}
    for panel, (title, values) in zip(axes, targets.items(), strict=True):
        table = pd.DataFrame(values, classes, batches)
        style.heatmap(panel, table, cmap=style.PERCENT_MAP, vmin=0, vmax=1)
        panel.plot(columns + 0.5, rows + 0.5, markersize=7, markeredgewidth=1.5, **cross)
        panel.set_title(title, fontsize=10)
    axes[0].set_ylabel("class of the cell")
    figure.colorbar(axes[0].collections[0], ax=axes, label="target probability")
    style.legend_below(figure, [Line2D([], [], **cross)])
    return figure


def batch_clouds(features, labels, class_name):
    """Draw the batches of one class as clouds of points, method by method.

    Parameters
    ----------
    features : dict
        Method to array (cells, features).
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    class_name : str

    Returns
    -------
    Figure
        A panel per method, in units of the spread of all cells: the two directions along which the
        cells of all classes vary most. Cells of the class are coloured by batch, with an ellipse
        that holds two thirds of a Gaussian cloud (1.5 standard deviations); other cells are small.

    Raises
    ------
    ValueError
        If no cell is of the class, or a method gives one feature only.
    """
    own = (labels["class_name"] == class_name).to_numpy()
    if not own.any():
        known = list(dict.fromkeys(labels["class_name"]))
        raise ValueError(f"No cell is of the class {class_name!r}. Expected one of {known}.")
    batch = labels["batch"].astype("category").cat.remove_unused_categories()
    colours, _ = style.category_looks(batch.cat.categories, style.BATCH_COLOURS)
    shown = [name for name in colours if (batch[own] == name).any()]
    figure = style.new_figure(4.4 * len(features) + 0.3, 4.5)
    axes = figure.subplots(1, len(features), squeeze=False)[0]
    others = {"color": style.GREY, "label": "other classes"}
    for panel, (method, values) in zip(axes, features.items(), strict=True):
        places = _widest_plane(values)
        panel.scatter(*places[~own].T, s=2, linewidths=0, **others)
        for name, marker in zip(shown, style.MARKERS, strict=False):
            cells = places[own & (batch == name).to_numpy()]
            look = {"color": colours[name], "marker": marker, "label": name}
            panel.scatter(*cells.T, s=18, linewidths=0, **look)
            if len(cells) > 2:  # else there is no cloud
                panel.plot(*_ellipse(cells), color=colours[name], lw=2)
        panel.set(title=method, xlabel="widest direction (s.d.)", ylabel="second widest (s.d.)")
        style.plain(panel)
    handles = axes[0].get_legend_handles_labels()[0][1:]
    handles += [Line2D([], [], linestyle="", marker=".", **others)]
    style.legend_below(figure, handles, title=f"{class_name}, by batch", ncols=6)
    return figure


def _widest_plane(values):
    """Return (cells, 2): the two leading principal components, each of variance 1."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"Found features of shape {values.shape}; expected (cells, two or more).")
    centred = values - values.mean(axis=0)
    left = np.linalg.svd(centred, full_matrices=False)[0][:, :2]
    return left * np.sqrt(len(values))


def _ellipse(places, size=1.5):
    """Return x and y of the line `size` standard deviations around the centre of a cloud."""
    angle = np.linspace(0, 2 * np.pi, 100)
    width, axes = np.linalg.eigh(np.cov(places.T))
    ring = np.stack([np.cos(angle), np.sin(angle)]) * np.sqrt(width.clip(0))[:, None]
    return places.mean(axis=0)[:, None] + size * axes @ ring


def trade_off(table, part, chance=LUNG_CHANCE, title=""):
    """Draw what is kept against the accuracy with which the batch is still found.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `part` ("features" or "images"), `knob` (which setting was varied), `setting` (its
        value, missing for the pretrained generator, drawn as a star), `batch_within_class`, and
        what is kept: `unseen_batch`, `biology` for features; `structure_r`, `mae_rad` for images.
    part : {"features", "images"}
    chance : float
        Accuracy of guessing the batch within the class; that of the lung dataset by default.
    title : str

    Returns
    -------
    Figure
        A curve per knob; its points are labelled with their setting and joined in its order. An
        arrow shows what is better. The axes end where the points do.

    Raises
    ------
    ValueError
        If columns are missing, or the part has no rows.
    """
    kept = _KEPT.get(part, [])
    needed = ["part", "knob", "setting", "batch_within_class", *(column for column, *_ in kept)]
    missing = [name for name in needed if name not in table]
    rows = table if missing else table[table["part"] == part]
    if missing or not kept or not len(rows):
        raise ValueError(
            f"The table has the columns {list(table.columns)} and {len(rows)} rows of {part!r}; "
            f"expected {needed}, and rows of one of {list(_KEPT)}."
        )
    start, varied = rows[rows["setting"].isna()], rows[rows["setting"].notna()]
    looks = dict(zip(varied["knob"].unique(), _curve_looks(), strict=False))
    figure = style.new_figure(9.6, 4.1, title or part.capitalize())
    for panel, (column, name, better) in zip(figure.subplots(1, len(kept)), kept, strict=True):
        for number, (knob, look) in enumerate(looks.items()):
            _curve(panel, varied[varied["knob"] == knob], column, look, above=number % 2 == 1)
        panel.plot(start["batch_within_class"], start[column], **_START)
        panel.axvline(chance, **_CHANCE)
        panel.margins(0.15)
        left, right = panel.get_xlim()
        panel.set(xlim=(min(left, chance - 0.04), min(right, 1.05)))
        panel.set(xlabel="batch accuracy within class", ylabel=name)
        _better_arrow(panel, better)
        style.plain(panel)
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], label=f"by {knob}", **look) for knob, look in looks.items()]
    handles += [Line2D([], [], label="pretrained", **_START)] if len(start) else []
    handles += [Line2D([], [], label="chance", **style.CHANCE_LINE)]
    style.legend_below(figure, handles, ncols=4)
    return figure


def _curve_looks():
    looks = zip(style.METHOD_COLOURS, style.MARKERS, itertools.cycle(_LINES), strict=False)
    return [
        {"color": colour, "marker": marker, "linestyle": line} for colour, marker, line in looks
    ]


def _curve(panel, rows, column, look, above):
    """Join points in the order of their settings, which are written above them or below."""
    rows = rows.sort_values("setting")
    panel.plot(rows["batch_within_class"], rows[column], **look)
    beside = {"xytext": (-5, 7), "ha": "right"} if above else {"xytext": (5, -13), "ha": "left"}
    for setting, *place in rows[["setting", "batch_within_class", column]].to_numpy():
        text = {"textcoords": "offset points", "color": look["color"], **beside}
        panel.annotate(f"{setting:g}", place, **text)


def _better_arrow(panel, better):
    """Point to the corner of little batch and much of what is kept."""
    head, tail = (0.97, 0.85) if better == "higher" else (0.03, 0.15)
    look = {"color": "0.4", "va": "center", "arrowprops": {"arrowstyle": "->", "color": "0.4"}}
    panel.annotate("better", (0.03, head), (0.14, tail), "axes fraction", "axes fraction", **look)


def inference_leak(table, random_table, measures=("batch within class", "class")):
    """Draw the scores of the same cells, predicted in three ways.

    Parameters
    ----------
    table : pandas.DataFrame
        From `evaluation.inference_leak.leak_table`.
    random_table : pandas.DataFrame
        From `random_group_table`: the control, with cells assigned to groups at random.
    measures : sequence of str

    Returns
    -------
    Figure
        Two panels, the true groups and the control; dashes are chance.
    """
    modes = list(dict.fromkeys(table["mode"]))
    colours = dict(zip(modes, style.METHOD_COLOURS, strict=False))
    figure = style.new_figure(9.5, 4.1)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("true groups: day and cell line", "control: random groups")
    for panel, title, rows in zip(panels, titles, (table, random_table), strict=True):
        own = [mode for mode in modes if (rows["mode"] == mode).any()]
        look = {"order": measures, "hue": "mode", "hue_order": own, "palette": colours}
        style.labelled_bars(panel, rows, "measure", "accuracy", "%.2f", **look)
        for place, measure in enumerate(measures):
            chance = rows.loc[rows["measure"] == measure, "chance"].iloc[0]
            panel.plot([place - 0.45, place + 0.45], [chance] * 2, **_CHANCE)
        panel.set_title(title, fontsize=10)
    panels[0].set(ylim=(0, 1.08), ylabel="accuracy of the strongest probe")
    handles = [Line2D([], [], color=colours[mode], lw=8, label=mode) for mode in modes]
    handles += [Line2D([], [], label="chance", **style.CHANCE_LINE)]
    style.legend_below(figure, handles, ncols=4)
    return figure
