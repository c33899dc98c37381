"""A real browser for tests: Playwright (of Python) and a Chromium that is there (CHROMIUM)."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

REQUIRED = os.environ.get("CYTOMAD_BROWSER_TEST") == "1"  # then its absence is a failure
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
]


def find_chromium():
    places = [os.environ.get("CHROMIUM"), "/usr/bin/chromium"]
    places += [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((place for place in places if place and Path(place).exists()), None)


def what_is_missing():
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "the Python package playwright is not installed"
    if find_chromium() is None:
        return "there is no Chromium; install one, or set CHROMIUM to its path"
    return None


@contextmanager
def browser_page(width, height):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()
