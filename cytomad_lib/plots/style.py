"""What all figures share: colours, resolution, the scale bar, and how figures are saved.

- `Figure`: a matplotlib figure at 150 dpi that a notebook displays at its size in inches.
- `new_figure`, `panel_of`: an empty figure, and the axes that a function draws into.
- `BATCH_COLOURS`, `CLASS_COLOURS`, `METHOD_COLOURS`, `MARKERS`, `category_looks`.
- `plain`, `legend_below`, `legend_above`: panels without a frame, a legend that hides nothing.
- `draw_image`, `scale_bar`, `colour_limits`: images in micrometres.
- `heatmap`, `percent_map`, `labelled_bars`, `scatter`: seaborn's, with the defaults of this kit.
- `save_figure`: to a file, complete or not at all.
- `alt_text`: a figure in words, for readers who cannot see it.
- `live_region`: words that a screen reader announces when they change.

Example
-------
>>> figure = new_figure(4, 3)
>>> figure.get_dpi()
150
"""

import base64
import io
import re
import textwrap
from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib import figure as mpl_figure
from matplotlib.patches import Rectangle
from PIL import Image

from cytomad_lib.data.files import written_beside

DPI = 150
CSS_PIXELS_PER_INCH = 96
ALT_LENGTH = 1000  # characters

BRIGHTFIELD_MAP = "gray"
PHASE_MAP = "viridis"
ERROR_MAP = "RdBu_r"
ACTIVATION_MAP = "cividis"  # not the map of phase: an activation is not in radians
PERCENT_MAP = "Blues"

# In each palette, colour-blind readers can tell the colours apart, and each has a contrast of 3:1
# or more with white. The batch and class palettes share no colour, so that a batch is never
# mistaken for a class. They are darkened versions of Okabe & Ito (2008), "Color universal design",
# and of "muted" and "bright" in Tol (2021), "Colour schemes".
BATCH_COLOURS = ("#CC8000", "#1E95F0", "#4F8560", "#06336F", "#960A00", "#B57FB3", "#000000")
CLASS_COLOURS = ("#4D41E1", "#0A98C8", "#2E4F00", "#BC8800", "#5E1B30", "#A0108E", "#8F8F8F")
METHOD_COLOURS = ("#1F55C8", "#9A1A10", "#739A60", "#B28C00", "#1A9CC8", "#62106A", "#464646")
PALE = "#A9C0DC"  # an area that is not the subject, such as the bar of an oracle
GREY = "0.55"  # lines and markers that are context
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CHANCE_LINE = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 4}


class Figure(mpl_figure.Figure):
    """A figure at 150 dpi. pyplot does not know it: nothing to close, nothing shown twice."""

    def __init__(self, *args, dpi=DPI, **options):
        super().__init__(*args, dpi=dpi, **options)

    def _repr_png_(self):
        return as_png(self)

    def _repr_mimebundle_(self, **_):
        """Return the PNG with its width in the page, where an inch is an inch."""
        picture = base64.b64encode(as_png(self)).decode()
        width = round(self.get_figwidth() * CSS_PIXELS_PER_INCH)
        about = {"width": width, "alt": alt_text(self)}
        return {"image/png": picture, "text/plain": repr(self)}, {"image/png": about}


def new_figure(width, height, title=""):
    """Return an empty `Figure` of this size in inches, with constrained layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def panel_of(ax, width, height):
    """Return (figure, axes): those of `ax`, or a new figure of this size in inches."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(width, height)
    return figure, figure.subplots()


def as_png(figure):
    """Return the figure as the bytes of a PNG file of 150 dpi for the screen.

    It has 256 colours, which halves the size of a saved notebook. They are chosen so that each
    pixel keeps its colour within 2 %. Methods that go by how often a colour occurs spend all on the
    greys of a figure, and its colour bars show wrong colours.
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    picture = Image.open(drawn).convert("RGB")
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(small, format="png", optimize=True)
    return small.getvalue()


def alt_text(figure):
    """Describe a figure in words: its titles, axes, labels, lines and written values.

    Parameters
    ----------
    figure : Figure

    Returns
    -------
    str
        At most `ALT_LENGTH` characters. HTML pages made from a notebook show it to screen readers.
    """
    panels = [panel for panel in figure.axes if panel.get_label() != "<colorbar>"]
    images = [panel for panel in panels if panel.images]
    names = [text for panel in images for text in (panel.get_title(), panel.get_ylabel()) if text]
    words = [figure.get_suptitle(), figure.get_supylabel(), figure.get_supxlabel()]
    if images:
        words.append(f"{len(images)} images: {', '.join(dict.fromkeys(names)) or 'untitled'}")
    words += [_panel_words(panel) for panel in panels if not panel.images]
    words += [
        f"colour scale: {bar.get_ylabel() or bar.get_xlabel()}"
        for bar in figure.axes
        if bar not in panels
    ]
    words += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    said = ". ".join(dict.fromkeys(" ".join(text.split()) for text in words if text.strip()))
    return textwrap.shorten(said, ALT_LENGTH, placeholder=" …")


def live_region(words):
    """Return words (HTML) as a live region: a screen reader announces them when they change.

    Parameters
    ----------
    words : str

    Returns
    -------
    str
    """
    return f'<div role="status" aria-live="polite">{words}</div>'


def _panel_words(panel):
    """Describe one panel that is not an image."""
    axes = [label for label in (panel.get_ylabel(), panel.get_xlabel()) if label]
    ticks = [*panel.get_yticklabels(), *panel.get_xticklabels()]
    kinds = [text.get_text() for text in ticks if re.search("[A-Za-z]", text.get_text())]
    lines = [(line.get_label(), np.asarray(line.get_ydata(), float)) for line in panel.lines]
    ends = [
        f"{label} from {y[0]:.3g} to {y[-1]:.3g}"
        for label, y in lines
        if len(y) > 2 and not label.startswith("_")
    ]
    legend = panel.get_legend()
    named = [text.get_text() for text in legend.get_texts()] if legend else []
    written = [text.get_text() for text in panel.texts]
    parts = [panel.get_title(), " against ".join(axes)]
    parts += [", ".join(part) for part in (kinds, ends or named, written)]
    return ": ".join(part for part in parts if part.strip())


def save_figure(figure, path, dpi=DPI):
    """Write the figure to `path` (.png, .pdf or .svg) and replace a file that is there.

    The figure is first written to a temporary file beside it, so that no half-written file is left.

    Returns
    -------
    pathlib.Path
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"Cannot save a figure as {path.name!r}; use .png, .pdf or .svg.")
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=dpi)
    return path


