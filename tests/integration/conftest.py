"""Comparisons run without the network; and a browser that opens pages of the explorer."""

import os
import shutil

import pytest

from minimoe.analysis import explorer
from tests.integration import explorer_pages

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the transformers library when it is imported
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium.  Fails the test that asks for it if there is none."""
    from playwright import sync_api  # here, since other tests need no browser
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        pytest.fail(f"there is no browser: install one of {', '.join(PROGRAMS)} (Debian: apt-get install chromium), or "
                    "name its program in the environment variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """A function that opens the page of a model; at the end it must have asked for no other file and logged nothing."""
    path, contexts, asked, said = tmp_path / "page.html", [], [], []

    def opened(state, texts=(explorer_pages.TEXT,), **options):
        explorer.save(explorer.page(state, list(texts)), path)
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(120_000)  # a busy machine is no error
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
