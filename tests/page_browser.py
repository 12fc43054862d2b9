"""Opens the board page in Chromium, and brings a page that several tests share back to what it was after its load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

Opened = Any
"""A page of Playwright. The type is Any because Playwright is optional."""

VIEWPORT = {"width": 1400, "height": 560}
"""Screen of a page whose test gives none."""

RESET = """() => {
    document.activeElement.blur();
    history.replaceState(null, "", location.pathname);
    dispatchEvent(new HashChangeEvent("hashchange"));
    for (const node of document.querySelectorAll("*")) if (node.scrollLeft || node.scrollTop) node.scrollTo(0, 0);
}"""
"""JavaScript that removes the focus, lets the page read an address without a state, and scrolls back."""

SHOWN = """() => {
    const copy = document.body.cloneNode(true);
    copy.querySelectorAll("script, #hint, #js-plotly-tester, .plot, [id^=chart-] .note").forEach((node) => node.remove());
    for (const node of copy.querySelectorAll("[class]")) node.setAttribute("class", [...node.classList].sort().join(" "));
    for (const name of ["class", "style"]) copy.querySelectorAll(`[${name}='']`).forEach((node) => node.removeAttribute(name));
    copy.querySelectorAll("[data-drawn]").forEach((node) => node.removeAttribute("data-drawn"));
    copy.querySelectorAll(".sheet").forEach((node) => node.removeAttribute("style"));  // its place, computed when it opens
    return {
        markup: copy.innerHTML.split(/(?=<)/),
        controls: [...document.querySelectorAll("input, select")].map((node) => [node.value, node.checked, node.disabled]),
        state: harmonyBoard.page.state,
        theme: document.documentElement.style.colorScheme,
        address: location.href,
        hint: document.getElementById("hint").checkVisibility(),
        focus: document.activeElement.tagName,
        scrolled: [...document.querySelectorAll("*")].filter((node) => node.scrollLeft || node.scrollTop).map((node) => node.id),
    };
}"""
"""JavaScript for what a test could leave behind in a page. The drawings of the charts are left out, because the page makes them
from this state some time later, and marks a chart as drawn only when it shows the latest state."""


def open_page(
    chromium: Any,
    text: str,
    folder: Path,
    problems: list[str],
    *,
    state: str = "",
    watched: bool = True,
    first_script: str = "",
    **context: Any,
) -> Opened:
    """Open HTML from a file in the folder. Requests and errors of a watched page are appended to the problems."""
    path = folder / "board.html"
    path.write_text(text, encoding="utf-8")
    page = chromium.new_context(**{"viewport": VIEWPORT, **context}).new_page()
    page.add_init_script(first_script)
    if watched:
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: problems.append(f"request: {request.url}") if _asks(request.url, path) else None)
    page.goto(f"{path.as_uri()}{state}")
    page.wait_for_selector("html[data-ready]")
    # Chromium drops clicks and keys until a document is painted, which is at the end of the first frame.
    _wait_for_frames(page)
    return page


class SharedPage:
    """A page that several tests use one after the other. It is compared after each with what it was after its load."""

    def __init__(self, page: Opened, problems: list[str], scheme: str = "light") -> None:
        """Keep what a page shows after its load.

        Args:
            page: page that was just loaded.
            problems: list to which the requests and errors of the page are appended.
            scheme: colour scheme in which it was loaded, "light" or "dark".
        """
        self._first_screen = (page.viewport_size, scheme)
        self.page = page
        self.problems = problems
        self._first = _lines(page.evaluate(SHOWN))

    def set_screen(self, viewport: Mapping[str, int], scheme: str) -> None:
        """Resize the page and switch between light and dark. The page's own handlers have run when this returns."""
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=scheme)
        _wait_for_frames(self.page)

    def reset(self) -> None:
        """Bring the page back. Fails if it differs from what it was, or sent a request or logged an error since."""
        self.page.mouse.move(0, 0)
        self.page.keyboard.press("Escape")
        self.set_screen(*self._first_screen)
        if self._changes():
            self.page.evaluate(RESET)
        changes = self._changes()
        assert not changes, changes
        assert not self.problems, self.problems

    def _changes(self) -> str:
        now = _lines(self.page.evaluate(SHOWN))
        return "\n".join(unified_diff(self._first, now, "after the load", "after the test", n=0))


def _wait_for_frames(page: Opened) -> None:
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")


def _lines(shown: Any) -> list[str]:
    return json.dumps(shown, indent=0, ensure_ascii=False).split("\n")


def _asks(url: str, path: Path) -> bool:
    return not url.startswith(("data:", "blob:")) and url.split("#")[0] != path.as_uri()
