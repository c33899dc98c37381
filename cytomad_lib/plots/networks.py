"""Figures of networks: their parameters, the activations of their layers, and their outputs.

- `parameter_bars`: the parameters of each block.
- `feature_maps`: the activations of blocks for one cell.
- `feature_strips`: the bottleneck features of several cells, as rows of a map.
- `feature_subsets`: the disjoint features that each batch MLP takes as input.
- `path_bars`: how far the image moves when one path of the generator is exchanged.
- `sensitivity_map`: the pixels that change the output of one patch; `half_level` of such a map.
- `predicted_probabilities`: the output of classifiers for single cells.

Tables and arrays come from `cytomad_lib.evaluation.dissection`.

Example
-------
>>> figure = parameter_bars(block_table(build_generator(image_size=64, base_filters=8)))
>>> figure.savefig("parameters.png")
"""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from cytomad_lib.plots import style
from cytomad_lib.plots.diagrams import BLOCK_COLOURS, colour_of


def parameter_bars(table, title="", ax=None):
    """Show how many parameters each block of a network has.

    Parameters
    ----------
    table : pandas.DataFrame
        From `dissection.block_table`.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
        The scale is linear, to show where nearly all parameters are.
    """
    figure, panel = style.panel_of(ax, 7.5, 0.29 * len(table) + 1.0)
    colours = {name: colour_of(name) for name in table.index}
    named = table.rename_axis("block").reset_index()
    look = {"hue": "block", "palette": colours, "width": 0.75}
    style.labelled_bars(panel, named, "parameters", "block", " {:,.0f}", **look)
    panel.set(xlabel="parameters", title=title, xlim=(0, 1.2 * table["parameters"].max()))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.locator_params(axis="x", nbins=5)
    return figure


def path_bars(moved, reference=None, title="", ax=None):
    """Show how far the image moves when single paths of the generator are exchanged.

    Parameters
    ----------
    moved : dict or pandas.Series
        Name of what was exchanged to the mean absolute change of the image, in rad.
    reference : tuple of (str, float), optional
        Text and value of a line to compare with.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
    """
    table = pd.Series(moved, name="change").rename_axis("path").reset_index()
    figure, panel = style.panel_of(ax, 7.2, 0.36 * len(table) + 1.4)
    kinds = {name: "bottleneck" if "bottleneck" in name else "encoder" for name in table["path"]}
    colours = {name: BLOCK_COLOURS[kind] for name, kind in kinds.items()}
    style.labelled_bars(panel, table, "change", "path", " %.3f", hue="path", palette=colours)
    highest = table["change"].max()
    if reference is not None:
        text, value = reference
        panel.axvline(value, color="0.3", linestyle=":", label=f"{text}: {value:.3f} rad")
        below = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "frameon": False}
        panel.legend(**below)
        highest = max(highest, value)
    panel.set(xlabel="mean absolute change of the image (rad)", title=title)
    panel.set_xlim(0, 1.15 * highest)
    return figure


def feature_maps(stacks, most=8, title=""):
    """Show the activations of blocks of a network for one cell.

    Parameters
    ----------
    stacks : dict
        Title to the maps of one block, (height, width, channels); a row each.
    most : int
        Maps shown of each block: those that vary most over the image, in their order.
    title : str

    Returns
    -------
    Figure
        Every map has its own scale, that of its inside: at the border, the padding with zeros
        would outshine the cell. The number over a map is its number in the block, from 0.

    Raises
    ------
    ValueError
        If there is nothing to show, or a stack has another shape.
    """
    stacks = {name: np.asarray(maps) for name, maps in stacks.items()}
    wrong = {name: maps.shape for name, maps in stacks.items() if maps.ndim != 3}
    if wrong or not stacks:
        raise ValueError(
            f"Found stacks of shape {wrong or 'none'}; expected (height, width, channels) of one "
            "cell, at least one stack."
        )
    n_columns = min(most, max(maps.shape[2] for maps in stacks.values()))
    figure = style.new_figure(1.0 * n_columns + 1.4, 1.3 * len(stacks) + 0.5, title)
    axes = figure.subplots(len(stacks), n_columns, squeeze=False)
    for row, (name, maps) in zip(axes, stacks.items(), strict=True):
        height, width, channels = maps.shape
        inside = maps[1:-1, 1:-1] if min(height, width) >= 8 else maps
        numbers = np.sort(np.argsort(-inside.std(axis=(0, 1)), kind="stable")[:n_columns])
        for panel, number in zip(row, numbers, strict=False):
            low, high = inside[..., number].min(), inside[..., number].max()
            ends = (low, high if high > low else low + 1)
            style.draw_image(panel, maps[..., number], 1, style.ACTIVATION_MAP, ends)
            panel.set_title(str(number), fontsize=10, pad=2)
        for panel in row[len(numbers) :]:
            panel.set_axis_off()
        text = f"{name}\n{height} × {width}\n{len(numbers)} of {channels}\nmaps"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center")
    figure.supxlabel("dark: low, bright: high; every map on its own scale", fontsize=10)
    return figure


def feature_strips(features, cell_labels, title="", ax=None):
    """Show the bottleneck features of several cells, a row each.

    Parameters
    ----------
    features : array (cells, n_features)
    cell_labels : sequence of str
        One per cell.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
    """
    table = pd.DataFrame(np.asarray(features), index=cell_labels)
    figure, panel = style.panel_of(ax, 9.5, 0.33 * len(table) + 1.2)
    bar = {"label": "value", "aspect": 10, "pad": 0.02}
    look = {"cmap": style.ACTIVATION_MAP, "vmin": 0, "cbar": True, "cbar_kws": bar}
    style.heatmap(panel, table, 0, **look)
    panel.hlines(range(1, len(table)), 0, table.shape[1], "white", linewidth=1.5)
    panel.locator_params(axis="x", nbins=9)
    panel.tick_params(axis="x", length=4)
    panel.set(xlabel="feature", title=title)
    return figure


