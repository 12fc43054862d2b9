"""Placement against scikit-learn's ridge regression with families left out, and the coverage of its intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from lm_harmony.analysis.benchmark_selection import nested_tau, select_benchmarks
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement import place, published_placement
from lm_harmony.analysis.placement_regression import LeaveOneFamilyOutRidge, PlacementBoard, placement_board, validate
from lm_harmony.analysis.training_noise import NO_NOISE
from lm_harmony.errors import UsageError

PAIR = ["arc_easy", "anli_r1"]


@pytest.fixture(scope="module")
def board() -> PlacementBoard:
    return published_placement()


def _scikit_learn(board: PlacementBoard, tasks: list[str], penalty: float) -> np.ndarray:
    model = Ridge(alpha=penalty) if penalty else LinearRegression()
    found: np.ndarray = cross_val_predict(model, board.scores[tasks], board.pc1, groups=board.families, cv=LeaveOneGroupOut())
    return found


def test_two_benchmarks_place_as_expected(board: PlacementBoard) -> None:
    found = validate(board, PAIR)
    expected = _scikit_learn(board, PAIR, found.penalty)
    # The intercept is not penalized in either. scikit-learn centres the data, which is equivalent.
    assert np.allclose(found.predicted, expected)
    assert found.tau == pytest.approx(stats.kendalltau(expected, board.pc1).statistic)
    assert 0.93 < found.tau < 0.94 and found.rmse < 50


def test_a_fit_never_sees_the_family_it_predicts(board: PlacementBoard) -> None:
    scores, families = board.scores[PAIR].to_numpy(), board.families.to_numpy(dtype=str)
    spoiled = board.pc1.where(board.families != "GPT-2", 1e6)
    right, other = (
        LeaveOneFamilyOutRidge(scores, pc1.to_numpy(), families).predict_left_out(1.0) for pc1 in (board.pc1, spoiled)
    )
    assert np.allclose(right[families == "GPT-2"], other[families == "GPT-2"])
    assert not np.allclose(right[families == "Qwen"], other[families == "Qwen"])


@pytest.mark.parametrize("tasks", [PAIR, ["rte"], ["gsm8k", "piqa", "mrpc"]])
def test_intervals_have_their_nominal_coverage_on_families_left_out(board: PlacementBoard, tasks: list[str]) -> None:
    assert validate(board, tasks).coverage >= 0.9


def test_a_model_with_every_benchmark_is_computed_not_predicted(board: PlacementBoard) -> None:
    published = ScoreMatrix.published()
    name = "google/gemma-2-2b"
    placed = place(board, name, published.oriented("trained").loc[name], published.trained.stderrs.loc[name])
    assert placed.missing == () and placed.pc1 == pytest.approx(board.pc1[name])
    assert placed.low < placed.pc1 < placed.high and placed.rank == 31 and placed.of == 60
    scores = published.oriented("trained").loc[name]
    exact = place(replace(board, noise=NO_NOISE), name, scores, scores * np.nan)
    assert exact.low == exact.high == exact.pc1 == placed.pc1


def test_a_published_model_is_left_out_of_the_fit_that_places_it(board: PlacementBoard) -> None:
    name = "EleutherAI/pythia-70m-deduped"
    scores = ScoreMatrix.published().oriented("trained").loc[name, PAIR]
    itself, renamed = (place(board, known, scores, scores * np.nan) for known in (name, "new"))
    assert itself.pc1 != renamed.pc1 and itself.of == 60 and renamed.of == 61
    assert itself.outside == ("anli_r1", "arc_easy") and renamed.outside == ()  # it is the weakest model on the board


def test_few_test_questions_widen_the_interval(board: PlacementBoard) -> None:
    name = "google/gemma-2-2b"
    scores = ScoreMatrix.published().oriented("trained").loc[name, PAIR]
    usual, coarse = (place(board, "new", scores, scores * 0 + stderr) for stderr in (0.001, 0.1))
    assert usual.low > coarse.low and usual.high < coarse.high and usual.pc1 == coarse.pc1
    assert coarse.rank_low <= usual.rank_low <= usual.rank <= usual.rank_high <= coarse.rank_high


def test_models_that_cannot_be_placed_are_refused(board: PlacementBoard) -> None:
    nothing = pd.Series({"corpus:w": 1.0})
    with pytest.raises(UsageError, match="has no trained score on any benchmark"):
        place(board, "new", nothing, nothing)
    matrix = matrix_of(random_table(2, 3))
    with pytest.raises(UsageError, match="models of 2 families, but at least 3"):
        placement_board(matrix, fit_reference(matrix))


@pytest.mark.parametrize("count", [1, 2])
def test_the_selection_is_the_best_of_all_subsets(board: PlacementBoard, count: int) -> None:
    found = select_benchmarks(board, count)
    assert found.tried == {1: 24, 2: 276}[count]
    for choice in (found.chosen, found.best, found.cheapest):
        expected = stats.kendalltau(_scikit_learn(board, list(choice.benchmarks), 0.0), board.pc1).statistic
        assert choice.tau == pytest.approx(expected)
        assert choice.train_rows == sum(min(50_000, int(board.train_rows[task])) for task in choice.benchmarks)
    assert found.best.tau - found.tolerance <= found.chosen.tau <= found.best.tau
    assert found.cheapest.train_rows <= found.chosen.train_rows


def test_a_wide_tolerance_selects_the_cheapest_benchmarks(board: PlacementBoard) -> None:
    found = select_benchmarks(board, 2, tolerance=2.0)
    assert found.chosen == found.cheapest and set(found.cheapest.benchmarks) == {"arc_easy", "arc_challenge"}


def test_more_benchmarks_place_better_and_the_selected_tau_is_optimistic(board: PlacementBoard) -> None:
    taus = [select_benchmarks(board, count).best.tau for count in (1, 2, 3)]
    assert taus == sorted(taus)
    assert nested_tau(board, 2) < taus[1]


@pytest.mark.parametrize("count", [0, 7])
def test_a_count_out_of_range_is_refused(board: PlacementBoard, count: int) -> None:
    with pytest.raises(UsageError, match=rf"between 1 and 6 \(got {count}\)"):
        select_benchmarks(board, count)
