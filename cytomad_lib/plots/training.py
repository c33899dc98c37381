"""Figures of training: losses by epoch, their parts, and the outputs of the discriminator.

- `loss_curves`: training and validation losses by epoch; `draw_losses` draws one of them.
- `loss_table`, `loss_parts`: what each term adds to the generator's loss.
- `cross_entropy_curve`: the cross-entropy of a predicted probability.
- `discriminator_outputs`: image pairs, and the discriminator's output for each patch.

Example
-------
>>> table = loss_table({"adversarial": 0.7, "mae": 0.2}, {"adversarial": 1, "mae": 100})
>>> table["in the loss"].round(1).to_list()
[0.7, 20.0]
>>> figure = loss_parts({"Before": table})
"""

import numpy as np
import pandas as pd
from matplotlib.ticker import LogFormatter, MaxNLocator

from cytomad_lib.evaluation.image_quality import as_stack
from cytomad_lib.plots import style

CURVES = {  # label to the prefix of the column, and the look of the line
    "training": ("", {"color": style.METHOD_COLOURS[0], "linestyle": "-"}),
    "validation": ("val_", {"color": style.METHOD_COLOURS[1], "linestyle": "--"}),
}
MOST_PATCHES = 8  # per side, that still have room for a number


def draw_losses(panel, history, name, epochs=None):
    """Draw one loss by epoch, training and validation together.

    Parameters
    ----------
    panel : Axes
        It gets a logarithmic axis if all values are positive and span more than a factor of 10.
    history : pandas.DataFrame
        Columns `epoch`, and `name` and "val_" + `name` or one of them; a row per epoch.
    name : str
    epochs : int, optional
        Epochs of the whole training. With up to 20, each epoch has a marker.
    """
    values = []
    for label, (prefix, look) in CURVES.items():
        if prefix + name in history:
            curve = history[prefix + name]
            values += list(curve.dropna())
            marker = "o" if (epochs or len(history)) <= 20 else None
            panel.plot(history["epoch"], curve, label=label, marker=marker, ms=4, **look)
    if values and min(values) > 0 and max(values) > 10 * min(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(LogFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        panel.tick_params(axis="y", which="minor", labelsize=10)
    panel.set(xlabel="epoch", ylabel=name.replace("_", " "))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.grid(alpha=0.25)


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
    figure = style.new_figure(1.2 + 3.4 * n_columns, 3.0 * n_rows + 0.6, title)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, name in zip(axes, names, strict=False):
        draw_losses(panel, table.assign(epoch=range(1, len(table) + 1)), name)
        if best_by in table and table[best_by].notna().any():
            best = int(np.nanargmin(table[best_by])) + 1
            panel.axvline(best, color="0.4", linestyle=":", label=f"best epoch: {best}")
    for panel in axes[len(names) :]:
        panel.remove()
    entries = {line.get_label(): line for panel in figure.axes for line in panel.lines}
    style.legend_below(figure, list(entries.values()), ncols=3)
    return figure


def loss_table(terms, weights):
    """List the terms of a loss with their weights.

    Parameters
    ----------
    terms : dict
        Name to value; names without a weight are left out.
    weights : dict
        Name to weight, in the order shown.

    Returns
    -------
    DataFrame
        Indexed by term: `value`, `weight`, and their product `in the loss`.
    """
    values = {name: float(terms[name]) for name in weights}
    table = pd.DataFrame({"value": values, "weight": pd.Series(weights, dtype=float)})
    table["in the loss"] = table["value"] * table["weight"]
    return table.rename_axis("term")


def loss_parts(tables, ax=None):
    """Draw what each term adds to the loss, as bars laid end to end.

    Parameters
    ----------
    tables : dict
        Name of the moment, such as "Before", to a table of `loss_table`. The terms are the same.
    ax : Axes, optional

    Returns
    -------
    Figure
    """
    parts = pd.DataFrame({moment: table["in the loss"] for moment, table in tables.items()}).T
    figure, panel = style.panel_of(ax, 8.2, 0.6 * len(parts) + 1.5)
    parts.columns = [term.replace("_", " ") for term in parts.columns]
    look = {"width": 0.6, "color": style.METHOD_COLOURS, "edgecolor": "white", "legend": False}
    parts.plot.barh(stacked=True, ax=panel, **look)
    totals = parts.sum(axis=1)
    for row, total in enumerate(totals):
        panel.text(total, row, f" {total:.0f}", va="center")
    panel.set(xlabel="part of the generator's loss (value × weight)", xlim=(0, 1.1 * totals.max()))
    panel.invert_yaxis()
    style.plain(panel)
    style.legend_above(panel, ncols=min(4, parts.shape[1]))
    return figure


def cross_entropy_curve(points, title="", ax=None):
    """Draw the cross-entropy, -ln p, of the probability that the desired label gets.

    Parameters
    ----------
    points : dict
        Text to a probability that is marked, such as `{"undecided": 0.5}`.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a probability is not above 0 and at most 1.
    """
    wrong = {name: p for name, p in points.items() if not 0 < p <= 1}
    if wrong:
        raise ValueError(f"Found {wrong}; expected probabilities above 0, 1 at most.")
    figure, panel = style.panel_of(ax, 6.8, 3.8)
    line = np.linspace(min(0.01, *points.values()) if points else 0.01, 1, 400)
    panel.plot(line, -np.log(line), color=style.METHOD_COLOURS[0], linewidth=2)
    for name, probability in points.items():
        cost = abs(np.log(probability))
        panel.plot(probability, cost, "o", color=style.METHOD_COLOURS[1])
        right = probability < 0.6  # of the point there is room
        panel.annotate(
            f"{name}: −ln {probability:.3g} = {cost:.2f}",
            (probability, cost),
            xytext=(8, 8) if right else (8, 14),
            textcoords="offset points",
            ha="left" if right else "center",
        )
    panel.set(
        xlabel="predicted probability of the desired label",
        ylabel="cross-entropy (nats)",
        title=title,
        xlim=(-0.02, 1.04),
    )
    panel.grid(alpha=0.25)
    style.plain(panel)
    return figure


def discriminator_outputs(pairs, pixel_size_um, title=""):
    """Show image pairs beside the discriminator's output for each of their patches.

    Parameters
    ----------
    pairs : dict
        Title to (brightfield, phase, probabilities): two images (size, size[, 1]), the second in
        rad, and the probability of "measured" of each patch, (patches, patches[, 1]). They may be
        tensors. A row each.
    pixel_size_um : float
    title : str

    Returns
    -------
    Figure
        One phase scale for all. Up to 8 patches per side, each shows its probability.
    """
    rows = {name: [_as_image(image) for image in images] for name, images in pairs.items()}
    ends = style.colour_limits(np.stack([phase for _, phase, _ in rows.values()]))
    figure = style.new_figure(9.4, 2.7 * len(rows) + 0.3, title)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (left, middle, right), (name, images) in zip(axes, rows.items(), strict=True):
        brightfield, phase, patches = images
        own_ends = style.colour_limits(brightfield)
        drawn = style.draw_image(left, brightfield, pixel_size_um, style.BRIGHTFIELD_MAP, own_ends)
        style.draw_image(middle, phase, pixel_size_um, style.PHASE_MAP, ends)
        look = {"cmap": style.ACTIVATION_MAP, "vmin": 0, "vmax": 1, "square": True, "fmt": ".1f"}
        style.heatmap(right, patches, annot=len(patches) <= MOST_PATCHES, **look)
        right.set(xticks=[], yticks=[], xlabel=f"mean {patches.mean():.2f}")
        left.set_ylabel(name)
        style.scale_bar(drawn)
    for panel, heading in zip(axes[0], ("Brightfield", "Phase", "Output per patch"), strict=True):
        panel.set_title(heading, fontsize=10)
    for column, label, found in (
        (axes[:, 1], "phase (rad)", axes[0, 1].images[0]),
        (axes[:, 2], "probability of “measured”", axes[0, 2].collections[0]),
    ):
        figure.colorbar(found, ax=column, label=label, aspect=20)
    return figure


def _as_image(image):
    # Keras is imported here, since all other figures do without it.
    from cytomad_lib.backend import keras

    # A tensor straight from a network may carry gradients.
    return as_stack(keras.ops.convert_to_numpy(image)[None])[0]
