"""Figures of cells, batches and phase.

- `image_grid`: cells in rows or columns, kinds of image across, with colour bars and a scale bar.
- `limits_of`: colour scales that suit all cells of a dataset.
- `image_steps`: images in one row, each with its own unit and colour scale.
- `transferred_cells`: cells as each batch would have shown them.
- `phase_profile`: a phase image, and its values along the middle as phase and as optical path.
- `group_counts`: how many cells of each class were imaged in each batch.
- `histograms_by_batch`, `points_by_batch`: measured values of the cells, batch by batch.

Example
-------
>>> images = np.random.default_rng(0).random((2, 16, 16))
>>> figure = image_grid({"Brightfield": images, "QPI": images}, 2.8, ["H69", "H358"])
>>> [axes.get_title() for axes in figure.axes[:2]]
['Brightfield', 'QPI']
"""

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import Patch

from cytomad_lib.evaluation.image_quality import as_stack
from cytomad_lib.plots import style

MAPS = {
    "brightfield": style.BRIGHTFIELD_MAP,
    "phase": style.PHASE_MAP,
    "difference": style.ERROR_MAP,
}
BRIGHTFIELD_NAMES = ("Brightfield", "brightfield", "BF")


def image_grid(
    stacks,
    pixel_size_um,
    cell_labels=None,
    *,
    cells_in="rows",
    brightfield=BRIGHTFIELD_NAMES,
    difference=(),
    error_of=None,
    limits=None,
    scale_per_cell=False,
    quantity="phase (rad)",
    title="",
    figure=None,
):
    """Show kinds of image of the same cells in a grid.

    Parameters
    ----------
    stacks : dict
        Title to images, (cells, height, width[, 1]), in the order shown. All of the same cells.
    pixel_size_um : float
        Micrometres per pixel; the scale bar is 10 µm.
    cell_labels : sequence of str, optional
        One per cell, for instance "H69, Batch1".
    cells_in : {"rows", "columns"}
        The direction of the cells; the kinds of image go across.
    brightfield, difference : sequence of str
        Titles that are brightfield images, and differences around zero; all others are phase.
    error_of : tuple of str, optional
        Titles (a, b): adds the difference a - b.
    limits : dict, optional
        "brightfield", "phase" or "difference" to the ends of its colour scale, see `limits_of`.
        Without it, each brightfield title has its own scale, and all phase images share one.
    scale_per_cell : bool
        Give each cell its own scale, which its brightfield (or its phase) images share.
    quantity : str
        What is shown as phase, with its unit in brackets.
    title : str
    figure : Figure or SubFigure, optional
        Draw into this one; it has no axes yet.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If the stacks differ in shape, the labels do not fit, or a title in `error_of` is missing.
    """
    images = _of_same_cells(stacks, cell_labels)
    if error_of is not None:
        missing = [name for name in error_of if name not in images]
        if missing:
            raise ValueError(f"Found no images {missing} to compare; expected one of {[*images]}.")
        difference = (*difference, f"{error_of[0]} − {error_of[1]}")
        images[difference[-1]] = images[error_of[0]] - images[error_of[1]]
    named = dict.fromkeys(brightfield, "brightfield") | dict.fromkeys(difference, "difference")
    kinds = {name: named.get(name, "phase") for name in images}
    scales = _scales(images, kinds, limits or {}, scale_per_cell)
    cells_down = cells_in == "rows"
    grid = _empty_grid(figure, images, kinds, cells_down, title)
    unit = quantity.partition("(")[1:]
    units = {"brightfield": "brightness", "phase": quantity}
    units["difference"] = "difference " + "".join(unit)
    last = {kind: name for name, kind in kinds.items()}
    for panels, (name, stack) in zip(grid, images.items(), strict=True):
        kind = kinds[name]
        for panel, image, ends in zip(panels, stack, scales[name], strict=True):
            drawn = style.draw_image(panel, image, pixel_size_um, MAPS[kind], ends)
        if not cells_down or (kind != "brightfield" and last[kind] == name):
            bar = {"label": units[kind].strip(), "aspect": 12 * len(panels) if cells_down else 12}
            bar["shrink"] = 0.9
            panels[0].figure.colorbar(drawn, ax=list(panels), **bar)
    style.scale_bar(grid[0, 0].images[0])
    _write_labels(grid, list(images), cell_labels or [], cells_down)
    return grid[0, 0].figure


