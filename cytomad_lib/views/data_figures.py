"""Figures of cells, batches and phase, for those who meet the data for the first time.

- `group_counts`: how many cells of which class were imaged in which batch.
- `gallery`: kinds of image in rows, cells in columns, one phase scale for all.
- `histograms_by_batch`: one measured value, a histogram per batch.
- `points_by_batch`: one value per cell, a column of points per batch.
- `phase_profile`: a phase image, and its values along the middle as phase and as optical path.
- `image_steps`: images in one row, each with its own unit and colour scale.

Like those of `plots`, these figures do not belong to pyplot: each function returns its figure.

Example
-------
>>> import pandas as pd
>>> labels = pd.DataFrame({"batch": ["B1", "B1", "B2"], "class_name": ["a", "b", "b"]})
>>> [text.get_text() for text in group_counts(labels.astype("category")).axes[0].texts]
['1', '1', '', '1']
"""

import textwrap

import numpy as np
from matplotlib.patches import Rectangle

from cytomad_lib.analysis.image_quality import as_stack
from cytomad_lib.views.plots import (
    BATCH_COLOURS,
    PHASE_MAP,
    Figure,
    category_colours,
    colour_limits,
    interpolation_of,
    scale_bar,
)

SCALE_BAR_UM = 10


def group_counts(labels, class_term="class"):
    """Draw a table of batches and classes, with the number of cells of each group.

    Parameters
    ----------
    labels : pandas.DataFrame
        Categorical columns `batch` and `class_name`, one row per cell.
    class_term : str
        What a class is, for instance "cell line".

    Returns
    -------
    Figure
        Groups without cells are hatched and have no number.
    """
    rows, columns = (labels[name].cat.categories for name in ("class_name", "batch"))
    counts = labels.groupby(["class_name", "batch"], observed=False).size().unstack()
    counts = counts.reindex(index=rows, columns=columns, fill_value=0).to_numpy()
    figure = Figure(
        figsize=(0.75 * len(columns) + 1.6, 0.45 * len(rows) + 0.9), layout="constrained"
    )
    panel = figure.subplots()
    for (row, column), count in np.ndenumerate(counts):
        look = {"facecolor": "#A9C0DC"} if count else {"facecolor": "white", "hatch": "///"}
        panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, edgecolor="0.75", **look))
        panel.text(column, row, str(count) if count else "", ha="center", va="center")
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.tick_params(length=0)
    panel.set(xlabel="batch (day of acquisition)", ylabel=class_term)
    panel.set_title("cells per group; hatched: never imaged", fontsize=10)
    return figure


