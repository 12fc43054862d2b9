"""A real browser for the page's tests. No opened page may send a request or log an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from page_browser import VIEWPORT, Opened, SharedPage, open_page

from lm_harmony.report.page import page_text

CHROMIUM = shutil.which("chromium")
REQUIRED = "LM_HARMONY_NEEDS_BROWSER"
"""Environment variable that makes a missing browser a failure instead of a skip, for continuous integration."""


def _without(what: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{what} is missing, and {REQUIRED} is set")
    pytest.skip(f"{what} is missing (apt-get install chromium; pip install playwright)")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Start Chromium once per test file. It is closed afterwards, because its event loop would disturb other tests."""
    if CHROMIUM is None:
        _without("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright")
    with sync_playwright() as playwright:
        # The sandbox needs a user other than root. A container may have none.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_text(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Open HTML from a file. At the end, fail if a page sent a request or logged an error."""
    pages: list[Opened] = []
    problems: list[str] = []

    def opened(text: str, **how: Any) -> Opened:
        pages.append(open_page(chromium, text, tmp_path, problems, **how))
        return pages[-1]

    yield opened
    for page in pages:
        page.context.close()
    assert not problems


@pytest.fixture
def open_board(open_text: Callable[..., Opened]) -> Callable[..., Opened]:
    """Open the page of a board's data."""

    def opened(data: Mapping[str, Any], **how: Any) -> Opened:
        return open_text(page_text(data), **how)

    return opened


@pytest.fixture(scope="module")
def idle_pages() -> dict[str, SharedPage]:
    """Pages that the tests of a file share and that none uses now, by data and settings. Each is as it was after its load."""
    return {}


@pytest.fixture
def shared_board(
    chromium: Any, idle_pages: dict[str, SharedPage], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Opened]]:
    """Take the page of a board's data that an earlier test of the file opened, or open it. At the end, reset and compare it.

    A load with four charts takes two seconds of computation. Tests of the load, of downloads and of printing, and tests that
    change more than the state, the screen, the focus and the scrolling, use ``open_board`` and so have a page of their own.
    """
    taken: list[tuple[str, SharedPage]] = []

    def take(data: Mapping[str, Any], *, viewport: Mapping[str, int] = VIEWPORT, scheme: str = "light", **context: Any) -> Opened:
        key = json.dumps([data, context])
        shared = idle_pages.pop(key, None)
        if shared is None:
            problems: list[str] = []
            settings = {"viewport": viewport, "color_scheme": scheme, **context}
            page = open_page(chromium, page_text(data), tmp_path_factory.mktemp("page"), problems, **settings)
            shared = SharedPage(page, problems, scheme)
        taken.append((key, shared))
        # An earlier test may have opened it on another screen.
        shared.set_screen(viewport, scheme)
        return shared.page

    yield take
    for key, shared in taken:
        shared.reset()
        # A page that could not be brought back is not used again, so that no other test fails because of it.
        idle_pages[key] = shared


@pytest.fixture
def column() -> Callable[[Opened, str], list[str]]:
    """Read a column of the table, top to bottom: "rank", "model", "pc1", or a benchmark's title."""

    def read(page: Opened, name: str) -> list[str]:
        return page.evaluate(
            """(name) => {
                const heads = [...document.querySelectorAll("#board thead .sortable")];
                const at = heads.findIndex((head) => head.classList.contains(name) || head.dataset.task === name);
                return [...document.querySelectorAll("#board tbody tr")].map((row) => {
                    const cell = row.cells[at].cloneNode(true);
                    cell.querySelectorAll("small, button").forEach((more) => more.remove());
                    return cell.textContent.trim();
                });
            }""",
            name,
        )

    return read
