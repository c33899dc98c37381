"""Figures of networks: what their layers make, how they are built, and what they answer.

- `feature_maps`: what blocks of a network make of one cell.
- `feature_strips`: the bottleneck features of several cells, as rows of a map.
- `unet_diagram`: the blocks of a generator, their shapes and the skip connections.
- `parameter_bars`: the parameters of each block.
- `path_bars`: how far the image moves when one path of the generator is exchanged.
- `patch_maps`: pairs of images beside what a discriminator says of each patch.
- `sensitivity_map`: which pixels one patch listens to.
- `answers`: what classifiers say of single cells.
- `dealt_features`: which classifier sees which feature.
- `cross_entropy_curve`: what an answer costs.

Tables and arrays come from `cytomad_lib.models.dissection`.

Example
-------
>>> figure = unet_diagram(block_table(build_generator(image_size=64, base_filters=8)))
>>> figure.savefig("generator.png")
"""

import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from cytomad_lib.views.plots import METHOD_COLOURS, PHASE_MAP, Figure, colour_limits, scale_bar

# Other maps than that of phase, so that nothing is taken for radians that is none.
ACTIVATION_MAP = "cividis"
PROBABILITY_MAP = "cividis"

# Kinds of blocks, by the first word of their names.
BLOCK_COLOURS = {
    "input": "#BBBBBB",
    "encoder": "#4477AA",
    "bottleneck": "#EE6677",
    "decoder": "#228833",
    "tail": "#CCBB44",
    "image": "#BBBBBB",
}
OTHER_BLOCK = "#66CCEE"