def _of_same_cells(stacks, labels):
    """Return the stacks as (cells, height, width), or refuse those that do not fit each other."""
    images = {name: as_stack(stack) for name, stack in stacks.items()}
    shapes = {name: stack.shape for name, stack in images.items()}
    n_cells = len(next(iter(images.values()), ()))
    if len(set(shapes.values())) != 1 or not n_cells:
        raise ValueError(
            f"Found images of shapes {shapes}; expected the same cells, one at least, at one size."
        )
    if labels is not None and len(labels) != n_cells:
        raise ValueError(f"Found {len(labels)} labels for {n_cells} cells; give one each.")
    return images


def _scales(images, kinds, limits, per_cell):
    """Return the ends of the colour scale of each image: title to a pair per cell."""
    scales = {}
    for name, kind in kinds.items():
        alike = np.stack([images[other] for other in kinds if kinds[other] == kind])
        if kind in limits:
            ends = [limits[kind]]
        elif kind == "difference":
            end = np.quantile(np.abs(alike), 0.998) or 1.0
            ends = [(-end, end)]
        elif per_cell:
            ends = [style.colour_limits(alike[:, cell]) for cell in range(alike.shape[1])]
        else:
            ends = [style.colour_limits(images[name] if kind == "brightfield" else alike)]
        scales[name] = ends if len(ends) > 1 else ends * alike.shape[1]
    return scales


def _empty_grid(figure, images, kinds, cells_down, title):
    """Return axes (kinds of image, cells), in a new figure unless one is given."""
    n_kinds, n_cells = len(images), len(next(iter(images.values())))
    rows, columns = (n_cells, n_kinds) if cells_down else (n_kinds, n_cells)
    if figure is None:
        # About as wide as a page, and never so small that the labels overlap.
        side = np.clip(8.4 / columns, 1.15, 1.8)
        bars = len({*kinds.values()} - {"brightfield"}) if cells_down else 1
        figure = style.new_figure(
            side * columns + 0.7 * bars + 0.6, side * rows + 0.5 + 0.3 * bool(title)
        )
        # Square panels leave room in their cells: the usual layout then cuts labels of two lines.
        figure.set_layout_engine("compressed")
    if title:
        figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False)
    return axes.T if cells_down else axes


def _write_labels(grid, titles, cell_labels, cells_down):
    """Write what is across as titles, and what is down at the left."""
    cell_labels = [label.replace(", ", "\n") for label in cell_labels]
    titles = [textwrap.fill(title, 16) for title in titles]
    above, beside = (titles, cell_labels) if cells_down else (cell_labels, titles)
    first_row, first_column = (grid[:, 0], grid[0]) if cells_down else (grid[0], grid[:, 0])
    for panel, text in zip(first_row, above, strict=False):
        panel.set_title(text, fontsize=10)
    for panel, text in zip(first_column, beside, strict=False):
        panel.set_ylabel(text)


def limits_of(cells):
    """Return colour scales that suit all cells, so that figures can be compared.

    Parameters
    ----------
    cells : CellImages

    Returns
    -------
    dict
        Kind of image to the ends of its scale, as `image_grid` takes it.
    """
    phase = cells.qpi if cells.truth is None else np.stack([cells.qpi, cells.truth])
    return {
        "brightfield": style.colour_limits(cells.brightfield[..., 0]),
        "phase": style.colour_limits(phase),
        "difference": (-0.5, 0.5),
    }


