"""A page that tests share is brought back to what it was after its load, and what a test leaves behind fails that test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from page_boards import small_board
from page_browser import SharedPage, open_page

from lm_harmony.report.page import page_text
from lm_harmony.report.page_data import page_data


@pytest.fixture(scope="module")
def shared(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedPage]:
    problems: list[str] = []
    page = open_page(chromium, page_text(page_data(small_board())), tmp_path_factory.mktemp("page"), problems)
    yield SharedPage(page, problems)
    page.context.close()


def test_all_that_a_reader_can_change_is_brought_back(shared: SharedPage) -> None:
    page = shared.page
    shared.set_screen({"width": 390, "height": 844}, "dark")
    page.get_by_label("Search models").fill("qwen")
    page.get_by_role("radio", name="Direct").check(force=True)
    page.get_by_role("button", name="Switch to").click()
    page.get_by_label("Pin Qwen/Qwen2.5-14B").click()
    page.locator('th[data-task="mnli"]').click()
    page.wait_for_selector('th[data-task="mnli"][aria-sort]')
    page.locator("summary", has_text="Benchmarks").click()
    page.locator("details[open]").get_by_role("checkbox", name="CoLA", exact=True).uncheck()
    page.locator("#board-region").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.locator("#board-region").evaluate("(region) => { region.scrollLeft = 100; scrollTo(0, 500); }")
    shared.reset()


@pytest.mark.parametrize(
    ("harm", "repair"),
    [
        ("document.querySelector('h1').append('!')", "document.querySelector('h1').lastChild.remove()"),
        ("document.getElementById('reset').disabled = true", "document.getElementById('reset').disabled = false"),
    ],
)
def test_negative_control_what_is_left_behind_fails(shared: SharedPage, harm: str, repair: str) -> None:
    shared.page.evaluate(harm)
    with pytest.raises(AssertionError, match="after the test"):
        shared.reset()
    shared.page.evaluate(repair)
    shared.reset()


def test_negative_control_errors_fail(shared: SharedPage) -> None:
    shared.page.evaluate("console.log('noticed'); setTimeout(() => { throw new Error('thrown'); })")
    with pytest.raises(AssertionError, match=r"console: noticed.*error: thrown"):
        shared.reset()
    shared.problems.clear()
