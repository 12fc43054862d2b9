"""Loads the board page in Chromium, and notes the requests that it sends and the errors that it logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Opened = Any
"""A page of Playwright. The type is Any because Playwright is optional."""
VIEWPORT = {"width": 1400, "height": 560}
"""Screen of a page whose test gives none."""
STORED = "() => localStorage.length + sessionStorage.length + document.cookie.length + window.name.length"
"""JavaScript for the size of what would outlive a page in its tab."""
READY = """() => document.documentElement.hasAttribute("data-ready")
    && (!document.getElementById("plotly") || "Plotly" in globalThis)"""
"""JavaScript for whether a page has drawn its table and loaded the library of its charts."""
PAINTED = """() => new Promise((painted, failed) => {
    requestAnimationFrame(() => requestAnimationFrame(painted));
    setTimeout(failed, 30000, "Chromium painted nothing in 30 s");
})"""
"""JavaScript that waits for the end of the first frame, because Chromium drops clicks and keys until a document is painted."""


class Tab:
    """A tab in which tests load pages one after the other.

    Each load is a new document, and nothing of the last one reaches it. Chromium keeps only the compiled code of the libraries:
    a load with its four charts takes 0.8 s of computation, and 2.5 s in a new browser context.
    """

    def __init__(self, chromium: Any, folder: Path, **context: Any) -> None:
        """Open a tab in a browser context of its own.

        Args:
            chromium: browser of Playwright.
            folder: where the loaded pages are written.
            context: settings of the browser context.
        """
        self._page = chromium.new_context(**context).new_page()
        self._path = folder / "board.html"
        self._problems: list[str] = []
        self._first_scripts: list[Any] = []
        self._page.on("request", self._note_request)
        self._page.on("console", lambda message: self._problems.append(f"console: {message.text}"))
        self._page.on("pageerror", lambda error: self._problems.append(f"error: {error}"))

    def _note_request(self, request: Any) -> None:
        own = (self._path.as_uri(), "about:blank")
        if not request.url.startswith(("data:", "blob:")) and request.url.split("#")[0] not in own:
            self._problems.append(f"request: {request.url}")

    def load(
        self,
        text: str,
        *,
        state: str = "",
        viewport: Mapping[str, int] = VIEWPORT,
        color_scheme: str = "light",
        first_script: str = "",
    ) -> Opened:
        """Load HTML from a file, whose address ends with the state.

        Args:
            text: the HTML.
            state: end of the address, from its # on.
            viewport: width and height of the page.
            color_scheme: the colours that the reader prefers, light or dark.
            first_script: JavaScript that runs before the page's own.
        """
        self._path.write_text(text, encoding="utf-8")
        self._page.set_viewport_size(viewport)
        self._page.emulate_media(color_scheme=color_scheme)
        if first_script:
            self._first_scripts.append(self._page.add_init_script(first_script))
        self._page.goto(f"{self._path.as_uri()}{state}")
        # Chromium compiles a library again, for 1.6 s, if the address differs from that of the last compilation. A page changes
        # the state in its address, so the library of the charts is loaded before a test acts.
        self._page.wait_for_function(READY)
        self._page.evaluate(PAINTED)
        return self._page

    def leave(self, *, watched: bool = True) -> None:
        """Leave the page. If it was watched, fail if it sent a request, logged an error, or stored something in the browser."""
        stored = self._page.evaluate(STORED)
        while self._first_scripts:
            self._first_scripts.pop().close()
        self._page.goto("about:blank")
        self._page.mouse.move(0, 0)
        problems = self._problems.copy()
        self._problems.clear()
        assert not watched or not problems, problems
        assert not stored, "The page stored something in the browser, which the next page in this tab would find."

    def close(self) -> None:
        """Close the tab and its browser context."""
        self._page.context.close()
