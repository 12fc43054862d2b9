"""Boards as text: files can be read again, names are escaped, and scores are in the metric's unit."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from boards import matrix_of, random_table, write_run
from page_boards import GAP, small_board
from rich.console import Console

from lm_harmony.analysis.leaderboard import own_board, published_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.paired import compare
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.report.page_data import page_data
from lm_harmony.report.report_folder import summary_lines, write_tables
from lm_harmony.report.tables import board_csv, board_json, board_markdown, board_table, comparison_table


def _printed(table: object, width: int = 400) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("preparation", ["trained", "direct"])
def test_csv_can_be_read_again_with_scores_and_gaps(tmp_path: Path, preparation: str) -> None:
    matrix = small_board()
    path = tmp_path / "board.csv"
    path.write_text(board_csv(own_board(matrix, preparation)), encoding="utf-8")  # type: ignore[arg-type]
    again = ScoreMatrix.from_csv(path)
    assert again.has(preparation) and sum(again.has(p) for p in ("direct", "trained")) == 1  # type: ignore[arg-type]
    before = matrix.scores(preparation).values.loc[list(again.model_names)]  # type: ignore[arg-type]
    assert np.allclose(again.scores(preparation).values, before, atol=1e-6, equal_nan=True)  # type: ignore[arg-type]


def test_the_published_board_is_unchanged_by_writing_and_reading_csv(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text(board_csv(published_board()), encoding="utf-8")
    fitted = own_board(ScoreMatrix.from_csv(path))
    assert [row.model for row in fitted.rows] == [row.model for row in published_board().rows]


def test_json_holds_everything_and_gaps_are_null() -> None:
    held = json.loads(board_json(own_board(small_board())))
    [row] = [row for row in held["rows"] if row["model"] == GAP[0]]
    assert row["scores"][GAP[1]] is None and row["pc1"] is None and row["basis"] == "none"
    assert held["rows"][0]["rank"] == 1 and held["explained"] > 0.5 and len(held["benchmarks"]) == 5


def test_markdown_escapes_names() -> None:
    table = random_table(3, 3).set_axis(["a|b", "<script>x</script>", "[l](http://e)"], axis=0)
    text = board_markdown(own_board(matrix_of(table)))
    assert "a\\|b" in text and "\\<script\\>" in text and "\\[l\\](http://e)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_terminal_table_reports_hidden_columns_and_ignores_markup_in_names() -> None:
    board = own_board(matrix_of(random_table(3, 9).set_axis(["[red]m[/red]", "n", "o"], axis=0)))
    narrow = _printed(board_table(board, 80), 80)
    assert "of 9 benchmarks do not fit" in narrow and "[red]m[/red]" in narrow
    wide = _printed(board_table(board, 400))
    assert "do not fit" not in wide and "fractions in %" in wide


def test_predicted_ranks_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, model="mine", trained=0.8)
    text = board_markdown(published_board(ScoreMatrix.from_records(tmp_path)))
    [line] = [line for line in text.splitlines() if "| mine |" in line]
    assert line.startswith("| ~") and "Reference: the published board" in text


def scores_of(metric: str, *values: float) -> ScoreMatrix:
    """Return a matrix of one benchmark and its scores in the metric's own unit."""
    rows = [
        ScoreRow(model=f"m{i}", benchmark="own", preparation="trained", value=value, metric=metric, higher_is_better=True)
        for i, value in enumerate(values)
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="own scores", rows=tuple(rows)))


