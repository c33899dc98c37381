"""Figures about what is left of the batch, what it cost to remove, and how drugs show.

- `batch_targets`: what an adversary can be asked to believe, and whom that hurts.
- `other_days`: one cell as several days would show it.
- `day_clouds`: the batches of one class in the two widest directions of the features.
- `fooled`: what the recipe's own classifiers say, beside what independent probes find.
- `trade_off`: how much is paid for how little batch, over the settings of a recipe.
- `inference_leak`: what predicting one group at a time hides, and what it gives away.
- `dose_order`: do features put doses in order? Spearman's rho with interval and null.
- `batch_beside_drug`: how far a day is from other days, beside how far a drug goes.
- `measures_by_dose`: size, dry mass and the like of cells, dose by dose.

Example
-------
>>> import pandas as pd
>>> table = pd.DataFrame({"part": "features", "knob": "weight", "setting": [1, 5]})
>>> table = table.assign(batch_within_class=[0.9, 0.5], class_accuracy=[0.6, 0.7], unseen_batch=0.5)
>>> figure = trade_off(table, "features")
>>> figure.axes[0].get_ylabel()
'class accuracy'
"""

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cytomad_lib.data.layouts import dose_level
from cytomad_lib.views.plots import (
    BATCH_COLOURS,
    MARKERS,
    METHOD_COLOURS,
    Figure,
    category_colours,
    scale_bar,
    squeezed,
)

# Of telling the batch within the class in the lung dataset: 3 batches per class.
LUNG_CHANCE = 1 / 3
_CHANCE = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 0}
_START = {"color": "0.3", "linestyle": "", "marker": "*", "markersize": 12}  # before removal

# Per part of a trade-off table: what is kept, as (column, name, what is better).
_KEPT = {
    "features": [
        ("class_accuracy", "class accuracy", "higher"),
        ("unseen_batch", "class accuracy on an unseen batch", "higher"),
    ],
    "images": [
        ("structure_r", "fine structure: r with the truth", "higher"),
        ("mae_rad", "MAE with the truth (rad)", "lower"),
    ],
}


def batch_targets(shares, classes, batches):
    """Draw three answers that an adversary can be trained towards, class by class.

    Parameters
    ----------
    shares : array, (classes, batches)
        p(batch | class), from `conditional.adversary.batch_shares`.
    classes, batches : sequence of str

    Returns
    -------
    Figure
        Three maps with one scale: all cells "first batch", each batch alike, and p(batch | class).
        A cross marks a batch in which the class was never seen.

    Raises
    ------
    ValueError
        If the shares do not fit the names.
    """
    shares = np.asarray(shares, dtype=float)
    if shares.shape != (len(classes), len(batches)):
        raise ValueError(
            f"The shares have shape {shares.shape}; expected {len(classes)} classes x "
            f"{len(batches)} batches, a row per class."
        )
    first = np.zeros_like(shares)
    first[:, 0] = 1
    asked = {
        "published recipe:\nall “first batch”": first,
        "uniform:\neach batch alike": np.full_like(shares, 1 / len(batches)),
        "conditional recipe:\np(batch | class)": shares,
    }
    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for panel, (title, values) in zip(axes, asked.items(), strict=True):
        drawn = panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        rows, columns = np.nonzero(shares == 0)
        panel.plot(columns, rows, "x", color="#D55E00", markersize=7, markeredgewidth=1.5)
        panel.set_xticks(
            range(len(batches)), batches, rotation=45, ha="right", rotation_mode="anchor"
        )
        panel.set_yticks(range(len(classes)), classes)
        panel.set_title(title, fontsize=10)
    axes[0].set_ylabel("class of the cell")
    figure.colorbar(drawn, ax=axes, label="probability asked for")
    cross = Line2D([], [], linestyle="", marker="x", color="#D55E00", label="never seen together")
    figure.legend(handles=[cross], loc="outside lower center", frameon=False)
    return figure


