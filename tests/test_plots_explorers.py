"""Explorers without a browser: set a control, and see what follows."""

import base64
import io
import re
import sys
from dataclasses import replace

import ipywidgets
import keras
import numpy as np
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401
from matplotlib import image as mpl_image
from training_cells import make_cells

from cytomad_lib.conditional.networks import build_conditional_generator
from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation import biophysics, image_quality
from cytomad_lib.networks import build_generator
from cytomad_lib.plots import explorers, widgets
from cytomad_lib.plots.style import alt_text
from cytomad_lib.prediction import Prediction
from cytomad_lib.simulation.microscope_settings import day_settings


def with_truth(cells):
    truth = cells.qpi * np.float32(0.9)
    return CellImages(cells.brightfield, cells.qpi, cells.labels, cells.pixel_size_um, truth)


@pytest.fixture(scope="module")
def cells():
    """16 cells: H69 in Batch1 and Batch3, H520 in Batch3 and Batch6."""
    return with_truth(make_cells())


@pytest.fixture(scope="module")
def generator():
    """Make a generator whose weights are large enough for anything to show."""
    model = build_generator(16, 4, seed=1)
    random = np.random.default_rng(1)
    for variable in model.weights:
        if len(variable.shape) == 4:
            fan_in = np.prod(variable.shape[:2]) * min(variable.shape[2:])
            variable.assign(random.normal(0, 1.5 / np.sqrt(fan_in), variable.shape))
    return model


def after(explorer, control, value):
    """Set a control; return what the explorer showed before and shows now: (image, text) twice."""
    before = explorer.image.value, explorer.text.value
    control.value = value
    return before, (explorer.image.value, explorer.text.value)


def assert_all_changed(before, now):
    assert before[0] != now[0], "the image stayed as it was"
    assert before[1] != now[1], "the text stayed as it was"


# --- what all have in common ------------------------------------------------------------------


