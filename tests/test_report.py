"""The report is one readable file that stands on its own, or is not there at all."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cytomad_lib import plots
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation.tables import format_scores, seed_summary
from cytomad_lib.plots.report import PNG_START, Section, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text in each, and a check that tags are closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]

    def texts(self, tag):
        return [element["text"].strip() for element in self.all(tag)]

    def rows(self):
        """Cells of every row as text, and whether each is right-aligned."""
        html = [e for e in self.elements if e["tag"] in ("tr", "th", "td")]
        rows = []
        for element in html:
            if element["tag"] == "tr":
                rows.append([])
            else:
                rows[-1].append((element["text"], element["attrs"].get("class") == "number"))
        return rows


def figure():
    drawn = Figure(figsize=(3, 2))
    drawn.subplots().plot([1, 2, 3])
    return drawn


def saved(folder, name="drawn.png"):
    return plots.save_figure(figure(), folder / name)


def write(folder, *sections, title="Demo run", subtitle="Test split", facts=None):
    facts = {"Seed": "0", "Versions": {"keras": "3.15.1"}} if facts is None else facts
    return write_report(folder / "report.html", title, subtitle, facts, list(sections))


def table_page(folder, table, **options):
    return Page(write(folder, Section("Scores", table=table, **options)))


def score_rows(methods=("pretrained", "conditional"), seed=0, shift=0.0):
    rows = []
    for m, method in enumerate(methods):
        for k, measure in enumerate(("batch within class", "class")):
            rows.append(
                {
                    "method": method,
                    "measure": measure,
                    "accuracy": 0.9 - 0.2 * m - 0.1 * k + shift,
                    "chance": (1 / 3, 1 / 7)[k],
                    "null_95": 0.36 + 0.01 * m,
                    "bits": 1.2 - m if k == 0 else np.nan,
                    "n_cells": 630,
                    "seed": seed,
                }
            )
    return pd.DataFrame(rows)


def test_the_page_stands_on_its_own(tmp_path):
    png, other = saved(tmp_path, "losses.png"), saved(tmp_path, "cells.png")
    path = write(
        tmp_path,
        Section("Scores", "One.\n\nTwo.", pd.DataFrame({"a": [1.0]}), note="Read with care."),
        Section("Figures", figures=[(png, "Losses"), (other, "Cells")]),
    )
    page = Page(path)
    images = page.all("img")
    assert [image["attrs"]["alt"] for image in images] == ["Losses", "Cells"]
    assert page.texts("figcaption") == ["Losses", "Cells"]
    for image in images:
        kind, data = image["attrs"]["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG_START)
    assert base64.b64decode(images[0]["attrs"]["src"].split(",")[1]) == png.read_bytes()

    for element in page.elements:
        assert element["tag"] not in ("script", "link", "iframe", "object")
        href = element["attrs"].get("href", "#")
        assert href.startswith("#")
        assert "srcset" not in element["attrs"] and "style" not in element["attrs"]
    assert not re.search(r"url\(|@import|https?://", path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_every_entry_of_the_contents_leads_to_its_section(tmp_path):
    page = Page(write(tmp_path, Section("Scores"), Section("Cells"), Section("Scores")))
    ids = {e["attrs"]["id"]: e["text"] for e in page.all("section")}
    assert len(ids) == 4
    for link in page.all("a"):
        assert link["text"] in ids[link["attrs"]["href"].removeprefix("#")]
    assert page.texts("a") == page.texts("h2") == ["Key facts", "Scores", "Cells", "Scores"]
    assert page.texts("h1") == ["Demo run"]
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    assert "viewport" in [meta["attrs"].get("name") for meta in page.all("meta")]


def test_facts_may_hold_facts(tmp_path):
    facts = {"Seed": 3, "Versions": {"keras": "3.15.1", "numpy": "2.4.6"}}
    page = Page(write(tmp_path, facts=facts))
    assert page.texts("dt") == ["Seed", "Versions", "keras", "numpy"]
    assert page.texts("dd")[0] == "3" and page.texts("dd")[-2:] == ["3.15.1", "2.4.6"]
    assert len(page.all("dl")) == 2
    assert "Key facts" not in Page(write(tmp_path, facts={})).texts("h2")


def test_names_are_shown_and_not_obeyed(tmp_path):
    evil = '<script>alert("x")</script> & $title'
    table = pd.DataFrame({evil: [evil], "n": [1]}, index=pd.Index([evil], name=evil))
    section = Section(evil, evil, table, [(saved(tmp_path), evil)], table_caption=evil, note=evil)
    page = Page(write(tmp_path, section, title=evil, subtitle=evil, facts={evil: {evil: evil}}))
    assert not page.all("script")
    for tag in ("title", "h1", "caption", "figcaption", "dt"):
        assert page.texts(tag)[0] == evil, tag
    assert page.texts("dd")[-1] == evil
    assert page.all("img")[0]["attrs"]["alt"] == evil
    assert page.texts("p") == [evil] * 3  # subtitle, text, note
    assert [text for text, _ in page.rows()[1]] == [evil, evil, "1"]


def test_numbers_in_a_table(tmp_path):
    table = pd.DataFrame(
        {
            "accuracy": [2 / 3, np.nan, -0.0001],
            "cells": [630, 40, 7],
            "counted": pd.array([12, None, 3], dtype="Int64"),
            "mixed": np.array([5, 0.5, None], dtype=object),
            "probe": ["mlp", None, "knn"],
            "kept": [True, False, True],
        },
        index=pd.Index(["a", "b", "c"], name="method"),
    )
    rows = table_page(tmp_path, table).rows()
    texts = [[text for text, _ in row] for row in rows]
    assert texts[0] == ["method", "accuracy", "cells", "counted", "mixed", "probe", "kept"]
    assert texts[1] == ["a", "0.667", "630", "12", "5", "mlp", "True"]
    assert texts[2] == ["b", "–", "40", "–", "0.500", "–", "False"]
    assert texts[3] == ["c", "0.000", "7", "3", "–", "knn", "True"]
    for row in rows:
        assert [right for _, right in row] == [False, True, True, True, True, False, False]


def test_a_table_tells_what_its_headings_are_for(tmp_path):
    index = pd.MultiIndex.from_tuples([("A", 1), ("A", 2)], names=["method", "seed"])
    table = pd.DataFrame({"r, truth": [0.5, 0.6]}, index=index)
    page = table_page(tmp_path, table, table_caption="Two seeds")
    scopes = [(e["text"], e["attrs"]["scope"]) for e in page.all("th")]
    assert scopes == [
        *[("method", "col"), ("seed", "col"), ("r, truth", "col")],
        *[("A", "row"), ("A", "row")],
    ]
    assert page.texts("caption") == ["Two seeds"]
    box = next(e for e in page.all("div") if e["attrs"].get("class") == "scroll")
    assert box["attrs"]["tabindex"] == "0" and box["attrs"]["aria-label"] == "Two seeds"


def test_a_mere_row_count_is_not_shown_and_a_nameless_index_is(tmp_path):
    table = pd.DataFrame({"x": [0.25]})
    assert table_page(tmp_path, table).rows()[1] == [("0.250", True)]
    named = table.set_axis(["H69"])
    assert [text for text, _ in table_page(tmp_path, named).rows()[1]] == ["H69", "0.250"]
    assert table_page(tmp_path, table[:0]).rows() == [[("x", False)]]


def test_a_title_in_place_of_a_caption(tmp_path):
    assert table_page(tmp_path, pd.DataFrame({"x": [1]})).texts("caption") == ["Scores"]


def test_the_same_input_gives_the_same_page(tmp_path):
    drawn = saved(tmp_path)
    pages = [write(tmp_path / name, Section("A", figures=[(drawn, "b")])) for name in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize(
    "bad, error",
    [
        ({"figures": [("nowhere/cells.png", "")]}, CytomadError),
        ({"text": "\udcff"}, UnicodeEncodeError),  # fails in writing, not before
    ],
)
def test_nothing_half_written(tmp_path, there_before, bad, error):
    if there_before:
        before = write(tmp_path, Section("Old")).read_bytes()
    with pytest.raises(error):
        write(tmp_path, Section("Good"), Section("Bad", **bad))
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"report.html": before} if there_before else {})


def test_a_figure_that_is_not_there_or_no_png_is_named(tmp_path):
    with pytest.raises(CytomadError, match=r"gone\.png.*cannot be read"):
        write(tmp_path, Section("A", figures=[(tmp_path / "gone.png", "")]))
    vector = plots.save_figure(figure(), tmp_path / "losses.svg")
    with pytest.raises(CytomadError, match=r"losses\.svg is not a PNG"):
        write(tmp_path, Section("A", figures=[(vector, "")]))
    with pytest.raises(CytomadError, match=r"report\.pdf.*\.html"):
        write_report(tmp_path / "report.pdf", "A", "", {}, [])


def test_a_figure_is_shown_at_its_size_on_paper(tmp_path):
    page = Page(write(tmp_path, Section("A", figures=[(saved(tmp_path), "")])))
    assert page.all("img")[0]["attrs"]["width"] == str(3 * 96)
    assert not page.all("figcaption")


def test_scores_have_measures_in_rows_and_methods_in_columns():
    table = format_scores(score_rows())
    assert list(table.columns) == ["chance", "null 95 %", "pretrained", "conditional"]
    assert list(table.index) == ["batch within class", "class", "batch within class, in bits"]
    assert table.loc["class"].tolist() == pytest.approx([1 / 7, 0.37, 0.8, 0.6])
    bits = table.loc["batch within class, in bits"]
    assert bits[["chance", "pretrained", "conditional"]].tolist() == pytest.approx([0, 1.2, 0.2])
    assert np.isnan(bits["null 95 %"])


def test_scores_keep_the_order_of_appearance_and_average_over_seeds():
    rows = pd.concat([score_rows(("z", "a"), seed, 0.01 * seed) for seed in range(3)])
    table = format_scores(rows.astype({"method": "category", "measure": "category"}))
    assert list(table.columns[2:]) == ["z", "a"]
    assert table.loc["class", ["z", "a"]].tolist() == pytest.approx([0.81, 0.61])


def test_scores_without_bits_have_no_row_for_them():
    rows = score_rows().assign(bits=np.nan)
    assert list(format_scores(rows).index) == ["batch within class", "class"]


def test_summary_over_seeds():
    table = pd.DataFrame(
        {
            "method": ["b", "b", "b", "a", "c"],
            "seed": [0, 1, 2, 0, 0],
            "accuracy": [0.1, 0.2, 0.6, 0.5, np.nan],
        }
    )
    summary = seed_summary(table, ["method"], "accuracy")
    assert summary.columns.tolist() == ["method", "mean", "s.d.", "n", "mean ± s.d."]
    assert summary["method"].tolist() == ["b", "a", "c"]
    assert summary["n"].tolist() == [3, 1, 0]
    assert summary["mean"].tolist()[:2] == pytest.approx([0.3, 0.5])
    assert summary["s.d."][0] == pytest.approx(np.sqrt(0.14 / 2))  # n - 1
    assert np.isnan(summary["s.d."][1])
    assert summary["mean ± s.d."].tolist() == ["0.300 ± 0.265", "0.500", "–"]
