"""Figures about removal and drug response show what they claim to show."""

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.analysis.probes import ProbeResult
from cytomad_lib.views import removal_figures as figures

DRUGS = ("Docetaxel", "Afatinib")


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
    return [round(patch.get_height(), 3) for patch in panel.patches]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def trade_table():
    return pd.DataFrame(
        {
            "part": ["features"] * 3 + ["images"] * 2,
            "knob": ["", "weight", "weight", "blur", "blur"],
            "setting": [np.nan, 8, 5, 0, 2],
            "batch_within_class": [0.98, 0.4, 0.6, 0.9, 0.4],
            "class_accuracy": [0.6, 0.5, 0.65, np.nan, np.nan],
            "unseen_batch": [0.16, 0.45, 0.62, np.nan, np.nan],
            "structure_r": [np.nan, np.nan, np.nan, 0.88, 0.79],
            "mae_rad": [np.nan, np.nan, np.nan, 0.02, 0.03],
        }
    )


def dosed_labels():
    groups = [("DMSO", batch, "Control") for batch in ("B1", "B2", "B3")]
    groups += [("Docetaxel", "B1", f"D{k}") for k in range(1, 6)]
    groups += [("Docetaxel", "B2", f"D{k}") for k in range(1, 6)]
    groups += [("Afatinib", "B3", f"A{k}") for k in range(1, 6)]
    rows = [group for group in groups for _ in range(4)]
    return pd.DataFrame(rows, columns=["class_name", "batch", "dose"])


def distances():
    rows = [
        {
            "class_name": drug,
            "batch": batch,
            "level": level,
            "distance": 0.5 * level,
            "distance_pooled": 2.0 + level,
        }
        for drug, batch in (("Docetaxel", "B1"), ("Afatinib", "B3"))
        for level in (3, 0, 5)
    ]
    return pd.DataFrame(rows)


def order_table():
    rows = [
        {
            "method": method,
            "class_name": drug,
            "batch": batch,
            "rho_groups": rho,
            "low_groups": rho - 0.2,
            "high_groups": min(rho + 0.1, 1),
            "null_95_groups": 0.5,
        }
        for method, start in (("pretrained", 0.3), ("truth", 0.8))
        for drug in DRUGS
        for batch, rho in (("B1", start - 0.1), ("all", start))
    ]
    return pd.DataFrame(rows)


def test_targets_are_drawn_as_they_would_be_asked_for():
    shares = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    figure = figures.batch_targets(shares, ["H69", "H520"], ["B1", "B2", "B3"])
    panels = [axes for axes in figure.axes if axes.images]
    first, uniform, conditional = (np.asarray(axes.images[0].get_array()) for axes in panels)
    assert first.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert np.allclose(uniform, 1 / 3)
    assert np.array_equal(conditional, shares)
    assert {axes.images[0].get_clim() for axes in panels} == {(0, 1)}
    # The crosses: H69 was never seen in B3, H520 never in B1.
    columns, rows = panels[0].lines[0].get_data()
    assert set(zip(rows, columns, strict=True)) == {(0, 2), (1, 0)}


def test_targets_that_do_not_fit_the_names_are_refused():
    with pytest.raises(ValueError, match="2 classes x 2 batches"):
        figures.batch_targets(np.ones((2, 3)), ["a", "b"], ["B1", "B2"])


def test_a_cell_on_other_days_has_one_grey_scale_and_its_own_day_framed():
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(2, 16, 16, 1))
    moved = {"Batch1": measured + 1, "Batch2": measured + 5}
    figure = figures.other_days(measured, moved, ["Batch2", "Batch1"], 0.7, ["H69, B2", "H69, B1"])
    panels = np.array([axes for axes in figure.axes if axes.images]).reshape(2, 3)
    for row in panels:
        assert len({axes.images[0].get_clim() for axes in row}) == 1
    assert panels[0, 0].images[0].get_clim() != panels[1, 0].images[0].get_clim()
    framed = [[axes.spines["top"].get_linewidth() > 2 for axes in row] for row in panels]
    assert framed == [[False, False, True], [False, True, False]]
    assert panels[0, 0].patches[0].get_width() == 10  # the scale bar, in micrometres


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
    figure = figures.day_clouds({"moved": moved, "matched": noise}, labels, "H69")
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
        figures.day_clouds({"a": np.ones((len(labels), 3))}, labels, "H1975")
    with pytest.raises(ValueError, match="two or more"):
        figures.day_clouds({"a": np.ones((len(labels), 1))}, labels, "H69")


