"""Figures of batch removal show what they claim to show."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401

from cytomad_lib.evaluation.probe_results import ProbeResult
from cytomad_lib.plots import removal as figures


def result(accuracy):
    return ProbeResult(
        "batch within class",
        accuracy,
        1 / 3,
        0.33,
        0.38,
        None,
        "knn",
        {"logistic": accuracy - 0.1, "knn": accuracy},
        pd.Series(dtype=float),
        pd.DataFrame(),
        10,
        0,
    )


def heights(panel):
    return [round(bar.get_height(), 3) for bars in panel.containers for bar in bars]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def trade_table():
    return pd.DataFrame(
        {
            "part": ["features"] * 3 + ["images"] * 2,
            "knob": ["", "weight", "weight", "blur", "blur"],
            "setting": [np.nan, 8, 5, 0, 2],
            "batch_within_class": [0.98, 0.4, 0.6, 0.9, 0.4],
            "unseen_batch": [0.16, 0.45, 0.62, np.nan, np.nan],
            "biology": [0.02, 0.3, 0.45, np.nan, np.nan],
            "structure_r": [np.nan, np.nan, np.nan, 0.88, 0.79],
            "mae_rad": [np.nan, np.nan, np.nan, 0.02, 0.03],
        }
    )


def test_targets_are_drawn_as_they_would_be_asked_for():
    shares = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    figure = figures.batch_targets(shares, ["H69", "H520"], ["B1", "B2", "B3"])
    panels = figure.axes[:3]
    first, uniform, conditional = (np.asarray(axes.collections[0].get_array()) for axes in panels)
    assert first.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert np.allclose(uniform, 1 / 3)
    assert np.array_equal(conditional, shares)
    assert {axes.collections[0].get_clim() for axes in panels} == {(0, 1)}
    # The crosses: H69 was never seen in B3, H520 never in B1.
    columns, rows = panels[0].lines[0].get_data()
    assert set(zip(rows, columns, strict=True)) == {(0.5, 2.5), (1.5, 0.5)}


def test_targets_that_do_not_fit_the_names_are_refused():
    with pytest.raises(ValueError, match=r"values is \(2, 3\), indices imply \(2, 2\)"):
        figures.batch_targets(np.ones((2, 3)), ["a", "b"], ["B1", "B2"])


def cloud_labels(n=60):
    batch = np.repeat(["B1", "B2", "B3"], n)
    return pd.DataFrame({"batch": batch, "class_name": np.tile(["H69", "H520"], 3 * n // 2)})


def test_clouds_of_days_lie_apart_where_the_day_moves_the_features():
    labels = cloud_labels()
    noise = np.random.default_rng(0).normal(size=(len(labels), 5)) * [3, 2, 1, 1, 1]
    moved = (
        noise
        + 30 * np.eye(5)[0] * labels["batch"].map({"B1": 0, "B2": 1, "B3": 3}).to_numpy()[:, None]
    )
    figure = figures.batch_clouds({"moved": moved, "matched": noise}, labels, "H69")
    apart, alike = ([line.get_xdata().mean() for line in panel.lines] for panel in figure.axes)
    # In units of the spread of all cells: days at 0, 1 and 3 have a spread of 1.25.
    assert np.ptp(apart) == pytest.approx(3 / np.std([0, 1, 3]), rel=0.02)
    assert np.ptp(alike) < 0.6
    assert [panel.get_title() for panel in figure.axes] == ["moved", "matched"]
    assert legend_texts(figure) == ["B1", "B2", "B3", "other classes"]


def test_the_ellipse_of_a_cloud_has_its_place_and_its_widths():
    places = np.random.default_rng(1).normal(size=(20000, 2)) * [2.0, 0.5] + [3.0, -1.0]
    x, y = figures._ellipse(places, size=1.5)
    assert [x.mean(), y.mean()] == pytest.approx([3, -1], abs=0.05)
    assert [np.ptp(x) / 2, np.ptp(y) / 2] == pytest.approx([3.0, 0.75], rel=0.03)


def test_clouds_of_a_class_that_is_not_there_are_refused():
    labels = cloud_labels()
    with pytest.raises(ValueError, match="H1975.*Expected one of"):
        figures.batch_clouds({"a": np.ones((len(labels), 3))}, labels, "H1975")
    with pytest.raises(ValueError, match="two or more"):
        figures.batch_clouds({"a": np.ones((len(labels), 1))}, labels, "H69")


def test_classifiers_and_probes_stand_side_by_side():
    verdict = pd.Series({"before": 0.2, "after": 0.99})
    figure = figures.classifiers_beside_probes(
        verdict, 0.19, {"pretrained": result(0.95), "published": result(0.9)}
    )
    own, independent = figure.axes
    assert [bar.get_width() for bar in own.patches] == pytest.approx([20, 99])
    assert own.lines[0].get_xdata()[0] == pytest.approx(19)
    assert heights(independent) == [0.85, 0.95, 0.8, 0.9]
    assert independent.lines[0].get_ydata()[0] == pytest.approx(1 / 3)


def test_trade_off_joins_the_settings_in_their_order_and_names_them():
    figure = figures.trade_off(trade_table(), "features")
    unseen, biology = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "class accuracy on an unseen batch",
        "biology within class (R²)",
    ]
    assert unseen.lines[0].get_xdata().tolist() == [0.6, 0.4]
    assert unseen.lines[0].get_ydata().tolist() == [0.62, 0.45]
    assert biology.lines[0].get_ydata().tolist() == [0.45, 0.3]
    assert unseen.lines[1].get_xydata().tolist() == [[0.98, 0.16]]  # the pretrained one, alone
    assert {"5", "8"} <= {text.get_text() for text in unseen.texts}
    assert legend_texts(figure) == ["by weight", "pretrained", "chance"]


def test_trade_off_of_images_needs_no_pretrained_point():
    figure = figures.trade_off(trade_table(), "images")
    structure, error = figure.axes
    assert structure.lines[0].get_ydata().tolist() == [0.88, 0.79]
    assert error.get_ylabel() == "MAE with the truth (rad)"
    assert "pretrained" not in legend_texts(figure)


def test_trade_off_draws_each_knob_as_a_curve_of_its_own():
    table = trade_table()
    other = table[table["knob"] == "weight"].assign(knob="directions", setting=[1, 4])
    other["unseen_batch"] = [0.45, 0.7]
    kept = figures.trade_off(pd.concat([table, other], ignore_index=True), "features").axes[0]
    weight, directions = kept.lines[:2]
    assert weight.get_ydata().tolist() == [0.62, 0.45]
    assert directions.get_ydata().tolist() == [0.45, 0.7]
    for look in ("get_color", "get_marker", "get_linestyle"):  # told apart without colour, too
        assert getattr(weight, look)() != getattr(directions, look)()


@pytest.mark.parametrize(
    ("table", "part"),
    [
        (trade_table(), "pixels"),
        (trade_table().query("part == 'images'"), "features"),
        (trade_table().drop(columns="setting"), "images"),
    ],
)
def test_trade_off_without_numbers_is_refused(table, part):
    with pytest.raises(ValueError, match="expected"):
        figures.trade_off(table, part)


def test_the_leak_is_drawn_beside_its_control():
    modes = ("running statistics", "one group at a time", "mixed minibatches")
    rows = [
        {"mode": mode, "measure": measure, "accuracy": accuracy, "chance": chance}
        for mode, accuracy in zip(modes, (0.9, 0.6, 0.85), strict=True)
        for measure, chance in (("batch within class", 1 / 3), ("class", 1 / 7))
    ]
    table = pd.DataFrame(rows)
    control = table[table["mode"] != modes[2]].assign(accuracy=0.3)
    figure = figures.inference_leak(table, control)
    true, random = figure.axes
    by_mode = [0.9, 0.9, 0.6, 0.6, 0.85, 0.85]
    assert heights(true) == by_mode
    assert heights(random) == [0.3] * 4
    # One mode has one colour, in both panels.
    assert true.patches[2].get_facecolor() == random.patches[2].get_facecolor()
    assert true.patches[0].get_facecolor() != true.patches[2].get_facecolor()
    assert legend_texts(figure) == [*modes, "chance"]


def test_classifiers_beside_the_true_share():
    before = pd.Series({"batch_cnn": 0.15})
    after = pd.Series({"batch_cnn": 1.0, "batch_mlp_1": 0.97})
    figure = figures.first_batch_share({"before": before, "after": after}, 0.143, "Batch1")
    panel = figure.axes[0]
    np.testing.assert_allclose(
        [bar.get_width() for bar in panel.patches if bar.get_width()], [15, 100, 97]
    )
    assert [text.get_text() for text in panel.texts] == ["15 %", "100 %", "97 %"]
    assert panel.lines[0].get_xdata()[0] == pytest.approx(14.3)
    assert "Batch1" in panel.get_xlabel()
