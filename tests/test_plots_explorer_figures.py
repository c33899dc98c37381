"""The figures inside the explorers show what they were given, on the scales they were given."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401
from training_cells import make_cells

from cytomad_lib.evaluation import biophysics
from cytomad_lib.plots import explorer_figures
from cytomad_lib.simulation.microscope_settings import SETTINGS

LIMITS = {"brightfield": (0.0, 2.0), "phase": (0.0, 3.0), "difference": (-0.5, 0.5)}


@pytest.fixture(scope="module")
def cells():
    return make_cells()


def images_of(cells, row=0):
    phase = cells.qpi[[row]]
    return {"brightfield": cells.brightfield[[row]], "phase": phase, "change": phase - 1}


@pytest.mark.parametrize(("column", "names"), [("class_name", 2), ("batch", 3)])
def test_a_map_marks_one_cell_and_names_the_categories_that_are_there(cells, column, names):
    places = np.random.default_rng(0).normal(size=(len(cells), 2))
    figure = explorer_figures.map_and_cell(
        places, cells.labels, 5, images_of(cells, 5), 2.8, LIMITS, column
    )
    axes = figure.subfigs[0].axes[0]
    assert len(axes.get_legend().get_texts()) == names
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), places[[5]])
    assert sum(len(points.get_offsets()) for points in axes.collections[:-2]) == len(cells)


def test_a_traversal_shows_where_the_value_is(cells):
    values = np.linspace(0, 4, len(cells))
    figure = explorer_figures.traversal(
        images_of(cells), cells.pixel_size_um, LIMITS, values, 1.0, 3.5, "feature 7"
    )
    axes = figure.subfigs[1].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature 7", "cells")
    assert [line.get_xdata()[0] for line in axes.lines] == [1.0, 3.5]
    assert sum(bar.get_height() for bar in axes.patches) == len(cells)


def test_a_feature_against_a_measure_has_units_and_examples(cells):
    values, area = np.arange(16.0), np.arange(16.0) ** 2
    figure = explorer_figures.feature_meaning(
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
    axes = figure.subfigs[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature 3", "area (µm²)")
    points = np.concatenate([points.get_offsets() for points in axes.collections])
    assert {tuple(point) for point in points} == set(zip(values, area, strict=True))
    assert [axes.get_ylabel() for axes in figure.subfigs[1].axes[:8:4]] == [
        "least of it",
        "most of it",
    ]


def test_every_measure_and_setting_has_a_name_to_read():
    assert set(explorer_figures.MEASURE_LABELS) == set(biophysics.MEASURES)
    labels = [explorer_figures.setting_label(name) for name in SETTINGS]
    assert len(set(labels)) == len(SETTINGS) and not any("_" in label for label in labels)
    assert explorer_figures.setting_label("defocus_um") == "defocus (µm)"
    assert explorer_figures.setting_label("na") == "NA"


@pytest.mark.parametrize("names", [["gain"], ["gain", "na", "offset", "fringe", "qpi_scale"]])
def test_curves_have_a_panel_per_setting_and_a_line_per_model(names):
    sweep = pd.DataFrame(
        [
            {"setting": name, "value": value, "mae_rad": 0.1 * value, "measured_mae_rad": 0.05}
            for name in names
            for value in (0.0, 1.0, 2.0)
        ]
    )
    figure = explorer_figures.setting_curves({"a": sweep, "b": sweep.assign(mae_rad=0.3)})
    assert [axes.get_xlabel() for axes in figure.axes] == list(
        map(explorer_figures.setting_label, names)
    )
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["a", "b", "measured phase"]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0.1, 0.2])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["range of the simulated days", "a", "b", "measured phase"]