def gallery(
    rows,
    pixel_size_um,
    column_labels=None,
    brightfield=("Brightfield",),
    phase_limits=None,
    title="",
):
    """Show kinds of image in rows, cells in columns.

    Parameters
    ----------
    rows : dict
        Title to images, (cells, height, width[, 1]), in the order shown, the same number in each.
    pixel_size_um : float
        Micrometres per pixel; the scale bar is 10 um.
    column_labels : sequence of str, optional
        One per cell, for instance "Batch1".
    brightfield : sequence of str
        Titles of the rows that are brightfield, one grey scale for all of them; all other rows are
        phase in radians, with one colour scale.
    phase_limits : tuple of float, optional
        Radians at the ends of the colour scale; give it to compare several figures.
    title : str

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If rows differ in shape, or the labels in number.
    """
    images = {name: as_stack(stack) for name, stack in rows.items()}
    shapes = {name: stack.shape for name, stack in images.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"Rows have shapes {shapes}; expected as many cells of one size in each.")
    n_cells, height, width = next(iter(shapes.values()))
    if column_labels is not None and len(column_labels) != n_cells:
        raise ValueError(f"Found {len(column_labels)} labels for {n_cells} cells; give one each.")
    kinds = {name: "brightness" if name in brightfield else "phase (rad)" for name in images}
    norms = {
        kind: colour_limits(np.stack([images[name] for name in images if kinds[name] == kind]))
        for kind in set(kinds.values())
    }
    if phase_limits and "phase (rad)" in norms:
        norms["phase (rad)"].vmin, norms["phase (rad)"].vmax = phase_limits
    figure = Figure(
        figsize=(1.25 * n_cells + 1.2, 1.2 * len(images) + (0.9 if title else 0.5)),
        layout="constrained",
    )
    axes = figure.subplots(len(images), n_cells, squeeze=False)
    extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
    for line, (name, stack) in zip(axes, images.items(), strict=True):
        kind = kinds[name]
        look = {"cmap": "gray" if kind == "brightness" else PHASE_MAP, "norm": norms[kind]}
        for panel, image in zip(line, stack, strict=True):
            drawn = panel.imshow(
                image, extent=extent, interpolation=interpolation_of(width), **look
            )
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(textwrap.fill(name, 14), fontsize=10)
        figure.colorbar(drawn, ax=line, label=kind, shrink=0.95, aspect=12)
    scale_bar(axes[0, 0], SCALE_BAR_UM, extent, "white")
    for panel, text in zip(axes[0], column_labels or [], strict=False):
        panel.set_title(text.replace(", ", "\n"), fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
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
    figure = Figure(
        figsize=(3.5 * len(values) + 0.6, 0.5 * len(colours) + 0.9), layout="constrained"
    )
    axes = figure.subplots(len(colours), len(values), sharex="col", squeeze=False)
    for column, (name, numbers) in zip(axes.T, values.items(), strict=True):
        bins = np.linspace(np.min(numbers), np.max(numbers), n_bins + 1)
        for panel, (one, colour) in zip(column, colours.items(), strict=True):
            own = np.asarray(numbers)[(batch == one).to_numpy()]
            panel.hist(own, bins, color=colour, alpha=0.85)
            panel.axvline(np.median(own), color="black", linewidth=1.2)
            panel.set(yticks=[])
            panel.spines[["top", "right", "left"]].set_visible(False)
        column[-1].set_xlabel(name)
    for panel, one in zip(axes[:, 0], colours, strict=True):
        panel.set_ylabel(one, rotation=0, ha="right", va="center")
    return figure


def points_by_batch(values, batch, ylabel, reference=None, reference_label="", title=""):
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

    Returns
    -------
    Figure
    """
    colours = _colours_of(batch, {ylabel: values})
    figure = Figure(figsize=(0.75 * len(colours) + 1.4, 3.2), layout="constrained")
    panel = figure.subplots()
    if reference is not None:
        panel.axhline(reference, color="black", linestyle="--", linewidth=1, label=reference_label)
    for place, (one, colour) in enumerate(colours.items()):
        own = np.asarray(values)[(batch == one).to_numpy()]
        # A small fixed spread: points side by side do not hide each other.
        across = place + np.linspace(-0.18, 0.18, len(own))
        panel.plot(across, own, "o", color=colour, markersize=4, alpha=0.8)
        panel.plot([place - 0.3, place + 0.3], [own.mean()] * 2, color="black", linewidth=2)
    panel.set_xticks(range(len(colours)), colours)
    panel.set(ylabel=ylabel, title=title)
    panel.spines[["top", "right"]].set_visible(False)
    if reference is not None and reference_label:
        panel.legend(frameon=False)
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
    extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
    figure = Figure(figsize=(8.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    drawn = left.imshow(image, cmap=PHASE_MAP, extent=extent, interpolation=interpolation_of(width))
    middle = (height // 2 + 0.5) * pixel_size_um
    left.axhline(middle, color="white", linestyle=":", linewidth=1.2)
    left.set(xticks=[], yticks=[])
    scale_bar(left, SCALE_BAR_UM, extent, "white")
    figure.colorbar(drawn, ax=left, label="phase (rad)", shrink=0.9)
    along = (np.arange(width) + 0.5) * pixel_size_um
    right.plot(along, image[height // 2], color="#0072B2", linewidth=2)
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xlabel="place along the dotted line (µm)", ylabel="phase (rad)")
    if wavelength_um is not None:
        nm_per_rad = 1000 * wavelength_um / (2 * np.pi)
        there_and_back = lambda rad: rad * nm_per_rad, lambda nm: nm / nm_per_rad
        axis = right.secondary_yaxis("right", functions=there_and_back)
        axis.set_ylabel("optical path difference (nm)")
    right.spines["top"].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def image_steps(steps, field_of_view_um, title=""):
    """Show images in one row, each with its own unit and colour scale.

    Parameters
    ----------
    steps : dict
        Title to (image, unit) or (image, unit, colour map). Images are (height, width); they may
        differ in pixels, but not in the field that they show. The map is by default "gray" where
        the unit begins with "brightness", else that of phase.
    field_of_view_um : float
        Side of all images; the scale bar is 10 um.
    title : str

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(2.5 * len(steps) + 0.3, 2.9), layout="constrained")
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    extent = (0, field_of_view_um, field_of_view_um, 0)
    for panel, (name, (image, unit, *other)) in zip(axes, steps.items(), strict=True):
        colours = other[0] if other else "gray" if unit.startswith("brightness") else PHASE_MAP
        image = as_stack(np.asarray(image)[None])[0]
        drawn = panel.imshow(
            image,
            cmap=colours,
            norm=colour_limits(image),
            extent=extent,
            interpolation=interpolation_of(image.shape[1]),
        )
        panel.set(xticks=[], yticks=[])
        panel.set_title(textwrap.fill(name, 22), fontsize=10)
        figure.colorbar(drawn, ax=panel, orientation="horizontal", shrink=0.9, label=unit)
    scale_bar(axes[0], SCALE_BAR_UM, extent, "white")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _colours_of(batch, values):
    """Return {batch: colour} of the batches that have cells, by their place among all."""
    for name, numbers in values.items():
        if len(numbers) != len(batch):
            raise ValueError(
                f"Found {len(numbers)} values of {name!r} for {len(batch)} batches; give one value "
                "per cell."
            )
    colours = category_colours(batch.cat.categories, BATCH_COLOURS)
    return {name: colour for name, colour in colours.items() if (batch == name).any()}
