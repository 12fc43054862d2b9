"""The page for everyone: axe's rules, screen readers, contrast, touch, paper, and the first screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from page_boards import TASKS, small_board

from lm_harmony.report.page_data import page_data

Open = Callable[..., Any]
DATA = page_data(small_board())
SCREENS = {
    "desktop": {"width": 1440, "height": 900},
    "tablet": {"width": 1024, "height": 768},
    "phone": {"width": 390, "height": 844},
}

CONTRASTS = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const luminance = (colours) => {
        pen.clearRect(0, 0, 1, 1);
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        const linear = [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    return [...document.querySelectorAll("#board .range")].filter((range) => range.checkVisibility()).map((range) => {
        const below = [];
        for (let node = range; node; node = node.parentElement) below.unshift(getComputedStyle(node).backgroundColor);
        const [text, ground] = [luminance([...below, getComputedStyle(range).color]), luminance(below)];
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    });
}"""
"""JavaScript for the contrast of every interval with what is behind it, as WCAG 2 defines it."""


@pytest.fixture
def violations() -> Callable[..., list[str]]:
    """Return the rules of axe-core that a page breaks, each with the elements that break it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page: Any) -> list[str]:
        response = axe.run(page).response
        return [f"{broken['id']}: {node['html'][:200]}" for broken in response["violations"] for node in broken["nodes"]]

    return found


def drawn(page: Any) -> None:
    """Wait until every chart is drawn, without scrolling to one."""
    page.wait_for_selector("body:not(:has(article[id^=chart-]:not([hidden]):not([data-drawn])))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_axe_finds_nothing(open_board: Open, violations: Callable[..., list[str]], screen: str, scheme: str) -> None:
    page = open_board(DATA, viewport=SCREENS[screen], color_scheme=scheme, has_touch=screen == "phone")
    drawn(page)
    assert violations(page) == []
    page.evaluate("harmonyBoard.page.set({pins: ['local/mine', 'google/gemma-2-9b'], view: 'gain'})")
    page.locator("summary", has_text="Benchmarks").click()
    drawn(page)
    assert violations(page) == []
    # The intervals are the smallest text that a reader needs, so they have the contrast of WCAG's level AAA, 7:1.
    page.evaluate("harmonyBoard.page.set({view: 'trained'})")
    page.keyboard.press("Escape")
    assert page.locator("#board tr.pinned .range:visible").count() >= 1
    assert min(page.evaluate(CONTRASTS)) >= 7
    sizes = page.locator("#board .range:visible").evaluate_all(
        "(all) => all.map((one) => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert sizes and min(sizes) >= 12


def test_negative_control_axe_finds_what_is_broken(open_board: Open, violations: Callable[..., list[str]]) -> None:
    page = open_board(DATA)
    page.evaluate(
        """() => {
            document.getElementById("search").closest("label").replaceWith(document.getElementById("search"));
            document.getElementById("search").placeholder = "";
            document.getElementById("standing").style.color = "#ccc";
            document.querySelectorAll(".range").forEach((range) => { range.style.color = "#777"; });
        }"""
    )
    broken = {line.split(":")[0] for line in violations(page)}
    assert {"label", "color-contrast"} <= broken
    assert min(page.evaluate(CONTRASTS)) < 7


def test_screen_readers_get_names(open_board: Open) -> None:
    page = open_board(DATA)
    drawn(page)
    for title in ("Ranks before and after training", "Do benchmarks agree", "Variance explained", "PC1 against model size"):
        assert page.get_by_role("figure", name=title).count() >= 1
    assert page.get_by_role("region", name="Leaderboard, scrollable").is_visible()
    heads = page.get_by_role("columnheader").all_inner_texts()
    assert {"PC1 rank", "Model", "Kind", "Size", "PC1", "Mean", "MNLI"} <= {head.strip() for head in heads}
    assert page.get_by_role("button", name="Switch to dark colours").is_visible()
    # A score says its errors to a screen reader while it has the focus.
    page.locator("#board-region").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "hint"


def test_a_score_keeps_its_hint_when_the_keyboard_scrolls_to_it(open_board: Open) -> None:
    """The browser reports scrolling in one of the next frames."""
    page = open_board(DATA, viewport={"width": 390, "height": 480})
    drawn(page)
    page.evaluate("addEventListener('scroll', () => { globalThis.scrolled = true; }, true)")
    page.locator("#board-region").focus()
    for key in ("Enter", *["ArrowDown"] * 9, *["ArrowRight"] * 3):
        page.keyboard.press(key)
        page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "hint"
        assert page.locator("#hint").is_visible()
    assert page.evaluate("globalThis.scrolled")


def test_the_first_screen_tells_what_is_shown(open_board: Open) -> None:
    page = open_board(DATA, viewport=SCREENS["desktop"])
    drawn(page)
    head = page.locator(".masthead").inner_text()
    for words in (
        "Train-before-test:",
        "PC1 is",
        "10 models, 4 benchmarks and 1 text corpus",
        "Written on 20",
        "The paper",
        "code",
        "How to add",
    ):
        assert words in head
    plots = page.locator("#chart-bump .plot, #chart-tau .plot").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().bottom)"
    )
    assert len(plots) == 3 and max(plots) <= 900
    assert page.locator("#findings").bounding_box()["y"] < 900


@pytest.mark.parametrize("screen", SCREENS)
def test_words_and_names_are_whole(open_board: Open, screen: str) -> None:
    """No word of a header or of a name continues on the next line, and no name is cut."""
    names = (
        "lab/Llama-3.2-3B-Instruct",
        "lab/Llama-3.2-3B",
        "other/Llama-3.2-3B",
        "EleutherAI/pythia-410m-deduped",
        "lab/" + "very-long-" * 9 + "end",
    )
    page = open_board(page_data(small_board(names, (*TASKS[:4], "commonsense_qa"))), viewport=SCREENS[screen])
    broken = page.evaluate(
        """() => {
            const found = [];
            const texts = document.createTreeWalker(document.getElementById("board"), NodeFilter.SHOW_TEXT);
            while (texts.nextNode()) {
                const { data, parentElement } = texts.currentNode;
                if (!parentElement.checkVisibility()) continue;
                for (const { 0: word, index } of data.matchAll(/[\\w.]+/g)) {
                    const range = document.createRange();
                    range.setStart(texts.currentNode, index);
                    range.setEnd(texts.currentNode, index + word.length);
                    if (new Set([...range.getClientRects()].map(({ top }) => top)).size > 1) found.push(word);
                }
            }
            for (const name of document.querySelectorAll("#board .name")) {
                const cut = getComputedStyle(name).overflow === "hidden" && name.scrollWidth > name.clientWidth + 1;
                if (cut) found.push(name.textContent);
            }
            return found;
        }"""
    )
    assert broken == []
    if screen == "phone":  # the owner is shown where the names differ in nothing else
        owners = page.locator("#board .owner:visible").all_text_contents()
        assert sorted(owners) == ["lab/", "other/"]


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_every_rank_has_its_range_beside_it(open_board: Open, screen: str) -> None:
    page = open_board(page_data(None, published=True), viewport=SCREENS[screen])
    first = page.locator("#board tbody tr").first
    assert first.locator(".rank .range").is_visible() and first.locator(".rank .range").text_content() == "1–4"
    box, cell = first.locator(".rank .range").bounding_box(), first.locator("td.rank").bounding_box()
    assert cell["x"] <= box["x"] and box["x"] + box["width"] <= cell["x"] + cell["width"]
    assert cell["y"] <= box["y"] and box["y"] + box["height"] <= cell["y"] + cell["height"]


def test_hints_close_on_phones(open_board: Open) -> None:
    page = open_board(DATA, viewport=SCREENS["phone"], has_touch=True)
    cell = page.locator("#board [data-cell]").first
    for close in (cell.tap, page.locator("#standing").tap, lambda: page.mouse.wheel(0, 200)):
        cell.scroll_into_view_if_needed()
        page.wait_for_timeout(50)
        cell.tap()
        assert "±" in page.locator("#hint").inner_text()
        close()
        page.wait_for_selector("#hint", state="hidden")


def test_paper_has_every_chart_in_light_colours(open_board: Open) -> None:
    page = open_board(DATA, color_scheme="dark")
    drawn(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = "document.querySelector('#chart-bump .plot').layout.font.color"
    assert sum(int(part) for part in page.evaluate(ink).removeprefix("rgb(").removesuffix(")").split(",")) < 150
    assert page.evaluate("document.querySelector('#chart-bump .plot').layout.width") == 620
    assert page.locator("#charts .main-svg").count() >= 2
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) == page.evaluate("getComputedStyle(document.body).color")
