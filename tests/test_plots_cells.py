"""Figures of cells show what they claim to show."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401
from matplotlib.backends.backend_agg import FigureCanvasAgg
from training_cells import make_cells

from cytomad_lib.plots import cells as figures
from cytomad_lib.plots import style

LIMITS = {"brightfield": (0.0, 2.0), "phase": (0.0, 3.0), "difference": (-0.5, 0.5)}
BATCHES = ["Batch1", "Batch2", "Batch3"]


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def images(n=3, size=16, seed=0):
    return np.random.default_rng(seed).random((n, size, size, 1))


def labels_of(pairs):
    table = pd.DataFrame(pairs, columns=["batch", "class_name"])
    table["batch"] = pd.Categorical(table["batch"], BATCHES)
    table["class_name"] = pd.Categorical(table["class_name"], ["H69", "H358"])
    return table


# --- counts --------------------------------------------------------------------------------------


def test_every_group_is_counted_in_its_place_and_missing_ones_are_hatched():
    labels = labels_of([("Batch1", "H69")] * 3 + [("Batch2", "H358")])
    panel = drawn(figures.group_counts(labels, "cell line")).axes[0]
    found = {text.get_position(): text.get_text() for text in panel.texts}
    assert found == {(0.5, 0.5): "3", (1.5, 1.5): "1"}
    # The hatched background is seen where no group covers it.
    covered = ~np.ma.getmaskarray(panel.collections[0].get_array())
    assert covered.tolist() == [[True, False, False], [False, True, False]]
    assert panel.patch.get_hatch()
    assert [tick.get_text() for tick in panel.get_xticklabels()] == BATCHES
    assert panel.get_ylabel() == "cell line"


# --- grid ----------------------------------------------------------------------------------------


def grid(**options):
    phase = np.abs(np.random.default_rng(0).normal(size=(3, 40, 40)))
    columns = {"Brightfield": 9 + phase, "Predicted": phase[..., None], "Measured QPI": 2 * phase}
    return figures.image_grid(columns, 0.7, **options)


def image_panels(figure):
    return [axes for axes in figure.axes if axes.images]


def colour_bar_labels(figure):
    return {axes.get_ylabel() for axes in figure.axes if not axes.images} - {""}


def test_grid_has_one_phase_scale_and_grey_brightfield():
    panels = image_panels(grid())
    by_map = {name: [] for name in ("gray", style.PHASE_MAP)}
    for axes in panels:
        by_map[axes.images[0].get_cmap().name].append(axes.images[0].get_clim())
    assert len(by_map["gray"]) == 3
    assert len(by_map[style.PHASE_MAP]) == 6
    assert len(set(by_map[style.PHASE_MAP])) == 1
    assert set(by_map["gray"]) != set(by_map[style.PHASE_MAP])


def test_grid_scale_can_be_fixed():
    clims = {axes.images[0].get_clim() for axes in image_panels(grid(limits={"phase": (0, 4)}))}
    assert (0, 4) in clims


def test_grid_scale_bar_is_10_micrometres():
    axes = image_panels(grid())[0]
    assert axes.images[0].get_extent() == pytest.approx([0, 40 * 0.7, 40 * 0.7, 0])
    (bar,) = axes.patches
    assert bar.get_width() == 10
    assert bar.get_x() > 0 and bar.get_x() + 10 < 40 * 0.7
    assert axes.texts[0].get_text() == "10 µm"


def test_grid_error_column_is_the_difference_centred_at_zero():
    figure = grid(error_of=("Predicted", "Measured QPI"), cell_labels=["H69, Batch1"] * 3)
    panels = image_panels(figure)
    first, last = panels[:4], panels[3]
    drawn = [np.asarray(axes.images[0].get_array()) for axes in first]
    np.testing.assert_allclose(drawn[3], drawn[1] - drawn[2])
    low, high = last.images[0].get_clim()
    assert low == -high
    assert colour_bar_labels(figure) == {"phase (rad)", "difference (rad)"}
    assert panels[0].get_ylabel() == "H69\nBatch1"


def test_what_is_no_phase_is_not_called_one():
    images = np.random.default_rng(0).random((1, 8, 8))
    figure = figures.image_grid(
        {"a": images, "b": images / 2}, 0.7, error_of=("a", "b"), quantity="DAPI"
    )
    assert colour_bar_labels(figure) == {"DAPI", "difference"}


def test_grid_errors():
    with pytest.raises(ValueError, match="same cells"):
        figures.image_grid({"a": np.zeros((2, 4, 4)), "b": np.zeros((3, 4, 4))}, 0.7)
    with pytest.raises(ValueError, match="Truth"):
        grid(error_of=("Predicted", "Truth"))
    with pytest.raises(ValueError, match="2 labels for 3"):
        grid(cell_labels=["a", "b"])


def test_cells_in_columns_have_a_row_per_kind_a_column_per_cell_and_one_scale_for_phase():
    figure = drawn(
        figures.image_grid(
            {"Brightfield": images() + 1, "Measured": images() * 2, "True": images()[..., 0]},
            0.7,
            ["a", "b", "c"],
            cells_in="columns",
        )
    )
    panels = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(panels) == 9
    assert [axes.get_title() for axes in panels[:3]] == ["a", "b", "c"]
    maps = [axes.images[0].cmap.name for axes in panels]
    assert maps == ["gray"] * 3 + ["viridis"] * 6
    limits = {axes.images[0].get_clim() for axes in panels[3:]}
    assert len(limits) == 1 and limits != {panels[0].images[0].get_clim()}
    units = [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert units == ["brightness", "phase (rad)", "phase (rad)"]


def test_the_scale_bar_is_ten_micrometres_of_the_image():
    figure = drawn(
        figures.image_grid({"Brightfield": images()}, pixel_size_um=1.5, cells_in="columns")
    )
    panel = figure.axes[0]
    assert panel.patches[0].get_width() == 10 and panel.get_xlim() == (0, 16 * 1.5)
    assert panel.texts[0].get_text() == "10 µm"


def test_phase_limits_hold_for_phase_alone():
    rows = {"Brightfield": images(), "Measured": images()}
    figure = drawn(figures.image_grid(rows, 0.7, cells_in="columns", limits={"phase": (-1, 5)}))
    assert figure.axes[3].images[0].get_clim() == (-1, 5)
    assert figure.axes[0].images[0].get_clim() != (-1, 5)


def test_each_kind_has_its_map_scale_and_bar():
    cells = make_cells()
    phase = cells.qpi[:1]
    one = {"light": cells.brightfield[:1], "phase": phase, "change": phase - 1}
    kinds = {"brightfield": ("light",), "difference": ("change",)}
    figure = drawn(figures.image_grid(one, cells.pixel_size_um, **kinds, limits=LIMITS))
    images = [axes.images[0] for axes in figure.axes[:3]]
    assert [image.get_cmap().name for image in images] == list(figures.MAPS.values())
    assert [image.get_clim() for image in images] == list(LIMITS.values())
    np.testing.assert_array_equal(images[1].get_array(), cells.qpi[0, ..., 0])
    assert [axes.get_ylabel() for axes in figure.axes[3:]] == ["phase (rad)", "difference (rad)"]
    # The field is 45 um wide, and the bar says 10 um.
    assert images[0].get_extent()[1] == pytest.approx(45)
    assert figure.axes[0].texts[0].get_text() == "10 µm"
    assert figure.axes[0].patches[0].get_width() == 10


def test_limits_suit_all_cells():
    cells = make_cells()
    limits = figures.limits_of(cells)
    assert set(limits) == set(LIMITS)
    for kind, images in (("brightfield", cells.brightfield), ("phase", cells.qpi)):
        low, high = limits[kind]
        assert images.min() <= low < high <= images.max()
        assert np.mean((images >= low) & (images <= high)) > 0.99
    flat = make_cells(1)
    flat.brightfield[:] = 1.0
    assert figures.limits_of(flat)["brightfield"] == (1.0, 2.0)


def test_stacks_and_labels_have_to_fit():
    with pytest.raises(ValueError, match="same cells, one at least, at one size"):
        figures.image_grid({"Brightfield": images(3), "Measured": images(2)}, 0.7)
    with pytest.raises(ValueError, match="2 labels for 3 cells"):
        figures.image_grid({"Brightfield": images(3)}, 0.7, ["a", "b"])


def test_a_transferred_cell_has_one_grey_scale_and_its_own_batch_framed():
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(2, 16, 16, 1))
    moved = {"Batch1": measured + 1, "Batch2": measured + 5}
    figure = figures.transferred_cells(
        measured, moved, ["Batch2", "Batch1"], 0.7, ["H69, B2", "H69, B1"]
    )
    panels = np.array([axes for axes in figure.axes if axes.images]).reshape(2, 3)
    for row in panels:
        assert len({axes.images[0].get_clim() for axes in row}) == 1
    assert panels[0, 0].images[0].get_clim() != panels[1, 0].images[0].get_clim()
    framed = [[axes.spines["top"].get_linewidth() > 2 for axes in row] for row in panels]
    assert framed == [[False, False, True], [False, True, False]]
    assert panels[0, 0].patches[0].get_width() == 10  # the scale bar, in micrometres


# --- values by batch -----------------------------------------------------------------------------


def batch_of(n_each=10):
    return pd.Series(pd.Categorical(np.repeat(["Batch1", "Batch3"], n_each), BATCHES))


def test_histograms_hold_every_cell_of_their_batch_and_mark_its_median():
    values = np.concatenate([np.zeros(10), np.arange(10) + 5.0])
    figure = drawn(
        figures.histograms_by_batch({"light": values, "phase (rad)": -values}, batch_of())
    )
    assert len(figure.axes) == 4  # Batch2 has no cells
    first, _, third, _ = figure.axes
    assert [sum(patch.get_height() for patch in axes.patches) for axes in figure.axes] == [10] * 4
    assert (first.get_ylabel(), third.get_ylabel()) == ("Batch1", "Batch3")
    assert third.lines[0].get_xdata()[0] == 9.5
    colours = [axes.patches[0].get_facecolor()[:3] for axes in (first, third)]
    known = [mpl.colors.to_rgb(style.BATCH_COLOURS[place]) for place in (0, 2)]
    assert np.allclose(colours, known)  # the third batch keeps its colour
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["light", "phase (rad)"]


def test_points_lie_in_the_column_of_their_batch_with_its_mean():
    values = np.concatenate([np.full(10, 2.0), np.full(10, -4.0)])
    figure = figures.points_by_batch(values, batch_of(), "error (%)", 0, "truth")
    panel = drawn(figure).axes[0]
    means, reference = panel.lines
    assert set(reference.get_ydata()) == {0}
    assert means.get_ydata().tolist() == [2, -4]
    cloud1, cloud3 = (points.get_offsets() for points in panel.collections)
    assert len(cloud3) == 10 and np.all(np.abs(cloud3[:, 0] - 1) < 0.5)
    assert set(cloud3[:, 1]) == {-4}
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["Batch1", "Batch3"]
    assert panel.get_legend().get_texts()[0].get_text() == "truth"
    assert np.all(np.abs(cloud1[:, 0]) < 0.5)


def test_values_and_batches_have_to_be_as_many():
    with pytest.raises(ValueError, match="19 values of 'light' for 20 batches"):
        figures.histograms_by_batch({"light": np.zeros(19)}, batch_of())


# --- phase ---------------------------------------------------------------------------------------


def test_labels_of_two_lines_are_inside_the_figure():
    images, names = np.zeros((3, 64, 64, 1)), ["H69, Batch1"] * 3
    titles = [f"Bottleneck of cell number {number}" for number in range(5)]
    rows = {title: images for title in titles}
    grid = figures.image_grid(rows, 0.7, names, cells_in="columns")
    FigureCanvasAgg(grid).draw()  # which puts the labels in their places
    labels = [axes.yaxis.label for axes in grid.axes if "\n" in axes.get_ylabel()]
    assert len(labels) == 5
    assert all(label.get_window_extent().x0 >= 0 for label in labels)


def test_the_profile_is_the_middle_row_and_a_full_turn_is_a_wavelength():
    phase = np.zeros((8, 8, 1))
    phase[4] = 2 * np.pi
    figure = drawn(figures.phase_profile(phase, 0.5, "a bar", wavelength_um=0.633))
    profile = next(axes for axes in figure.axes if axes.get_xlabel().startswith("place"))
    line = profile.lines[0]
    assert np.allclose(line.get_ydata(), 2 * np.pi)
    assert np.allclose(line.get_xdata(), 0.25 + 0.5 * np.arange(8))
    (right,) = profile.child_axes
    turn = profile.get_ylim()[1] / (2 * np.pi)
    assert np.isclose(right.get_ylim()[1], turn * 633)  # nm
    without = drawn(figures.phase_profile(phase, 0.5))
    assert not any(axes.child_axes for axes in without.axes)


def test_steps_have_units_and_maps_of_their_own_and_one_field():
    steps = {
        "1. path": (images(1, 32)[0], "optical path (µm)"),
        "2. light": (images(1, 16)[0], "brightness"),
        "3. change": (images(1, 16)[0], "phase (rad)", "RdBu_r"),
    }
    figure = drawn(figures.image_steps(steps, 45))
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == list(steps)
    assert [axes.images[0].cmap.name for axes in panels] == ["viridis", "gray", "RdBu_r"]
    assert {axes.get_xlim() for axes in panels} == {(0, 45)}
    units = [axes.get_xlabel() for axes in figure.axes[3:]]
    assert units == ["optical path (µm)", "brightness", "phase (rad)"]
