"""A real Chromium, and what is behind the page in most tests."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from interlatent_live.bench.page import ARGUMENTS, NAMES
from tests.console.page.kit import Demo, Watched

SCREENSHOTS = "INTERLATENT_CI_SCREENSHOTS"
"""Folder in which pictures of the page are kept; a temporary one without it."""


@pytest.fixture(scope="session")
def chromium():
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Where screenshots are kept."""
    kept = os.environ.get(SCREENSHOTS)
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(chromium, pictures):
    """Opens pages, and closes them after the test."""
    pages: list[Watched] = []

    def opens(url, **options):
        pages.append(Watched(chromium, url, folder=pictures, **options))
        return pages[-1]

    yield opens
    for one in pages:
        one.context.close()


@pytest.fixture(scope="module")
def demo():
    with Demo() as one:
        yield one
