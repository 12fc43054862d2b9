"""The leaderboard: order, intervals, new models, gaps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from boards import matrix_of, published_ranks, random_table, write_run
from shared import ROOT

from lm_harmony.analysis.leaderboard import NEW_MODEL_SUFFIX, own_board, published_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.placement import placement_of
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.errors import UsageError


def test_the_published_board_has_the_published_values() -> None:
    board = published_board()
    places = published_ranks()
    assert [row.rank for row in board.rows] == list(range(1, 62))
    assert all(abs((row.pc1 or 0) - places[row.model].pc1) < 0.01 and row.rank == places[row.model].rank for row in board.rows)
    assert board.explained == pytest.approx(0.8546, abs=1e-4) and "standard errors are not known for CoLA" in board.notes[0]
    assert "what a place is worth" in board.notes[1]
    page = (ROOT / "docs" / "read_a_board.md").read_text(encoding="utf-8")
    assert all(number in page for number in re.findall(r"0\.\d+", board.notes[1]))  # both have the figures of bench.coverage


def test_scores_outside_the_published_range_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, model="mine/best", task="arc_challenge", trained=0.95)
    write_run(tmp_path, model="mine/usual", task="arc_challenge", trained=0.5)
    [note] = [note for note in published_board(ScoreMatrix.from_records(tmp_path)).notes if note.startswith("extrapolated")]
    assert note.endswith(": mine/best (ARC-Challenge)")


def test_new_models_are_placed_and_do_not_change_published_models(tmp_path: Path) -> None:
    write_run(tmp_path, model="mine/few", trained=0.89)
    write_run(tmp_path, model="mine/other", task="corpus:w", metric="bits_per_byte,none", higher=False)
    write_run(tmp_path, model="openai-community/gpt2", trained=0.44)
    board = published_board(ScoreMatrix.from_records(tmp_path))
    rows = {row.model: row for row in board.rows}
    assert [row for row in board.rows if row.basis == "board"] == list(published_board().rows)
    few = rows["mine/few"]
    assert few.basis == "predicted" and few.rank_low is not None and few.rank_low <= (few.rank or 0) <= (few.rank_high or 0)
    assert rows["openai-community/gpt2" + NEW_MODEL_SUFFIX].basis == "predicted" and board.rows[-1].model == "mine/other"
    assert board.scores.loc["mine/few", "arc_easy"] == 0.89 and np.isnan(board.scores.loc["mine/few", "rte"])
    assert "not shown, because the published board does not have them: w" in board.notes


def test_gaps_leave_a_model_without_pc1_but_on_the_board() -> None:
    table = random_table(6, 4)
    table.loc["m2", ["b1", "b3"]] = np.nan
    board = own_board(matrix_of(table))
    assert board.rows[-1].model == "m2" and board.rows[-1].rank is None and board.rows[-1].basis == "none"
    assert any("left out because of gaps: m2" in note for note in board.notes) and any(
        "2 scores are missing" in n for n in board.notes
    )


def test_a_board_too_small_for_pc1_states_the_reason() -> None:
    board = own_board(matrix_of(random_table(1, 3)))
    assert board.reference.startswith("no PC1: components") and [row.model for row in board.rows] == ["m0"]


def test_a_missing_preparation_is_refused_and_the_other_one_suggested() -> None:
    with pytest.raises(UsageError, match=r"no direct scores.*--preparation trained"):
        own_board(matrix_of(random_table(3, 3)), "direct")
    with pytest.raises(UsageError, match="no trained scores"):
        published_board(matrix_of(direct=random_table(3, 3)))


def test_another_metric_is_not_placed(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", metric="acc,none")
    with pytest.raises(UsageError, match="has acc,none, the published board acc_norm,none"):
        placement_of(ScoreMatrix.from_records(tmp_path), "a")


def test_a_summary_names_skipped_analyses() -> None:
    made = analyze_matrix(matrix_of(random_table(5, 3), stderr=0.1))
    assert set(made.agreements) == {"trained"} and made.change is None and made.perplexity == ()
    assert any("no direct scores" in line for line in made.skipped) and any("text corpus" in line for line in made.skipped)
    with pytest.raises(UsageError, match="has no scores"):
        analyze_matrix(matrix_of(random_table(2, 2) * np.nan))