def image_steps(steps, field_of_view_um, title=""):
    """Show images in one row, each with its own unit and colour scale.

    Parameters
    ----------
    steps : dict
        Title to (image, unit) or (image, unit, colour map). Images are (height, width); they may
        differ in pixels, but not in the field that they show. The map is by default grey where
        the unit begins with "brightness", else that of phase.
    field_of_view_um : float
        Side of all images; the scale bar is 10 µm.
    title : str

    Returns
    -------
    Figure
    """
    figure = style.new_figure(2.5 * len(steps) + 0.3, 3.0, title)
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    for panel, (name, (image, unit, *other)) in zip(axes, steps.items(), strict=True):
        default = style.BRIGHTFIELD_MAP if unit.startswith("brightness") else style.PHASE_MAP
        image = as_stack(np.asarray(image)[None])[0]
        pixel = field_of_view_um / image.shape[1]
        colours = other[0] if other else default
        drawn = style.draw_image(panel, image, pixel, colours, style.colour_limits(image))
        panel.set_title(textwrap.fill(name, 22), fontsize=10)
        figure.colorbar(drawn, ax=panel, orientation="horizontal", shrink=0.9, label=unit)
    style.scale_bar(axes[0].images[0])
    return figure


def transferred_cells(measured, transferred, own_batches, pixel_size_um, cell_labels=None):
    """Show each cell as it was measured, and as every batch would have shown it.

    Parameters
    ----------
    measured : array, (cells, height, width[, 1])
        Brightfield images.
    transferred : dict
        Name of each batch to the images of the same cells, transferred to that batch.
    own_batches : sequence of str
        The batch in which each cell was measured; its panel is framed.
    pixel_size_um : float
    cell_labels : sequence of str, optional

    Returns
    -------
    Figure
        One grey scale for each cell, so that brightness can be compared along a row.
    """
    columns = {"measured": measured}
    columns |= {f"as {batch}": images for batch, images in transferred.items()}
    figure = image_grid(
        columns, pixel_size_um, cell_labels, brightfield=tuple(columns), scale_per_cell=True
    )
    frame = {"edgecolor": style.METHOD_COLOURS[1], "linewidth": 3}
    axes = np.reshape(figure.axes, (-1, len(columns)))
    for row, batch in zip(axes, own_batches, strict=True):
        for spine in row[list(columns).index(f"as {batch}")].spines.values():
            spine.set(**frame)
    style.legend_below(figure, [Patch(fill=False, label="the cell's own batch", **frame)])
    return figure


