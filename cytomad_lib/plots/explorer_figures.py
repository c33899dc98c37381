"""The figures inside the explorers, one function each; they can be used without any widget.

- `map_and_cell`: a map of cells with one of them marked, and its images.
- `traversal`: a cell's image before and after one of its features is changed.
- `feature_meaning`: a feature against a measure of the cell, and the cells with least and most of
  the feature.
- `setting_curves`: the error of the prediction over each setting of the microscope.

They are redrawn with every move of a slider, so they are small and have fixed scales: between two
figures the cell changes, not the scale.

Example
-------
>>> setting_label("defocus_um")
'defocus (µm)'
"""

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from cytomad_lib.evaluation.biophysics import MEASURE_LABELS
from cytomad_lib.plots import style
from cytomad_lib.plots.cells import image_grid
from cytomad_lib.simulation.microscope_settings import SETTINGS

SIDE = 2.0  # inches of an image


def map_and_cell(coordinates, labels, row, images, pixel_size_um, limits, colour_by="class_name"):
    """Show a map of cells with one of them marked, and the images of that one.

    Parameters
    ----------
    coordinates : array (cells, 2)
    labels : DataFrame
        With the column `colour_by`, categorical.
    row : int
        Of the marked cell.
    images, pixel_size_um, limits
        As in `image_grid`, of one cell; three images at most are readable.
    colour_by : {"class_name", "batch"}

    Returns
    -------
    Figure
    """
    left, right = _two_parts(5.0, SIDE * len(images) + 0.8, 3.7)
    panel = left.subplots()
    style.scatter(panel, *coordinates.T, labels[colour_by], s=24)
    for size, colour in ((150, "white"), (110, "black")):
        panel.scatter(*coordinates[row], s=size, facecolors="none", edgecolors=colour, linewidths=2)
    panel.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    image_grid(images, pixel_size_um, limits=limits, figure=right)
    return left.figure


def traversal(images, pixel_size_um, limits, values, own, chosen, name):
    """Show a cell's images before and after one of its features is changed.

    Parameters
    ----------
    images, pixel_size_um, limits
        As in `image_grid`, of one cell; "change" is a difference.
    values : array (cells,)
        The feature of many cells.
    own, chosen : float
        Its value in this cell, and the one it is set to.
    name : str
        Of the feature.

    Returns
    -------
    Figure
        Beside the images: the distribution of the feature over the cells, and both values.
    """
    left, right = _two_parts(SIDE * len(images) + 1.7, 2.4, SIDE + 0.7)
    image_grid(images, pixel_size_um, difference=("change",), limits=limits, figure=left)
    panel = right.subplots()
    sns.histplot(x=np.asarray(values), bins=24, color="0.75", linewidth=0, ax=panel)
    panel.axvline(own, color="black", linestyle="--", label="this cell")
    panel.axvline(chosen, color=style.METHOD_COLOURS[1], linewidth=2, label="as set")
    panel.set(xlabel=name, ylabel="cells")
    style.plain(panel)
    style.legend_above(panel, ncols=1)
    return left.figure


def feature_meaning(values, measured, name, measure, labels, least, most, pixel_size_um, limits):
    """Show a feature against a measure of the cells, and the cells at both ends of the feature.

    Parameters
    ----------
    values, measured : array (cells,)
        The feature, and the measure of the same cells.
    name, measure : str
        What they are; the measure as in `biophysics.MEASURES`.
    labels : DataFrame
        With `class_name`, by which the points are coloured.
    least, most : array (n, height, width)
        Phase images of the cells with least and with most of the feature, 4 each or so.
    pixel_size_um, limits
        As in `image_grid`.

    Returns
    -------
    Figure
    """
    left, right = _two_parts(4.9, 1.35 * len(least) + 0.9, 3.6)
    panel = left.subplots()
    style.scatter(panel, values, measured, labels["class_name"], s=16)
    panel.set(xlabel=name, ylabel=MEASURE_LABELS.get(measure, measure))
    style.plain(panel)
    ends = {"least of it": least, "most of it": most}
    image_grid(ends, pixel_size_um, cells_in="columns", limits=limits, figure=right)
    return left.figure


def _two_parts(left, right, height):
    """Return two subfigures side by side, of these widths in inches."""
    return style.new_figure(left + right, height).subfigures(1, 2, width_ratios=(left, right))


def setting_curves(sweeps):
    """Draw the error of the prediction over each setting of the microscope.

    Parameters
    ----------
    sweeps : dict
        Name of a model to its table from `sweep_settings`; all of the same settings.

    Returns
    -------
    Figure
        A panel per setting, one scale of errors for all. Grey: the range of the simulated days.
        Dotted: the error of the measured phase itself.
    """
    first = next(iter(sweeps.values()))
    names = list(dict.fromkeys(first["setting"]))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    width = max(2.4 * columns + 0.3, 5.2)  # the legend needs so much
    figure = style.new_figure(width, 2.3 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, name in zip(grid.ravel(), names, strict=False):
        panel.axvspan(SETTINGS[name].low, SETTINGS[name].high, color="0.9", zorder=0)
        for (model, sweep), colour, marker in zip(
            sweeps.items(), style.METHOD_COLOURS, style.MARKERS, strict=False
        ):
            own, look = sweep[sweep["setting"] == name], {"color": colour, "marker": marker}
            panel.plot(own["value"], own["mae_rad"], label=model, markersize=4, **look)
        own = first[first["setting"] == name]
        panel.plot(
            own["value"], own["measured_mae_rad"], ":", color="black", label="measured phase"
        )
        panel.set(xlabel=setting_label(name), ylim=(0, None))
        style.plain(panel)
    for panel in grid[:, 0]:
        panel.set_ylabel("error against\nthe truth (rad)")
    for panel in grid.ravel()[len(names) :]:
        panel.remove()
    usual = Line2D([], [], color="0.9", linewidth=8, label="range of the simulated days")
    handles = [usual, *grid[0, 0].get_legend_handles_labels()[0]]
    style.legend_below(figure, handles, ncols=4 if columns > 2 else 2)
    return figure


def setting_label(name):
    """Return a setting's name with its unit, such as "defocus (µm)"."""
    unit = SETTINGS[name].unit
    words = name.removesuffix("_um").replace("_", " ").replace("qpi", "QPI")
    words = "NA" if name == "na" else words
    return f"{words} ({unit})" if unit else words
