"""The figures inside the explorers show what they were given, on the scales they were given."""

import io

import numpy as np
import pandas as pd
import pytest
from training_cells import make_cells

from cytomad_lib.analysis import biophysics
from cytomad_lib.simulation.dials import DIALS
from cytomad_lib.views import explorer_figures, plots
from cytomad_lib.views.explorer_figures import Panel

LIMITS = {"brightfield": (0.0, 2.0), "phase": (0.0, 3.0), "difference": (-0.5, 0.5)}


@pytest.fixture(scope="module")
def cells():
    return make_cells()


def panels_of(cells, row=0):
    return [
        Panel("light", cells.brightfield[row, ..., 0], "brightfield"),
        Panel("phase", cells.qpi[row, ..., 0], "phase"),
        Panel("change", cells.qpi[row, ..., 0] - 1, "difference"),
    ]


def drawn(figure):
    figure.savefig(io.BytesIO())  # some faults show only then
    return figure


def test_each_kind_has_its_map_scale_and_bar(cells):
    figure = drawn(explorer_figures.image_row(panels_of(cells), cells.pixel_size_um, LIMITS))
    images = [axes.images[0] for axes in figure.axes[:3]]
    assert [image.get_cmap().name for image in images] == ["gray", plots.PHASE_MAP, plots.ERROR_MAP]
    assert [image.get_clim() for image in images] == list(LIMITS.values())
    np.testing.assert_array_equal(images[1].get_array(), cells.qpi[0, ..., 0])
    assert [axes.get_ylabel() for axes in figure.axes[3:]] == ["phase (rad)", "difference (rad)"]
    # The field is 45 um wide, and the bar says 10 um.
    assert images[0].get_extent()[1] == pytest.approx(45)
    assert figure.axes[0].texts[0].get_text() == "10 µm"
    assert figure.axes[0].patches[0].get_width() == 10


def test_limits_suit_all_cells(cells):
    limits = explorer_figures.limits_of(cells)
    assert set(limits) == set(LIMITS)
    for kind, images in (("brightfield", cells.brightfield), ("phase", cells.qpi)):
        low, high = limits[kind]
        assert images.min() <= low < high <= images.max()
        assert np.mean((images >= low) & (images <= high)) > 0.99
    flat = make_cells(1)
    flat.brightfield[:] = 1.0
    assert explorer_figures.limits_of(flat)["brightfield"] == (1.0, 2.0)


@pytest.mark.parametrize(("column", "names"), [("class_name", 2), ("batch", 3)])
def test_a_map_marks_one_cell_and_names_the_categories_that_are_there(cells, column, names):
    places = np.random.default_rng(0).normal(size=(len(cells), 2))
    figure = drawn(
        explorer_figures.map_and_cell(
            places, cells.labels, 5, panels_of(cells, 5)[:2], 2.8, LIMITS, column
        )
    )
    axes = figure.subfigs[0].axes[0]
    assert len(axes.get_legend().get_texts()) == names
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), places[[5]])
    assert sum(len(points.get_offsets()) for points in axes.collections[:names]) == len(cells)


def test_a_traversal_shows_where_the_value_is(cells):
    values = np.linspace(0, 4, len(cells))
    figure = drawn(
        explorer_figures.traversal(
            panels_of(cells), cells.pixel_size_um, LIMITS, values, 1.0, 3.5, "feature 7"
        )
    )
    axes = figure.axes[3]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature 7", "cells")
    assert [line.get_xdata()[0] for line in axes.lines] == [1.0, 3.5]
    assert sum(bar.get_height() for bar in axes.patches) == len(cells)


def test_a_feature_against_a_measure_has_units_and_examples(cells):
    values, area = np.arange(16.0), np.arange(16.0) ** 2
    figure = drawn(
        explorer_figures.feature_meaning(
            values,
            area,
            "feature 3",
            "area_um2",
            cells.labels,
            cells.qpi[:4, ..., 0],
            cells.qpi[4:8, ..., 0],
            cells.pixel_size_um,
            LIMITS,
        )
    )
    axes = figure.subfigs[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature 3", "area (µm²)")
    points = np.concatenate([points.get_offsets() for points in axes.collections])
    assert {tuple(point) for point in points} == set(zip(values, area, strict=True))
    assert [axes.get_ylabel() for axes in figure.subfigs[1].axes[::4][:2]] == [
        "least of it",
        "most of it",
    ]


def test_every_measure_and_dial_has_a_name_to_read():
    assert set(explorer_figures.MEASURE_LABELS) == set(biophysics.MEASURES)
    labels = [explorer_figures.dial_label(name) for name in DIALS]
    assert len(set(labels)) == len(DIALS) and not any("_" in label for label in labels)
    assert explorer_figures.dial_label("defocus_um") == "defocus (µm)"
    assert explorer_figures.dial_label("na") == "NA"


@pytest.mark.parametrize("dials", [["gain"], ["gain", "na", "offset", "fringe", "qpi_scale"]])
def test_dial_curves_have_a_panel_per_dial_and_a_line_per_model(dials):
    sweep = pd.DataFrame(
        [
            {"dial": name, "value": value, "mae_rad": 0.1 * value, "measured_mae_rad": 0.05}
            for name in dials
            for value in (0.0, 1.0, 2.0)
        ]
    )
    figure = drawn(explorer_figures.dial_curves({"a": sweep, "b": sweep.assign(mae_rad=0.3)}))
    assert [axes.get_xlabel() for axes in figure.axes] == list(
        map(explorer_figures.dial_label, dials)
    )
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["a", "b", "measured phase"]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0.1, 0.2])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["range of the simulated days", "a", "b", "measured phase"]