def feature_maps(stacks, most=8, title=""):
    """Show what blocks of a network make of one cell.

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
        Every map has a scale of its own, that of its inside: at the border the padding with zeros
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
    size = (1.0 * n_columns + 1.2, 1.2 * len(stacks) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(stacks), n_columns, squeeze=False)
    for row, (name, maps) in zip(axes, stacks.items(), strict=True):
        height, width, channels = maps.shape
        inside = maps[1:-1, 1:-1] if min(height, width) >= 8 else maps
        numbers = np.sort(np.argsort(-inside.std(axis=(0, 1)), kind="stable")[:n_columns])
        for panel, number in zip(row, numbers, strict=False):
            low, high = inside[..., number].min(), inside[..., number].max()
            panel.imshow(
                maps[..., number],
                cmap=ACTIVATION_MAP,
                vmin=low,
                vmax=high if high > low else low + 1,
                interpolation="nearest",
            )
            panel.set_title(str(number), fontsize=8, pad=2)
        for panel in row:
            panel.set(xticks=[], yticks=[])
        for panel in row[len(numbers) :]:
            panel.set_axis_off()
        text = f"{name}\n{height} × {width}\n{len(numbers)} of {channels}\nmaps"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    figure.supxlabel("dark: low, bright: high; every map on its own scale", fontsize=9)
    if title:
        figure.suptitle(title)
    return figure


def feature_strips(features, row_labels, title=""):
    """Show the bottleneck features of several cells, a row each.

    Parameters
    ----------
    features : array (cells, n_features)
    row_labels : sequence of str
        One per cell.
    title : str

    Returns
    -------
    Figure
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(row_labels):
        raise ValueError(
            f"Found features of shape {features.shape} for {len(row_labels)} labels; expected "
            "(cells, n_features) and a label for each cell."
        )
    figure = Figure(figsize=(9.5, 0.33 * len(features) + 1.2), layout="constrained")
    panel = figure.subplots()
    drawn = panel.imshow(
        features, cmap=ACTIVATION_MAP, vmin=0, aspect="auto", interpolation="nearest"
    )
    panel.set_yticks(range(len(features)), row_labels)
    panel.set(xlabel="feature", title=title)
    # Lines between the cells: each row is one cell.
    panel.set_yticks(np.arange(1, len(features)) - 0.5, minor=True)
    panel.grid(which="minor", axis="y", color="white", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    figure.colorbar(drawn, ax=panel, label="value", aspect=10, pad=0.02)
    return figure


def unet_diagram(table, title=""):
    """Draw a generator: down to the bottleneck on the left, up again on the right.

    Parameters
    ----------
    table : pandas.DataFrame
        From `dissection.block_table` of a generator.
    title : str

    Returns
    -------
    Figure
        A box per block with what it makes: pixels, and below them maps; "+" are the maps that
        are joined on. Dashed: skip connections.

    Raises
    ------
    ValueError
        If the table is not of a generator.
    """
    down = [name for name in table.index if name.startswith("encoder")]
    if "bottleneck" not in table.index or not down:
        raise ValueError(
            f"Found the blocks {list(table.index)}; expected those of a generator, with an encoder "
            "and a bottleneck."
        )
    size = table.loc[down[0], "height"] * 2
    channels_in = table.loc["tail 1", "joined"]
    depth = len(down) + 1
    places = {"input": (0, 0), "bottleneck": (depth, -depth)}
    for level, name in enumerate(down, start=1):
        places[name] = (level, -level)
        places[f"decoder {depth - level}"] = (2 * depth - level, -level)
    tail = [name for name in table.index if name.startswith("tail")]
    ends = [*tail, "image"]
    places |= {name: (2 * depth + 2.1 * k, 0) for k, name in enumerate(ends)}
    right = places["image"][0]
    figure = Figure(figsize=(11, 0.78 * depth + 1.1), layout="constrained")
    panel = figure.subplots()
    panel.set(xlim=(-1.1, right + 1.1), ylim=(-depth - 0.6, 0.75))
    panel.set_axis_off()
    for name, place in places.items():
        shape = f"{size}×{size}\n{channels_in}" if name == "input" else _shape_text(table.loc[name])
        _box(panel, place, name, shape)
    chain = ["input", *(name for name in table.index)]
    for before, after in zip(chain[:-1], chain[1:], strict=True):
        _arrow(panel, places[before], places[after])
    for level, name in enumerate(["input", *down]):
        target = "tail 1" if level == 0 else f"decoder {depth - level}"
        _skip(panel, places[name], places[target])
    middle = (places["input"][0] + places["tail 1"][0]) / 2
    panel.text(middle, 0.12, "skip connection", ha="center", fontsize=9, color="0.35")
    panel.text(
        right + 0.9,
        -depth,
        "in each box: height × width in pixels,\nand the number of maps;\n"
        "“+”: maps that a skip connection lays beside",
        ha="right",
        va="center",
        fontsize=9,
        color="0.35",
    )
    if title:
        figure.suptitle(title)
    return figure


BOX = (1.75, 0.8)  # width and height of a box of the diagram, in steps between levels


def _shape_text(block):
    joined = f" + {block['joined']}" if block["joined"] else ""
    return f"{block['height']}×{block['width']}\n{block['channels']}{joined}"


def _box(panel, place, name, shape):
    x, y = place[0] - BOX[0] / 2, place[1] - BOX[1] / 2
    colour = _colour_of(name)
    panel.add_patch(
        Rectangle((x, y), *BOX, facecolor=colour, alpha=0.22, edgecolor="none", zorder=2)
    )
    panel.add_patch(Rectangle((x, y), *BOX, fill=False, edgecolor=colour, linewidth=1.4, zorder=3))
    text = f"{name}\n{shape}"
    panel.text(*place, text, ha="center", va="center", fontsize=8, zorder=4, linespacing=1.15)


def _arrow(panel, start, end):
    """Draw the main way: from box to box, down, up or to the right."""
    (x0, y0), (x1, y1) = start, end
    if y0 == y1:
        ends = (x0 + BOX[0] / 2, y0), (x1 - BOX[0] / 2, y1)
    elif y1 < y0:
        ends = (x0 + 0.25, y0 - BOX[1] / 2), (x1 - 0.25, y1 + BOX[1] / 2)
    else:
        ends = (x0 + 0.25, y0 + BOX[1] / 2), (x1 - 0.25, y1 - BOX[1] / 2)
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    panel.add_patch(FancyArrowPatch(*ends, color="0.2", linewidth=1.2, zorder=5, **style))


def _skip(panel, start, end):
    ends = (start[0] + BOX[0] / 2, start[1]), (end[0] - BOX[0] / 2, end[1])
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    panel.add_patch(
        FancyArrowPatch(*ends, color="0.45", linewidth=1.1, linestyle="--", zorder=1, **style)
    )


def _colour_of(block):
    return BLOCK_COLOURS.get(block.split()[0], OTHER_BLOCK)


def parameter_bars(table, title=""):
    """Show how many parameters each block of a network has.

    Parameters
    ----------
    table : pandas.DataFrame
        From `dissection.block_table`.
    title : str

    Returns
    -------
    Figure
        Linear scale, since the point is where nearly all of them sit; counts at the bars.
    """
    figure = Figure(figsize=(7.5, 0.27 * len(table) + 1.0), layout="constrained")
    panel = figure.subplots()
    counts = table["parameters"].to_numpy()
    places = np.arange(len(table))
    panel.barh(places, counts, color=[_colour_of(name) for name in table.index], height=0.75)
    for place, count in zip(places, counts, strict=True):
        panel.text(count, place, f" {count:,}", va="center", fontsize=8)
    panel.set_yticks(places, table.index, fontsize=9)
    panel.invert_yaxis()
    panel.set(xlabel="parameters", title=title, xlim=(0, 1.18 * counts.max()))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.locator_params(axis="x", nbins=5)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def path_bars(moved, reference=None, title=""):
    """Show how far the image moves when single paths of the generator are exchanged.

    Parameters
    ----------
    moved : dict or pandas.Series
        Name of what was exchanged to the mean absolute change of the image, in rad.
    reference : tuple of (str, float), optional
        Text and value of a line to compare with.
    title : str

    Returns
    -------
    Figure
    """
    names, values = list(dict(moved)), np.array(list(dict(moved).values()))
    figure = Figure(figsize=(7.2, 0.36 * len(names) + 1.3), layout="constrained")
    panel = figure.subplots()
    colours = [BLOCK_COLOURS["bottleneck" if "bottleneck" in n else "encoder"] for n in names]
    panel.barh(range(len(names)), values, color=colours, height=0.7)
    for place, value in enumerate(values):
        panel.text(value, place, f" {value:.3f}", va="center", fontsize=9)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xlabel="mean absolute change of the image (rad)", title=title)
    highest = values.max()
    if reference is not None:
        text, value = reference
        panel.axvline(value, color="0.3", linestyle=":", label=f"{text}: {value:.3f}")
        figure.legend(loc="outside lower center", frameon=False)
        highest = max(highest, value)
    panel.set_xlim(0, 1.15 * highest)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def patch_maps(pairs, pixel_size_um, title=""):
    """Show pairs of images beside what a discriminator says of each of their patches.

    Parameters
    ----------
    pairs : dict
        Title to (brightfield, phase, patches): two images (size, size[, 1]) and the probabilities
        of "real" (patches, patches). A row each.
    pixel_size_um : float
    title : str

    Returns
    -------
    Figure
        One phase scale for all; probabilities from 0 to 1, written into the patches.
    """
    rows = {
        name: [np.squeeze(np.asarray(image)) for image in images] for name, images in pairs.items()
    }
    phases = np.stack([phase for _, phase, _ in rows.values()])
    shared = colour_limits(phases)
    figure = Figure(figsize=(8.4, 2.35 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (name, (brightfield, phase, patches)) in zip(axes, rows.items(), strict=True):
        side = phase.shape[0] * pixel_size_um
        extent = (0, side, side, 0)
        row[0].imshow(brightfield, cmap="gray", extent=extent)
        drawn = row[1].imshow(phase, cmap=PHASE_MAP, norm=shared, extent=extent)
        said = row[2].imshow(patches, cmap=PROBABILITY_MAP, vmin=0, vmax=1, extent=extent)
        step = side / len(patches)
        for (i, j), value in np.ndenumerate(patches):
            row[2].text(
                (j + 0.5) * step,
                (i + 0.5) * step,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="black" if value > 0.55 else "white",
            )
        for panel in row:
            panel.set(xticks=[], yticks=[])
        scale_bar(row[0], 10, extent, "white")
        row[0].set_ylabel(name, fontsize=10)
    for panel, heading in zip(axes[0], ("Brightfield", "Phase", "Patches"), strict=True):
        panel.set_title(heading, fontsize=10)
    figure.colorbar(drawn, ax=axes[:, 1], label="phase (rad)", shrink=0.8, aspect=25)
    figure.colorbar(said, ax=axes[:, 2], label="probability of “measured”", shrink=0.8, aspect=25)
    if title:
        figure.suptitle(title)
    return figure


def sensitivity_map(heard, phase, patch, windows, n_patches, pixel_size_um, title=""):
    """Show which pixels one patch of a discriminator listens to.

    Parameters
    ----------
    heard : array (spots, spots)
        From `dissection.sensitivity`.
    phase : array (size, size[, 1])
        One of the images that were changed spot by spot, in rad.
    patch : tuple of int
        Row and column of the patch.
    windows : tuple of (first, last)
        Rows and columns, in pixels, that the patch can see, from `dissection.seen_window`.
    n_patches : int
        Patches per side.
    pixel_size_um : float
    title : str

    Returns
    -------
    Figure
        The frame is the square of the image that has the patch's place in the map; the cross is
        the middle of what the patch can see; the contour holds half of all the change.
    """
    heard, phase = np.asarray(heard), np.squeeze(np.asarray(phase))
    side = phase.shape[0] * pixel_size_um
    extent = (0, side, side, 0)
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = left.imshow(phase, cmap=PHASE_MAP, extent=extent)
    figure.colorbar(drawn, ax=left, label="phase (rad)", shrink=0.85)
    changed = right.imshow(heard, cmap=ACTIVATION_MAP, extent=extent, vmin=0)
    figure.colorbar(changed, ax=right, label="change of the log-odds", shrink=0.85)
    centres = (np.arange(len(heard)) + 0.5) * side / len(heard)
    right.contour(
        centres, centres, heard, levels=[half_level(heard)], colors="white", linewidths=0.9
    )
    step = side / n_patches
    middle = [(first + last + 1) / 2 * pixel_size_um for first, last in windows]
    for panel in (left, right):
        corner = (patch[1] * step, patch[0] * step)
        frame = Rectangle(corner, step, step, fill=False, edgecolor="#EE6677", linewidth=1.8)
        panel.add_patch(frame)
        panel.plot(*reversed(middle), "+", color="#EE6677", markersize=13, markeredgewidth=2)
        panel.set(xticks=[], yticks=[], xlim=(0, side), ylim=(side, 0))
    scale_bar(left, 10, extent, "white")
    left.set_title("Frame: place of the patch in the map\n+: middle of what it can see", fontsize=9)
    right.set_title("What it listens to\n(half of it inside the contours)", fontsize=9)
    if title:
        figure.suptitle(title)
    return figure


def half_level(heard):
    """Return the level above which the spots make up half of the sum."""
    falling = np.sort(np.asarray(heard, "float64").ravel())[::-1]
    return float(falling[np.searchsorted(np.cumsum(falling), falling.sum() / 2)])


def answers(panels, row_labels, title=""):
    """Show what classifiers say of single cells: one panel each, a row per cell.

    Parameters
    ----------
    panels : dict
        Title to (probabilities (cells, k), names of the k answers, true codes (cells,)).
    row_labels : sequence of str
        One per cell.
    title : str

    Returns
    -------
    Figure
        Probabilities in percent; the true answer is boxed.

    Raises
    ------
    ValueError
        If numbers of cells, answers and labels do not fit each other.
    """
    n_cells = len(row_labels)
    widths = [len(names) for _, names, _ in panels.values()]
    figure = Figure(figsize=(0.44 * sum(widths) + 2.6, 0.36 * n_cells + 1.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for panel, (name, (probabilities, names, true)) in zip(axes, panels.items(), strict=True):
        probabilities = np.asarray(probabilities)
        if probabilities.shape != (n_cells, len(names)) or len(true) != n_cells:
            raise ValueError(
                f"{name}: found probabilities of shape {probabilities.shape} and {len(true)} true "
                f"codes; expected ({n_cells}, {len(names)}) and {n_cells}."
            )
        percent = 100 * probabilities
        drawn = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(percent):
            colour = "white" if value > 55 else "black" if value >= 0.5 else "0.7"
            panel.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
        for row, column in enumerate(true):
            box = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False)
            box.set(edgecolor="#D55E00", linewidth=1.8)
            panel.add_patch(box)
        panel.set_xticks(
            range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9
        )
        panel.set_yticks(range(n_cells), row_labels if panel is axes[0] else [""] * n_cells)
        panel.set_title(name, fontsize=10)
    figure.colorbar(drawn, ax=axes, label="probability (%)", aspect=15, pad=0.01)
    figure.supxlabel("answer (boxed: the true one)", fontsize=9)
    if title:
        figure.suptitle(title)
    return figure


def dealt_features(subsets, n_features, title=""):
    """Show which batch classifier sees which bottleneck feature.

    Parameters
    ----------
    subsets : int array (classifiers, features of each)
    n_features : int
    title : str

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a feature is dealt twice, or there are more classifiers than colours.
    """
    subsets = np.asarray(subsets)
    if len(np.unique(subsets)) != subsets.size or len(subsets) > len(METHOD_COLOURS):
        raise ValueError(
            f"Found subsets of shape {subsets.shape} with {len(np.unique(subsets))} different "
            f"features; expected disjoint subsets for {len(METHOD_COLOURS)} classifiers at most."
        )
    figure = Figure(figsize=(9, 0.34 * len(subsets) + 1.1), layout="constrained")
    panel = figure.subplots()
    for number, subset in enumerate(subsets):
        for feature in subset:
            panel.add_patch(
                Rectangle((feature - 0.5, number - 0.4), 1, 0.8, facecolor=METHOD_COLOURS[number])
            )
    panel.set(xlim=(-0.5, n_features - 0.5), ylim=(len(subsets) - 0.5, -0.5))
    panel.set_yticks(range(len(subsets)), [f"batch MLP {n + 1}" for n in range(len(subsets))])
    panel.set(xlabel="bottleneck feature", title=title)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def cross_entropy_curve(points, title=""):
    """Draw what an answer costs: minus the logarithm of the probability of what was asked for.

    Parameters
    ----------
    points : dict
        Text to a probability that is marked, such as `{"unsure judge": 0.5}`.
    title : str

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
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    lowest = min(0.01, *points.values()) if points else 0.01
    line = np.linspace(lowest, 1, 400)
    panel.plot(line, -np.log(line), color="#4477AA", linewidth=2)
    for name, probability in points.items():
        cost = -np.log(probability)
        panel.plot(probability, cost, "o", color="#EE6677")
        text = f"{name}: −ln {probability:.3g} = {abs(cost):.2f}"
        panel.annotate(
            text,
            (probability, cost),
            xytext=(8, 8) if probability < 0.6 else (8, 14),
            textcoords="offset points",
            ha="left" if probability < 0.6 else "center",
            fontsize=9,
        )
    panel.set(
        xlabel="probability given to the answer that was asked for",
        ylabel="cross-entropy (nats)",
        title=title,
        xlim=(-0.02, 1.04),
    )
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    return figure