def other_days(measured, moved, own_days, pixel_size_um, row_labels=None):
    """Show each cell as it was measured, and as every day would have shown it.

    Parameters
    ----------
    measured : array, (cells, height, width[, 1])
        Brightfield images.
    moved : dict
        Name of each day to the images of the same cells, moved to that day.
    own_days : sequence of str
        The day on which each cell was really measured; its panel is framed.
    pixel_size_um : float
    row_labels : sequence of str, optional

    Returns
    -------
    Figure
        One grey scale for each cell, so that brightness can be compared along a row.
    """
    columns = {"measured": squeezed(measured)}
    columns |= {f"as {day}": squeezed(images) for day, images in moved.items()}
    n_cells, height, width = columns["measured"].shape
    extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
    figure = Figure(figsize=(1.08 * len(columns) + 0.5, 1.1 * n_cells + 0.7), layout="constrained")
    axes = figure.subplots(n_cells, len(columns), squeeze=False)
    for row in range(n_cells):
        shown = np.stack([images[row] for images in columns.values()])
        low, high = np.quantile(shown, (0.005, 0.995))
        for panel, name, image in zip(axes[row], columns, shown, strict=True):
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent)
            panel.set(xticks=[], yticks=[])
            if name == f"as {own_days[row]}":
                for spine in panel.spines.values():
                    spine.set(color=METHOD_COLOURS[1], linewidth=3)
        if row_labels is not None:
            axes[row, 0].set_ylabel(row_labels[row].replace(", ", "\n"), fontsize=10)
    for panel, name in zip(axes[0], columns, strict=True):
        panel.set_title(name, fontsize=10)
    scale_bar(axes[0, 0], 10, extent, "white")
    axes[0, 0].texts[-1].set_fontsize(7)  # the panels are small
    frame = Patch(fill=False, edgecolor=METHOD_COLOURS[1], linewidth=3, label="the cell's own day")
    figure.legend(handles=[frame], loc="outside lower center", frameon=False)
    return figure


