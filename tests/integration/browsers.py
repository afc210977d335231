"""A real browser without a window, for the tests of the router explorer."""

import contextlib
import os
import shutil

import pytest
from playwright import sync_api

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")


@contextlib.contextmanager
def chromium():
    """A headless Chromium.  Fails the test that asks for it if there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        pytest.fail(f"there is no browser: install one of {', '.join(PROGRAMS)} (Debian: apt-get install chromium), or "
                    "name its program in the environment variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=OPTIONS)
        yield browser
        browser.close()
