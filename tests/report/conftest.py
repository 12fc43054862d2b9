"""A real browser for the page's tests. No opened page may send a request or log an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lm_harmony.report.page import page_text

CHROMIUM = shutil.which("chromium")
REQUIRED = "LM_HARMONY_NEEDS_BROWSER"
"""Environment variable that makes a missing browser a failure instead of a skip, for continuous integration."""

Opened = Any
"""A page of Playwright. The type is Any because Playwright is optional."""


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
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(text: str, *, state: str = "", watched: bool = True, first_script: str = "", **context: Any) -> Opened:
        path = tmp_path / "board.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(chromium.new_context(**{"viewport": {"width": 1400, "height": 560}, **context}))
        page = contexts[-1].new_page()
        page.add_init_script(first_script)
        if watched:
            page.on("console", lambda message: problems.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: problems.append(f"error: {error}"))
            page.on("request", lambda request: problems.append(f"request: {request.url}") if _asks(request.url, path) else None)
        page.goto(f"{path.as_uri()}{state}")
        page.wait_for_selector("html[data-ready]")
        # Chromium drops clicks and keys until a document is painted, which is at the end of the first frame.
        page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def _asks(url: str, path: Path) -> bool:
    return not url.startswith(("data:", "blob:")) and url.split("#")[0] != path.as_uri()


@pytest.fixture
def open_board(open_text: Callable[..., Opened]) -> Callable[..., Opened]:
    """Open the page of a board's data."""

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
