"""A real browser for the page's tests. No opened page may send a request or log an error."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from page_browser import VIEWPORT, Opened, Tab

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


Settings = frozenset[tuple[str, Any]]
"""Names and values of the settings of a tab."""


@pytest.fixture(scope="module")
def idle_tabs() -> defaultdict[Settings, list[Tab]]:
    """Tabs that no test uses now, by their settings. The tests of a file share them, because a load in a used tab is faster."""
    return defaultdict(list)


@pytest.fixture
def open_text(
    chromium: Any,
    idle_tabs: defaultdict[Settings, list[Tab]],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Opened]]:
    """Load HTML, with settings of ``Tab``. At the end, fail if a page sent a request or logged an error."""
    failed = request.session.testsfailed
    used: list[tuple[Settings, Tab]] = []

    def opened(
        text: str, *, state: str = "", viewport: Mapping[str, int] = VIEWPORT, color_scheme: str = "light", **settings: Any
    ) -> Opened:
        key = frozenset(settings.items())
        idle = idle_tabs[key]
        tab = idle.pop() if idle else Tab(chromium, tmp_path_factory.mktemp("tab"), **settings)
        used.append((key, tab))
        return tab.load(text, state=state, viewport=viewport, color_scheme=color_scheme)

    yield opened
    for key, tab in used:
        tab.leave()
        # A test that failed may have left a key or a button of the mouse pressed.
        if request.session.testsfailed == failed:
            idle_tabs[key].append(tab)


@pytest.fixture
def open_board(open_text: Callable[..., Opened]) -> Callable[..., Opened]:
    """Load the page of a board's data."""

    def opened(data: Mapping[str, Any], **how: Any) -> Opened:
        return open_text(page_text(data), **how)

    return opened


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
