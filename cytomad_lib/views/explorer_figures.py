"""The figures inside the explorers, one function each; they can be used without any widget.

- `image_row`: images of one cell side by side, each kind with a scale of its own.
- `map_and_cell`: a map of cells with one of them marked, and its images.
- `traversal`: a cell's image, and what becomes of it when a feature is changed.
- `feature_meaning`: a feature against a measure of the cell, and the cells with least and most of
  the feature.
- `dial_curves`: what turning each dial of the microscope does to the prediction.

They are drawn anew with every move of a slider, so they are small and have fixed scales: what
changes in a figure is the cell, not the scale.

Example
-------
>>> panels = [Panel("BF", np.ones((8, 8)), "brightfield"), Panel("QPI", np.eye(8), "phase")]
>>> figure = image_row(panels, 5.6, {"brightfield": (0, 2), "phase": (0, 3)})
>>> [axes.get_title() for axes in figure.axes[:2]]
['BF', 'QPI']
"""

from dataclasses import dataclass, field

import numpy as np
from matplotlib.lines import Line2D

from cytomad_lib.simulation.dials import DIALS
from cytomad_lib.views import plots

SCALE_BAR_UM = 10
MAPS = {"brightfield": "gray", "phase": plots.PHASE_MAP, "difference": plots.ERROR_MAP}
BAR_LABELS = {"phase": "phase (rad)", "difference": "difference (rad)"}
SIDE = 2.0  # inches of an image

MEASURE_LABELS = {
    "area_um2": "area (µm²)",
    "perimeter_um": "perimeter (µm)",
    "circularity": "circularity",
    "eccentricity": "eccentricity",
    "aspect_ratio": "aspect ratio",
    "equivalent_diameter_um": "equivalent diameter (µm)",
    "volume_um3": "volume (µm³)",
    "mean_phase_rad": "mean phase (rad)",
    "peak_phase_rad": "peak phase (rad)",
    "std_phase_rad": "standard deviation of the phase (rad)",
    "phase_skewness": "skewness of the phase",
    "phase_kurtosis": "kurtosis of the phase",
    "dry_mass_pg": "dry mass (pg)",
    "dry_mass_density_pg_per_um2": "dry mass per area (pg/µm²)",
    "dry_mass_concentration_pg_per_um3": "dry mass per volume (pg/µm³)",
    "local_std_rad": "texture: local standard deviation (rad)",
    "phase_entropy_bits": "texture: entropy of the phase (bits)",
    "phase_gradient_rad_per_um": "mean phase gradient (rad/µm)",
}


@dataclass(frozen=True)
class Panel:
    """One image of a figure.

    Parameters
    ----------
    title : str
    image : array (height, width)
        Phase and differences in rad.
    kind : {"brightfield", "phase", "difference"}
    """

    title: str
    image: np.ndarray = field(repr=False)
    kind: str


def limits_of(cells):
    """Return the ends of the scales that suit all of these cells: kind to (low, high).

    Parameters
    ----------
    cells : CellImages
    """
    phase = [cells.qpi] if cells.truth is None else [cells.qpi, cells.truth]
    return {
        "brightfield": _ends(cells.brightfield[..., 0]),
        "phase": _ends(np.stack(phase)),
        "difference": (-0.5, 0.5),
    }


def image_row(panels, pixel_size_um, limits):
    """Show images of one cell side by side.

    Parameters
    ----------
    panels : sequence of Panel
    pixel_size_um : float
    limits : dict
        Kind to the ends of its scale, see `limits_of`.

    Returns
    -------
    Figure
    """
    figure = _row_figure(panels)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    _draw_images(figure, axes, panels, pixel_size_um, limits)
    return figure


def map_and_cell(coordinates, labels, row, panels, pixel_size_um, limits, colour_by="class_name"):
    """Show a map of cells with one of them marked, and the images of that one.

    Parameters
    ----------
    coordinates : array (cells, 2)
    labels : DataFrame
        With the column `colour_by`, categorical.
    row : int
        Of the marked cell.
    panels, pixel_size_um, limits
        As in `image_row`; three images at most are readable.
    colour_by : {"class_name", "batch"}

    Returns
    -------
    Figure
    """
    figure = plots.Figure(figsize=(5.0 + SIDE * len(panels) + 0.8, 3.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5.0, SIDE * len(panels) + 0.8))
    axes = left.subplots()
    _scatter(axes, coordinates[:, 0], coordinates[:, 1], labels[colour_by], size=22)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0.1)
    for size, colour in ((150, "white"), (110, "black")):
        axes.scatter(*coordinates[row], s=size, facecolors="none", edgecolors=colour, linewidths=2)
    axes.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    images = right.subplots(1, len(panels), squeeze=False)[0]
    _draw_images(right, images, panels, pixel_size_um, limits)
    return figure