def category_looks(names, palette):
    """Return (colours, markers), each {name: value}.

    Raises
    ------
    ValueError
        If there are more names than colours; a colour is never used twice.
    """
    if len(names) > len(palette):
        raise ValueError(
            f"Found {len(names)} categories ({list(names)}), more than the {len(palette)} colours "
            "that can be told apart. Show fewer at a time."
        )
    return dict(zip(names, palette, strict=False)), dict(zip(names, MARKERS, strict=False))


def plain(*panels):
    """Remove the upper and right lines of the frames."""
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)


def legend_below(figure, handles, **options):
    """Put a legend without a frame below all panels."""
    figure.legend(handles=handles, loc="outside lower center", frameon=False, **options)


def colour_limits(images):
    """Return the ends of a colour scale: the 0.5 and 99.95 % quantiles of all pixels."""
    low, high = (float(end) for end in np.quantile(images, (0.005, 0.9995)))
    return low, high if high > low else low + 1.0


def draw_image(panel, image, pixel_size_um, colour_map, limits=(None, None)):
    """Draw one image, its axes in micrometres but without ticks; return what `imshow` returns."""
    height, width = image.shape
    drawn = panel.imshow(
        image,
        cmap=colour_map,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width * pixel_size_um, height * pixel_size_um, 0),
        # Pixels of small images are shown as they are; the file is then a third of the size.
        interpolation="nearest" if width <= 64 else None,
    )
    panel.set(xticks=[], yticks=[])
    return drawn


def scale_bar(drawn, length_um=10):
    """Draw a bar at the lower right of an image of `draw_image`, black or white to stand out."""
    panel, (_, width, height, _) = drawn.axes, drawn.get_extent()
    rows, columns = drawn.get_array().shape
    corner = drawn.to_rgba(drawn.get_array()[-rows // 5 :, -columns // 3 :])
    colour = "white" if corner[..., :3].mean() < 0.5 else "black"
    right, bottom, thickness = 0.95 * width, 0.95 * height, 0.025 * height
    place = (right - length_um, bottom - thickness)
    panel.add_patch(Rectangle(place, length_um, thickness, facecolor=colour, edgecolor="none"))
    text = {"color": colour, "ha": "right", "va": "bottom"}
    panel.text(right, bottom - 1.5 * thickness, f"{length_um} µm", **text)


def heatmap(panel, table, rotation=45, **options):
    """Draw a table with `seaborn.heatmap`; by default without a colour bar."""
    sns.heatmap(table, ax=panel, **{"cbar": False} | options)
    upright = {"rotation": rotation, "ha": "right" if rotation else "center"}
    panel.set_xticks(panel.get_xticks(), panel.get_xticklabels(), rotation_mode="anchor", **upright)
    panel.tick_params(axis="y", rotation=0)
    panel.tick_params(length=0)
    panel.set(xlabel="", ylabel="")


def percent_map(panel, table, **options):
    """Draw a table of percentages with `heatmap`, each number in its cell."""
    scale = {"cmap": PERCENT_MAP, "vmin": 0, "vmax": 100}
    heatmap(panel, table, annot=True, fmt=".0f", **scale, **options)


def labelled_bars(panel, table, x, y, fmt, **options):
    """Draw bars with `seaborn.barplot` and write the value of each at its end."""
    options = {"errorbar": None, "saturation": 1, "legend": False} | options
    sns.barplot(table, x=x, y=y, ax=panel, **options)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # over the line of chance
    for bars in panel.containers:
        panel.bar_label(bars, fmt=fmt, padding=2, bbox=white)
    panel.set(xlabel="", ylabel="")
    plain(panel)


def scatter(panel, x, y, categories, **options):
    """Draw points in the colour and marker of their category, in mixed order.

    Parameters
    ----------
    panel : Axes
    x, y : array (points,)
    categories : pandas.Series
        Categorical; named "batch" or else with the colours of classes. A category keeps its colour
        if others have no points.
    options
        Of `seaborn.scatterplot`.
    """
    palette = BATCH_COLOURS if categories.name == "batch" else CLASS_COLOURS
    colours, markers = category_looks(categories.cat.categories, palette)
    # Category by category, the last would hide the first.
    order = np.random.default_rng(0).permutation(len(categories))
    kinds = categories.cat.remove_unused_categories().iloc[order]
    look = {"palette": colours, "markers": markers, "linewidth": 0.2, "alpha": 0.85}
    sns.scatterplot(
        x=np.asarray(x)[order],
        y=np.asarray(y)[order],
        hue=kinds.array,
        style=kinds.array,
        ax=panel,
        **look | options,
    )
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0.1)


def legend_above(panel, ncols=3, **options):
    """Put the legend of one panel above it."""
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, frameon=False, **options)