def test_an_explorer_is_displayed_as_a_widget_or_as_a_picture(cells, monkeypatch):
    explorer = explorers.browse_cells(cells)
    bundle, about = explorer._repr_mimebundle_(include=None, exclude=None)
    assert about["image/png"]["alt"] == alt_text(explorer.figure) != ""
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.box.model_id
    picture = mpl_image.imread(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.shape[0] > 100 and picture.std() > 0.05
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert "image/png" not in explorer._repr_mimebundle_()[0]


def test_an_explorer_displays_the_script_that_names_its_sliders(cells, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda bundle, **about: shown.append((bundle, about)))
    explorer = explorers.browse_cells(cells)
    explorer._ipython_display_()
    (script, _), (bundle, about) = shown
    assert list(script) == ["application/javascript"]
    assert bundle["application/vnd.jupyter.widget-view+json"] and about["metadata"]["image/png"]
    # What the script looks for is what the explorer has.
    for name, widget in (("cytomad-explorer", explorer.box), ("cytomad-words", explorer.text)):
        assert f".{name} " in script["application/javascript"]
        assert name in widget._dom_classes


def test_every_control_has_a_name_of_its_own(cells, generator, measures):
    for explorer in (
        explorers.browse_cells(cells),
        explorers.explore_map(np.zeros((16, 2)), cells),
        explorers.traverse_bottleneck(generator, cells),
        explorers.explore_features(cells.class_codes[:, None] + np.eye(16, 1), cells, measures),
        explorers.explore_settings(generator),
    ):
        rows = [line for line in explorer.box.children if isinstance(line, ipywidgets.HBox)]
        names = [control.description for row in rows for control in row.children]
        assert len(names) >= 3 and all(names) and len(set(names)) == len(names)


def test_words_below_the_figure_are_a_live_region(cells):
    explorer = explorers.browse_cells(cells)
    before, now = after(explorer, explorer.cell, 3)
    spoken = [
        re.fullmatch('<div role="status" aria-live="polite">(.+)</div>', words)[1]
        for _, words in (before, now)
    ]
    assert "cell 0 of 16" in spoken[0] and "cell 3 of 16" in spoken[1]


def test_every_slider_waits_until_it_is_let_go(cells, generator):
    found = [
        control
        for explorer in (explorers.browse_cells(cells), explorers.explore_settings(generator))
        for line in explorer.box.children
        for control in getattr(line, "children", [])
        if hasattr(control, "continuous_update")
    ]
    assert len(found) > 10
    assert not any(slider.continuous_update for slider in found)


def test_an_error_is_shown_and_not_swallowed(cells, monkeypatch):
    explorer = explorers.browse_cells(cells)
    monkeypatch.setattr(explorer, "_show", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explorer.cell.value = 1
    assert "did not work" in explorer.text.value and "division" in explorer.text.value


# --- browse cells ------------------------------------------------------------------------------


def test_dry_mass_is_told_where_the_wavelength_is_known(cells):
    assert "dry mass" not in explorers.browse_cells(cells).text.value
    known = explorers.browse_cells(replace(cells, wavelength_um=1.06)).text.value
    assert "µm², dry mass" in known


def test_browsing_shows_another_cell(cells):
    explorer = explorers.browse_cells(cells)
    assert [axes.get_title() for axes in explorer.figure.axes[:3]] == [
        "brightfield",
        "measured phase",
        "batch-free truth",
    ]
    assert_all_changed(*after(explorer, explorer.cell, 5))
    assert explorer.row == 5
    np.testing.assert_array_equal(
        explorer.figure.axes[0].images[0].get_array(), cells.brightfield[5, ..., 0]
    )
    assert "H69, Batch3" in explorer.text.value


def test_batch_and_class_choose_the_cells(cells):
    explorer = explorers.browse_cells(cells)
    assert explorer.batch.options == ("all", "Batch1", "Batch3", "Batch6")
    explorer.class_name.value = "H520"
    assert (explorer.row, explorer.cell.max) == (8, 7)
    explorer.batch.value = "Batch6"
    assert (explorer.row, explorer.cell.max, explorer.class_name.value) == (12, 3, "H520")
    explorer.cell.value = 3
    assert explorer.row == 15 and "cell 3 of its file" in explorer.text.value
    # H520 was not measured in Batch1: it is not offered, and what is left is shown.
    explorer.batch.value = "Batch1"
    assert explorer.class_name.options == ("all", "H69")
    assert (explorer.class_name.value, explorer.row) == ("all", 0)
    explorer.batch.value = "all"
    assert explorer.cell.max == 15 and explorer.class_name.options == ("all", "H69", "H520")


def test_predictions_stand_beside_and_are_scored(cells):
    off = Prediction(cells.truth + np.float32(0.25), np.zeros((16, 2)), cells.labels)
    explorer = explorers.browse_cells(cells, {"mine": off})
    assert "mine: mean absolute error 0.250 rad, r = 1.000" in explorer.text.value
    assert explorer.figure.axes[3].get_title() == "mine"
    few = Prediction(off.images[:3], off.features[:3], cells.labels[:3])
    with pytest.raises(CytomadError, match="'mine' has 3 cells. Expected the 16"):
        explorers.browse_cells(cells, {"mine": few})


def test_cells_without_truth():
    explorer = explorers.browse_cells(make_cells())
    titles = [axes.get_title() for axes in explorer.figure.axes]
    assert "measured phase" in titles and "batch-free truth" not in titles


# --- a map -------------------------------------------------------------------------------------


def test_a_point_of_the_map_shows_its_cell(cells):
    places = np.random.default_rng(0).normal(size=(16, 2))
    explorer = explorers.explore_map({"first": places, "second": places[::-1]}, cells)
    assert_all_changed(*after(explorer, explorer.cell, 9))
    marked = [points.get_offsets() for points in explorer.figure.subfigs[0].axes[0].collections]
    np.testing.assert_allclose(marked[-1], places[[9]])
    before, now = after(explorer, explorer.colour_by, "batch")
    assert before[0] != now[0]
    assert_all_changed(*after(explorer, explorer.map, "second"))
    np.testing.assert_allclose(explorer.coordinates[9], places[6])


def test_neighbours_on_the_map(cells):
    line = np.column_stack([np.arange(16.0), np.zeros(16)])
    explorer = explorers.explore_map(line, cells)
    explorer.cell.value = 15
    assert explorer.neighbours().tolist() == list(range(14, 4, -1))
    # Rows 5 to 14 around row 15, which is H520 of Batch6 (rows 12 to 15; H520 from row 8).
    assert "7 are of its class and 3 of its batch" in explorer.text.value
    with pytest.raises(CytomadError, match=r"shape \(3, 2\). Expected \(16, 2\)"):
        explorers.explore_map(line[:3], cells)


# --- the bottleneck ----------------------------------------------------------------------------


@pytest.fixture
def traversal(generator, cells):
    return explorers.traverse_bottleneck(generator, cells)


def test_a_feature_is_changed(traversal, generator, cells):
    made = generator(cells.brightfield[:1], training=False)[0]
    made = keras.ops.convert_to_numpy(made)[0, ..., 0]
    np.testing.assert_allclose(traversal.decode(), made, atol=1e-4)
    own = float(traversal.features[0, traversal.feature.value])
    assert traversal.value.value == pytest.approx(own)
    assert "changes the image by 0.0000 rad" in traversal.text.value
    far = max((traversal.value.min, traversal.value.max), key=lambda end: abs(end - own))
    assert_all_changed(*after(traversal, traversal.value, far))
    assert "changes the image by 0.0000 rad" not in traversal.text.value
    assert np.abs(traversal.decode(far) - made).max() > 1e-3


def test_the_words_give_the_deviation_and_the_mass_of_the_image(generator, cells):
    known = replace(cells, wavelength_um=1.06)
    traversal = explorers.traverse_bottleneck(generator, known)
    values = traversal.features[:, traversal.feature.value]
    traversal.value.value = traversal.value.max
    deviations = (traversal.value.value - values.mean()) / values.std()
    assert f"This is {deviations:+.1f} standard deviations" in traversal.text.value
    words = traversal.text.value
    masses = re.findall(r"(As set|Unchanged): Area \d+ µm², dry mass (\d+) pg", words)
    image = traversal.decode(traversal.value.value)[None]
    optics = known.pixel_size_um, known.wavelength_um, known.refraction_increment
    mass = image_quality.dry_mass_pg(image, image_quality.foreground_mask(image), *optics)[0]
    assert dict(masses)["As set"] == f"{mass:.0f}" and len(masses) == 2


def test_another_cell_or_feature_resets_the_value(traversal):
    traversal.value.value = traversal.value.max
    traversal.cell.value = 7
    assert traversal.value.value == pytest.approx(
        traversal.features[7, traversal.feature.value], abs=1e-6
    )
    second = traversal.feature.options[1][1]
    assert_all_changed(*after(traversal, traversal.feature, second))
    values = traversal.features[:, second]
    assert traversal.value.min == pytest.approx(values.min())
    assert traversal.value.max == pytest.approx(values.max())
    assert traversal.value.value == pytest.approx(values[7])


def test_features_that_vary_most_come_first(traversal):
    spread = [traversal.features[:, number].std() for _, number in traversal.feature.options]
    assert min(spread) > 0 and spread == sorted(spread, reverse=True)


def test_the_skips_can_be_kept_or_not(traversal):
    kept = traversal.decode()
    assert_all_changed(*after(traversal, traversal.skips, "none"))
    none = traversal.decode()
    assert_all_changed(*after(traversal, traversal.skips, "average"))
    average = traversal.decode()
    assert min(np.abs(kept - none).max(), np.abs(average - none).max()) > 1e-3
    code = traversal.split.encode(traversal.cells.brightfield[:1]).without_skips()
    np.testing.assert_allclose(none, traversal.split.decode(code)[0, ..., 0], atol=1e-5)


def test_generators_that_cannot_be_traversed(cells):
    dead = build_generator(16, 4, seed=1)
    for variable in dead.weights:
        variable.assign(np.zeros(variable.shape))
    with pytest.raises(CytomadError, match="the same for all of these cells"):
        explorers.traverse_bottleneck(dead, cells)


def test_the_conditional_generator_can(cells):
    explorer = explorers.traverse_bottleneck(build_conditional_generator(16, 4, seed=1), cells)
    assert_all_changed(*after(explorer, explorer.cell, 3))


# --- features ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measures(cells):
    return biophysics.measure_cells(cells.truth, cells.pixel_size_um, wavelength_um=1.06)


def test_a_feature_finds_its_measure(cells, measures):
    random = np.random.default_rng(0)
    features = np.column_stack(
        [np.zeros(16), -measures["area_um2"], random.normal(size=16), measures["peak_phase_rad"]]
    )
    explorer = explorers.explore_features(features, cells, measures)
    assert 0 not in [number for _, number in explorer.feature.options]  # it never varies
    explorer.feature.value = 2
    assert_all_changed(*after(explorer, explorer.feature, 1))
    assert abs(explorer.correlations.loc[1, explorer.chosen_measure]) == pytest.approx(1)
    explorer.measure.value = "area_um2"
    assert explorer.chosen_measure == "area_um2"
    assert "area (µm²): Spearman's r = -1.00, over 16 cells of all classes" in explorer.text.value
    # Least of the feature is most of the area: the largest cells come first.
    shown = explorer.figure.subfigs[1].axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, cells.truth[measures["area_um2"].argmax(), ..., 0])


def test_inside_one_class_other_cells_count(cells, measures):
    features = cells.class_codes[:, None] + np.random.default_rng(0).normal(0, 0.1, (16, 1))
    explorer = explorers.explore_features(features, cells, measures)
    explorer.measure.value = "area_um2"
    over_all = abs(explorer.correlations.loc[0, "area_um2"])
    assert_all_changed(*after(explorer, explorer.class_name, "H69"))
    assert "over 8 cells of H69" in explorer.text.value
    assert over_all > abs(explorer.correlations.loc[0, "area_um2"]) + 0.2


def test_features_that_never_vary(cells, measures):
    with pytest.raises(CytomadError, match="No feature varies"):
        explorers.explore_features(np.ones((16, 3)), cells, measures)


# --- the microscope ----------------------------------------------------------------------------


@pytest.fixture
def microscope():
    """Return an explorer with two 'models': the darkness of an image, and a constant."""
    brightfield = keras.Input((32, 32, 1))
    dark = keras.layers.Rescaling(-1.0, 1.0)(brightfield)
    blind = keras.layers.Rescaling(0.0, 1.0)(brightfield)
    pool = keras.layers.GlobalAveragePooling2D()
    models = {"dark": dark, "blind": blind}
    return explorers.explore_settings(
        {name: keras.Model(brightfield, [image, pool(image)]) for name, image in models.items()}
    )


def shown(explorer):
    return {
        axes.get_title(): np.asarray(axes.images[0].get_array())
        for axes in explorer.figure.axes
        if axes.get_title()
    }


def test_a_setting_of_the_light_changes_brightfield_and_prediction_only(microscope):
    before = shown(microscope)
    assert_all_changed(*after(microscope, microscope.sliders["defocus_um"], 8.0))
    now = shown(microscope)
    for title, changes in (
        ("brightfield", True),
        ("predicted phase", True),
        ("measured phase", False),
        ("batch-free truth", False),
    ):
        assert (before[title] != now[title]).any() == changes, title
    assert "Beyond what any simulated day had: defocus (µm)." in microscope.text.value
    assert microscope.day.value == "as set by hand"


def test_a_setting_of_the_phase_camera_leaves_the_prediction(microscope):
    before = shown(microscope)
    assert_all_changed(*after(microscope, microscope.sliders["qpi_scale"], 1.1))
    now = shown(microscope)
    np.testing.assert_array_equal(now["predicted phase"], before["predicted phase"])
    assert (now["measured phase"] != before["measured phase"]).any()
    assert "within the range" in microscope.text.value


def test_a_day_sets_all_sliders_and_nominal_brings_them_back(microscope):
    start = microscope.image.value
    assert_all_changed(*after(microscope, microscope.day, "Batch4"))
    expected = day_settings(26, "Batch4")
    assert microscope.settings == expected
    assert all(slider.value == expected[name] for name, slider in microscope.sliders.items())
    microscope.sliders["gain"].value = 1.0
    assert microscope.settings == expected | {"gain": 1.0}
    microscope.day.value = "nominal"
    assert microscope.image.value == start


def test_cell_class_and_model_can_be_chosen(microscope):
    assert_all_changed(*after(microscope, microscope.cell, 4))
    assert_all_changed(*after(microscope, microscope.class_name, "H69"))
    assert_all_changed(*after(microscope, microscope.model, "blind"))
    np.testing.assert_array_equal(shown(microscope)["predicted phase"], 1.0)


def test_an_unknown_setting_is_refused(generator):
    with pytest.raises(CytomadError, match="no setting 'focus'"):
        explorers.explore_settings(generator, ["focus"])