def traversal(panels, pixel_size_um, limits, values, own, chosen, name):
    """Show what becomes of a cell's image when one of its features is changed.

    Parameters
    ----------
    panels, pixel_size_um, limits
        As in `image_row`.
    values : array (cells,)
        The feature of many cells.
    own, chosen : float
        Its value in this cell, and the one it is given.
    name : str
        Of the feature.

    Returns
    -------
    Figure
        Beside the images: how the feature is spread over the cells, and where this one is.
    """
    figure = _row_figure(panels, extra=2.2)
    axes = figure.subplots(1, len(panels) + 1, width_ratios=[1.0] * len(panels) + [1.0])
    _draw_images(figure, axes[:-1], panels, pixel_size_um, limits)
    axes[-1].hist(values, bins=24, color="0.75")
    axes[-1].axvline(own, color="black", linestyle="--", label="this cell's own")
    axes[-1].axvline(chosen, color="#D55E00", linewidth=2, label="as the slider says")
    axes[-1].set(xlabel=name, ylabel="cells")
    axes[-1].set_box_aspect(0.8)
    axes[-1].spines[["top", "right"]].set_visible(False)
    axes[-1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    return figure


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
        As in `image_row`.

    Returns
    -------
    Figure
    """
    figure = plots.Figure(figsize=(4.9 + 1.35 * len(least) + 0.8, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4.9, 1.35 * len(least) + 0.8))
    axes = left.subplots()
    _scatter(axes, values, measured, labels["class_name"], size=14)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0.1)
    axes.set(xlabel=name, ylabel=MEASURE_LABELS.get(measure, measure))
    axes.spines[["top", "right"]].set_visible(False)
    grid = right.subplots(2, len(least), squeeze=False)
    for row, images, title in zip(grid, (least, most), ("least", "most"), strict=True):
        panels = [Panel("", image, "phase") for image in images]
        _draw_images(right, row, panels, pixel_size_um, limits, bars=False)
        row[0].set_ylabel(f"{title} of it", fontsize=10)
    right.colorbar(grid[0, 0].images[0], ax=grid, label=BAR_LABELS["phase"], aspect=30)
    return figure


def dial_curves(sweeps):
    """Draw the error of the prediction over the setting of each dial.

    Parameters
    ----------
    sweeps : dict
        Name of a model to its table from `sweep_dials`; all of the same dials.

    Returns
    -------
    Figure
        A panel per dial, one scale of errors for all. Grey: the range of the simulated days.
        Dotted: the error of the measured phase itself.
    """
    first = next(iter(sweeps.values()))
    names = list(dict.fromkeys(first["dial"]))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    width = max(2.35 * columns + 0.3, 4.8)  # the legend needs so much
    figure = plots.Figure(figsize=(width, 2.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    colours = dict(zip(sweeps, plots.METHOD_COLOURS, strict=False))
    for axes, name in zip(grid.ravel(), names, strict=False):
        dial = DIALS[name]
        axes.axvspan(dial.low, dial.high, color="0.9", zorder=0)
        for number, (model, sweep) in enumerate(sweeps.items()):
            own = sweep[sweep["dial"] == name]
            style = {"color": colours[model], "marker": plots.MARKERS[number], "markersize": 4}
            axes.plot(own["value"], own["mae_rad"], label=model, **style)
        own = first[first["dial"] == name]
        axes.plot(own["value"], own["measured_mae_rad"], ":", color="black", label="measured phase")
        axes.set_xlabel(dial_label(name), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("error against\nthe truth (rad)", fontsize=9)
        axes.set_ylim(bottom=0)
    for axes in grid.ravel()[len(names) :]:
        axes.remove()
    handles = [Line2D([], [], color="0.9", linewidth=8, label="range of the simulated days")]
    handles += grid[0, 0].get_legend_handles_labels()[0]
    ncols = 4 if columns > 2 else 2
    figure.legend(
        handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9
    )
    return figure


def dial_label(name):
    """Return a dial's name with its unit, such as "defocus (µm)"."""
    dial = DIALS[name]
    words = name.removesuffix("_um").replace("_", " ").replace("qpi", "QPI")
    words = "NA" if name == "na" else words
    return f"{words} ({dial.unit})" if dial.unit else words


def _ends(images):
    low, high = (float(end) for end in np.quantile(images, (0.002, 0.9995)))
    return (low, high) if high > low else (low, low + 1.0)


def _row_figure(panels, extra=0.0):
    bars = len({panel.kind for panel in panels} & set(BAR_LABELS))
    return plots.Figure(
        figsize=(SIDE * len(panels) + 0.85 * bars + extra, SIDE + 0.55), layout="constrained"
    )


def _draw_images(figure, axes, panels, pixel_size_um, limits, bars=True):
    """Draw panels into axes; a colour bar of each kind stands after its last image."""
    last = {panel.kind: number for number, panel in enumerate(panels)}
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        height, width = panel.image.shape
        extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
        low, high = limits[panel.kind]
        drawn = axis.imshow(panel.image, cmap=MAPS[panel.kind], vmin=low, vmax=high, extent=extent)
        axis.set(xticks=[], yticks=[])
        axis.set_title(panel.title, fontsize=10)
        if number == 0:
            # White on the dark ends of gray and of viridis would vanish on a bright background.
            colour = "black" if panel.kind != "phase" else "white"
            plots.scale_bar(axis, SCALE_BAR_UM, extent, colour)
        if bars and panel.kind in BAR_LABELS and last[panel.kind] == number:
            figure.colorbar(
                drawn, ax=axis, label=BAR_LABELS[panel.kind], fraction=0.08, extend="both"
            )


def _scatter(axes, x, y, categories, size):
    """Draw points in the colours and markers of their categories, in mixed order."""
    codes = categories.cat.codes.to_numpy()
    palette = plots.BATCH_COLOURS if categories.name == "batch" else plots.CLASS_COLOURS
    colours = plots.category_colours(categories.cat.categories, palette)
    for code, (name, colour) in enumerate(colours.items()):
        mine = codes == code
        if mine.any():
            axes.scatter(
                x[mine],
                y[mine],
                s=size,
                color=colour,
                marker=plots.MARKERS[code],
                edgecolors="white",
                linewidths=0.2,
                alpha=0.85,
                label=name,
            )
