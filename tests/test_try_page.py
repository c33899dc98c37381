"""The page computes in a real browser what Python computes, and works by keyboard and on a phone.

What needs npm or a Chromium is skipped where there is none; see `chromium` and
`test_browser`.
"""

import gzip
import http.server
import io
import json
import os
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from chromium import REQUIRED, browser_page, what_is_missing
from sklearn.decomposition import PCA

from cytomad_lib import try_page
from cytomad_lib.course import trained
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.layouts import LUNG, WAVELENGTH_UM
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.evaluation.image_quality import dry_mass_pg, foreground_mask

ROOT = Path(__file__).parents[1]
MISSING = what_is_missing()
AGREEMENT = 1e-4  # rad, pg per pg
LARGEST = 15e6  # bytes
SOON = 5.0  # s until the first image
LONG = 120_000  # ms that a busy machine may take for a step


@pytest.fixture(scope="module")
def images():
    return try_page.simulate_days(64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tf2onnx", reason="the page needs `pip install '.[export]'`")
    folder = tmp_path_factory.mktemp("try")
    try:
        runtime = try_page.fetch_runtime()
    except CytomadError as error:
        if REQUIRED:
            raise
        pytest.skip(f"no page: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(try_page, "fetch_runtime", lambda: runtime)
        try_page.write_page(folder)
    return folder


@pytest.fixture
def address(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_cells_on_their_own_day_are_those_of_the_demonstration_data(images):
    cells = load_cells(ROOT / "Dataset" / "7LungCancerDataset", "Test", 1, with_truth=True)
    assert len(cells) == len(LUNG.groups) == 21
    for row, (group, labels) in enumerate(zip(LUNG.groups, cells.labels.itertuples(), strict=True)):
        assert (group.batch, group.class_name) == (labels.batch, labels.class_name)
        day = LUNG.batches.index(group.batch)
        assert np.array_equal(images["brightfield"][row, day], cells.brightfield[row, ..., 0])
        assert np.array_equal(images["measured"][row, day], cells.qpi[row, ..., 0])
        assert np.array_equal(images["truth"][row, 0], cells.truth[row, ..., 0])
        others = np.delete(images["measured"][row], day, axis=0)
        assert np.abs(others - images["measured"][row, day]).mean(axis=(1, 2)).min() > 0.01


def test_the_file_of_cells_holds_each_image_exactly(images):
    whole = try_page._as_steps(images)
    first = 0
    for kind, stack in images.items():
        planes = whole[:, first : first + stack.shape[1]]
        assert np.array_equal(planes * np.float32(try_page.STEPS[kind]), stack), kind
        first += stack.shape[1]
    assert first == whole.shape[1]


@pytest.mark.parametrize("stage", ["pretraining", "conditional"])
def test_sliders_move_the_bottleneck_along_its_principal_components(stage, images):
    brightfield = images["brightfield"][:, 0, ..., None]
    n, generator = len(brightfield), trained("lung").generator(stage)
    model, split = try_page.with_sliders(generator, brightfield), split_generator(generator)
    code = split.encode(brightfield)
    fitted = PCA(4).fit(code.bottleneck)
    axes = try_page.principal_components(code.bottleneck)
    lengths = np.linalg.norm(axes, axis=1)
    assert np.allclose(lengths * np.sqrt(n), fitted.singular_values_, rtol=1e-4)
    assert np.allclose(np.abs(np.sum(axes * fitted.components_, axis=1)), lengths, rtol=1e-4)

    shift = np.float32([0, -2, 0, 0.5])
    moved = replace(code, bottleneck=code.bottleneck + shift @ axes.astype("float32"))
    assert np.abs(split.decode(moved) - split.decode(code)).max() > 0.05
    cases = (0 * shift, 1, code), (shift, 1, moved), (shift, 0, moved.without_skips())
    for by, kept, expected in cases:
        inputs = brightfield, np.tile(by, (n, 1)), np.full((n, 1, 1, 1), kept, "float32")
        assert np.allclose(model(list(inputs)), split.decode(expected), atol=1e-5)


def test_another_dataset_is_refused(tmp_path):
    with pytest.raises(CytomadError, match="dataset 'drug'. Expected a run of 'lung'"):
        try_page.write_page(tmp_path / "try", trained("drug"))
    assert not (tmp_path / "try").exists()


def npm_that(does, folder, monkeypatch):
    (folder / "npm").write_text(f"#!/bin/sh\n{does}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(os.name == "nt", reason="stands in for npm by a shell script")
def test_what_npm_cannot_fetch_is_told(tmp_path, monkeypatch):
    npm_that("echo 'no connection' >&2; exit 1", tmp_path, monkeypatch)
    with pytest.raises(CytomadError, match="npm could not fetch onnxruntime-web.*no connection"):
        try_page.fetch_runtime()

    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        for name in try_page.RUNTIME_FILES:
            archive.addfile(tarfile.TarInfo(f"package/dist/{name}"), io.BytesIO(b""))
    npm_that(f"cp '{tmp_path}/other.tgz' .", tmp_path, monkeypatch)
    with pytest.raises(CytomadError, match=r"other\.tgz from npm has the SHA-256 .* Expected"):
        try_page.fetch_runtime()

    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(CytomadError, match="no npm on this machine"):
        try_page.fetch_runtime()


def test_page_and_networks_are_small(folder):
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (wasm,) = folder.glob("*.wasm.gz")
    unpacked = len(gzip.decompress(wasm.read_bytes()))
    assert sum(sizes.values()) <= LARGEST / 2, sizes
    # Also where a server keeps the runtime unpacked.
    assert sum(sizes.values()) - sizes[wasm.name] + unpacked <= LARGEST, sizes


@pytest.fixture
def page(folder, address):
    if MISSING and not REQUIRED:
        pytest.skip(f"no browser test: {MISSING}")
    with browser_page(1280, 900) as page:
        page.folder, page.elsewhere, page.errors = folder, [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))

        def here_alone(route):
            if route.request.url.startswith((address, "data:")):
                return route.continue_()
            page.elsewhere.append(route.request.url)
            return route.abort()

        page.context.route("**/*", here_alone)
        yield page
        assert page.errors == [] and page.elsewhere == []


def load(page, address):
    """Load the page; return the seconds until its first image, and those that were computed."""
    begun, computed = time.monotonic(), browser_seconds()
    page.goto(address)
    page.locator("#result", has_text="dry mass").wait_for(timeout=LONG)
    return time.monotonic() - begun, browser_seconds() - computed


def browser_seconds():
    """Return the seconds that all processes of the browser have computed so far."""
    running = psutil.Process().children(recursive=True)
    times = [process.cpu_times() for process in running if "chrom" in process.name().lower()]
    return sum(spent.user + spent.system for spent in times)


def load_all(page, address):
    """Load the page with all its networks, then cut the connection."""
    load(page, address)
    page.locator("#stage option:last-child:not([disabled])").wait_for(
        state="attached", timeout=LONG
    )
    page.context.set_offline(True)


def shown(page, **wanted):
    """Return what the page shows, as soon as it is of the wanted cell, day, stage and so on."""
    for _ in range(600):
        found = page.evaluate("globalThis.shown")
        if all(found[name] == value for name, value in wanted.items()):
            return found
        page.wait_for_timeout(200)
    pytest.fail(f"The page does not show {wanted}; its result: {found}")


def assert_shows(found, phase, truth, day):
    """Compare what the page shows with the phase images that Python predicts for all days."""
    assert np.abs(np.reshape(found["image"], phase.shape[1:]) - phase[day]).max() <= AGREEMENT
    inside = foreground_mask(truth)
    mass = partial(dry_mass_pg, pixel_size_um=45 / 64, wavelength_um=WAVELENGTH_UM)
    expected = mass(phase, np.repeat(inside, len(phase), axis=0))
    assert np.allclose(found["masses"]["predicted"], expected, rtol=AGREEMENT, atol=0)
    assert np.allclose(found["masses"]["truth"], mass(truth, inside), rtol=AGREEMENT, atol=0)
    assert abs(found["error"] - np.abs(phase[day] - truth[0]).mean()) <= AGREEMENT


def test_the_first_image_is_soon_there(page, address):
    # On a machine that is busy with other work, what the browser itself computed is what counts.
    passed, computed = load(page, address)
    assert 0.1 < min(passed, computed) < SOON


@pytest.mark.parametrize("stage", ["pretraining", "published", "conditional"])
def test_the_browser_predicts_as_python(stage, page, address, images):
    load_all(page, address)
    splits = split_generator(trained("lung").generator(stage))
    stages = list(try_page.STAGES)
    page.locator("#stage").select_option(index=stages.index(stage))
    for cell, day in ((0, 0), (9, 4), (20, 6)):
        page.locator("#cell").select_option(index=cell)
        page.locator("input[name=day]").nth(day).check()
        found = shown(page, cell=cell, day=day, stage=stage)
        words = f"{LUNG.groups[cell].class_name} on {LUNG.batches[day]}, {try_page.STAGES[stage]}"
        mass = f"dry mass {found['masses']['predicted'][day]:.0f} pg"
        assert page.locator("#result").inner_text().startswith(f"{words}: {mass}")
        brightfield, truth = images["brightfield"][cell][..., None], images["truth"][cell]
        assert_shows(found, splits.decode(splits.encode(brightfield))[..., 0], truth, day)


def focus_by_tab(page, selector):
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}")


def test_all_controls_work_by_keyboard(page, address, images):
    load_all(page, address)
    focus_by_tab(page, "#cell")
    page.keyboard.press("ArrowDown")
    focus_by_tab(page, "#stage")
    page.keyboard.press("End")
    focus_by_tab(page, "input[name=day]")
    page.keyboard.press("ArrowDown")
    before = shown(page, cell=1, day=1, stage="conditional")
    focus_by_tab(page, "#sliders label:nth-child(2) input")
    page.keyboard.press("Home")
    focus_by_tab(page, "#skips")
    page.keyboard.press("Space")

    split = split_generator(trained("lung").generator("conditional"))
    days = images["brightfield"].reshape(-1, 64, 64, 1)
    code = split.encode(images["brightfield"][1][..., None])
    axes = try_page.principal_components(split.encode(days).bottleneck)
    moved = replace(code, bottleneck=code.bottleneck - np.float32(3) * axes[1].astype("float32"))
    found = shown(page, shift=[0, -3, 0, 0], kept=0)
    assert_shows(found, split.decode(moved.without_skips())[..., 0], images["truth"][1], 1)
    assert np.abs(np.subtract(found["image"], before["image"])).max() > 0.1

    focus_by_tab(page, "#reset")
    page.keyboard.press("Enter")
    assert shown(page, shift=[0, 0, 0, 0], kept=1)["image"] == before["image"]


def test_it_fits_a_phone_and_says_what_each_image_is(page, address):
    page.set_viewport_size({"width": 390, "height": 844})
    load(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.querySelector('#images')).position") == "sticky"
    for name in ("Brightfield", "Predicted phase", "Measured phase", "True phase"):
        label = page.locator(f"canvas[role=img][aria-label^='{name}']").get_attribute("aria-label")
        assert label.endswith("relative brightness" if name == "Brightfield" else "rad")
    # Both scales and the 10 µm are drawn as stated.
    told = json.loads((Path(page.folder) / "page.json").read_text())
    assert page.locator("#phase-high").inner_text() == f"{told['limits']['phase'][1]:.1f}"
    bar, image = (page.locator(name).bounding_box()["width"] for name in ("#bar", "#truth"))
    assert bar / image == pytest.approx(10 / 45, abs=0.01)
