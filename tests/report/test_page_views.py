"""Charts, downloads, the URL, themes and narrow screens, in a real browser."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_boards import GAP, MODELS, published_data, small_board

from lm_harmony.analysis.agreement import agreement
from lm_harmony.analysis.audit import audit
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.noise_ceiling import noise_ceiling
from lm_harmony.errors import UsageError
from lm_harmony.report.page_data import page_data

Open = Callable[..., Any]
Column = Callable[[Any, str], list[str]]
MATRIX = small_board()
DATA = page_data(MATRIX)
CHARTS = ("bump", "tau", "scree", "size")


def drawn(page: Any, *charts: str) -> None:
    for chart in charts or CHARTS:
        page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#chart-{chart}[data-drawn]")


def traces(page: Any, chart: str, at: int = 0) -> list[dict[str, Any]]:
    return json.loads(page.evaluate(f"JSON.stringify(document.querySelectorAll('#chart-{chart} .plot')[{at}].data)"))


def note(page: Any, chart: str) -> str:
    return page.locator(f"#chart-{chart} .note").inner_text()


def test_charts_agree_with_analysis(open_board: Open) -> None:
    page = open_board(DATA)
    drawn(page)
    for at, preparation in enumerate(("direct", "trained")):
        [heat] = traces(page, "tau", at)
        part = agreement(MATRIX.downstream(), preparation)
        titles = {facts.title: facts.task for facts in MATRIX.benchmarks}
        tasks = [titles[title] for title in heat["x"]]
        np.testing.assert_allclose(np.array(heat["z"]), part.tau.loc[tasks, tasks].to_numpy(), atol=1e-9)
        assert f"{preparation} {part.mean_tau:.2f}" in note(page, "tau")
    scree = {trace["name"]: trace["y"] for trace in traces(page, "scree")}
    for preparation, shares in scree.items():
        expected = DATA["views"][preparation]["components"]["explained"]
        np.testing.assert_allclose(shares, 100 * np.array(expected), atol=1e-9)
    sized = {place for trace in traces(page, "size") for place in zip(trace["x"], trace["y"], strict=True)}
    pc1 = DATA["views"]["trained"]["components"]["pc1"]
    known = {(model["params"], value) for model, value in zip(DATA["models"], pc1, strict=True) if model["params"] and value}
    assert sized == known
    assert "1 of unknown size left out" in note(page, "size")
    # Because of the gap, one model has no rank after training and no line.
    assert len(traces(page, "bump")) == len(MODELS) - 1


def test_scores_with_examples_are_a_view_of_their_own(open_board: Open, column: Column) -> None:
    """They have a switch, scores, PC1, hint and download of their own, and none of them enters the direct view."""
    matrix = small_board(few_shot=(5, 25))
    data = page_data(matrix)
    assert list(data["views"]) == ["direct", "direct_5shot", "direct_25shot", "trained"]
    assert {name: view for name, view in data["views"].items() if "shot" not in name} == DATA["views"]
    page = open_board(data)
    labels = page.locator("#views label").all_inner_texts()
    assert labels == ["Direct", "Direct 5-shot", "Direct 25-shot", "Trained", "Gain"]
    page.get_by_role("radio", name="Direct 5-shot").check()
    assert "view=direct_5shot" in page.url
    standing = page.locator("#standing").inner_text()
    explained = data["views"]["direct_5shot"]["components"]["explained"][0]
    assert f"PC1 of the direct 5-shot scores explains {100 * explained:.1f}%" in standing
    best = matrix.scores("direct_5shot").values["mnli"]
    page.evaluate("harmonyBoard.page.set({sort: 'mnli', direction: 'desc'})")
    assert column(page, "mnli")[0] == f"{100 * best.max():.1f}"
    drawn(page, "scree")
    assert [trace["name"] for trace in traces(page, "scree")] == ["direct", "direct 5-shot", "direct 25-shot", "trained"]
    assert page.locator("#findings thead th").all_inner_texts()[1:] == ["direct", "direct 5-shot", "direct 25-shot", "trained"]
    plain = open_board(DATA)
    assert plain.locator("#views label").all_inner_texts() == ["Direct", "Trained", "Gain"]


def test_charts_follow_filters_columns_and_pins(open_board: Open) -> None:
    page = open_board(DATA)
    page.evaluate("harmonyBoard.page.set({families: ['Qwen', 'Gemma'], columns: ['mnli', 'cola'], pins: ['google/gemma-2-9b']})")
    drawn(page)
    assert len(traces(page, "bump")) == 5
    assert sum(trace["line"]["width"] > 3 for trace in traces(page, "bump")) == 1
    assert [len(trace["y"]) for trace in traces(page, "scree")] == [2, 2]
    assert np.shape(traces(page, "tau")[0]["z"]) == (2, 2)
    page.get_by_label("ranked by").select_option("mnli")
    drawn(page, "bump")
    ranks = MATRIX.trained.values["mnli"].rank(ascending=False, method="min")
    ends = {trace["hovertext"].split("<br>")[0]: trace["y"][-1] for trace in traces(page, "bump")}
    assert ends == {name: ranks[name] for name in ends}
    assert "bump=mnli" in page.url


def test_charts_without_data_are_hidden(open_board: Open) -> None:
    page = open_board(page_data(small_board(direct=False)))
    drawn(page, "tau", "scree", "size")
    assert page.locator("#story").is_hidden() and page.locator("#chart-bump").is_hidden()
    assert page.locator("#chart-tau .plot:visible").count() == 1
    assert "direct" not in note(page, "tau") and "Mean: trained" in note(page, "tau")
    assert "direct" not in note(page, "scree") and "trained:" in note(page, "scree")


def test_findings_agree_with_analysis(open_board: Open) -> None:
    page = open_board(DATA)
    ceilings = [noise_ceiling(MATRIX.downstream(), preparation) for preparation in ("direct", "trained")]
    rows = page.locator("#ceiling tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert [row[1:] for row in rows[:3]] == [
        [f"{found.mean_tau:.2f}" for found in ceilings],
        [f"{found.mean_ceiling:.2f}" for found in ceilings],
        [f"{found.share:.0%}" for found in ceilings],
    ]
    found = audit(MATRIX)
    assert f"{found.flips:.1%} of the pairs" in page.locator("#audit").inner_text()
    shown = page.locator("#audit li .name").all_text_contents()
    assert shown == list(found.table.index[found.table["flagged"]])


def test_numbers_are_in_a_heat_map_where_they_have_room(open_board: Open) -> None:
    page = open_board(DATA, viewport={"width": 1440, "height": 900})
    drawn(page, "tau")
    [heat] = traces(page, "tau", 1)
    tau = agreement(MATRIX.downstream(), "trained").tau
    titles = {facts.title: facts.task for facts in MATRIX.benchmarks}
    tasks = [titles[title] for title in heat["x"]]
    for row, texts in zip(tasks, heat["text"], strict=True):
        for column_task, text in zip(tasks, texts, strict=True):
            assert text == (
                "" if row == column_task else f"{tau.loc[row, column_task]:.2f}".replace("0.", ".", 1).replace("-", "−")
            )
    # Negative control: 24 benchmarks at the width of a phone leave no room.
    page = open_board(published_data(), viewport={"width": 390, "height": 844})
    drawn(page, "tau")
    [heat] = traces(page, "tau", 1)
    assert {text for texts in heat["text"] for text in texts} == {""}


def downloaded(page: Any, what: str) -> tuple[str, str]:
    page.locator("summary", has_text="Download").click()
    with page.expect_download() as started:
        page.get_by_role("button", name=what).click()
    return started.value.suggested_filename, Path(started.value.path()).read_text(encoding="utf-8")


def test_the_table_downloads_as_csv_that_can_be_read_again(open_board: Open, tmp_path: Path) -> None:
    page = open_board(DATA)
    page.get_by_label("Search models").fill("qwen")
    page.evaluate("harmonyBoard.page.set({columns: ['mnli', 'gsm8k', 'cola']})")
    name, text = downloaded(page, "Table as CSV")
    assert name == "board-trained.csv"
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["model", "preparation", "rank", "pc1", "pc1_low", "pc1_high", "mnli", "gsm8k", "cola"]
    assert [row["model"] for row in rows] == page.evaluate(
        "[...document.querySelectorAll('#board tbody .name')].map((name) => name.textContent)"
    )
    page.get_by_role("radio", name="Direct").check(force=True)
    name, direct = downloaded(page, "Table as CSV")
    assert name == "board-direct.csv"
    for preparation, written in (("trained", text), ("direct", direct)):
        (tmp_path / "again.csv").write_text(written, encoding="utf-8")
        again = ScoreMatrix.from_csv(tmp_path / "again.csv")
        expected = MATRIX.subset(again.model_names, ["mnli", "gsm8k", "cola"]).scores(preparation).values
        np.testing.assert_allclose(again.scores(preparation).values[expected.columns], expected, atol=1e-12)
    page.get_by_role("radio", name="Gain").check(force=True)
    _, gains = downloaded(page, "Table as CSV")
    (tmp_path / "again.csv").write_text(gains, encoding="utf-8")
    # Gains are not scores, and a file of gains is not read as scores.
    with pytest.raises(UsageError):
        ScoreMatrix.from_csv(tmp_path / "again.csv")


def test_all_scores_download_as_csv_that_can_be_read_again(open_board: Open, tmp_path: Path) -> None:
    page = open_board(DATA)
    _, text = downloaded(page, "Scores as CSV")
    (tmp_path / "again.csv").write_text(text, encoding="utf-8")
    again, own = ScoreMatrix.from_csv(tmp_path / "again.csv"), MATRIX.downstream()
    again = again.subset(own.model_names, own.benchmark_names)
    for preparation in ("direct", "trained"):
        for table in ("values", "stderrs", "counts"):
            left, right = (getattr(matrix.scores(preparation), table) for matrix in (again, own))
            np.testing.assert_allclose(left, right, atol=1e-12)


def test_the_table_downloads_as_json(open_board: Open) -> None:
    page = open_board(DATA)
    name, text = downloaded(page, "Table as JSON")
    found = json.loads(text)
    assert name == "board-trained.json"
    assert found["reference"] == DATA["reference"]
    first = found["models"][0]
    assert first["rank"] == 1
    assert first["scores"]["mnli"]["direct"] == {"score": MATRIX.direct.values.loc[first["model"], "mnli"], "stderr": 0.01}
    assert next(model for model in found["models"] if model["model"] == GAP[0])["scores"]["gsm8k"]["trained"]["score"] is None


def test_formulas_are_escaped_in_csv(open_board: Open) -> None:
    page = open_board(page_data(small_board(("=1+1", '@x"y', "plain"))))
    _, text = downloaded(page, "Table as CSV")
    assert {row[0] for row in csv.reader(io.StringIO(text))} == {"model", "'=1+1", "'@x\"y", "plain"}


STATE = {
    "view": "direct",
    "sort": "mnli",
    "direction": "asc",
    "search": "e b",
    "families": ["Qwen", "Gemma", "Llama"],
    "kinds": ["base"],
    "sizes": ["1 to 3 B", "3 to 8 B", "8 B and more"],
    "columns": ["mnli", "cola", "corpus:wiki"],
    "pins": ["local/mine", "google/gemma-2-9b"],
    "bump": "cola",
    "theme": "dark",
}


def test_the_url_holds_the_complete_state(open_board: Open) -> None:
    page = open_board(DATA)
    assert "#" not in page.url
    page.evaluate("(state) => harmonyBoard.page.set(state)", STATE)
    shown = page.locator("#board").inner_text()
    address = page.url
    again = open_board(DATA, state=address[address.index("#") :])
    state = again.evaluate("harmonyBoard.page.state")
    assert {key: state[key] for key in STATE} == STATE
    assert again.locator("#board").inner_text() == shown
    assert again.get_by_label("Search models").input_value() == "e b"
    # The state of an open page can also be changed and be removed.
    again.evaluate("location.hash = '#sort=cola:asc'")
    again.wait_for_selector('th[data-task="cola"][aria-sort="ascending"]')
    again.get_by_role("button", name="Reset").click()
    again.wait_for_selector('th.pc1[aria-sort="descending"]')
    assert "#" not in again.url


def test_invalid_parts_of_the_url_are_ignored(open_board: Open, column: Column) -> None:
    page = open_board(
        DATA, state="#view=future&sort=nothing:up&family=None&column=mnli&column=zzz&pin=%3Cb%3E&page=-3&theme=pink&bump=x"
    )
    state = page.evaluate("harmonyBoard.page.state")
    assert (state["view"], state["sort"], state["families"], state["pins"]) == ("trained", "pc1", [], [])
    assert state["columns"] == ["mnli"]
    assert len(column(page, "model")) == len(MODELS)


@pytest.mark.parametrize(("scheme", "label"), [("light", "Dark"), ("dark", "Light")])
def test_themes(open_board: Open, scheme: str, label: str) -> None:
    page = open_board(DATA, color_scheme=scheme)

    def brightness() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    before = brightness()
    assert (before > 600) == (scheme == "light")
    page.get_by_role("button", name="Switch to").click()
    assert (brightness() > 600) == (scheme == "dark")
    assert f"theme={label.lower()}" in page.url
    drawn(page, "scree")
    # Charts use the text colour of the theme.
    ink = page.evaluate("document.querySelector('#chart-scree .plot').layout.font.color")
    assert ink == page.evaluate("getComputedStyle(document.body).color")


@pytest.mark.parametrize("width", [360, 414, 768])
def test_narrow_screens(open_board: Open, width: int) -> None:
    page = open_board(DATA, viewport={"width": width, "height": 740}, has_touch=True)

    def overflows() -> bool:
        return page.evaluate("document.documentElement.scrollWidth > innerWidth")

    assert not overflows()
    # Names and ranks stay visible while the scores are scrolled. Half of the width is left for scores.
    page.locator("#board-region").evaluate("(region) => { region.scrollLeft = 400; }")
    name, frame = (page.locator(selector).first.bounding_box() for selector in ("#board tbody td.model", "#board-region"))
    assert frame["x"] <= name["x"] and name["x"] + name["width"] <= frame["x"] + frame["width"] * 0.62
    for menu in ("Family", "Kind", "Size", "Benchmarks", "Download"):
        page.locator("summary", has_text=menu).click()
        # A sheet is scrolled into view asynchronously after it opens.
        page.wait_for_function(
            """() => {
                const { left, right } = document.querySelector("details[open] .sheet").getBoundingClientRect();
                return left >= 0 && right <= innerWidth;
            }"""
        )
        assert not overflows()
        page.keyboard.press("Escape")
    page.get_by_label("Pin local/mine").tap()
    drawn(page)
    assert not overflows()
