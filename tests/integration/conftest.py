"""Comparisons run without the network; and a browser that opens pages of the explorer."""

import os

import pytest

from tests.integration import explorer_pages

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the transformers library when it is imported


@pytest.fixture(scope="module")
def browser():
    from tests.integration import browsers  # here, since other tests need no browser
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, tmp_path):
    with explorer_pages.visits(browser, tmp_path) as opened:
        yield opened
