"""Tests, rank ranges and tie groups, compared with scipy and with values computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.significance import distinguishable_pairs, holm, pairwise_tests, rank_ranges, tie_groups
from lm_harmony.errors import UsageError


def _one(scores: dict[str, float], *, stderr: float | None = 0.01, lower: bool = False) -> ScoreMatrix:
    table = pd.DataFrame({"b": scores})
    return matrix_of(table, stderr=stderr, lower=["b"] if lower else [])


def test_holm_by_hand() -> None:
    # Sorted: .005 .01 .03 .04. Times 4 3 2 1: .02 .03 .06 .04. Made monotone: .02 .03 .06 .06.
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert np.allclose(holm(np.array([0.5, np.nan, 0.9])), [1.0, np.nan, 1.0], equal_nan=True)
    assert holm(np.array([])).size == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_the_p_value_and_bonferroni(values: list[float]) -> None:
    p = np.array(values)
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_pairwise_tests_are_z_tests() -> None:
    found = pairwise_tests(_one({"x": 0.7, "y": 0.67, "z": 0.5}), "b")
    assert found.difference.loc["x", "y"] == pytest.approx(0.03)
    assert found.p.loc["x", "y"] == pytest.approx(2 * stats.norm.sf(0.03 / np.hypot(0.01, 0.01)))
    # x-y has the largest of three p-values, which Holm does not change.
    assert found.holm.loc["x", "y"] == found.holm.loc["y", "x"] == pytest.approx(found.p.loc["x", "y"])


def test_rank_ranges_by_hand() -> None:
    # 1.96 * sqrt(2) * 0.01 = 0.0277: a-b and b-c are not distinguishable, a-c is, and d is below all.
    table = rank_ranges(_one({"c": 0.66, "a": 0.70, "d": 0.5, "b": 0.68}), "b").table
    assert list(table.index) == ["a", "b", "c", "d"] and list(table["rank"]) == [1, 2, 3, 4]
    assert list(zip(table["low"], table["high"], strict=True)) == [(1, 2), (1, 3), (2, 3), (4, 4)]
    assert list(table["group"]) == [1, 1, 2, 3]


def test_rank_ranges_use_the_direction_of_the_metric() -> None:
    scores = {"a": 1.0, "b": 0.5}
    assert list(rank_ranges(_one(scores), "b").table.index) == ["a", "b"]
    turned = rank_ranges(_one(scores, lower=True), "b").table
    assert list(turned.index) == ["b", "a"] and turned.loc["b", "score"] == 0.5


def test_correction_widens_ranges() -> None:
    scores = {f"m{i:02}": 0.5 + 0.012 * i for i in range(12)}
    plain, corrected = (rank_ranges(_one(scores), "b", corrected=c).table for c in (False, True))
    wider = (corrected["low"] <= plain["low"]) & (corrected["high"] >= plain["high"])
    assert wider.all() and not corrected.equals(plain)


def test_without_standard_errors_only_ranks_are_given() -> None:
    found = rank_ranges(_one({"a": 0.9, "b": 0.1}, stderr=None), "b")
    assert found.without_stderr == ("a", "b") and found.table[["low", "high", "group"]].isna().all(axis=None)
    assert list(found.table["rank"]) == [1, 2]


def test_models_without_a_score_are_named() -> None:
    found = rank_ranges(_one({"a": 0.9, "b": float("nan")}), "b")
    assert found.without_score == ("b",) and list(found.table.index) == ["a"]


def test_equal_scores_without_spread_are_equal() -> None:
    table = rank_ranges(_one({"a": 1.0, "b": 1.0, "c": 0.9}, stderr=0.0), "b").table
    assert list(table["rank"]) == [1, 1, 3] and list(table["group"]) == [1, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=10), st.randoms(use_true_random=False))
def test_ranges_contain_the_rank_in_any_order(scores: list[int], random: object) -> None:
    named = {f"m{i}": score / 400 for i, score in enumerate(scores)}
    table = rank_ranges(_one(named), "b").table
    assert (table["low"] <= table["rank"]).all() and (table["rank"] <= table["high"]).all()
    items = list(named.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    other = rank_ranges(_one(dict(items)), "b").table
    pd.testing.assert_frame_equal(table.sort_index(), other.sort_index())


def test_distinguishable_pairs_are_counted() -> None:
    table = distinguishable_pairs(_one({"a": 0.70, "b": 0.68, "c": 0.66, "d": 0.5}))
    # Beyond 0.0277: a-c and the three pairs with d. c is 2.83 standard errors behind a: p = 0.0047, times 3 after Holm.
    assert list(table.loc["b"]) == [4, 6, pytest.approx(4 / 6), pytest.approx(4 / 6)]
    assert np.isnan(distinguishable_pairs(_one({"a": 0.7, "b": 0.5}, stderr=None)).loc["b", "plain"])


def test_tie_groups_start_at_significantly_worse_models() -> None:
    significantly_better = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert tie_groups(4, lambda leader: significantly_better[leader]) == [1, 1, 2, 2]
    assert tie_groups(0, lambda leader: significantly_better[leader]) == []


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(UsageError, match="benchmark 'c' is not in a small matrix"):
        rank_ranges(_one({"a": 1.0}), "c")
