"""Pages that are loaded one after the other in the same tab do not reach each other, and a page's errors fail its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_boards import small_board
from page_browser import Tab

from lm_harmony.report.page import page_text
from lm_harmony.report.page_data import page_data

TEXT = page_text(page_data(small_board()))
SHOWN = """() => {
    const pointed = (node) => node.scrollLeft || node.scrollTop || node.matches(":hover, :focus");
    const copy = document.body.cloneNode(true);
    copy.querySelectorAll("script, .plot").forEach((node) => node.remove());  // Plotly gives its elements random names
    return [
        copy.innerHTML,
        [...document.querySelectorAll("input, select")].map(({ value, checked, disabled }) => [value, checked, disabled]),
        [...document.querySelectorAll("*")].filter(pointed).map(({ tagName }) => tagName),
        harmonyBoard.page.state, Object.keys(globalThis), location.href, innerWidth,
        matchMedia("(prefers-color-scheme: dark)").matches,
    ];
}"""
"""JavaScript for all that a test can change in a page."""


@pytest.fixture
def tab(chromium: Any, tmp_path: Path) -> Iterator[Tab]:
    opened = Tab(chromium, tmp_path)
    yield opened
    opened.close()


def drawn(page: Any) -> Any:
    page.wait_for_selector("body:not(:has(article[id^=chart-]:not([hidden]):not([data-drawn])))")
    return page


def test_a_page_has_nothing_of_the_last_page_in_its_tab(open_text: Callable[..., Any]) -> None:
    open_text("<html data-ready>")
    first = drawn(open_text(TEXT)).evaluate(SHOWN)
    page = open_text(TEXT, state="#view=gain", viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.evaluate("globalThis.left = 1")
    page.get_by_label("Search models").fill("qwen")
    page.get_by_label("Pin Qwen/Qwen2.5-14B").click()
    page.locator("summary", has_text="Benchmarks").click()
    page.locator("#board-region").evaluate("(region) => { region.scrollLeft = 100; scrollTo(0, 500); region.focus(); }")
    page.locator("details[open] summary").hover()
    changed = drawn(page).evaluate(SHOWN)
    assert all(one != other for one, other in zip(first, changed, strict=True))
    again = open_text(TEXT)
    assert again is page and drawn(again).evaluate(SHOWN) == first


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        ("console.log('noticed')", "console: noticed"),
        ("setTimeout(() => { throw new Error('thrown'); })", "error: thrown"),
        ("localStorage.setItem('left', '1')", "stored something"),
        ("new Image().src = 'file:///nothing'", "request: file:///nothing"),
    ],
)
def test_negative_control_what_a_page_must_not_do_fails(tab: Tab, harm: str, problem: str) -> None:
    tab.load("<html data-ready>").evaluate(harm)
    with pytest.raises(AssertionError, match=problem):
        tab.leave()