def feature_subsets(subsets, n_features, title="", ax=None):
    """Show which bottleneck features each batch MLP takes as input.

    Parameters
    ----------
    subsets : int array (classifiers, features of each)
    n_features : int
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If two classifiers share a feature, or there are more classifiers than colours.
    """
    subsets = np.asarray(subsets)
    if len(np.unique(subsets)) != subsets.size or len(subsets) > len(style.METHOD_COLOURS):
        raise ValueError(
            f"Found subsets of shape {subsets.shape} with {len(np.unique(subsets))} different "
            f"features; expected disjoint subsets, at most {len(style.METHOD_COLOURS)} of them."
        )
    figure, panel = style.panel_of(ax, 9, 0.34 * len(subsets) + 1.1)
    for row, (subset, colour) in enumerate(zip(subsets, style.METHOD_COLOURS, strict=False)):
        panel.barh(np.full(len(subset), row), 1.0, 0.8, left=subset - 0.5, color=colour)
    panel.set(xlim=(-0.5, n_features - 0.5), ylim=(len(subsets) - 0.5, -0.5))
    panel.set_yticks(range(len(subsets)), [f"batch MLP {row + 1}" for row in range(len(subsets))])
    panel.set(xlabel="bottleneck feature", title=title)
    style.plain(panel)
    return figure


def sensitivity_map(change, phase, patch, windows, n_patches, pixel_size_um, title=""):
    """Show which pixels change the output of one patch of a discriminator.

    Parameters
    ----------
    change : array (spots, spots)
        From `dissection.sensitivity`.
    phase : array (size, size[, 1])
        One of the images that were changed spot by spot, in rad.
    patch : tuple of int
        Row and column of the patch.
    windows : tuple of (first, last)
        Rows and columns, in pixels, of the receptive field, from `dissection.receptive_field`.
    n_patches : int
        Patches per side.
    pixel_size_um : float
    title : str

    Returns
    -------
    Figure
        The frame is the square of the image that has the patch's place in the map; the cross is
        the middle of the receptive field; the contour holds half of all the change.
    """
    change, phase = np.asarray(change), np.squeeze(np.asarray(phase))
    side = phase.shape[0] * pixel_size_um
    figure = style.new_figure(8.2, 3.9, title)
    left, right = figure.subplots(1, 2)
    drawn = style.draw_image(left, phase, pixel_size_um, style.PHASE_MAP)
    figure.colorbar(drawn, ax=left, label="phase (rad)", shrink=0.85)
    spot = side / len(change)
    changed = style.draw_image(right, change, spot, style.ACTIVATION_MAP, (0, None))
    figure.colorbar(changed, ax=right, label="change of the log-odds", shrink=0.85)
    centres = (np.arange(len(change)) + 0.5) * spot
    contour = {"levels": [half_level(change)], "colors": "white", "linewidths": 0.9}
    right.contour(centres, centres, change, **contour)
    step, colour = side / n_patches, "#FF6A5A"  # stands out on both maps
    middle = [(first + last + 1) / 2 * pixel_size_um for first, last in windows]
    for panel in (left, right):
        corner = (patch[1] * step, patch[0] * step)
        frame = Rectangle(corner, step, step, fill=False, edgecolor=colour, linewidth=1.8)
        panel.add_patch(frame)
        panel.plot(*reversed(middle), "+", color=colour, markersize=13, markeredgewidth=2)
        panel.set(xlim=(0, side), ylim=(side, 0))
    style.scale_bar(drawn)
    left.set_title(
        "Frame: place of the patch in the map\n+: middle of its receptive field", fontsize=10
    )
    right.set_title("Sensitivity of the patch\n(half of it inside the contours)", fontsize=10)
    return figure


def half_level(change):
    """Return the level above which the spots make up half of the sum."""
    falling = np.sort(np.asarray(change, "float64").ravel())[::-1]
    return float(falling[np.searchsorted(np.cumsum(falling), falling.sum() / 2)])


def predicted_probabilities(panels, cell_labels, title=""):
    """Show the output of classifiers for single cells: one panel each, a row per cell.

    Parameters
    ----------
    panels : dict
        Title to (probabilities (cells, k), names of the k labels, true codes (cells,)).
    cell_labels : sequence of str
        One per cell.
    title : str

    Returns
    -------
    Figure
        Probabilities in percent; the true label is boxed.
    """
    widths = [len(names) for _, names, _ in panels.values()]
    figure = style.new_figure(0.46 * sum(widths) + 2.6, 0.36 * len(cell_labels) + 1.9, title)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for panel, (name, (probabilities, names, true)) in zip(axes, panels.items(), strict=True):
        percent = pd.DataFrame(100 * np.asarray(probabilities), cell_labels, names)
        style.percent_map(panel, percent, yticklabels="auto" if panel is axes[0] else False)
        for row, column in zip(range(len(percent)), true, strict=True):
            box = Rectangle((column + 0.03, row + 0.05), 0.94, 0.9, fill=False)
            box.set(edgecolor="#D55E00", linewidth=1.8)
            panel.add_patch(box)
        panel.set_title(name, fontsize=10)
    bar = {"label": "probability (%)", "aspect": 15, "pad": 0.01}
    figure.colorbar(axes[-1].collections[0], ax=axes, **bar)
    figure.supxlabel("predicted label (boxed: the true one)", fontsize=10)
    return figure