@pytest.mark.parametrize(
    ("metric", "score", "shown", "factor"),
    [
        ("chrf,none", 24.6215, "24.62", 1),  # 0 to 100
        ("brier_score,none", 0.61234, "0.6123", 1),  # 0 to 2
        ("word_perplexity,none", 12.345, "12.35", 1),
        ("rouge_l,none", 31.5, "31.50", 1),  # range is not known, but is not a fraction
        ("acc,none", 0.2462, "24.62", 100),
        ("mcc,none", -0.25, "-25.00", 100),
        ("own_accuracy,none", 0.5, "50.00", 100),  # range is not known, and may be a fraction
    ],
)
def test_only_fractions_are_shown_in_percent(metric: str, score: float, shown: str, factor: int) -> None:
    matrix = scores_of(metric, score, score / 2)
    board = own_board(matrix)
    texts = [
        _printed(board_table(board, 200)),
        board_markdown(board),
        _printed(comparison_table(compare(matrix, "m0", "m1"), {"own": board.benchmarks[0]})),
    ]
    assert all(shown in text for text in texts)
    assert page_data(matrix)["benchmarks"][0]["factor"] == factor
    held = json.loads(board_json(board))
    assert held["rows"][0]["scores"]["own"] == score and "percent" not in held["benchmarks"][0]
    assert f"{100 * score:.6g}" in board_csv(board)  # the wide layout is in percent, whatever the metric


def test_a_comparison_is_laid_out_in_the_metrics_units() -> None:
    published = ScoreMatrix.published()
    found = compare(published, "google/gemma-2-9b", "google/gemma-7b")
    text = _printed(comparison_table(found, {benchmark.task: benchmark for benchmark in published.benchmarks}))
    assert "91.03" in text and "+7.65 ± 1.07" in text and "<0.0001 *" in text


def test_tables_can_be_written_and_read_again(tmp_path: Path) -> None:
    made = analyze_matrix(small_board())
    written = write_tables(made, tmp_path)
    assert all(path.is_file() for path in written) and (tmp_path / "summary.md").read_text().startswith("# a small board")
    again = ScoreMatrix.from_csv(tmp_path / "tables" / "scores.csv")
    assert np.allclose(again.trained.values, small_board().trained.values[list(again.benchmark_names)], equal_nan=True)
    assert len(again.gaps("trained")) == 1
    lines = summary_lines(made)
    assert any(line.startswith("agreement, trained: mean Kendall's tau") for line in lines)
    assert any(line.startswith("perplexity (direct) and benchmarks (trained), all") for line in lines)


def test_the_summary_has_the_shares_of_five_components() -> None:
    table = random_table(9, 6)
    shares = np.linalg.eigvalsh(np.corrcoef(table.to_numpy().T))[::-1] / 6
    [line] = [
        line for line in summary_lines(analyze_matrix(matrix_of(table, stderr=0.1))) if line.startswith("components, trained")
    ]
    assert line.startswith(f"components, trained: variance explained {', '.join(f'{share:.1%}' for share in shares[:5])}; on ")


def test_the_summary_of_equal_scores_has_no_nan() -> None:
    equal = random_table(4, 5) * 0 + 0.5
    lines = summary_lines(analyze_matrix(matrix_of(equal, equal, stderr=0.1)))
    assert not [line for line in lines if re.search(r"\bnan\b", line)]
    assert any(line.startswith("noise ceiling, trained:") and "measured is undefined" in line for line in lines)


def test_a_narrow_terminal_cuts_no_number_and_shows_the_ends_of_paths() -> None:
    folders = [f"/home/somebody/projects/language-models/checkpoints/model-{letter}" for letter in "abcd"]
    board = own_board(matrix_of(random_table(4, 3).set_axis(folders, axis=0)))
    printed = _printed(board_table(board, 80), width=80)
    for row in board.rows:
        assert f"│ {row.model.rsplit('/', 1)[1]} " in printed and "/home" not in printed
        assert row.pc1 is not None and f" {row.pc1:.2f} " in printed
    long = [f"organisation-of-many/model-of-{letter * 60}" for letter in "abcd"]
    hub = own_board(matrix_of(random_table(4, 3).set_axis(long, axis=0)))
    printed = _printed(board_table(hub, 80), width=80)
    assert all(f" {row.pc1:.2f} " in printed for row in hub.rows if row.pc1 is not None)
    assert all(letter * 60 in "".join(character for character in printed if character == letter) for letter in "abcd")