def phase_profile(phase, pixel_size_um, title="", wavelength_um=None):
    """Show a phase image, and beside it the phase along its middle row.

    Parameters
    ----------
    phase : array, (height, width) or (height, width, 1)
        Radians.
    pixel_size_um : float
        Micrometres per pixel.
    title : str
    wavelength_um : float, optional
        Of the light, such as `cells.wavelength_um`.

    Returns
    -------
    Figure
        Where the wavelength is given, the right axis of the profile shows the same values as
        optical path difference in nm: path = phase * wavelength / (2 pi).
    """
    image = as_stack(np.asarray(phase)[None])[0]
    height, width = image.shape
    figure = style.new_figure(8.2, 3.0, title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    drawn = style.draw_image(left, image, pixel_size_um, style.PHASE_MAP)
    left.axhline((height // 2 + 0.5) * pixel_size_um, color="white", linestyle=":", linewidth=1.2)
    style.scale_bar(drawn)
    figure.colorbar(drawn, ax=left, label="phase (rad)", shrink=0.9)
    along = (np.arange(width) + 0.5) * pixel_size_um
    right.plot(along, image[height // 2], color=style.METHOD_COLOURS[0], linewidth=2)
    right.axhline(0, color=style.GREY, linewidth=0.8)
    right.set(xlabel="place along the dotted line (µm)", ylabel="phase (rad)")
    if wavelength_um is not None:
        nm = 1000 * wavelength_um / (2 * np.pi)
        path = right.secondary_yaxis("right", functions=(_times(nm), _times(1 / nm)))
        path.set_ylabel("optical path difference (nm)")
    right.spines["top"].set_visible(False)
    return figure


def _times(factor):
    return lambda values: np.asarray(values) * factor


def group_counts(labels, class_term="class", ax=None):
    """Draw a table of batches and classes, with the number of cells of each group.

    Parameters
    ----------
    labels : pandas.DataFrame
        Categorical columns `batch` and `class_name`, one row per cell.
    class_term : str
        What a class is, for instance "cell line".
    ax : Axes, optional

    Returns
    -------
    Figure
        Groups without cells are hatched and have no number.
    """
    counts = pd.crosstab(labels["class_name"], labels["batch"], dropna=False)
    figure, panel = style.panel_of(ax, 0.8 * counts.shape[1] + 1.6, 0.45 * len(counts) + 0.9)
    look = {"cmap": [style.PALE], "linewidths": 1, "linecolor": "white"}
    numbers = {"annot": True, "fmt": "d", "annot_kws": {"color": "black"}}
    style.heatmap(panel, counts, 0, mask=counts == 0, **look, **numbers)
    panel.patch.set(hatch="///", edgecolor="0.75")  # seen where a group is masked
    panel.tick_params(length=0)
    panel.set(xlabel="batch (day of acquisition)", ylabel=class_term)
    panel.set_title("cells per group; hatched: never imaged", fontsize=10)
    return figure


def histograms_by_batch(values, batch, n_bins=30):
    """Draw histograms of measured values, a row per batch and a panel per value.

    Parameters
    ----------
    values : dict
        Name with unit to one number per cell, (cells,).
    batch : pandas.Series
        Categorical, the batch of each cell.
    n_bins : int

    Returns
    -------
    Figure
        All batches of a panel share its bins. The line in each histogram is the median.

    Raises
    ------
    ValueError
        If the numbers of values and batches differ.
    """
    colours = _colours_of(batch, values)
    figure = style.new_figure(3.5 * len(values) + 0.6, 0.5 * len(colours) + 0.9)
    axes = figure.subplots(len(colours), len(values), sharex="col", squeeze=False)
    for column, (name, numbers) in zip(axes.T, values.items(), strict=True):
        ends = np.min(numbers), np.max(numbers)
        for panel, (one, colour) in zip(column, colours.items(), strict=True):
            own = np.asarray(numbers)[(batch == one).to_numpy()]
            sns.histplot(
                x=own, bins=n_bins, binrange=ends, color=colour, linewidth=0, alpha=0.85, ax=panel
            )
            for line, width in (("white", 3), ("black", 1.2)):  # visible on any colour
                panel.axvline(np.median(own), color=line, linewidth=width)
            panel.set(yticks=[], ylabel="")
        column[-1].set_xlabel(name)
    sns.despine(figure, left=True)
    figure.supylabel("number of cells (line: median)", fontsize=10)
    for panel, one in zip(axes[:, 0], colours, strict=True):
        panel.set_ylabel(one, rotation=0, ha="right", va="center")
    return figure


def points_by_batch(values, batch, ylabel, reference=None, reference_label="", title="", ax=None):
    """Draw one value per cell as points, a column per batch with its mean as a bar.

    Parameters
    ----------
    values : array, (cells,)
    batch : pandas.Series
        Categorical, the batch of each cell.
    ylabel : str
        What the value is, with its unit.
    reference : float, optional
        Drawn as a dashed line.
    reference_label : str
        What that line means.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
    """
    colours = _colours_of(batch, {ylabel: values})
    figure, panel = style.panel_of(ax, 0.8 * len(colours) + 1.4, 3.4)
    table = pd.DataFrame({"value": np.asarray(values), "batch": batch.astype(str).to_numpy()})
    place = {"x": "batch", "y": "value", "order": list(colours), "ax": panel}
    sns.swarmplot(table, hue="batch", palette=colours, size=4.5, legend=False, **place)
    sns.pointplot(
        table, errorbar=None, linestyle="none", marker="_", markersize=24, color="black", **place
    )
    if reference is not None:
        line = {"color": "black", "linestyle": "--", "linewidth": 1}
        panel.axhline(reference, label=reference_label, **line)
    panel.set(xlabel="", ylabel=ylabel, title=title)
    style.plain(panel)
    if reference is not None and reference_label:
        panel.legend(frameon=False)
    return figure


def _colours_of(batch, values):
    """Return {batch: colour} of the batches that have cells, by their place among all."""
    for name, numbers in values.items():
        if len(numbers) != len(batch):
            raise ValueError(
                f"Found {len(numbers)} values of {name!r} for {len(batch)} batches; give one value "
                "per cell."
            )
    colours, _ = style.category_looks(batch.cat.categories, style.BATCH_COLOURS)
    return {name: colour for name, colour in colours.items() if (batch == name).any()}
