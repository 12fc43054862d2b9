"""The bootstrap of PC1: exact without noise, close to the analytic error with little noise, wider with resampled benchmarks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table

from lm_harmony.analysis.bootstrap import _weighted_pc1, pc1_intervals, rank_errors, rank_moves
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components, fit_reference


def test_without_resampling_the_interval_is_a_point() -> None:
    matrix = matrix_of(random_table(8, 4), stderr=0.1)
    table = pc1_intervals(matrix, examples=False, benchmarks=False, draws=5).table
    assert np.allclose(table["low"], table["pc1"]) and np.allclose(table["high"], table["pc1"])
    assert list(table["rank_low"]) == list(table["rank"]) == list(table["rank_high"]) == list(range(1, 9))
    assert list(table["group"]) == list(range(1, 9))
    assert np.allclose(table["pc1"], components(matrix).pc1[table.index])


@pytest.mark.parametrize("seed", range(12))
def test_models_with_equal_scores_share_rank_and_interval(seed: int) -> None:
    table = random_table(8, 5, seed)
    table.loc["m5"] = table.loc["m7"] = table.loc["m2"]
    found = pc1_intervals(matrix_of(table)).table
    copies = found.loc[["m2", "m5", "m7"]]
    assert len(copies.drop_duplicates()) == 1
    assert found["rank"].between(found["rank_low"], found["rank_high"]).all()


def test_a_weight_equals_that_number_of_copies() -> None:
    table = random_table(9, 3)
    copies = table[["b0", "b2", "b2"]].set_axis(["x", "y", "z"], axis=1)
    weighted = _weighted_pc1(table.to_numpy()[None], np.array([[1.0, 0.0, 2.0]]))[0]
    assert np.allclose(weighted, components(matrix_of(copies)).pc1)


def test_little_noise_gives_the_standard_error_that_the_loadings_predict() -> None:
    table, stderr = random_table(60, 6), 0.01
    matrix = matrix_of(table, stderr=stderr)
    reference = fit_reference(matrix)
    expected = 100 * stderr * np.sqrt(((reference.loadings / reference.scales) ** 2).sum())
    found = pc1_intervals(matrix, benchmarks=False, draws=2000).table
    assert np.mean((found["high"] - found["low"]) / (2 * 1.96)) == pytest.approx(expected, rel=0.1)


def test_resampled_benchmarks_widen_intervals() -> None:
    matrix = ScoreMatrix.published()
    both, examples = pc1_intervals(matrix), pc1_intervals(matrix, benchmarks=False)
    assert ((both.table["high"] - both.table["low"]) > (examples.table["high"] - examples.table["low"])).mean() > 0.95
    assert both.without_stderr == ("cola",) and both.draws == 1000
    assert (both.table["rank_low"] <= both.table["rank"]).all() and (both.table["rank"] <= both.table["rank_high"]).all()


def test_the_same_seed_gives_the_same_intervals() -> None:
    matrix = matrix_of(random_table(10, 4), stderr=0.1)
    first = pc1_intervals(matrix, draws=50).table
    assert first.equals(pc1_intervals(matrix, draws=50).table)
    assert not first.equals(pc1_intervals(matrix, draws=50, seed=1).table)


def test_the_order_of_models_and_benchmarks_does_not_change_the_intervals() -> None:
    """Negative control: another seed does."""
    matrix = matrix_of(random_table(10, 6), stderr=0.1)
    first = pc1_intervals(matrix, draws=50).table
    turned = matrix.subset(matrix.model_names[::-1], [matrix.benchmark_names[place] for place in (3, 0, 5, 1, 4, 2)])
    pd.testing.assert_frame_equal(pc1_intervals(turned, draws=50).table, first)
    other = pc1_intervals(turned, draws=50, seed=1).table
    assert not np.allclose(other[["low", "high"]], first[["low", "high"]], rtol=0.01)


def test_the_order_of_models_and_benchmarks_does_not_change_errors_and_moves_of_ranks() -> None:
    """Negative control: another seed does."""
    before, after = (matrix_of(random_table(10, 6, seed=seed), stderr=0.3) for seed in (0, 1))
    errors, moves = rank_errors(before, draws=50), rank_moves(before, after, draws=50)
    turned = before.model_names[::-1], [before.benchmark_names[place] for place in (3, 0, 5, 1, 4, 2)]
    pd.testing.assert_series_equal(rank_errors(before.subset(*turned), draws=50)[errors.index], errors)
    found = rank_moves(before.subset(*turned), after, draws=50)
    assert tuple(found.index) == turned[0]
    pd.testing.assert_frame_equal(found.loc[moves.index], moves)
    assert not np.allclose(rank_errors(before, draws=50, seed=1), errors, rtol=1e-4)
    assert not rank_moves(before, after, draws=50, seed=1).equals(moves)


def test_models_with_overlapping_draws_share_a_tie_group() -> None:
    table = random_table(6, 5)
    table.loc["m1"] = table.loc["m0"] + 1e-6
    table.loc["m2"] = table.min() - 3
    found = pc1_intervals(matrix_of(table, stderr=0.05), benchmarks=False).table
    assert found.loc["m0", "group"] == found.loc["m1", "group"]
    assert found.loc["m2", "group"] == found["group"].max() and found.loc["m2", "rank_low"] == 6
