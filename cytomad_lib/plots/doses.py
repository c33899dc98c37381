"""Figures of drug response.

- `dose_response`: how far treated cells are from untreated ones, dose by dose.
- `dose_order`: do features put doses in order? Spearman's rho with interval and null.
- `batch_beside_drug`: how far a day is from other days, beside how far a drug goes.
- `measures_by_dose`: size, dry mass and the like of cells, dose by dose.

Example
-------
>>> import pandas as pd
>>> labels = pd.DataFrame({"class_name": ["DMSO", "A"], "batch": "B1", "dose": ["Control", "A1"]})
>>> figure = measures_by_dose(pd.DataFrame({"area": [1, 2]}), labels, {"area": "area (µm²)"})
>>> figure.axes[0].get_ylabel()
'area (µm²)'
"""

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cytomad_lib.data.layouts import dose_level
from cytomad_lib.plots import style

_NULL_COLOUR = "0.85"


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
    """
    drugs = list(dict.fromkeys(table["class_name"]))
    colours, markers = style.category_looks(
        list(dict.fromkeys(table["batch"])), style.BATCH_COLOURS
    )
    figure = style.new_figure(1.0 + 3.2 * len(drugs), 3.9, title)
    axes = figure.subplots(1, len(drugs), sharey=True, squeeze=False)[0]
    for panel, drug in zip(axes, drugs, strict=True):
        rows = table[table["class_name"] == drug].sort_values("level")
        for batch, own in rows.groupby("batch", sort=False, observed=True):
            level, look = own["level"], {"color": colours[batch]}
            panel.fill_between(level, own["low"], own["high"], alpha=0.2, lw=0, **look)
            panel.plot(level, own["null_95"], ":", lw=1.2, **look)
            panel.plot(level, own["distance"], marker=markers[batch], ms=5, label=batch, **look)
        ticks = rows.drop_duplicates("level")
        panel.set_xticks(ticks["level"], ticks["dose"])
        panel.axhline(0, color=style.GREY, linewidth=0.8, zorder=0)
        panel.set(title=drug, xlabel="dose")
        panel.legend(loc="upper left", frameon=False, title="batch")
    style.plain(*axes)
    axes[0].set_ylabel("distance from untreated cells\n(their standard deviations)")
    style.legend_below(figure, [Line2D([], [], color="0.3", ls=":", label="null, 95 % quantile")])
    return figure


def dose_order(table, title=""):
    """Draw how well each method orders the doses of each drug.

    Parameters
    ----------
    table : pandas.DataFrame
        From `evaluation.dose_response.dose_order`, with a column `method`. Rows of single batches
        are small strokes beside the row "all".
    title : str

    Returns
    -------
    Figure
        Spearman's rho of the group means with its 95 % interval; the grey box holds 95 % of the
        null: inside it, the order may be luck.
    """
    methods = list(dict.fromkeys(table["method"]))
    drugs = list(dict.fromkeys(table["class_name"]))
    figure = style.new_figure(2.2 + 2.5 * len(drugs), 0.45 * len(methods) + 1.5, title)
    axes = figure.subplots(1, len(drugs), sharey=True, squeeze=False)[0]
    for panel, drug in zip(axes, drugs, strict=True):
        for place, method in enumerate(methods):
            rows = table[(table["class_name"] == drug) & (table["method"] == method)]
            whole = rows[rows["batch"] == "all"].iloc[0]
            panel.barh(place, whole["null_95_groups"], 0.8, color=_NULL_COLOUR, zorder=0)
            rho = whole["rho_groups"]
            around = [[max(rho - whole["low_groups"], 0)], [max(whole["high_groups"] - rho, 0)]]
            look = {"color": style.METHOD_COLOURS[place % len(style.METHOD_COLOURS)], "ms": 7}
            panel.errorbar(rho, place, xerr=around, fmt="o", capsize=3, **look)
            single = rows[rows["batch"] != "all"]["rho_groups"]
            panel.plot(single, [place + 0.27] * len(single), "|", **look)
        panel.axvline(0, color=style.GREY, lw=0.8)
        panel.set(title=drug, xlim=(-0.75, 1.05), xticks=[-0.5, 0, 0.5, 1])
        panel.set_xlabel("Spearman's ρ\nof dose and position")
    style.plain(*axes)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = [
        Line2D([], [], color="0.3", marker="o", label="all batches, 95 % interval"),
        Line2D([], [], color="0.3", ls="", marker="|", ms=8, label="one batch"),
        Patch(color=_NULL_COLOUR, label="null, up to its 95 % quantile"),
    ]
    style.legend_below(figure, handles, ncols=3)
    return figure


def batch_beside_drug(tables):
    """Draw how far days are from each other beside how far the drug goes in one day.

    Parameters
    ----------
    tables : dict
        Method to its table from `evaluation.dose_response.dose_distances`.

    Returns
    -------
    Figure
        A panel per method, a row per drug and batch. Hollow: the untreated cells of that day from
        the untreated cells of all other days, which is the batch and nothing else. Full: cells at
        the highest dose from the untreated cells of the same day, which is the drug.
    """
    figure = style.new_figure(1.6 + 2.3 * len(tables), 3.7)
    axes = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (method, table) in zip(axes, tables.items(), strict=True):
        groups = table.groupby(["class_name", "batch"], sort=False, observed=True)
        names = [f"{drug}, {batch}" for drug, batch in groups.groups]
        day = [own.loc[own["level"].idxmin(), "distance_pooled"] for _, own in groups]
        drug = [own.loc[own["level"].idxmax(), "distance"] for _, own in groups]
        places = np.arange(len(names))
        panel.hlines(places, day, drug, color=style.GREY, lw=1, zorder=0)
        panel.plot(day, places, "o", mfc="white", color=style.METHOD_COLOURS[1], label="the day")
        panel.plot(drug, places, "D", color=style.METHOD_COLOURS[0], label="the drug, highest dose")
        panel.axvline(0, color=style.GREY, lw=0.8)
        panel.set_yticks(places, names)
        panel.set_title(method, fontsize=10)
        panel.set_xlabel("distance\n(s.d. of untreated cells)")
    style.plain(*axes)
    axes[0].invert_yaxis()
    style.legend_below(figure, panel.get_legend_handles_labels()[0], ncols=2)
    return figure


def measures_by_dose(measures, labels, names, reference="DMSO"):
    """Draw measures of the cells by dose: a row per measure, a column per drug, a line per batch.

    Parameters
    ----------
    measures : pandas.DataFrame
        One row per cell, for instance from `evaluation.biophysics.measure_cells`.
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
    table = measures.reset_index(drop=True).assign(
        level=[dose_level(str(dose)) for dose in labels["dose"]],
        drug=labels["class_name"].astype(str).to_numpy(),
        batch=labels["batch"].astype(str).to_numpy(),
    )
    drugs = [name for name in dict.fromkeys(table["drug"]) if name != reference]
    colours, markers = style.category_looks(sorted(set(table["batch"])), style.BATCH_COLOURS)
    figure = style.new_figure(1.0 + 2.9 * len(drugs), 1.9 * len(names) + 0.5)
    axes = figure.subplots(len(names), len(drugs), sharex=True, sharey="row", squeeze=False)
    for column, drug in zip(axes.T, drugs, strict=True):
        days = list(dict.fromkeys(table["batch"][table["drug"] == drug]))
        own = table[table["batch"].isin(days) & table["drug"].isin([drug, reference])]
        look = {"hue": "batch", "style": "batch", "palette": colours, "markers": markers}
        look |= {"hue_order": days, "style_order": days, "dashes": False}
        look |= {"errorbar": "se", "err_style": "bars", "err_kws": {"capsize": 2}, "mew": 0}
        for panel, name in zip(column, names, strict=True):
            sns.lineplot(own, x="level", y=name, ax=panel, legend=panel is column[0], **look)
        column[0].legend(frameon=False, title="batch")
        column[0].set_title(drug)
        levels = range(int(table["level"].max()) + 1)
        column[-1].set_xticks(levels, ["none", *map(str, levels[1:])])
        column[-1].set_xlabel("dose level")
    sns.despine(figure)
    for panel, text in zip(axes[:, 0], names.values(), strict=True):
        panel.set_ylabel(text)
    return figure
