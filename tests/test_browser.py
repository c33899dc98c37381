"""Notebook 08 in JupyterLab, as a learner has it: a browser, a keyboard, and sliders that work.

Needs Playwright and a Chromium (set CHROMIUM to its path); else it is skipped, or fails if
CYTOMAD_BROWSER_TEST=1. With CYTOMAD_SCREENSHOTS=<folder>, pictures of the explorers are kept.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import REQUIRED, browser_page, what_is_missing

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "08_explore.ipynb"
TOKEN = "browser-test"
MINUTE = 60_000  # milliseconds
MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(
    bool(MISSING) and not REQUIRED, reason=f"no browser test: {MISSING}"
)


def test_what_the_browser_needs_is_there():
    assert MISSING is None, f"CYTOMAD_BROWSER_TEST is 1, but {MISSING}."


@contextmanager
def jupyterlab(folder):
    """Start JupyterLab in a folder; give its address; shut it and its kernels down in any case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "home"  # settings, kernels and history of this machine stay untouched
    home.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ip=127.0.0.1", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = open(folder / "server.log", "w")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(server, address, folder / "server.log")
        yield address
    finally:
        # Interrupted once it asks, terminated it shuts its kernels down and goes.
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)
        log.close()


def wait_for_server(server, address, log, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab stopped:\n{log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer in {seconds} s:\n{log.read_text()[-2000:]}")


def run_all_cells(page):
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=2 * MINUTE)
    # Where JupyterLab asks which kernel, the proposed one is right.
    page.add_locator_handler(
        page.locator(".jp-Dialog"),
        lambda: page.locator(".jp-Dialog-button.jp-mod-accept").first.click(),
    )
    # The status bar knows when the kernel is connected; only then it can be asked for anything.
    page.locator(".jp-StatusBar-Widget", has_text="| Idle").wait_for(timeout=2 * MINUTE)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.locator(".jp-InputPrompt", has_text="*").first.wait_for(timeout=2 * MINUTE)
    # Idle, and no cell waits ("[*]"); between two cells the kernel is idle for a moment, too.
    page.wait_for_function(
        """() => {
            const waiting = [...document.querySelectorAll('.jp-InputPrompt')]
                .some(prompt => prompt.textContent.includes('*'));
            const idle = document.querySelector('.jp-StatusBar-Widget')
                && document.body.innerText.includes('| Idle');
            window.idleSince = idle && !waiting ? (window.idleSince || Date.now()) : null;
            return window.idleSince && Date.now() - window.idleSince > 5000;
        }""",
        timeout=9 * MINUTE,
        polling=500,
    )


class ExplorerOnPage:
    """An explorer as one sees it: a picture, words, sliders with names."""

    def __init__(self, page, source):
        self.page = page
        cell = page.locator(".jp-CodeCell").filter(
            has=page.locator(".jp-InputArea-editor", has_text=source)
        )
        self.box = cell.last.locator(".jp-OutputArea-output .widget-vbox").first
        self.box.scroll_into_view_if_needed(timeout=MINUTE)
        self.box.locator("img").wait_for(timeout=MINUTE)
        # The parts of a widget appear one by one, each when it is ready.
        self.words = self.box.locator(".widget-html-content").last
        self.wait_until(lambda: self.shown[1].strip(), "showed no words")

    @property
    def shown(self):
        """The picture's address, which is new for every picture, and the words under it."""
        # text_content and not inner_text, which is empty where something is scrolled away.
        words = self.words.text_content() if self.words.count() else ""
        return self.box.locator("img").get_attribute("src"), words

    def wait_until(self, reached, complaint, seconds=120):
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                pytest.fail(f"The explorer {complaint} in {seconds} s; its words: {self.shown[1]}")
            self.page.wait_for_timeout(200)

    def press(self, slider, key, wanted, times=1):
        """Focus the slider of that name, press a key, wait for a new picture and wanted words.

        In these, "{}" is what stands beside the slider. Returns that, and the words before.
        """
        picture, words = self.shown
        line = self.box.locator(".widget-slider").filter(
            has=self.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(slider)}$"))
        )
        beside = line.locator(".widget-readout")
        handle = line.locator(".noUi-handle, .ui-slider-handle").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

        def reached():
            # Several keys may make several pictures: the words of the last one are wanted.
            now = self.shown
            return now[0] != picture and wanted.format(beside.text_content()) in now[1]

        self.wait_until(reached, f"did not show {wanted!r} after {times} x {key} on {slider!r}")
        return beside.text_content(), words

    def names_of(self, role):
        """Return the accessible names of the controls of a role, as a screen reader has them."""
        tree = self.box.aria_snapshot()
        return set(re.findall(rf'- {role} "([^"]+)"', tree))

    def keep_picture(self, name):
        folder = os.environ.get("CYTOMAD_SCREENSHOTS")
        if folder:
            self.box.screenshot(path=Path(folder) / f"{name}.png")


def errors_on(page):
    """List what went wrong: the mime type and the beginning of the output, and of which cell."""
    kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    selector = ", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in kinds)
    # textContent and not innerText, which is empty where a cell is hidden or scrolled away.
    return page.locator(selector).evaluate_all(
        """found => found.map(output => {
            const cell = output.closest('.jp-Cell');
            const prompt = cell ? cell.querySelector('.jp-InputPrompt').textContent : '?';
            return [prompt, output.dataset.mimeType, output.textContent.slice(0, 3000)];
        })"""
    )


@pytest.mark.notebook
def test_notebook_08_runs_and_its_sliders_work(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)  # JupyterLab saves what it opens
    with jupyterlab(tmp_path) as address, browser_page(1500, 1100) as page:
        page.goto(f"{address}/lab/tree/{NOTEBOOK.name}?token={TOKEN}", timeout=2 * MINUTE)
        run_all_cells(page)
        assert errors_on(page) == []

        browse = ExplorerOnPage(page, "explorers.browse_cells(")
        number, before = browse.press("cell", "ArrowRight", "cell {} of its file", times=4)
        assert number == "4" and "cell 0 of its file" in before
        # A screen reader finds each control by its name, and announces the words.
        assert browse.names_of("slider") == {"cell"}
        assert browse.names_of("combobox") == {"batch", "class"}
        spoken = browse.box.locator("[role=status][aria-live=polite]")
        assert "cell 4 of its file" in spoken.text_content()
        assert browse.words.get_attribute("aria-live") == "polite"
        assert browse.names_of("img") == {"The figure that the words below describe"}
        browse.keep_picture("browse")

        traversal = ExplorerOnPage(page, "explorers.traverse_bottleneck(")
        _, before = traversal.press("value", "ArrowLeft", "set to {}.", times=20)
        assert "set to" in before
        traversal.keep_picture("traversal")

        settings = ExplorerOnPage(page, "explorers.explore_settings(")
        beyond = "Beyond what any simulated day had: defocus"
        _, before = settings.press("defocus (µm)", "End", beyond)
        assert "within the range" in before and beyond not in before
        settings.keep_picture("settings")

        explorer = ExplorerOnPage(page, "explorer = explorers.explore_map(")
        explorer.press("cell", "ArrowLeft", "here cell {} of", times=3)
        explorer.keep_picture("map")
        assert errors_on(page) == []
