"""Fixed and chosen learning rates: moves of ranks with intervals, agreement, and results that must not be mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table, write_run

from lm_harmony.analysis.bootstrap import rank_moves
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.preparation_comparison import compare_preparations
from lm_harmony.analysis.rate_comparison import RateComparison, chosen_rates, compare_rates
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.cli.main import main
from lm_harmony.errors import UsageError
from lm_harmony.recipe import PUBLISHED, Recipe

TASKS = ("arc_easy", "sciq", "piqa", "openbookqa", "boolq")
SEVERAL = replace(PUBLISHED, learning_rate=(5e-6, 2e-5))


def write_results(folder: Path, order: str, recipe: Recipe = PUBLISHED, *, left_out: str = "", stderr: float = 0.005) -> Path:
    """Write runs of models with one-letter names, the best first in ``order``. Model a always chose the second rate."""
    for place, model in enumerate(order):
        for number, task in enumerate(TASKS):
            if model != left_out or task != "sciq":
                epoch = 2 if model == "a" and recipe == SEVERAL else 1
                score = 0.9 - 0.1 * place - 0.01 * number
                write_run(folder, model=model, task=task, trained=score, stderr=stderr, recipe=recipe, chosen_epoch=epoch)
    return folder


def compared(chosen: Path, fixed: Path) -> RateComparison:
    matrices = (ScoreMatrix.from_records(folder) for folder in (chosen, fixed))
    return compare_rates(*matrices, chosen_rates(chosen, fixed))


def test_ranks_move_from_the_fixed_to_the_chosen_rates(tmp_path: Path) -> None:
    fixed, chosen = write_results(tmp_path / "f", "abcde"), write_results(tmp_path / "c", "bcade", SEVERAL)
    found = compared(chosen, fixed)
    assert found.moves["move"].to_dict() == {"a": -2, "b": 1, "c": 1, "d": 0, "e": 0}
    assert list(found.moves["fixed"]) == [1, 2, 3, 4, 5] and list(found.moves["chosen"]) == [3, 1, 2, 4, 5]
    assert (found.moves["low"] <= found.moves["move"]).all() and (found.moves["move"] <= found.moves["high"]).all()
    assert found.moved == ["a", "b", "c"]  # the errors are far smaller than the differences between models
    assert list(found.agreement.index) == ["fixed", "chosen", "chosen - fixed"]
    assert list(found.agreement["tau"]) == pytest.approx([1, 1, 0])
    assert list(found.benchmarks["tau"]) == pytest.approx([0.6] * 5)
    assert list(found.benchmarks["change"]) == pytest.approx([0] * 5)
    assert found.chosen["runs"].to_dict() == {5e-6: 20, 2e-5: 5}
    text = " ".join(found.sentences())
    assert "chosen on validation were 5e-06 by 20 runs, 2e-05 by 5 runs; compared on 5 models x 5 benchmarks" in text
    assert "have tau 0.600; mean move 0.80 ranks, largest 2 (a)" in text and "interval without 0: a, b, c;" in text


def test_equal_results_do_not_move(tmp_path: Path) -> None:
    """Nor does noise move a rank beyond its interval: with errors as large as the differences, no interval is without 0."""
    still = compared(write_results(tmp_path / "c", "abcde", SEVERAL), write_results(tmp_path / "f", "abcde"))
    assert not still.moves["move"].any() and still.moved == []
    noisy = compared(
        write_results(tmp_path / "nc", "bcade", SEVERAL, stderr=0.4), write_results(tmp_path / "nf", "abcde", stderr=0.4)
    )
    assert noisy.moves["move"].any() and noisy.moved == []


def test_intervals_of_moves_pair_the_benchmarks() -> None:
    """Equal boards without noise have no move in any draw, although single ranks vary over benchmarks; unpaired draws would."""
    board = matrix_of(random_table(8, 6), stderr=0.0)
    assert (rank_moves(board, board)[["move", "low", "high"]] == 0).all(axis=None)
    other = matrix_of(random_table(8, 6, seed=1), stderr=0.0)
    moves = rank_moves(board, other)
    assert (moves["high"] > moves["low"]).any()
    assert list(moves["move"]) == list(components(board).ranks - components(other).ranks)
    turned = other.subset(reversed(other.model_names), reversed(other.benchmark_names))
    pd.testing.assert_frame_equal(rank_moves(board, turned), moves)
    few = board.subset(benchmarks=board.benchmark_names[:3])
    assert rank_moves(few, few)["low"].isna().all()


def test_intervals_hold_unchanged_models_and_leave_out_a_large_change() -> None:
    """Simulated boards whose scores differ by noise alone, and with the worst model raised above all others."""
    rng, err = np.random.default_rng(0), 0.03
    outside, found = 0, 0
    for _ in range(15):
        true = 0.5 + rng.normal(0, 0.1, (8, 1)) + rng.normal(0, 0.05, (8, 6))
        worst = int(np.argmin(true.mean(axis=1)))
        raised = true + 0.5 * (np.arange(8) == worst)[:, None]
        boards = [matrix_of(pd.DataFrame(one + err * rng.standard_normal(one.shape)), stderr=err) for one in (true, true, raised)]
        still, moved = (rank_moves(boards[0], board, draws=300) for board in boards[1:])
        outside += int(((still["low"] > 0) | (still["high"] < 0)).sum())
        found += int(moved["low"].iloc[worst] > 0)
    assert outside <= 0.05 * 15 * 8 and found >= 14


def test_agreement_is_that_of_the_comparison_of_preparations(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = {name: pd.DataFrame(rng.uniform(0.2, 0.9, (6, 5)), [*"abcdef"], [*TASKS]) for name in ("fixed", "chosen")}
    boards = {name: matrix_of(table, stderr=0.02) for name, table in tables.items()}
    found = compare_rates(boards["chosen"], boards["fixed"], pd.DataFrame({"runs": [1]}, index=[2e-5]))
    rows = [
        ScoreRow(model=model, benchmark=task, preparation=preparation, value=float(tables[name].loc[model, task]), stderr=0.02)
        for name, preparation in (("fixed", "direct"), ("chosen", "trained"))
        for model in "abcdef"
        for task in TASKS
    ]
    same = compare_preparations(ScoreMatrix.from_rows(ScoreRows(source="both", rows=tuple(rows))))
    np.testing.assert_allclose(found.agreement.to_numpy(), pd.concat([same.table, same.differences]).to_numpy())


def test_only_models_and_benchmarks_of_both_are_compared(tmp_path: Path) -> None:
    fixed, chosen = write_results(tmp_path / "f", "abcde"), write_results(tmp_path / "c", "abcd", SEVERAL, left_out="b")
    found = compared(chosen, fixed)
    assert found.basis.models == ("a", "b", "c", "d") and found.basis.dropped_benchmarks == ("sciq",)
    assert found.basis.dropped_models == ("e",)


def test_results_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    fixed, chosen = write_results(tmp_path / "f", "abc"), write_results(tmp_path / "c", "abc", SEVERAL)
    longer = write_results(tmp_path / "e", "abc", replace(PUBLISHED, epochs=3))
    for first, second, message in (
        (fixed, chosen, r"fixed: a on arc_easy in .*f was run with learning_rate = 2e-05\. Give results with choose: validation"),
        (chosen, chosen, r"fixed: a on arc_easy in .*c was run with learning_rate = \(5e-06, 2e-05\)"),
        (
            chosen,
            longer,
            r"fixed: a on arc_easy has recipe\.epochs 5 in .* and 3 in .*, so that ranks would move for another reason",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            chosen_rates(first, second)
    one = write_results(tmp_path / "one", "a", SEVERAL)
    with pytest.raises(UsageError, match="fixed: 1 model and 5 benchmarks have a trained score in both"):
        compared(one, fixed)


def test_boards_do_not_mix_fixed_and_chosen_rates(tmp_path: Path) -> None:
    """One model's runs are refused. Different models' runs are allowed, as with other recipes, and the notes name them."""
    write_run(tmp_path / "one", model="a", recipe=SEVERAL)
    write_run(tmp_path / "one", model="a", seed=1)
    with pytest.raises(UsageError, match=r"different settings: recipe\.learning_rate \[5e-06, 2e-05\] and 2e-05"):
        ScoreMatrix.from_records(tmp_path / "one")
    write_run(tmp_path / "two", model="a", recipe=SEVERAL)
    write_run(tmp_path / "two", model="b")
    notes = ScoreMatrix.from_records(tmp_path / "two").notes
    assert "arc_easy: its models were trained by 2 recipes" in notes
    assert "arc_easy: 1 of 2 runs chose their learning rate on validation, which is another recipe" in notes
    plain = write_results(tmp_path / "plain", "ab")
    assert not any("learning rate" in note for note in ScoreMatrix.from_records(plain).notes)


def test_the_command_writes_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed, chosen = write_results(tmp_path / "f", "abcde"), write_results(tmp_path / "c", "bcade", SEVERAL)
    words = ["analyze", str(chosen), "--no-figures", "-o", str(tmp_path / "out")]
    assert main([*words, "--fixed", str(fixed)]) == 0
    assert "learning rate, chosen minus fixed: mean tau +0.00" in capsys.readouterr().out
    tables = tmp_path / "out" / "tables"
    moves = pd.read_csv(tables / "rate_moves.csv", index_col="model")
    assert list(moves.columns) == ["fixed", "chosen", "move", "low", "high"] and moves.loc["a", "move"] == -2
    assert list(pd.read_csv(tables / "rates_chosen.csv")["runs"]) == [20, 5]
    assert {"rate_agreement.csv", "rate_benchmarks.csv"} <= {path.name for path in tables.iterdir()}
    assert main([*words[:-1], str(tmp_path / "plain")]) == 0
    assert "learning rate, " not in capsys.readouterr().out
    assert not list((tmp_path / "plain" / "tables").glob("rate*.csv"))
