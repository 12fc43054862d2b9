"""A real browser for the page's tests. No opened page may send a request or log an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from page_browser import Opened, Tab

from lm_harmony.report.page import page_text

CHROMIUM = shutil.which("chromium")
REQUIRED = "LM_HARMONY_NEEDS_BROWSER"
"""Environment variable that makes a missing browser a failure instead of a skip, for continuous integration."""


def _without(what: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{what} is missing, and {REQUIRED} is set")
    pytest.skip(f"{what} is missing (apt-get install chromium; pip install playwright)")


_STARTED = ExitStack()
"""Closes the Chromium that runs, if there is one."""
_RUNNING: list[Any] = []
"""The browser that runs, or nothing."""
_IDLE_TABS: dict[bool, Tab] = {}
"""Its tabs without and with touch that no test uses now. A load in a tab that a test has used is faster."""


@pytest.fixture
def chromium() -> Any:
    """Return the browser that the test before this one used, or start it."""
    if CHROMIUM is None:
        _without("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright")
    if not _RUNNING:
        playwright = _STARTED.enter_context(sync_playwright())
        _STARTED.callback(_RUNNING.clear)
        _STARTED.callback(_IDLE_TABS.clear)
        # The sandbox needs a user other than root. A container may have none.
        _RUNNING.append(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]))
        _STARTED.callback(_RUNNING[0].close)
    return _RUNNING[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Function | None) -> None:
    """Close the browser after the last of several tests with it, because its event loop would disturb other tests."""
    if nextitem is None or "chromium" not in nextitem.fixturenames:
        _STARTED.close()


@pytest.fixture
def open_text(
    chromium: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Opened]]:
    """Load HTML, as ``Tab.load`` does. Fail if a page sent a request or logged an error, unless it is not watched.

    A test has one page at a time: it leaves the page that it loaded before.
    """
    failed = request.session.testsfailed
    used: list[tuple[Tab, bool, bool]] = []

    def leave() -> None:
        tab, has_touch, watched = used.pop()
        tab.leave(watched=watched)
        # A test that failed may have left a key or a button of the mouse pressed.
        if request.session.testsfailed == failed:
            _IDLE_TABS[has_touch] = tab

    def opened(text: str, *, has_touch: bool = False, watched: bool = True, **how: Any) -> Opened:
        if used:
            leave()
        tab = _IDLE_TABS.pop(has_touch, None) or Tab(chromium, tmp_path_factory.mktemp("tab"), has_touch=has_touch)
        used.append((tab, has_touch, watched))
        return tab.load(text, **how)

    yield opened
    if used:
        leave()


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
