"""Names are never HTML, the page connects to nothing, and it works with a thousand models."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from page_boards import TASKS, small_board

from lm_harmony.report.page import page_text
from lm_harmony.report.page_data import page_data

Open = Callable[..., Any]
Column = Callable[[Any, str], list[str]]
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>globalThis.harmed = 1</script>",
    "<img src=x onerror='globalThis.harmed = 1'>",
    "<!--<script>",
    "\"quoted\" 'twice' & &lt;escaped&gt; \\u003c {{data}}",
    '=HYPERLINK("http://x")',
    "line\u2028separator\u2029 and \x00 nothing",
    "שלום/עולם \u202etxt.exe",
    "<b>bold<b> %{x} $y$ ${z}",
    "long/" + "endless" * 60,
    "Qwen/Qwen2.5-14B",
)
TASK = "corpus:<img src=x onerror='globalThis.harmed = 1'></script>"
DATA = page_data(small_board(HOSTILE, (*TASKS[:4], TASK)))
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.mark.parametrize("protected", [True, False], ids=["with policy", "without policy"])
def test_names_with_markup_are_shown_as_text(open_text: Open, column: Column, protected: bool) -> None:
    text = page_text(DATA)
    page = open_text(text if protected else POLICY.sub("", text))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    assert sorted(column(page, "model")) == sorted(name.strip() for name in HOSTILE)
    everywhere(page)
    assert page.evaluate("globalThis.harmed") is None
    assert not dialogs
    assert page.evaluate("document.querySelectorAll('img, b.name, main script').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Texts in Plotly charts are included.
    assert "<b>bold<b> %{x} $y$ ${z}" in page.locator("#chart-bump").inner_text()


def everywhere(page: Any) -> None:
    """Show the names everywhere: in table, pins, tooltips, menus, charts, search, downloads and URL."""
    for model in HOSTILE:
        page.get_by_label(f"Pin {model}", exact=True).first.click()
    page.evaluate("(task) => harmonyBoard.page.set({columns: ['mnli', 'cola', task], view: 'gain', search: '<'})", TASK)
    page.evaluate("harmonyBoard.page.set({search: ''})")
    for menu in ("Family", "Benchmarks"):
        page.locator("summary", has_text=menu).click()
    page.keyboard.press("Escape")
    page.locator("#board [data-cell]").first.hover()
    for chart in ("bump", "tau", "scree", "size"):
        page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#chart-{chart}[data-drawn]")
    page.evaluate("dispatchEvent(new HashChangeEvent('hashchange'))")
    assert page.locator("#compare thead th").all_inner_texts()[1:] != []


def test_negative_control_markup_in_names_would_be_detected(open_text: Open) -> None:
    """The same page without its policy, and with a cell that interprets text as HTML, runs the injected script."""
    broken = POLICY.sub("", page_text(DATA)).replace("made.textContent = text", "made.innerHTML = text")
    page = open_text(broken, watched=False)
    page.wait_for_function("globalThis.harmed === 1")


def test_the_policy_blocks_connections_and_other_scripts(open_board: Open) -> None:
    page = open_board(DATA, watched=False)
    assert page.evaluate("fetch('http://127.0.0.1:9/x').then(() => 'sent', () => 'refused')") == "refused"
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "globalThis.harmed = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='globalThis.harmed = 1'>");
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("globalThis.harmed") is None


def test_a_thousand_models(open_board: Open, column: Column) -> None:
    names = [f"lab{number % 17}/model-{number:04d}" for number in range(1_000)]
    tasks = ("mnli", "qqp", "gsm8k", "cola", "arc_easy", "rte", "wic", "boolq", "piqa", "sciq", "sst2", "mrpc")
    data = page_data(small_board(names, tasks))
    assert len(page_text(data)) < 6_000_000
    page = open_board(data)
    assert page.locator("#board tbody tr").count() == 100
    assert "1 to 100 of 1,000 models" in page.locator(".board").inner_text()
    page.get_by_role("link", name="Next").click()
    assert column(page, "rank")[0] == "101"
    assert "page=2" in page.url
    page.get_by_label("Search models").fill("0777")
    assert column(page, "model") == ["lab12/model-0777"]
    page.get_by_label("Search models").fill("")
    page.get_by_role("radio", name="Gain").check(force=True)
    page.locator('th[data-task="mnli"]').click()
    page.wait_for_selector('th[data-task="mnli"][aria-sort="descending"]')
    best = max(data["models"], key=lambda model: gain(data, names.index(model["name"])))["name"]
    assert column(page, "model")[0] == best
    page.locator("#chart-bump").scroll_into_view_if_needed()
    page.wait_for_selector("#chart-bump[data-drawn]")
    assert "The best 150 of 1000 models" in page.locator("#chart-bump .note").inner_text()


def gain(data: dict[str, Any], row: int) -> float:
    at = [facts["task"] for facts in data["benchmarks"]].index("mnli")
    return data["views"]["trained"]["scores"][row][at] - data["views"]["direct"]["scores"][row][at]
