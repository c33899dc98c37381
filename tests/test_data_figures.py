import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from cytomad_lib.views import data_figures as figures

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
    assert found == {(0, 0): "3", (1, 0): "", (2, 0): "", (0, 1): "", (1, 1): "1", (2, 1): ""}
    hatched = [bool(patch.get_hatch()) for patch in panel.patches]
    assert hatched == [text == "" for text in found.values()]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == BATCHES
    assert panel.get_ylabel() == "cell line"


# --- gallery -------------------------------------------------------------------------------------


def test_a_gallery_has_a_row_per_kind_a_column_per_cell_and_one_scale_for_phase():
    figure = drawn(
        figures.gallery(
            {"Brightfield": images() + 1, "Measured": images() * 2, "True": images()[..., 0]},
            0.7,
            ["a", "b", "c"],
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
    figure = drawn(figures.gallery({"Brightfield": images()}, pixel_size_um=1.5))
    panel = figure.axes[0]
    assert panel.patches[0].get_width() == 10 and panel.get_xlim() == (0, 16 * 1.5)
    assert panel.texts[0].get_text() == "10 µm"


def test_phase_limits_hold_for_phase_alone():
    rows = {"Brightfield": images(), "Measured": images()}
    figure = drawn(figures.gallery(rows, 0.7, phase_limits=(-1, 5)))
    assert figure.axes[3].images[0].get_clim() == (-1, 5)
    assert figure.axes[0].images[0].get_clim() != (-1, 5)


def test_rows_and_labels_have_to_fit():
    with pytest.raises(ValueError, match="as many cells of one size"):
        figures.gallery({"Brightfield": images(3), "Measured": images(2)}, 0.7)
    with pytest.raises(ValueError, match="2 labels for 3 cells"):
        figures.gallery({"Brightfield": images(3)}, 0.7, ["a", "b"])


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
    known = [mpl.colors.to_rgb(figures.BATCH_COLOURS[place]) for place in (0, 2)]
    assert np.allclose(colours, known)  # the third batch keeps its colour
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["light", "phase (rad)"]


def test_points_lie_in_the_column_of_their_batch_with_its_mean():
    values = np.concatenate([np.full(10, 2.0), np.full(10, -4.0)])
    figure = figures.points_by_batch(values, batch_of(), "error (%)", 0, "truth")
    panel = drawn(figure).axes[0]
    reference, cloud1, mean1, cloud3, mean3 = panel.lines
    assert set(reference.get_ydata()) == {0}
    assert set(mean1.get_ydata()) == {2} and set(mean3.get_ydata()) == {-4}
    assert len(cloud3.get_xdata()) == 10 and np.all(np.abs(cloud3.get_xdata() - 1) < 0.3)
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["Batch1", "Batch3"]
    assert panel.get_legend().get_texts()[0].get_text() == "truth"
    assert np.all(np.abs(cloud1.get_xdata()) < 0.3)


def test_values_and_batches_have_to_be_as_many():
    with pytest.raises(ValueError, match="19 values of 'light' for 20 batches"):
        figures.histograms_by_batch({"light": np.zeros(19)}, batch_of())


# --- phase ---------------------------------------------------------------------------------------


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
