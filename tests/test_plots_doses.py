"""Figures of drug response show what they claim to show."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401

from cytomad_lib.plots import doses as figures
from cytomad_lib.plots.style import BATCH_COLOURS

DRUGS = ("Docetaxel", "Afatinib")


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


def distance_table():
    rows = [
        (drug, batch, dose, level, level * slope, level * slope - 0.5, level * slope + 0.5, 0.7)
        for drug, batch, slope in (
            ("Docetaxel", "B1", 1.0),
            ("Docetaxel", "B2", 0.5),
            ("Afatinib", "B3", 0.8),
        )
        for level, dose in enumerate(["DMSO", *(f"{drug[0]}{k}" for k in range(1, 6))])
    ]
    names = ["class_name", "batch", "dose", "level", "distance", "low", "high", "null_95"]
    return pd.DataFrame(rows, columns=names)


def test_dose_response_has_a_panel_per_drug_and_a_line_with_band_and_null_per_batch():
    figure = figures.dose_response(distance_table(), "Bottleneck")
    assert [panel.get_title() for panel in figure.axes] == ["Docetaxel", "Afatinib"]
    first, second = figure.axes
    assert [tick.get_text() for tick in second.get_xticklabels()] == ["DMSO"] + [
        f"A{k}" for k in range(1, 6)
    ]
    lines = {line.get_label(): line for line in first.lines}
    np.testing.assert_allclose(lines["B1"].get_ydata(), range(6))
    np.testing.assert_allclose(lines["B2"].get_ydata(), 0.5 * np.arange(6))
    assert len(first.collections) == 2 and len(second.collections) == 1
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (-0.5, 5.5)
    nulls = [line for line in first.lines if line.get_linestyle() == ":"]
    assert [set(line.get_ydata()) for line in nulls] == [{0.7}, {0.7}]
    assert first.get_ylim() == second.get_ylim()
    assert figure.get_suptitle() == "Bottleneck"


def test_dose_response_gives_each_batch_its_own_colour_and_marker():
    looks = {
        line.get_label(): (line.get_color(), line.get_marker())
        for panel in figures.dose_response(distance_table()).axes
        for line in panel.lines
        if line.get_label().startswith("B")
    }
    assert list(looks) == ["B1", "B2", "B3"]
    colours, markers = zip(*looks.values(), strict=True)
    assert colours == BATCH_COLOURS[:3]
    assert len(set(markers)) == 3


def test_dose_response_of_anything_else_is_an_error():
    with pytest.raises(KeyError, match="null_95"):
        figures.dose_response(distance_table().drop(columns="null_95"))


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
    with pytest.raises(ValueError, match="does not match length of index"):
        figures.measures_by_dose(pd.DataFrame({"area": [1, 2, 3]}), dosed_labels(), {"area": "a"})
