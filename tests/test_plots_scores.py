"""Figures of scores show what they claim to show."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401

from cytomad_lib import plots

RNG = np.random.default_rng(0)


def labels(n=84):
    return pd.DataFrame(
        {
            "batch": pd.Categorical([f"Batch{1 + k % 7}" for k in range(n)]),
            "class_name": pd.Categorical([f"line{k % 4}" for k in range(n)]),
        }
    )


def heat_maps(figure):
    return [axes for axes in figure.axes if axes.collections and axes.get_xlabel()]


def colour_bar_labels(figure):
    return {axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"}


def test_embedding_draws_every_cell_twice():
    table = labels()
    points = RNG.normal(size=(len(table), 2))
    for axes in plots.embedding(points, table).axes:
        drawn = np.vstack([part.get_offsets() for part in axes.collections])
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(points, axis=0))


def test_embedding_keeps_colours_when_categories_are_missing():
    table = labels()
    everything = plots.embedding(np.zeros((len(table), 2)), table)
    part = table[table["batch"] == "Batch5"]
    some = plots.embedding(np.zeros((len(part), 2)), part)
    colours = [
        {line.get_label(): line.get_color() for line in figure.axes[0].get_legend().get_lines()}
        for figure in (everything, some)
    ]
    assert len(set(colours[0].values())) == 7
    assert colours[1] == {"Batch5": colours[0]["Batch5"]}


def test_embedding_of_other_cells_is_an_error():
    with pytest.raises(ValueError, match=r"\(3, 2\) for 84"):
        plots.embedding(np.zeros((3, 2)), labels())


def test_confusion_rows_add_up_to_100_percent():
    names = ["H69", "H358", "H520"]
    table = pd.DataFrame([[8, 2, 0], [0, 20, 0], [0, 0, 0]], index=names, columns=names)
    axes = plots.confusion_matrices({"Class": table}).axes[0]
    np.testing.assert_allclose(
        axes.collections[0].get_array(), [[80, 20, 0], [0, 100, 0], [0, 0, 0]]
    )
    assert axes.texts[0].get_text() == "80"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "H69 (10)",
        "H358 (20)",
        "H520 (0)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true (cells)")


def test_confusions_side_by_side_share_the_scale():
    table = pd.DataFrame(np.eye(2, dtype=int), index=["a", "b"], columns=["a", "b"])
    figure = plots.confusion_matrices({"one": table, "two": 5 * table})
    panels = heat_maps(figure)
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    assert {axes.collections[0].get_clim() for axes in panels} == {(0, 100)}


def score_rows():
    rows = [
        ("pix2pix", "batch within class", 0.9, 1 / 3, 0.37),
        ("pix2pix", "batch within class", 0.8, 1 / 3, 0.37),
        ("removed", "batch within class", 0.5, 1 / 3, 0.37),
        ("pix2pix", "class", 0.6, 1 / 7, 0.17),
    ]
    return pd.DataFrame(rows, columns=["method", "measure", "accuracy", "chance", "null_95"])


def test_score_bars_show_mean_chance_and_null():
    batch, class_ = plots.score_bars(score_rows()).axes
    bars = [patch.get_height() for patch in batch.patches if patch.get_y() == 0]
    assert bars == pytest.approx([0.85, 0.5])
    boxes = [p for p in batch.patches if p.get_y() > 0]
    assert [(box.get_y(), box.get_y() + box.get_height()) for box in boxes] == [
        pytest.approx((1 / 3, 0.37))
    ] * 2
    assert 1 / 7 in [line.get_ydata()[0] for line in class_.get_lines()]
    assert "lower is better" in batch.get_title()
    assert "higher is better" in class_.get_title()
    assert "accuracy" in batch.get_ylabel()


def test_score_rows_show_the_same_as_bars_lying_down():
    batch, class_ = plots.score_rows(score_rows(), faded=["removed"]).axes
    bars = [patch.get_width() for patch in batch.patches if patch.get_x() == 0]
    assert bars == pytest.approx([0.85, 0.5])
    boxes = [p for p in batch.patches if p.get_x() > 0]
    assert [(box.get_x(), box.get_x() + box.get_width()) for box in boxes] == [
        pytest.approx((1 / 3, 0.37))
    ] * 2
    assert 1 / 7 in [line.get_xdata()[0] for line in class_.get_lines()]
    assert batch.get_ylim()[0] > batch.get_ylim()[1]  # the first method is on top
    first, second = (patch.get_facecolor() for patch in batch.patches if patch.get_x() == 0)
    assert first != second


def test_many_measures_of_scores_are_put_into_two_rows():
    rows = pd.concat([score_rows(), score_rows().assign(measure=lambda t: t["measure"] + " again")])
    axes = plots.score_bars(rows).axes
    assert len(axes) == 4
    assert len({round(panel.get_subplotspec().rowspan.start) for panel in axes}) == 2


def correlations():
    return pd.DataFrame(
        [[0.2, -0.9], [0.6, 0.1], [np.nan, np.nan], [-0.8, 0.3]],
        index=["mass", "small", "constant", "large"],
        columns=["area_um2", "dry_mass_pg"],
    )


def test_correlation_map_orders_features_by_the_measure_they_follow():
    figure = plots.correlation_map(correlations(), "Bottleneck")
    (panel,) = heat_maps(figure)
    names = [tick.get_text() for tick in panel.get_yticklabels()]
    assert names == ["large", "small", "mass", "constant"]
    np.testing.assert_array_equal(
        np.ma.filled(panel.collections[0].get_array(), np.nan), correlations().loc[names]
    )
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["area_um2", "dry_mass_pg"]
    boxes = [box.get_xy() for box in panel.patches]
    assert boxes == [(0, 0), (0, 1), (1, 2)]  # the constant feature follows nothing
    assert panel.get_title() == "Bottleneck"
    assert panel.get_xlabel() and panel.get_ylabel()


def test_correlation_map_is_centred_and_shows_missing_values_in_grey():
    figure = plots.correlation_map(correlations())
    (panel,) = heat_maps(figure)
    image = panel.collections[0]
    assert image.get_clim() == (-1, 1)
    colours = image.to_rgba(np.ma.masked_invalid([0.0, 0.9, -0.9, np.nan]))
    assert colours[0].min() > 0.95  # no correlation is white
    assert colours[1][0] > colours[1][2] and colours[2][0] < colours[2][2]  # red up, blue down
    assert colours[3][3] == 0  # the background is seen through a missing value
    np.testing.assert_allclose(panel.get_facecolor(), [0.8, 0.8, 0.8, 1])
    assert colour_bar_labels(figure) == {"correlation"}


def test_correlation_map_of_many_features_counts_them_instead_of_naming():
    table = pd.DataFrame(RNG.uniform(-1, 1, (512, 3)), columns=list("abc"))
    panel = heat_maps(plots.correlation_map(table))[0]
    assert len(panel.get_yticks()) == 0
    assert "512" in panel.get_ylabel()
