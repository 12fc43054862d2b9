"""The page for everyone: axe's rules, screen readers, contrast, touch, paper, and the first screen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from page_boards import TASKS, published_data, small_board

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.report.page_data import page_data

Open = Callable[..., Any]
DATA = page_data(small_board())
SCREENS = {
    "desktop": {"width": 1440, "height": 900},
    "tablet": {"width": 1024, "height": 768},
    "phone": {"width": 390, "height": 844},
}

LUMINANCE = """
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const luminance = (colours) => {
        pen.clearRect(0, 0, 1, 1);
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        const linear = [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
"""
"""JavaScript for the luminance of colours on each other, and the contrast of two of them, as WCAG 2 defines both."""
CONTRASTS = f"""() => {{
    {LUMINANCE}
    return [...document.querySelectorAll("#board .range")].filter((range) => range.checkVisibility()).map((range) => {{
        const below = [];
        for (let node = range; node; node = node.parentElement) below.unshift(getComputedStyle(node).backgroundColor);
        return contrast(luminance([...below, getComputedStyle(range).color]), luminance(below));
    }});
}}"""
"""JavaScript for the contrast of every interval with what is behind it."""
LINES = f"""() => {{
    {LUMINANCE}
    const ground = [document.body, document.querySelector(".card")].map((node) => getComputedStyle(node).backgroundColor);
    return [...document.querySelectorAll("[id^=chart-] .plot")].flatMap(({{ data }}) => data ?? [])
        .filter(({{ type }}) => type === "scatter").flatMap((trace) => [trace.line?.color, trace.marker?.color].filter(Boolean)
            .map((colour) => [trace.opacity ?? 1, colour, contrast(luminance([...ground, colour]), luminance(ground))]));
}}"""
"""JavaScript for the opacity, the colour and the contrast of every line and marker of the charts."""


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_markers_are_visible(open_board: Open, scheme: str) -> None:
    """Graphics need the contrast of WCAG's level AA, 3:1. Every hue is used by a family."""
    page = open_board(page_data(small_board()), color_scheme=scheme)
    drawn(page)
    page.evaluate("harmonyBoard.board.models.forEach((model, i) => { model.family = `family ${i}`; })")
    page.evaluate("harmonyBoard.board.families = Array.from({ length: 12 }, (_, i) => `family ${i + 2 * (i >= 10)}`)")
    page.evaluate("harmonyBoard.page.redraw()")
    drawn(page)
    found = page.evaluate(LINES)
    assert len({colour for _, colour, _ in found}) >= 10
    assert {opacity for opacity, *_ in found} == {1} and min(contrast for *_, contrast in found) >= 3


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


@pytest.mark.parametrize("screen", ["desktop", "tablet"])
@pytest.mark.parametrize("benchmarks", [6, 24])
def test_ranks_and_heat_maps_are_on_the_first_screen(open_board: Open, screen: str, benchmarks: int) -> None:
    page = open_board(page_data(small_board(tasks=tuple(BENCHMARKS)[:benchmarks])), viewport=SCREENS[screen])
    drawn(page)
    boxes = [box.bounding_box() for box in page.locator("#chart-bump .plot, #chart-tau .plot").all()]
    assert len(boxes) == 3 and all(box["x"] + box["width"] <= SCREENS[screen]["width"] for box in boxes)
    assert max(box["y"] + box["height"] for box in boxes) <= SCREENS[screen]["height"]
    assert page.locator("#findings").bounding_box()["y"] < SCREENS[screen]["height"]
    # Both heat maps have cells of the same size, although the names of the rows are beside the first one only.
    cells = page.evaluate(
        """[...document.querySelectorAll("#chart-tau .plot")].map(({ _fullLayout }) => [_fullLayout.xaxis, _fullLayout.yaxis])
            .map(([x, y]) => [x._length, y._length, y.showticklabels])"""
    )
    assert cells[0][:2] == pytest.approx(cells[1][:2], abs=1) and [named for *_, named in cells] == [True, False]
    # Names of rows do not overlap: their lines are at least as far apart as the letters are high.
    rows = page.evaluate(
        """[...document.querySelectorAll("#chart-tau .plot .ytick text")].map((text) => text.getBoundingClientRect().y)"""
    )
    assert len(rows) == benchmarks and min(abs(one - other) for one, other in pairwise(rows)) >= 10


WHERE = """() => [...document.querySelectorAll("#menus summary, #search, #views")]
    .map((control) => control.getBoundingClientRect()).map(({ x, y }) => [x, y])"""
"""JavaScript for the places of the controls above the table."""
REMEMBER_FIRST = f"""
    new MutationObserver((_, observer) => {{
        if (document.documentElement?.dataset.ready !== "true") return;
        observer.disconnect();
        globalThis.firstPlaces = ({WHERE})();
    }}).observe(document, {{ subtree: true, attributes: true, childList: true }});
"""
"""JavaScript that keeps these places at the moment when the table is ready and no chart is drawn."""


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_moves_when_charts_are_drawn(open_board: Open, screen: str) -> None:
    page = open_board(DATA, viewport=SCREENS[screen], first_script=REMEMBER_FIRST)
    drawn(page)
    first = page.evaluate("firstPlaces")
    assert page.evaluate(WHERE) == first
    for change in ("{columns: ['mnli', 'cola']}", "{columns: ['mnli']}", "{families: ['Qwen']}", "{columns: null, bump: 'mnli'}"):
        page.evaluate(f"harmonyBoard.page.set({change})")
        assert page.evaluate(WHERE) == first
        drawn(page)
        assert page.evaluate(WHERE) == first
    # Negative control: something that grows above the table is noticed.
    page.evaluate("document.querySelector('#chart-tau .plot').style.height = '700px'")
    assert page.evaluate(WHERE) != first


DRAW_LATER = """() => {
    const later = globalThis.setTimeout;
    let draw = null;
    globalThis.setTimeout = (then, pause, ...more) => {
        if (pause !== 120) return later(then, pause, ...more);
        draw = then;
        return 0;
    };
    globalThis.drawNow = () => draw();
}"""
"""JavaScript that delays the drawing of the charts until the test calls it. The page itself waits for 120 milliseconds."""


@pytest.mark.parametrize("means", ["mouse", "keyboard"])
def test_a_box_changes_although_charts_are_drawn_meanwhile(open_board: Open, means: str) -> None:
    """The charts are drawn while the button of the mouse, or the space bar, is held down."""
    # The screen is high enough for the browser not to have scrolled. Otherwise it hides that something above has grown.
    page = open_board(DATA, viewport={"width": 1400, "height": 1800})
    drawn(page)
    page.evaluate(DRAW_LATER)
    page.evaluate("harmonyBoard.page.set({columns: ['mnli', 'cola']})")
    page.locator("summary", has_text="Benchmarks").click()
    page.evaluate("drawNow()")
    drawn(page)
    start, end = (page.mouse.down, page.mouse.up) if means == "mouse" else (page.keyboard.down, page.keyboard.up)
    held = () if means == "mouse" else ("Space",)
    columns = []
    for name in ("CoLA", "GSM8K", "MNLI"):
        box = page.get_by_role("checkbox", name=name, exact=True)
        box.hover() if means == "mouse" else box.focus()
        start(*held)
        page.evaluate("drawNow()")
        drawn(page)
        end(*held)
        columns.append(page.evaluate("harmonyBoard.page.derived.columns"))
    assert columns == [["mnli"], ["mnli", "gsm8k"], ["gsm8k"]]


def test_a_chart_of_an_older_state_is_not_marked_as_drawn(open_board: Open) -> None:
    """The state changes while Plotly draws the first chart. Other tests wait for the mark before they read a chart."""
    page = open_board(DATA)
    drawn(page)
    page.evaluate(DRAW_LATER)
    marked = page.evaluate(
        """() => new Promise((done) => {
            const react = Plotly.react;
            Plotly.react = async (...all) => {
                Plotly.react = react;
                await react(...all);
                harmonyBoard.page.set({ families: ["Qwen"] });
                setTimeout(() => done(document.querySelectorAll("[data-drawn]").length), 0);
            };
            harmonyBoard.page.set({ families: ["Gemma"] });
            drawNow();
        })"""
    )
    assert marked == 0
    page.evaluate("drawNow()")
    drawn(page)
    assert len(page.evaluate("document.querySelector('#chart-bump .plot').data")) == 3


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
    page = open_board(published_data(), viewport=SCREENS[screen])
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
