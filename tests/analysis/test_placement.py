"""Placements of published models with families left out, and the selection of benchmarks against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from lm_harmony.analysis.benchmark_selection import nested_tau, select_benchmarks
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement import fit_placement, place, published_placement, validate
from lm_harmony.analysis.placement_board import PlacementBoard, placement_board
from lm_harmony.analysis.placement_fit import misfit
from lm_harmony.analysis.training_noise import NO_NOISE
from lm_harmony.errors import UsageError

PAIR = ["arc_easy", "anli_r1"]


@pytest.fixture(scope="module")
def board() -> PlacementBoard:
    return published_placement()


def _scikit_learn(board: PlacementBoard, tasks: list[str]) -> np.ndarray:
    found: np.ndarray = cross_val_predict(
        LinearRegression(), board.scores[tasks], board.pc1, groups=board.families, cv=LeaveOneGroupOut()
    )
    return found


def test_two_benchmarks_place_as_expected(board: PlacementBoard) -> None:
    found = validate(board, PAIR)
    regressed = _scikit_learn(board, PAIR)
    assert found.tau == pytest.approx(stats.kendalltau(found.predicted, board.pc1).statistic)
    assert found.tau > 0.92 and found.rmse < 60
    assert found.rmse == pytest.approx(np.sqrt(np.mean((found.predicted - board.pc1) ** 2)))
    # The noise of the second training shrinks the predictions, so that they are near those of least squares and not equal.
    assert np.corrcoef(regressed, found.predicted)[0, 1] > 0.99


def test_a_fit_never_sees_the_family_it_predicts(board: PlacementBoard) -> None:
    own = board.families == "GPT-2"
    spoiled = replace(board, scores=board.scores.where(~own, board.scores.loc[own, PAIR[0]].mean() + 3, axis=0))
    right, other = (fit_placement(one.without(list(own.index[own]))) for one in (board, spoiled))
    assert np.array_equal(right.exact, other.exact)
    assert not np.allclose(fit_placement(board).exact, fit_placement(spoiled).exact)


def test_the_misfit_of_a_new_family_is_what_families_have_in_common(board: PlacementBoard) -> None:
    """Negative control: groups of the same sizes with random members are predicted better."""
    shuffled = pd.Series(np.random.default_rng(0).permutation(board.families), index=board.families.index)
    known, new, random = misfit(board, new_family=False), misfit(board, new_family=True), replace(board, families=shuffled)
    assert 1 <= known < 1.3 and new > 1.5 * known
    assert misfit(random, new_family=True) < 0.8 * new  # what remains is the loss of so many models
    assert fit_placement(board).misfit == fit_placement(board, "Mistral").misfit == new
    assert fit_placement(board, "Yi").misfit == known


def test_unlike_models_are_predicted_from_nearly_all_benchmarks(board: PlacementBoard) -> None:
    """One missing benchmark of 24 says little about PC1, also of the weakest model, whose whole family is left out."""
    name = "EleutherAI/pythia-70m-deduped"
    placement = fit_placement(board.without(list(board.families.index[board.families == "Pythia"])))
    for missing in ("mrpc", "hellaswag", "arc_easy"):
        scores = board.scores.loc[name].drop(missing)
        assert placement.position(scores.to_dict(), {}).pc1 == pytest.approx(board.pc1[name], abs=60)


def test_a_model_with_every_benchmark_is_computed_not_predicted(board: PlacementBoard) -> None:
    published = ScoreMatrix.published()
    name = "google/gemma-2-2b"
    placed = place(board, name, published.oriented("trained").loc[name], published.trained.stderrs.loc[name])
    assert placed.missing == () and placed.pc1 == pytest.approx(board.pc1[name])
    assert placed.low < placed.pc1 < placed.high and placed.rank == 31 and placed.of == 60
    scores = published.oriented("trained").loc[name]
    exact = place(replace(board, noise=NO_NOISE), name, scores, scores * np.nan)
    assert exact.pc1 == placed.pc1 and exact.high - exact.low < 5 < placed.high - placed.low


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
    assert coarse.high - coarse.low > 1.5 * (usual.high - usual.low)
    assert (
        usual.rank_low <= usual.rank <= usual.rank_high and coarse.rank_high - coarse.rank_low > usual.rank_high - usual.rank_low
    )


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
        expected = stats.kendalltau(_scikit_learn(board, list(choice.benchmarks)), board.pc1).statistic
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
