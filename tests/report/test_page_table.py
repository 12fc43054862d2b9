"""The table in a real browser: order, filters, columns, preparations, pins, keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of
from page_boards import CAUSE, GAP, MODELS, published_data, small_board

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components, fit_reference
from lm_harmony.analysis.score_rows import PartScore
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.report.page_data import page_data

Open = Callable[..., Any]
Column = Callable[[Any, str], list[str]]
MATRIX = small_board()
DATA = page_data(MATRIX)


def numbers(texts: list[str]) -> list[float | None]:
    return [None if text in ("", "·") else float(text.replace("−", "-")) for text in texts]


def head(page: Any, title: str) -> Any:
    return page.locator("#board thead .sortable").filter(has_text=re.compile(rf"^{re.escape(title)}$"))


def sort_by(page: Any, title: str, direction: str) -> None:
    """Click a column header and wait until the table is sorted. Sorting is asynchronous."""
    head(page, title).click()
    page.wait_for_selector(f'#board thead th[aria-sort="{direction}"]:has-text("{title}")')


def test_the_first_view_is_the_ranking_by_pc1(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    expected = components(MATRIX.downstream()).pc1.sort_values(ascending=False)
    ranked = list(expected.index)
    assert column(page, "model") == [*ranked, *[name for name in MODELS if name not in ranked]]
    assert column(page, "rank")[: len(ranked)] == [str(place) for place in range(1, len(ranked) + 1)]
    assert numbers(column(page, "pc1"))[: len(ranked)] == [pytest.approx(value, abs=0.51) for value in expected]
    assert head(page, "PC1").get_attribute("aria-sort") == "descending"
    assert DATA["reference"] in page.locator("#reference").inner_text()
    low, high = (f"{DATA['views']['trained']['components'][end][0]:.0f}" for end in ("low", "high"))
    assert page.locator("#model-0 .pc1 .range").inner_text() == f"{low} to {high}".replace("-", "−")


@pytest.mark.parametrize("task", ["gsm8k", "mnli", "corpus:wiki"])
def test_sorting_puts_blanks_last_in_both_directions(open_board: Open, column: Column, task: str) -> None:
    page = open_board(DATA)
    if task == "corpus:wiki":  # a text corpus is not part of PC1, so it is not selected at first
        page.evaluate("harmonyBoard.page.set({columns: ['gsm8k', 'corpus:wiki']})")
    for times, better_first in ((1, True), (2, False)):
        page.locator(f'th[data-task="{task}"]').click()
        descending = better_first != (task == "corpus:wiki")
        # The library sorts asynchronously after the click.
        page.wait_for_selector(f'th[data-task="{task}"][aria-sort="{"descending" if descending else "ascending"}"]')
        shown = numbers(column(page, task))
        known = [value for value in shown if value is not None]
        assert known == sorted(known, reverse=descending), times
        assert None not in shown[: len(known)]
        assert page.locator("[aria-sort]").count() == 1
        if task == "gsm8k":
            assert shown[-1] is None and column(page, "model")[-1] == GAP[0]


def test_names_sort_by_alphabet_and_numbers_in_them_by_size(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    sort_by(page, "Model", "ascending")
    numbers_as_numbers = [re.sub(r"\d+", lambda digits: digits[0].zfill(4), name).lower() for name in MODELS]
    assert column(page, "model") == [name for _, name in sorted(zip(numbers_as_numbers, MODELS, strict=True))]


def test_the_head_is_as_high_as_its_texts_need(open_board: Open) -> None:
    """The other heads span both rows where categories are named. One category is not named."""
    page = open_board(page_data(small_board(tasks=("mnli", "gsm8k", "arc_challenge"))), viewport={"width": 1024, "height": 768})
    assert page.locator("#board thead").bounding_box()["height"] <= 54
    spans = page.locator("#board thead .sortable").evaluate_all("(heads) => heads.map((head) => head.rowSpan)")
    assert spans == [2] * (len(spans) - 3) + [1] * 3 and page.locator("#board thead td").count() == 0
    page = open_board(page_data(small_board(tasks=("mnli", "cola"))), viewport={"width": 1024, "height": 768})
    assert page.locator("#board thead tr").count() == 1 and page.locator("#board thead").bounding_box()["height"] <= 30


def test_a_benchmark_has_one_name(open_board: Open) -> None:
    page = open_board(published_data())
    words = page.locator("body").inner_text()
    assert "standard errors are not known for CoLA" in words
    assert not [task for task, info in BENCHMARKS.items() if task != info.title and re.search(rf"\b{re.escape(task)}\b", words)]


def test_search_matches_every_word(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    page.get_by_label("Search models").fill("qwen 7b")
    assert column(page, "model") == ["Qwen/Qwen2.5-7B-Instruct"]
    assert page.locator("#standing").inner_text().startswith("1 of 10 models")
    page.get_by_label("Search models").fill("nobody & <nothing>")
    assert page.locator("#board tbody").inner_text() == "No model fits these filters."


def test_filters_by_family_kind_and_size(open_board: Open, column: Column) -> None:
    page = open_board(DATA)

    def choose(menu: str, choice: str) -> None:
        page.locator("summary", has_text=menu).click()
        page.locator("details[open]").get_by_label(choice).check()
        page.keyboard.press("Escape")

    choose("Family", "Qwen")
    assert {name.split("/")[0] for name in column(page, "model")} == {"Qwen"}
    choose("Family", "Gemma")
    assert len(column(page, "model")) == 5
    choose("Kind", "base")
    assert sorted(column(page, "model")) == ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-14B", "google/gemma-2-9b"]
    choose("Size", "1 to 3 B")
    assert column(page, "model") == ["Qwen/Qwen2.5-1.5B"]
    # Ranks are those on the board, not those among the filtered models.
    assert column(page, "rank") != ["1"]
    page.get_by_role("button", name="Reset").click()
    assert len(column(page, "model")) == len(MODELS)
    choose("Family", "unknown")
    assert column(page, "model") == ["local/mine"]


def python_pc1(matrix: ScoreMatrix, tasks: list[str], preparation: str) -> dict[str, float]:
    """PC1 of selected benchmarks agrees with lm_harmony.analysis."""
    chosen = matrix.subset(benchmarks=tasks)
    values = chosen.scores(preparation).values  # type: ignore[arg-type]
    complete = chosen.subset(models=[name for name in chosen.model_names if not values.loc[name].isna().any()])
    return dict(components(complete, preparation).pc1)  # type: ignore[arg-type]


SELECTIONS = (
    ["mnli", "cola"],
    ["mnli", "gsm8k", "arc_easy"],
    ["gsm8k", "corpus:wiki"],
    ["mnli", "gsm8k", "cola", "arc_easy", "corpus:wiki"],
)


@pytest.mark.parametrize("preparation", ["trained", "direct"])
def test_pc1_of_selected_benchmarks_agrees_with_python(open_board: Open, preparation: str) -> None:
    page = open_board(DATA)
    page.get_by_role("radio", name=preparation.title()).check(force=True)
    for tasks in SELECTIONS:
        page.locator("summary", has_text="Benchmarks").click()
        for benchmark in DATA["benchmarks"]:
            page.locator("details[open]").get_by_role("checkbox", name=benchmark["title"], exact=True).set_checked(
                benchmark["task"] in tasks
            )
        page.keyboard.press("Escape")
        found = page.evaluate("harmonyBoard.page.derived")
        assert found["columns"] == [benchmark["task"] for benchmark in DATA["benchmarks"] if benchmark["task"] in tasks]
        expected = python_pc1(MATRIX, tasks, preparation)
        for name, value in zip(MATRIX.model_names, found["pc1"], strict=True):
            assert value == (pytest.approx(expected[name], abs=1e-6) if name in expected else None), tasks
        assert page.locator("th[data-task]").count() == len(tasks)
        assert f"{len(tasks)} selected benchmarks over {len(expected)} models" in page.locator("#standing").inner_text()


def test_pc1_of_the_published_board_is_recomputed_exactly(open_board: Open) -> None:
    matrix = ScoreMatrix.published()
    page = open_board(published_data())
    random = np.random.default_rng(1)
    for count in (2, 5, 12, 23):
        tasks = [matrix.benchmark_names[at] for at in sorted(random.choice(24, count, replace=False))]
        page.evaluate("(columns) => harmonyBoard.page.set({columns})", tasks)
        chosen = components(matrix.subset(benchmarks=tasks))
        derived = page.evaluate("harmonyBoard.page.derived")
        np.testing.assert_allclose(derived["pc1"], chosen.pc1, atol=1e-6)
        np.testing.assert_allclose(derived["explained"], chosen.explained, atol=1e-9)
        np.testing.assert_allclose(derived["loadings"], chosen.loadings[1], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_opposite_orders_have_the_sign_of_python(open_board: Open, seed: int) -> None:
    """Both loadings of PC1 are equally large, so that the sign of their sum is that of rounding."""
    random = np.random.default_rng(seed)
    matrix = matrix_of(pd.DataFrame(random.random((6, 3)), index=list("uvwxyz"), columns=["mnli", "cola", "arc_easy"]))
    matrix.trained.values["cola"] = 1 - matrix.trained.values["mnli"] * 0.9 - 0.1 * random.random(6)
    page = open_board(page_data(matrix))
    page.evaluate("harmonyBoard.page.set({columns: ['mnli', 'cola']})")
    expected = components(matrix.subset(benchmarks=["mnli", "cola"])).pc1
    np.testing.assert_allclose(page.evaluate("harmonyBoard.page.derived")["pc1"], expected, atol=1e-6)


def test_new_models_are_projected_and_do_not_change_published_models(open_board: Open, column: Column) -> None:
    published, new_models = ScoreMatrix.published(), small_board()
    data = page_data(new_models, published=True)
    page = open_board(data)
    tasks = ["mnli", "cola", "arc_easy"]
    names = [model["name"] for model in data["models"]]
    assert names[:61] == list(published.model_names) and "google/gemma-2-9b (these results)" in names
    assert data["reference"] == published_data()["reference"]
    # No new model has all 24 benchmarks, so each PC1 is predicted and marked.
    assert sum(text.startswith("~") for text in column(page, "pc1")) == len(MODELS)
    page.evaluate("(columns) => harmonyBoard.page.set({columns})", tasks)
    derived = page.evaluate("harmonyBoard.page.derived")
    axis = fit_reference(published.subset(benchmarks=tasks))
    projected = axis.project(new_models.oriented("trained"))
    np.testing.assert_allclose(derived["pc1"][:61], axis.pc1, atol=1e-6)
    np.testing.assert_allclose(derived["pc1"][61:], projected, atol=1e-6)
    assert derived["ranks"][61:] == [1 + int((axis.pc1 > value).sum()) for value in projected]


def test_one_benchmark_has_no_pc1_and_none_is_not_a_state(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    page.evaluate("harmonyBoard.page.set({columns: ['mnli']})")
    assert "no PC1" in page.locator("#standing").inner_text()
    # Columns without any value are hidden: PC1, its rank, and the mean of a single benchmark.
    assert [page.locator(f"#board th.{name}").count() for name in ("pc1", "rank", "mean")] == [0, 0, 0]
    page.locator("summary", has_text="Benchmarks").click()
    assert page.get_by_role("button", name="None").count() == 0
    assert page.get_by_role("checkbox", name="MNLI", exact=True).is_disabled()
    page.get_by_role("checkbox", name="CoLA", exact=True).check()
    assert page.get_by_role("checkbox", name="MNLI", exact=True).is_enabled()
    for empty in ("harmonyBoard.page.set({columns: []})", "location.hash = '#column='"):
        page.evaluate(empty)
        page.wait_for_function("document.querySelectorAll('th[data-task]').length === 4")
        assert "" not in column(page, "pc1")[:9]


def test_the_mean_weights_benchmarks_alike(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    for view in ("trained", "direct"):
        page.evaluate("(view) => harmonyBoard.page.set({view, columns: ['mnli', 'gsm8k', 'cola', 'corpus:wiki']})", view)
        values = MATRIX.scores(view).values[["mnli", "gsm8k", "cola"]]  # type: ignore[arg-type]
        expected = values.mean(axis=1, skipna=False)
        for name, mean in zip(column(page, "model"), numbers(column(page, "mean")), strict=True):
            missing = math.isnan(expected[name])
            assert mean is None if missing else mean == pytest.approx(100 * expected[name], abs=0.051)
    assert dict(zip(column(page, "model"), column(page, "kind"), strict=True))["google/gemma-2-2b-it"] == "instruct"
    sort_by(page, "Mean", "descending")
    means = [mean for mean in numbers(column(page, "mean")) if mean is not None]
    assert means == sorted(means, reverse=True)


def test_direct_scores_trained_scores_and_gains_can_be_shown(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    names = column(page, "model")
    trained = dict(zip(names, numbers(column(page, "mnli")), strict=True))
    page.get_by_role("radio", name="Direct").check(force=True)
    direct = dict(zip(column(page, "model"), numbers(column(page, "mnli")), strict=True))
    # The direct scores have a ranking of their own.
    expected = components(MATRIX.downstream(), "direct").pc1.sort_values(ascending=False)
    assert column(page, "model") == list(expected.index)
    page.get_by_role("radio", name="Gain").check(force=True)
    gain = dict(zip(column(page, "model"), numbers(column(page, "mnli")), strict=True))
    for name in MODELS:
        assert gain[name] == pytest.approx(trained[name] - direct[name], abs=0.11)
    page.evaluate("harmonyBoard.page.set({columns: ['mnli', 'corpus:wiki']})")
    before, after = (MATRIX.scores(name).values["corpus:wiki"] for name in ("direct", "trained"))
    shown = dict(zip(column(page, "model"), numbers(column(page, "corpus:wiki")), strict=True))
    # A decrease in bits per byte is a gain.
    assert shown == {name: pytest.approx(before[name] - after[name], abs=6e-4) for name in MODELS}


def test_missing_views_are_hidden_and_named(open_board: Open) -> None:
    page = open_board(page_data(small_board(direct=False)))
    assert page.get_by_role("radio").count() == 0
    assert "PC1 of the trained scores" in page.locator("#standing").inner_text()
    assert "no direct scores" in page.locator("#standing").inner_text()


def test_menus_columns_and_charts_without_data_are_hidden(open_board: Open) -> None:
    page = open_board(page_data(small_board(("a/one", "a/two", "a/three"))))
    assert page.locator("#menus summary").all_inner_texts() == ["Benchmarks", "Download"]
    assert page.locator("#board th.size, #board th.kind").count() == 0
    assert page.locator("#chart-size").is_hidden() and page.locator("#chart-bump").is_visible()
    # With fewer than three models there is neither an audit nor a noise ceiling.
    page = open_board(page_data(small_board(("a/one", "a/two"), stderr=0.02)))
    assert page.locator("#audit").is_hidden()


def test_pinned_models_come_first_and_are_compared(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    page.get_by_label("Pin local/mine").click()
    page.get_by_label("Pin google/gemma-2-9b").click()
    assert set(column(page, "model")[:2]) == {"local/mine", "google/gemma-2-9b"}
    assert page.get_by_label("Pin local/mine").get_attribute("aria-pressed") == "true"
    sort_by(page, "MNLI", "descending")
    assert set(column(page, "model")[:2]) == {"local/mine", "google/gemma-2-9b"}
    assert page.locator("[aria-sort]").inner_text() == "MNLI"
    row = page.locator("#compare tr", has_text="MNLI").locator("td").all_inner_texts()
    mine, other = (MATRIX.trained.values.loc[name, "mnli"] * 100 for name in ("local/mine", "google/gemma-2-9b"))
    assert row[0] == f"{mine:.1f} ± 1.0" and row[1] == f"{other:.1f} ± 1.0"
    assert float(row[2].replace("−", "-")) == pytest.approx(mine - other, abs=0.06)
    # 1.96 standard errors of this difference are 2.8 points.
    sure = page.locator("#compare tr", has_text="MNLI").locator("td.sure").count()
    assert sure == (abs(mine - other) > 100 * 1.96 * math.hypot(0.01, 0.01))
    page.get_by_role("button", name="Unpin all").click()
    assert page.locator("#compare").is_hidden()
    assert page.locator("tr.pinned").count() == 0


def test_standard_errors_and_causes_on_hover(open_board: Open) -> None:
    page = open_board(DATA)
    row, task = MATRIX.model_names.index("local/mine"), MATRIX.benchmark_names.index("mnli")
    page.locator(f'[data-cell="{row} {task}"]').hover()
    hint = page.locator("#hint").inner_text()
    for preparation in ("trained", "direct"):
        value = MATRIX.scores(preparation).values.loc["local/mine", "mnli"] * 100
        assert f"{preparation} {value:.2f} ± 1.00 of 1,000 examples" in hint
    page.locator(f'[data-cell="{MODELS.index(GAP[0])} {MATRIX.benchmark_names.index(GAP[1])}"]').hover()
    assert f"trained: {CAUSE}" in page.locator("#hint").inner_text()


def test_scores_without_near_duplicates_on_hover(open_board: Open) -> None:
    """Under the score of the same preparation. Negative control: a cell without them has no such line."""
    apart = {("local/mine", "mnli", "trained"): PartScore(value=0.4321, stderr=0.0123, count=987)}
    page = open_board(page_data(replace(MATRIX, without_near_duplicates=apart)))
    row = MATRIX.model_names.index("local/mine")
    for task, count in (("mnli", 1), ("cola", 0)):
        page.locator(f'[data-cell="{row} {MATRIX.benchmark_names.index(task)}"]').hover()
        hint = page.locator("#hint").inner_text()
        assert hint.count("without near duplicates 43.21 ± 1.23 of 987 examples") == count == hint.count("without near")


def test_tie_groups_are_marked_in_the_sorted_column(open_board: Open) -> None:
    # Standard errors so large that several models share a group.
    data = page_data(small_board(stderr=0.05))
    page = open_board(data)
    sort_by(page, "MNLI", "descending")
    at = MATRIX.benchmark_names.index("mnli")
    groups = [data["views"]["trained"]["groups"][row][at] for row in range(len(MODELS))]
    rows = page.locator("#board tbody tr")
    order = rows.evaluate_all("(rows) => rows.map((row) => Number(row.id.split('-')[1]))")
    ends = [groups[one] != groups[other] for one, other in pairwise(order)]
    assert 0 < sum(ends) < len(ends)
    starts, odd = (
        rows.evaluate_all("(rows, name) => rows.map((row) => row.classList.contains(name))", name)
        for name in ("band-starts", "band-odd")
    )
    assert starts == [False, *ends]
    assert [one != other for one, other in pairwise(odd)] == ends
    bold = page.locator("#board .tied-first").evaluate_all("(cells) => cells.map((cell) => cell.dataset.cell)")
    tied = {f"{row} {at}" for row, group in enumerate(groups) if group == 1}
    assert {place for place in bold if place.endswith(f" {at}")} == tied


def test_every_control_can_be_reached_with_the_keyboard(open_board: Open, column: Column) -> None:
    page = open_board(DATA)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(({ id, ariaLabel, textContent }) => id || ariaLabel || textContent)(document.activeElement)")
        )
    controls = ("To the table", "theme", "search", "Family", "Benchmarks", "Download", "reset")
    table = ("board-region", "MNLI", "Pin Qwen/Qwen2.5-14B")
    reached = [text for text in reached if not text.startswith("Download plot")]  # a button of each chart
    places = [next(at for at, text in enumerate(reached) if name in text) for name in (*controls, *table)]
    assert places == sorted(places), reached
    page.locator('th[data-task="mnli"] [tabindex="0"], th[data-task="mnli"][tabindex="0"]').first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('th[data-task="mnli"][aria-sort="descending"]')
    page.locator("#board-region").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    # The standard error of a score is shown on keyboard focus as on hover.
    assert "±" in page.locator("#hint").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#hint").is_hidden()
    page.get_by_label("Pin google/gemma-2-9b").focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pin google/gemma-2-9b"
    assert column(page, "model")[0] == "google/gemma-2-9b"
