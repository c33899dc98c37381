"""The site to read: whole, without a network, searchable, on a desktop and on a phone.

Needs the packages of the extra `site`, and for the parts in a browser what `test_browser.py` needs.
"""

import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from chromium import browser_page, what_is_missing

from cytomad_lib import site
from cytomad_lib.course import NOTEBOOKS
from cytomad_lib.data.errors import CytomadError

pytest.importorskip("sphinx", reason="the extra 'site' is not installed")

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folder of the site, with a page added."""
    add = tmp_path_factory.mktemp("add")
    (add / "try").mkdir()
    (add / "try" / "index.html").write_text("<p>demo</p>")
    return site.build_site(tmp_path_factory.mktemp("site"), add).parent


class Page(HTMLParser):
    """What a page has: (tag, attribute, address) of its links, its anchors, its pictures."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.pictures = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        self.links += [(tag, a, attrs[a]) for a in ("href", "src") if attrs.get(a)]
        if tag == "img":
            self.pictures.append(attrs)


def dead_links(folder):
    """List (page, address) of the links within a site that lead nowhere."""
    read = {path: Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in read.items():
        for _, _, address in page.links:
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            anchor = unquote(parts.fragment) if target in read else ""
            if not target.exists() or anchor and anchor not in read[target].anchors:
                dead.append((path.name, address))
    return dead


def test_every_notebook_and_page_is_there(pages):
    names = {path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")} | {"glossary"}
    assert names == {path.stem for path in (pages / "notebooks").glob("*.html")}
    docs = {"results", "scaling", "teaching", "handout"}
    assert docs <= {path.stem for path in (pages / "docs").glob("*.html")}
    contents = (pages / "index.html").read_text(encoding="utf-8")
    for path in [*pages.glob("notebooks/*.html"), *pages.glob("docs/*.html")]:
        assert f'href="{path.relative_to(pages).as_posix()}"' in contents, path.name


def test_every_link_leads_somewhere(pages):
    assert dead_links(pages) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a><a href="b.html#y">b</a>')
    (tmp_path / "b.html").write_text('<p id="x"><img src="c.png"><a href="https://a.org">a</a>')
    assert sorted(dead_links(tmp_path)) == [("a.html", "b.html#y"), ("b.html", "c.png")]


def test_a_page_with_a_dead_link_stops_the_build(tmp_path):
    kit = tmp_path / "kit"
    shutil.copytree(site.ROOT / "docs" / "site", kit / "docs" / "site")
    (kit / "README.md").write_text("# Kit\n\nSee [results](docs/nowhere.md).\n")
    with pytest.raises(CytomadError, match=r"index.md:3: .*docs/nowhere.md") as caught:
        site.build_site(tmp_path / "site", root=kit)
    assert str(tmp_path) not in str(caught.value)


def test_pages_load_nothing_from_the_network(pages):
    for path in pages.rglob("*.html"):
        for tag, name, address in Page(path).links:
            if (tag, name) in LOADED:
                assert not re.match(r"(https?:)?//", address), (path.name, address)
    for path in pages.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\([\"']?(https?:)?//|@import", text), path.name


def test_notebooks_show_saved_outputs_formulas_and_folded_solutions(pages):
    text = (pages / "notebooks" / "01_cells_and_data.html").read_text(encoding="utf-8")
    assert '<table border="1" class="dataframe">' in text and "<math " in text
    folded = re.findall(r"<details[^>]*>\s*<summary[^>]*>(.*?)</summary>", text, re.S)
    assert sum("Solution" in words for words in folded) >= 1
    assert sum("For Google Colab" in words for words in folded) == 1
    explorers = (pages / "notebooks" / "08_explore.html").read_text(encoding="utf-8")
    assert explorers.count("<img ") >= 8 and "widget-view" not in explorers


def test_every_picture_has_a_text(pages):
    for path in pages.rglob("*.html"):
        for picture in Page(path).pictures:
            assert len(picture.get("alt", "")) >= 20, (path.name, picture["src"])
            assert picture["alt"] != picture["src"], path.name


def test_files_are_added_and_linked(pages):
    assert (pages / "try" / "index.html").read_text() == "<p>demo</p>"
    assert 'href="try/index.html"' in (pages / "index.html").read_text(encoding="utf-8")


def test_a_missing_package_and_a_missing_folder_are_told(tmp_path, monkeypatch):
    with pytest.raises(CytomadError, match="nowhere is no folder"):
        site.build_site(tmp_path / "site", tmp_path / "nowhere")
    with pytest.raises(CytomadError, match="no docs/site/conf.py.*complete copy"):
        site.build_site(tmp_path / "site", root=tmp_path)
    monkeypatch.setattr(site, "find_spec", lambda name: None if name == "furo" else name)
    with pytest.raises(CytomadError, match=r"missing: furo.*pip install -e '.\[site\]'"):
        site.build_site(tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.skipif(bool(what_is_missing()), reason=f"no browser test: {what_is_missing()}")
def test_a_browser_finds_pages_and_no_page_is_wider_than_the_screen(pages):
    with browser_page(1280, 900) as page:
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto((pages / "search.html").as_uri() + "?q=participation+ratio")
        page.wait_for_selector("ul.search a")
        found = page.eval_on_selector_all("ul.search a", "links => links.map(a => a.href)")
        assert any("notebooks/glossary.html" in address for address in found)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for path in pages.rglob("*.html"):
                page.goto(path.as_uri())
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path.name, width, wide)
    assert errors == []
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
