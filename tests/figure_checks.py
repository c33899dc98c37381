"""A check of every figure that a test of figures makes: it can be drawn, and read on a slide."""

import io

import pytest
from matplotlib.text import Text

from cytomad_lib.plots import style

LEAST_POINTS = 10


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