def test_own_verdict_and_probes_stand_side_by_side():
    verdict = pd.Series({"before": 0.2, "after": 0.99})
    figure = figures.fooled(verdict, 0.19, {"pretrained": result(0.95), "published": result(0.9)})
    own, independent = figure.axes
    assert [bar.get_width() for bar in own.patches] == pytest.approx([20, 99])
    assert own.lines[0].get_xdata()[0] == pytest.approx(19)
    assert heights(independent) == [0.85, 0.95, 0.8, 0.9]
    assert independent.lines[0].get_ydata()[0] == pytest.approx(1 / 3)


def test_trade_off_joins_the_settings_in_their_order_and_names_them():
    figure = figures.trade_off(trade_table(), "features")
    kept, unseen = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "class accuracy",
        "class accuracy on an unseen batch",
    ]
    assert kept.lines[0].get_xdata().tolist() == [0.6, 0.4]
    assert kept.lines[0].get_ydata().tolist() == [0.65, 0.5]
    assert unseen.lines[0].get_ydata().tolist() == [0.62, 0.45]
    assert kept.lines[1].get_xydata().tolist() == [[0.98, 0.6]]  # the pretrained one, alone
    assert {"5", "8"} <= {text.get_text() for text in kept.texts}
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
    other["class_accuracy"] = [0.45, 0.7]
    kept = figures.trade_off(pd.concat([table, other], ignore_index=True), "features").axes[0]
    weight, directions = kept.lines[:2]
    assert weight.get_ydata().tolist() == [0.65, 0.5]
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
    assert heights(true) == [0.9, 0.6, 0.85] * 2
    assert heights(random) == [0.3] * 4
    # One mode has one colour, in both panels.
    assert true.patches[1].get_facecolor() == random.patches[1].get_facecolor()
    assert legend_texts(figure) == [*modes, "chance"]


def test_dose_order_shows_interval_null_and_single_batches():
    figure = figures.dose_order(order_table())
    assert [axes.get_title() for axes in figure.axes] == list(DRUGS)
    panel = figure.axes[0]
    points = [line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "o"]
    assert points == [[[0.3, 0]], [[0.8, 1]]]
    strokes = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "|"]
    assert {0.2, 0.7} <= {round(float(x), 3) for x in strokes}
    assert [patch.get_width() for patch in panel.patches] == [0.5, 0.5]  # the null


def test_day_and_drug_are_taken_from_the_right_levels():
    figure = figures.batch_beside_drug({"pretrained": distances()})
    (panel,) = figure.axes
    day, drug = panel.lines[:2]
    assert day.get_xdata().tolist() == [2, 2]  # untreated cells, from those of other days
    assert drug.get_xdata().tolist() == [2.5, 2.5]  # highest dose, from those of the same day
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == ["Docetaxel, B1", "Afatinib, B3"]


def test_measures_are_averaged_per_dose_with_the_control_of_the_same_day():
    labels = dosed_labels()
    area = np.where(labels["batch"] == "B2", 100.0, 50.0)  # a day apart from the others
    area = area + labels["dose"].str[-1].map(lambda k: int(k) if k.isdigit() else 0)
    figure = figures.measures_by_dose(pd.DataFrame({"area": area}), labels, {"area": "area (µm²)"})
    docetaxel, afatinib = figure.axes
    assert (docetaxel.get_title(), afatinib.get_title()) == DRUGS
    assert docetaxel.get_ylabel() == "area (µm²)"
    lines = [container[0].get_ydata().tolist() for container in docetaxel.containers]
    assert lines == [[50, 51, 52, 53, 54, 55], [100, 101, 102, 103, 104, 105]]
    assert len(afatinib.containers) == 1


def test_measures_of_other_cells_are_refused():
    with pytest.raises(ValueError, match="3 measured cells"):
        figures.measures_by_dose(pd.DataFrame({"area": [1, 2, 3]}), dosed_labels(), {"area": "a"})
