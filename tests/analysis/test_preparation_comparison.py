"""Mean tau and the share of PC1 of every preparation equal those of the other analyses, and their intervals hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from page_boards import small_board

from lm_harmony.analysis.agreement import agreement
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.preparation_comparison import compare_preparations
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.errors import UsageError
from lm_harmony.report.report_folder import summary_lines, write_tables

BOARD = small_board(few_shot=(5, 25)).downstream()
TASKS = ("mnli", "qqp", "medmcqa", "qnli", "sst2", "winogrande", "hellaswag", "piqa")


def board_of(values: dict[str, npt.NDArray[np.float64]], stderr: float | None) -> ScoreMatrix:
    """Return a matrix of scores, preparation -> models x benchmarks."""
    rows = [
        ScoreRow(model=f"m{i}", benchmark=TASKS[j], preparation=name, value=float(value), stderr=stderr)
        for name, table in values.items()
        for (i, j), value in np.ndenumerate(np.clip(table, 0, 1))
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="simulated", rows=tuple(rows)))


def test_estimates_are_those_of_the_other_analyses_on_the_common_part() -> None:
    found = compare_preparations(BOARD)
    part = BOARD.subset(found.models, found.benchmarks)
    assert len(found.models) == len(BOARD.models) - 1  # one has a gap in its trained scores
    assert list(found.table.index) == ["direct", "direct_5shot", "direct_25shot", "trained"]
    for name, row in found.table.iterrows():
        assert row["tau"] == pytest.approx(agreement(part, str(name)).mean_tau)
        assert row["pc1_share"] == pytest.approx(components(part, str(name)).explained[0])
        assert -1 <= row["tau_low"] < row["tau"] < row["tau_high"] <= 1
        assert 0 <= row["pc1_share_low"] < row["pc1_share"] < row["pc1_share_high"] <= 1
    differences = found.differences.loc["trained - direct_5shot"]
    assert differences["tau"] == pytest.approx(found.table.loc["trained", "tau"] - found.table.loc["direct_5shot", "tau"])
    assert len(found.differences) == 6


def test_the_order_of_models_and_benchmarks_does_not_matter() -> None:
    """Negative control: another seed changes the intervals."""
    turned = BOARD.subset(reversed(BOARD.model_names), reversed(BOARD.benchmark_names))
    ours, theirs = compare_preparations(BOARD).table, compare_preparations(turned).table
    pd.testing.assert_frame_equal(ours, theirs)
    other = compare_preparations(BOARD, seed=1).table
    assert not np.allclose(ours["tau_low"], other["tau_low"], rtol=1e-5)


def test_intervals_hold_the_expected_values() -> None:
    """In simulations with eight benchmarks, intervals hold the value that is expected over benchmarks and test questions."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(80):
        skill = np.linspace(-1, 1, 12)[:, None]
        tables = {
            name: 0.5 + 0.08 * skill + other * random.standard_normal((12, 8)) + 0.02 * random.standard_normal((12, 8))
            for name, other in (("direct", 0.1), ("direct_5shot", 0.05), ("trained", 0.02))
        }
        compared = compare_preparations(board_of(tables, 0.02), draws=20)
        found.append(np.concatenate([compared.table.to_numpy(), compared.differences.to_numpy()]))
    simulated = np.array(found)
    for column in (0, 3):
        truth = simulated[:, :, column].mean(axis=0)
        low, high = simulated[:, :, column + 1], simulated[:, :, column + 2]
        held = ((low <= truth) & (truth <= high)).mean(axis=0)
        assert (held >= 0.88).all(), held
        # Negative control: intervals of a third of the width do not hold it.
        middle, half = (low + high) / 2, (high - low) / 6
        assert (np.abs(middle - truth) <= half).mean() < 0.75


def test_there_is_no_interval_from_few_benchmarks_or_unknown_errors() -> None:
    few = compare_preparations(BOARD.subset(benchmarks=BOARD.benchmark_names[:3])).table
    unknown = compare_preparations(
        board_of({name: np.random.default_rng(1).random((6, 5)) for name in ("direct", "trained")}, None)
    )
    for table in (few, unknown.table):
        assert table["tau"].notna().all() and table[["tau_low", "pc1_share_high"]].isna().all().all()
    assert "[" not in "".join(unknown.sentences())


def test_the_analysis_shows_it_where_there_are_scores_with_examples(tmp_path: Path) -> None:
    made = analyze_matrix(BOARD)
    assert made.preparations is not None
    lines = [line for line in summary_lines(made) if line.startswith("direct 5-shot, on the 9 models x 4 benchmarks")]
    row = made.preparations.table.loc["direct_5shot"]
    assert lines == [made.preparations.sentences()[1]] and f"mean tau {row['tau']:.2f} [" in lines[0]
    assert "trained minus direct 25-shot" in made.preparations.sentences()[-1]
    assert any(path.name == "preparations.csv" for path in write_tables(made, tmp_path))
    plain = analyze_matrix(replace(BOARD, few_shot={}))
    assert plain.preparations is None and not any("5-shot" in line for line in summary_lines(plain))
    assert not any(path.name == "preparations.csv" for path in write_tables(plain, tmp_path / "plain"))


def test_equal_scores_are_refused_with_the_reason() -> None:
    tables = {"direct": np.full((4, 4), 0.5), "direct_5shot": np.random.default_rng(0).random((4, 4))}
    with pytest.raises(UsageError, match="all models have the same direct score on one"):
        compare_preparations(board_of(tables, 0.1))
    assert any("same direct score" in line for line in analyze_matrix(board_of(tables, 0.1)).skipped)
