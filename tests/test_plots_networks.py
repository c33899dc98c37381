"""Figures of networks show what they claim to show."""

import numpy as np
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401
from matplotlib.colors import to_rgba

from cytomad_lib import config, networks
from cytomad_lib.evaluation.dissection import block_table
from cytomad_lib.plots import diagrams
from cytomad_lib.plots import networks as figures
from cytomad_lib.plots.style import METHOD_COLOURS

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def generator_table():
    return block_table(networks.build_generator(64, 4))


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def shown(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_the_whole_method_has_nine_terms_with_their_weights():
    texts = texts_of(diagrams.method_diagram(config.PUBLISHED))
    terms = [text for text in texts if "target: " in text]
    assert len(terms) == 9
    weights = [float(text.rpartition("weight ")[2]) for text in terms]
    assert weights == [300, 1] + 7 * [100]
    assert sum("“first batch”" in text for text in terms) == 5
    assert sum("128 of the 512 features, 75-50-25" in text for text in terms) == 4
    assert any("512 features, 250-100-50-25" in text for text in terms)


def test_the_widths_in_the_diagram_are_those_of_the_networks():
    for network, widths in (
        (networks.build_cell_type_mlp(7), "250-100-50-25"),
        (networks.build_batch_mlp(7), "75-50-25"),
    ):
        hidden = [layer.units for layer in network.layers[1:-1]]
        assert "-".join(map(str, hidden)) == widths
        assert any(widths in text for text in texts_of(diagrams.method_diagram(config.DEMO)))


def test_feature_maps_show_those_that_vary_most():
    lively = RNG.normal(size=(4, 4, 20))
    lively[..., 10:] *= 0.01
    lively[..., 15] *= 1000
    stacks = {"block 1": RNG.normal(size=(8, 8, 3)), "block 2": lively}
    figure = figures.feature_maps(stacks, most=5)
    images = shown(figure)
    assert len(images) == 3 + 5
    np.testing.assert_array_equal(images[1].get_array(), stacks["block 1"][..., 1])
    numbers = [int(axes.get_title()) for axes in figure.axes if axes.images][3:]
    assert numbers == sorted(numbers) and 15 in numbers
    assert sum(number >= 10 for number in numbers) == 1
    assert any("5 of 20" in axes.get_ylabel() for axes in figure.axes)


def test_the_border_does_not_set_the_scale_of_a_map():
    maps = RNG.random((16, 16, 1))
    maps[0], maps[:, -1] = 50, -50
    low, high = shown(figures.feature_maps({"block": maps}))[0].get_clim()
    assert (low, high) == (maps[1:-1, 1:-1].min(), maps[1:-1, 1:-1].max())


def test_feature_maps_of_several_cells_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\)"):
        figures.feature_maps({"block": np.zeros((2, 8, 8, 3))})


def test_constant_maps_can_be_drawn():
    figure = figures.feature_maps({"silent": np.zeros((4, 4, 2))})
    low, high = shown(figure)[0].get_clim()
    assert low < high


def test_strips_have_a_row_per_cell():
    features = RNG.random((3, 16))
    figure = figures.feature_strips(features, ["a", "b", "c"])
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), features)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"values is \(3, 16\), indices imply \(2, 16\)"):
        figures.feature_strips(features, ["a", "b"])


def test_diagram_names_every_block_with_its_shape(generator_table):
    texts = texts_of(diagrams.unet_diagram(generator_table))
    for name, row in generator_table.iterrows():
        own = [text for text in texts if text.startswith(f"{name}\n")]
        assert len(own) == 1
        assert f"{row['height']}×{row['width']}" in own[0] and str(row["channels"]) in own[0]
        assert ("+" in own[0]) == (row["joined"] > 0)
    assert any(text.startswith("input\n64×64") for text in texts)


def test_diagram_has_a_skip_at_every_level(generator_table):
    (panel,) = diagrams.unet_diagram(generator_table).axes
    dashed = [patch for patch in panel.patches if patch.get_linestyle() in ("--", "dashed")]
    assert len(dashed) == (generator_table["joined"] > 0).sum() == 6


