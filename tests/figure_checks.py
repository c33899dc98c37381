"""A check of every figure that a test of figures makes: it can be drawn, and read on a slide."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from cytomad_lib.plots import style

LEAST_POINTS = 10
LEAST_CONTRAST = 4.5  # of letters with a white page


def linear(colours):
    """Return sRGB colours as linear RGB, (colours, 3)."""
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast_with_white(colours):
    """Return the contrast of colours with white, as WCAG defines it."""
    return 1.05 / (linear(colours) @ [0.2126, 0.7152, 0.0722] + 0.05)


def on_the_page(text):
    """Say whether letters stand on the page, and not on an image or a coloured map."""
    panel = text.axes
    return panel is None or not (panel.images or panel.collections and panel.get_label() == "")


@pytest.fixture(autouse=True)
def every_figure_is_legible(monkeypatch):
    """Draw the figures of a test at its end, and measure resolution and size of the letters."""
    made, original = [], style.Figure.__init__

    def remember(figure, *args, **options):
        original(figure, *args, **options)
        made.append(figure)

    monkeypatch.setattr(style.Figure, "__init__", remember)
    yield
    for figure in made:
        figure.savefig(io.BytesIO(), format="png")  # some faults show only then
        assert figure.get_dpi() >= 150
        texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
        small = {t.get_text() for t in texts if t.get_visible() and t.get_fontsize() < LEAST_POINTS}
        assert not small, f"letters under {LEAST_POINTS} points: {small}"
        written = [text for text in texts if text.get_visible() and on_the_page(text)]
        pale = [t for t in written if contrast_with_white([t.get_color()])[0] < LEAST_CONTRAST]
        assert not pale, f"pale letters: {[(t.get_text(), t.get_color()) for t in pale]}"