def day_clouds(features, labels, class_name):
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
        that holds two thirds of a Gaussian cloud (1.5 standard deviations); other cells are faint.

    Raises
    ------
    ValueError
        If no cell is of the class, or a method gives one feature only.
    """
    own = (labels["class_name"] == class_name).to_numpy()
    if not own.any():
        known = list(dict.fromkeys(labels["class_name"]))
        raise ValueError(f"No cell is of the class {class_name!r}. Expected one of {known}.")
    days = [day for day in _ordered(labels["batch"]) if (labels["batch"][own] == day).any()]
    looks = category_colours(_ordered(labels["batch"]), BATCH_COLOURS)
    figure = Figure(figsize=(4.4 * len(features) + 0.3, 4.3), layout="constrained")
    axes = figure.subplots(1, len(features), squeeze=False)[0]
    for panel, (method, values) in zip(axes, features.items(), strict=True):
        places = _widest_plane(values)
        panel.scatter(*places[~own].T, s=6, color="0.88", linewidths=0)
        for day, marker in zip(days, MARKERS, strict=False):
            cells = places[own & (labels["batch"] == day).to_numpy()]
            panel.scatter(*cells.T, s=16, color=looks[day], marker=marker, linewidths=0, label=day)
            if len(cells) > 2:  # else there is no cloud
                panel.plot(*_ellipse(cells), color=looks[day], lw=2)
        panel.set(title=method, xlabel="widest direction (s.d.)", ylabel="second widest (s.d.)")
        panel.spines[["top", "right"]].set_visible(False)
    names = axes[0].get_legend_handles_labels()
    others = Line2D([], [], ls="", marker="o", color="0.88", label="other classes")
    handles = [*names[0], others]
    title = f"{class_name}, by batch"
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=6, frameon=False)
    return figure


def fooled(verdict, first_batch, results):
    """Draw the verdict of the recipe's own classifiers beside that of independent probes.

    Parameters
    ----------
    verdict : pandas.Series
        Share of cells that each own classifier calls "first batch", from `Run.own_verdict`.
    first_batch : float
        Share of cells that are of the first batch.
    results : dict
        Method to its `ProbeResult` of "batch within class".

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    own, independent = figure.subplots(1, 2, width_ratios=[1, 1.5])
    names = [str(name).replace("_", " ") for name in verdict.index]
    bars = own.barh(range(len(names)), 100 * verdict.to_numpy(), color=METHOD_COLOURS[3])
    own.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=9)
    own.axvline(100 * first_batch, **_CHANCE)
    own.text(100 * first_batch + 2, -0.75, "really are", fontsize=9, va="center")
    own.set_yticks(range(len(names)), names)
    own.set(
        xlim=(0, 125),
        xticks=range(0, 101, 25),
        ylim=(len(names) - 0.4, -1.1),
        xlabel="cells called “first batch” (%)",
        title="the recipe's own classifiers",
    )
    probes = list(dict.fromkeys(name for result in results.values() for name in result.per_probe))
    width = 0.8 / len(results)
    for number, (method, result) in enumerate(results.items()):
        places = np.arange(len(probes)) + (number - (len(results) - 1) / 2) * width
        heights = [result.per_probe[name] for name in probes]
        bars = independent.bar(
            places, heights, 0.92 * width, label=method, color=METHOD_COLOURS[number]
        )
        independent.bar_label(bars, fmt="%.2f", fontsize=8)
    independent.axhline(result.chance, **_CHANCE, label="chance")
    independent.set_xticks(range(len(probes)), probes)
    independent.set(
        ylim=(0, 1.08),
        ylabel="batch accuracy within class",
        title="independent probes, fitted after",
    )
    independent.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, ncols=3)
    for panel in (own, independent):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def trade_off(table, part, chance=LUNG_CHANCE, title=""):
    """Draw what is kept against how well the batch can still be told, over each setting.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `part` ("features" or "images"), `knob` (what was turned), `setting` (to what; a
        number, missing for the pretrained generator, drawn as a star), `batch_within_class`, and
        what is kept: `class_accuracy`, `unseen_batch` for features; `structure_r`, `mae_rad` for
        images.
    part : {"features", "images"}
    chance : float
        Accuracy of guessing the batch within the class; that of the lung dataset by default.
    title : str

    Returns
    -------
    Figure
        A curve per knob; its points are named by their setting, and joined in its order. An arrow
        says what is better. The axes end where the points do.

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
    start, turned = rows[rows["setting"].isna()], rows[rows["setting"].notna()]
    looks = _knob_looks(turned)
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(kept))
    for panel, (column, name, better) in zip(axes, kept, strict=True):
        for number, (knob, look) in enumerate(looks.items()):
            _curve(panel, turned[turned["knob"] == knob], column, look, above=number % 2 == 1)
        panel.plot(start["batch_within_class"], start[column], **_START)
        panel.axvline(chance, **_CHANCE)
        panel.margins(0.15)
        left, right = panel.get_xlim()
        panel.set(xlim=(min(left, chance - 0.04), min(right, 1.05)))
        panel.set(xlabel="batch accuracy within class", ylabel=name)
        _better_arrow(panel, better)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], label=f"by {knob}", **look) for knob, look in looks.items()]
    if len(start):
        handles += [Line2D([], [], label="pretrained", **_START)]
    handles += [Line2D([], [], **_CHANCE | {"zorder": 1}, label="chance")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title or part.capitalize())
    return figure


def inference_leak(table, random_table, measures=("batch within class", "class")):
    """Draw what three ways of predicting the same cells make of the scores.

    Parameters
    ----------
    table : pandas.DataFrame
        From `analysis.inference_leak.leak_table`.
    random_table : pandas.DataFrame
        From `random_group_table`: the control, groups into which cells were dealt at random.
    measures : sequence of str

    Returns
    -------
    Figure
        Two panels, the true groups and the control; dashes are chance.
    """
    modes = list(dict.fromkeys(table["mode"]))
    looks = dict(zip(modes, METHOD_COLOURS, strict=False))
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    found = {
        "true groups: day and cell line": table,
        "control: groups dealt at random": random_table,
    }
    for panel, (title, rows) in zip(panels, found.items(), strict=True):
        for place, measure in enumerate(measures):
            own = rows[rows["measure"] == measure].set_index("mode")
            width = 0.8 / len(own)
            places = place + (np.arange(len(own)) - (len(own) - 1) / 2) * width
            colours = [looks[mode] for mode in own.index]
            bars = panel.bar(places, own["accuracy"], 0.92 * width, color=colours)
            texts = panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
            for text in texts:  # legible also where the dashes of chance cross it
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
            panel.hlines(own["chance"].iloc[0], place - 0.45, place + 0.45, "black", "--", lw=1)
        panel.set_xticks(range(len(measures)), measures)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylim=(0, 1.08), ylabel="accuracy of the strongest probe")
    handles = [Patch(color=colour, label=mode) for mode, colour in looks.items()]
    handles += [Line2D([], [], color="black", ls="--", lw=1, label="chance")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def dose_order(table, title=""):
    """Draw how well each method orders the doses of each drug.

    Parameters
    ----------
    table : pandas.DataFrame
        From `analysis.dose_response.dose_order`, with a column `method`. Rows of single batches
        are small points beside the row "all".
    title : str

    Returns
    -------
    Figure
        Spearman's rho of the group means with its 95 % interval; the grey box holds 95 % of the
        null: inside it, the order may be luck.
    """
    methods = list(dict.fromkeys(table["method"]))
    drugs = list(dict.fromkeys(table["class_name"]))
    figure = Figure(
        figsize=(2.2 + 2.5 * len(drugs), 0.45 * len(methods) + 1.5), layout="constrained"
    )
    axes = figure.subplots(1, len(drugs), sharey=True, squeeze=False)[0]
    for panel, drug in zip(axes, drugs, strict=True):
        for place, method in enumerate(methods):
            rows = table[(table["class_name"] == drug) & (table["method"] == method)]
            whole = rows[rows["batch"] == "all"].iloc[0]
            null = whole["null_95_groups"]
            panel.barh(place, null, 0.8, color="0.85", zorder=0)
            rho = whole["rho_groups"]
            around = [[max(rho - whole["low_groups"], 0)], [max(whole["high_groups"] - rho, 0)]]
            colour = METHOD_COLOURS[place % len(METHOD_COLOURS)]
            panel.errorbar(rho, place, xerr=around, fmt="o", color=colour, capsize=3, ms=7)
            single = rows[rows["batch"] != "all"]["rho_groups"]
            panel.plot(single, [place + 0.27] * len(single), "|", color=colour, ms=7)
        panel.axvline(0, color="0.5", lw=0.8)
        panel.set(title=drug, xlim=(-0.75, 1.05), xticks=[-0.5, 0, 0.5, 1])
        panel.set_xlabel("Spearman's ρ of dose and position")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = [
        Line2D([], [], color="0.3", marker="o", label="all batches, 95 % interval"),
        Line2D([], [], color="0.3", ls="", marker="|", ms=8, label="one batch"),
        Patch(color="0.85", label="null, up to its 95 % quantile"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def batch_beside_drug(tables):
    """Draw how far days are from each other beside how far the drug goes in one day.

    Parameters
    ----------
    tables : dict
        Method to its table from `analysis.dose_response.dose_distances`.

    Returns
    -------
    Figure
        A panel per method, a row per drug and batch. Hollow: the untreated cells of that day from
        the untreated cells of all other days, which is the batch and nothing else. Full: cells at
        the highest dose from the untreated cells of the same day, which is the drug.
    """
    figure = Figure(figsize=(1.6 + 2.3 * len(tables), 3.6), layout="constrained")
    axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (method, table) in zip(axes, tables.items(), strict=True):
        groups = table.groupby(["class_name", "batch"], sort=False, observed=True)
        names = [f"{drug}, {batch}" for drug, batch in groups.groups]
        day = [own.loc[own["level"].idxmin(), "distance_pooled"] for _, own in groups]
        drug = [own.loc[own["level"].idxmax(), "distance"] for _, own in groups]
        places = np.arange(len(names))
        panel.hlines(places, day, drug, color="0.8", zorder=0)
        panel.plot(day, places, "o", mfc="white", color=METHOD_COLOURS[1], label="the day")
        panel.plot(drug, places, "D", color=METHOD_COLOURS[0], label="the drug, highest dose")
        panel.axvline(0, color="0.5", lw=0.8)
        panel.set_yticks(places, names)
        panel.set_title(method, fontsize=10)
        panel.set_xlabel("distance\n(s.d. of untreated cells)")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def measures_by_dose(measures, labels, names, reference="DMSO"):
    """Draw measures of the cells by dose: a row per measure, a column per drug, a line per batch.

    Parameters
    ----------
    measures : pandas.DataFrame
        One row per cell, for instance from `analysis.biophysics.measure_cells`.
    labels : pandas.DataFrame
        Of the same cells, with `batch`, `class_name` and `dose`.
    names : dict
        Column of `measures` to its name with unit.
    reference : str
        The untreated class; its cells of the same batch are level 0.

    Returns
    -------
    Figure
        Means with their standard errors.
    """
    if len(measures) != len(labels):
        raise ValueError(f"Found {len(measures)} measured cells and {len(labels)} labels.")
    table = pd.concat([measures.reset_index(drop=True), labels.reset_index(drop=True)], axis=1)
    table["level"] = [dose_level(str(dose)) for dose in table["dose"]]
    class_name, batch = table["class_name"].astype(str), table["batch"].astype(str)
    drugs = [name for name in dict.fromkeys(class_name) if name != reference]
    looks = category_colours(sorted(set(batch)), BATCH_COLOURS)
    markers = dict(zip(looks, MARKERS, strict=False))
    figure = Figure(figsize=(1.0 + 2.9 * len(drugs), 1.8 * len(names) + 0.5), layout="constrained")
    axes = figure.subplots(len(names), len(drugs), sharex=True, sharey="row", squeeze=False)
    for column, drug in zip(axes.T, drugs, strict=True):
        for day in dict.fromkeys(batch[class_name == drug]):
            own = table[(batch == day) & class_name.isin([drug, reference])]
            for panel, name in zip(column, names, strict=True):
                found = own.groupby("level")[name].agg(["mean", "sem"])
                panel.errorbar(
                    found.index,
                    found["mean"],
                    found["sem"],
                    marker=markers[day],
                    ms=4,
                    capsize=2,
                    color=looks[day],
                    label=day,
                )
                panel.spines[["top", "right"]].set_visible(False)
        column[0].set_title(drug)
        column[0].legend(frameon=False, fontsize=8, title="batch", title_fontsize=8)
        levels = range(int(table["level"].max()) + 1)
        column[-1].set_xticks(levels, ["none", *map(str, levels[1:])])
        column[-1].set_xlabel("dose level")
    for panel, text in zip(axes[:, 0], names.values(), strict=True):
        panel.set_ylabel(text)
    return figure


# --- helpers ---------------------------------------------------------------------------------


def _ordered(values):
    """Return the names that occur, in the order of the categories or else sorted."""
    return list(values.astype("category").cat.remove_unused_categories().cat.categories)


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


def _knob_looks(rows):
    """Return colour, marker and line of each knob, in the table's order."""
    lines = ("-", "--", "-.", ":")
    return {
        knob: {
            "color": METHOD_COLOURS[number % len(METHOD_COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": lines[number % len(lines)],
        }
        for number, knob in enumerate(rows["knob"].unique())
    }


def _curve(panel, rows, column, look, above):
    """Join points in the order of their settings, which stand above them or below."""
    rows = rows.sort_values("setting")
    panel.plot(rows["batch_within_class"], rows[column], **look)
    beside = {"xytext": (-5, 7), "ha": "right"} if above else {"xytext": (5, -13), "ha": "left"}
    places = zip(rows["setting"], rows["batch_within_class"], rows[column], strict=True)
    for setting, x, y in places:
        text = panel.annotate(f"{setting:g}", (x, y), textcoords="offset points", **beside)
        text.set(fontsize=9, color=look["color"])


def _better_arrow(panel, better):
    """Point to the corner where there is little batch and much of what is kept."""
    top = better == "higher"
    head, tail = ((0.03, 0.97), (0.14, 0.85)) if top else ((0.03, 0.03), (0.14, 0.15))
    arrow = {"arrowstyle": "->", "color": "0.4", "lw": 1.5}
    panel.annotate(
        "better",
        head,
        tail,
        xycoords="axes fraction",
        textcoords="axes fraction",
        arrowprops=arrow,
        color="0.4",
        fontsize=9,
        va="center",
    )
