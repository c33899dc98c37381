"""Diagrams of networks: boxes with shapes, and arrows between them.

- `method_diagram`: the whole method, with its classifiers and the terms of the loss.
- `unet_diagram`: the blocks of a generator, their shapes and the skip connections.

Example
-------
>>> figure = unet_diagram(block_table(build_generator(image_size=64, base_filters=8)))
>>> figure.savefig("generator.png")
"""

import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from cytomad_lib.plots import style

# Kinds of blocks, by the first word of their names.
BLOCK_COLOURS = {
    "input": style.GREY,
    "encoder": style.METHOD_COLOURS[0],
    "bottleneck": style.METHOD_COLOURS[1],
    "decoder": style.METHOD_COLOURS[2],
    "tail": style.METHOD_COLOURS[3],
    "image": style.GREY,
}
OTHER_BLOCK = style.METHOD_COLOURS[4]
BOX = (1.8, 0.86)  # width and height of a box of the diagram, in steps between levels
WIDE_BOX = (5.4, 0.86)


def method_diagram(preset, title="", ax=None):
    """Draw the whole method: the generator, and the nine terms of its loss in batch removal.

    Parameters
    ----------
    preset : Preset
        Its sizes and weights are written into the boxes.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
        Left: what goes in and what the generator makes. Right: a box per term with its input, its
        target and its weight. Blue: for the class; brown: against the batch; green: for the image.
    """
    of_image, of_features = _terms(preset)
    terms = [("image", *term) for term in of_image] + [("bottleneck", *t) for t in of_features]
    figure, panel = style.panel_of(ax, 10, 0.72 * len(terms) + 0.8)
    panel.set(xlim=(-1.1, 9.9), ylim=(0.5 - len(terms), 0.6))
    panel.set_axis_off()
    boxes = {
        "input": ((0, -1.5), "brightfield", f"{preset.image_size}×{preset.image_size}"),
        "encoder": ((0, -4), "generator", "U-Net"),
        "image": ((2.5, -1.5), "phase image", f"{preset.image_size}×{preset.image_size}"),
        "bottleneck": ((2.5, -6), "bottleneck", f"{preset.n_features} features"),
    }
    for kind, (place, name, shape) in boxes.items():
        _box(panel, place, name, shape, kind)
    _arrow(panel, (0, -1.5 - BOX[1] / 2), (0, -4 + BOX[1] / 2), color="0.2")
    for kind in ("image", "bottleneck"):
        _main_path(panel, boxes["encoder"][0], boxes[kind][0])
    for row, (source, name, takes, target, weight) in enumerate(terms):
        kind = "encoder" if "class" in name else "tail" if "batch" in name else "decoder"
        words = f"input: {takes}\ntarget: {target}, weight {weight:g}"
        _box(panel, (7.1, -row), name, words, kind, WIDE_BOX)
        x, y = boxes[source][0]
        _arrow(panel, (x + BOX[0] / 2, y), (7.1 - WIDE_BOX[0] / 2, -row), color="0.2", zorder=1)
    panel.set_title(title)
    return figure


def _terms(preset):
    """List (name, input, target, weight) of the terms of the image, and those of the features."""
    weight, features = preset.weight_classifier, preset.n_features
    of_image = [
        ("mean absolute error", "image", "measured phase", preset.weight_mae_removal),
        ("discriminator", "brightfield and image", "“measured”", preset.weight_adversarial),
        ("class CNN", "image", "true class", weight),
        ("batch CNN", "image", "“first batch”", weight),
    ]
    share = f"{features // preset.batch_mlps} of the {features} features, 75-50-25"
    of_features = [("class MLP", f"{features} features, 250-100-50-25", "true class", weight)] + [
        (f"batch MLP {n + 1}", share, "“first batch”", weight) for n in range(preset.batch_mlps)
    ]
    return of_image, of_features


def unet_diagram(table, title="", ax=None):
    """Draw a generator: down to the bottleneck on the left, up again on the right.

    Parameters
    ----------
    table : pandas.DataFrame
        From `dissection.block_table` of a generator.
    title : str
    ax : Axes, optional

    Returns
    -------
    Figure
        A box per block with the shape of its output: pixels, and below them maps; "+" are the maps
        that a skip connection adds. Dashed: skip connections.

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
    depth, places = len(down) + 1, _places(table, down)
    right, bottom = places["image"][0], -depth
    figure, panel = style.panel_of(ax, 0.55 * right, 0.86 * depth + 1.2)
    panel.set(xlim=(-1.1, right + 1.1), ylim=(bottom - 0.6, 0.75))
    panel.set_axis_off()
    for name, place in places.items():
        shape = f"{size}×{size}\n{table.loc['tail 1', 'joined']}"
        _box(panel, place, name, shape if name == "input" else _shape_text(table.loc[name]))
    chain = ["input", *table.index]
    for before, after in zip(chain[:-1], chain[1:], strict=True):
        _main_path(panel, places[before], places[after])
    for level, name in enumerate(["input", *down]):
        target = "tail 1" if level == 0 else f"decoder {depth - level}"
        start, end = places[name][0] + BOX[0] / 2, places[target][0] - BOX[0] / 2
        look = {"color": style.GREY, "linestyle": "--", "zorder": 1}
        _arrow(panel, (start, -level), (end, -level), **look)
    middle = places["tail 1"][0] / 2
    panel.text(middle, 0.12, "skip connection", ha="center", color="0.35")
    legend = (
        "in each box: height × width in pixels,\nand the number of maps;\n"
        "“+”: maps from a skip connection"
    )
    panel.text(right + 0.9, bottom, legend, ha="right", va="center", color="0.35")
    panel.set_title(title)
    return figure


def _places(table, down):
    """Return the centre of the box of each block."""
    depth = len(down) + 1
    places = {"input": (0, 0), "bottleneck": (depth, -depth)}
    for level, name in enumerate(down, start=1):
        places[name] = (level, -level)
        places[f"decoder {depth - level}"] = (2 * depth - level, -level)
    ends = [*(name for name in table.index if name.startswith("tail")), "image"]
    return places | {name: (2 * depth + 2.1 * k, 0) for k, name in enumerate(ends)}


def _shape_text(block):
    joined = f" + {block['joined']}" if block["joined"] else ""
    return f"{block['height']}×{block['width']}\n{block['channels']}{joined}"


def _box(panel, place, name, shape, kind=None, size=BOX):
    corner = place[0] - size[0] / 2, place[1] - size[1] / 2
    colour = colour_of(kind or name)
    for look in ({"alpha": 0.22, "zorder": 2}, {"fill": False, "linewidth": 1.4, "zorder": 3}):
        panel.add_patch(Rectangle(corner, *size, facecolor=colour, edgecolor=colour, **look))
    panel.text(*place, f"{name}\n{shape}", ha="center", va="center", zorder=4, linespacing=1.1)


def _main_path(panel, start, end):
    """Draw an arrow from box to box: down, up or to the right."""
    (x0, y0), (x1, y1) = start, end
    away, side = np.sign(y1 - y0) * BOX[1] / 2, 0.25 if y1 != y0 else BOX[0] / 2
    ends = (x0 + side, y0 + away), (x1 - side, y1 - away)
    _arrow(panel, *ends, color="0.2", zorder=5)


def _arrow(panel, start, end, **look):
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    panel.add_patch(FancyArrowPatch(start, end, linewidth=1.2, **style, **look))


def colour_of(block):
    """Return the colour of a block by its kind, the first word of its name."""
    return BLOCK_COLOURS.get(block.split()[0], OTHER_BLOCK)