def test_diagram_of_a_discriminator_is_refused():
    with pytest.raises(ValueError, match="convolution 1"):
        diagrams.unet_diagram(block_table(networks.build_discriminator(32, 2)))


def test_parameter_bars_are_as_long_as_there_are_parameters(generator_table):
    (panel,) = figures.parameter_bars(generator_table).axes
    lengths = [bar.get_width() for bar in panel.patches]
    assert lengths == list(generator_table["parameters"])
    assert f" {max(lengths):,.0f}" in texts_of(panel.figure)


def test_path_bars_and_their_reference():
    (panel,) = figures.path_bars({"bottleneck": 0.1, "skip 8×8": 0.3}, ("another cell", 0.5)).axes
    assert [bar.get_width() for bar in panel.patches] == [0.1, 0.3]
    assert list(panel.lines[0].get_xdata()) == [0.5, 0.5]
    assert panel.get_xlim()[1] > 0.5


def test_half_of_the_change_is_above_the_level():
    change = np.array([[8.0, 1.0], [4.0, 3.0]])
    assert figures.half_level(change) == 8.0
    assert figures.half_level(np.array([[3.0, 3.0], [2.0, 2.0]])) == 3.0


def test_sensitivity_frames_the_patch():
    change, windows = RNG.random((8, 8)), ((-3, 10), (5, 18))
    figure = figures.sensitivity_map(change, RNG.random((16, 16)), (1, 3), windows, 4, 1.0)
    crosses = [axes.lines[0].get_xydata()[0] for axes in figure.axes if axes.images and axes.lines]
    np.testing.assert_allclose(crosses, [(12.0, 4.0)] * 2)
    frames = [
        patch.get_bbox().bounds
        for axes in figure.axes
        for patch in axes.patches
        if hasattr(patch, "get_width") and not patch.get_fill()
    ]
    assert frames == [(12.0, 4.0, 4.0, 4.0)] * 2


def test_the_true_label_is_boxed():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    panels = {"class": (probabilities, ["a", "b", "c"], [1, 2])}
    figure = figures.predicted_probabilities(panels, ["cell 1", "cell 2"])
    boxes = [patch.get_x() - 0.03 for patch in figure.axes[0].patches]
    assert boxes == pytest.approx([1, 2])
    assert {"70", "20", "10", "80"} <= set(texts_of(figure))


def test_probabilities_must_fit_the_cells():
    panels = {"class": (np.ones((2, 3)) / 3, ["a", "b", "c"], [0, 1])}
    with pytest.raises(ValueError, match=r"values is \(2, 3\), indices imply \(1, 3\)"):
        figures.predicted_probabilities(panels, ["only one"])
    panels = {"class": (np.ones((2, 3)) / 3, ["a", "b", "c"], [0, 1, 2])}
    with pytest.raises(ValueError, match="longer"):
        figures.predicted_probabilities(panels, ["one", "two"])


def test_each_subset_is_in_its_row():
    subsets = np.array([[0, 5], [3, 1]])
    (panel,) = figures.feature_subsets(subsets, 6).axes
    places = {
        (round(patch.get_x() + 0.5), round(patch.get_y() + 0.4)): patch.get_facecolor()
        for patch in panel.patches
    }
    assert set(places) == {(0, 0), (5, 0), (3, 1), (1, 1)}
    assert places[0, 0] == places[5, 0] != places[3, 1]


def test_each_feature_has_the_colour_of_its_mlp():
    subsets = np.random.default_rng(0).permutation(128).reshape(4, 32)
    (panel,) = figures.feature_subsets(subsets, 128).axes
    owner = np.full(128, -1)
    colours = [to_rgba(colour) for colour in METHOD_COLOURS]
    for patch in panel.patches:
        owner[round(patch.get_x() + 0.5)] = colours.index(patch.get_facecolor())
    for number, subset in enumerate(subsets):
        assert (owner[subset] == number).all()


def test_features_in_two_subsets_are_refused():
    with pytest.raises(ValueError, match="3 different"):
        figures.feature_subsets([[0, 1], [1, 2]], 6)
    with pytest.raises(ValueError, match="disjoint"):
        figures.feature_subsets(np.arange(len(METHOD_COLOURS) + 1)[:, None], 20)
