"""Significance of differences between scores: pairwise tests, rank ranges, tie groups.

The test of two models on one benchmark is a z-test: z = (a - b) / sqrt(e_a^2 + e_b^2), significant if |z| > 1.96 (two-sided, 5%).
The models answer the same questions, so their errors are positively correlated and the test is conservative. ``paired`` has more
powerful tests for two models whose outcomes are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.errors import UsageError, did_you_mean

Z_THRESHOLD = 1.96
"""Critical value of z (two-sided, 5%)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankRanges:
    """The ranges of ranks on one benchmark that are compatible with the standard errors of the scores."""

    preparation: Preparation
    """Preparation of the scores."""
    benchmark: str
    """Task name of the benchmark."""
    corrected: bool
    """Whether p-values are corrected over all pairs of models by Holm's method."""
    table: pd.DataFrame
    """Models, best first, x (score, stderr, rank, low, high, group). ``low`` is the best rank, 1 + the number of significantly
    better models. ``high`` is the worst rank, N - the number of significantly worse models. ``group`` is the tie group."""
    without_score: tuple[str, ...]
    """Models without a score, which are not in the table."""
    without_stderr: tuple[str, ...]
    """Models without a standard error. They have a rank but no range, and the ranges of other models ignore them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairwiseTests:
    """The tests of every two models on one benchmark; each table is models x models."""

    difference: pd.DataFrame
    """Difference of the oriented scores, row minus column."""
    p: pd.DataFrame
    """Two-sided p-values; NaN where a standard error is not known."""
    holm: pd.DataFrame
    """p-values corrected over all pairs of models by Holm's method."""


def pairwise_tests(matrix: ScoreMatrix, benchmark: str, preparation: Preparation = "trained") -> PairwiseTests:
    """Test every two models of ``matrix`` that have a score on one benchmark.

    Raises:
        UsageError: the benchmark is unknown.
    """
    values, errors = _column(matrix, benchmark, preparation)
    difference, p = _tests(values.to_numpy(), errors.to_numpy())
    rows, columns = np.triu_indices(len(values), k=1)
    corrected = np.full(p.shape, np.nan)
    corrected[rows, columns] = corrected[columns, rows] = holm(p[rows, columns])
    axes = {"index": values.index, "columns": values.index}
    return PairwiseTests(
        difference=pd.DataFrame(difference, **axes), p=pd.DataFrame(p, **axes), holm=pd.DataFrame(corrected, **axes)
    )


def rank_ranges(
    matrix: ScoreMatrix, benchmark: str, preparation: Preparation = "trained", *, corrected: bool = False
) -> RankRanges:
    """Return the rank range and the tie group of each model on one benchmark.

    A tie group starts with the best model that is in no group. The next models join it, in order, until one is significantly
    worse than the first model of the group.

    Args:
        matrix: scores with standard errors.
        benchmark: task name of the benchmark.
        preparation: preparation of the scores.
        corrected: whether to correct p-values over all pairs of models by Holm's method.

    Raises:
        UsageError: the benchmark is unknown.
    """
    values, errors = _column(matrix, benchmark, preparation)
    order = values.sort_values(ascending=False, kind="stable").index
    values, errors = values[order], errors[order]
    difference, p = _tests(values.to_numpy(), errors.to_numpy())
    if corrected:
        rows, columns = np.triu_indices(len(values), k=1)
        p[rows, columns] = p[columns, rows] = holm(p[rows, columns])
        significant = p < 0.05
    else:
        significant = p < 2 * ndtr(-Z_THRESHOLD)
    better = significant & (difference < 0)
    tested = errors.notna().to_numpy()
    scores = matrix.scores(preparation).values.loc[order, benchmark]
    table = pd.DataFrame(
        {
            "score": scores,
            "stderr": errors,
            "rank": values.rank(ascending=False, method="min").astype(int),
            "low": np.where(tested, 1 + better.sum(axis=1), np.nan),
            "high": np.where(tested, tested.sum() - better.sum(axis=0), np.nan),
            "group": tie_groups(len(order), lambda first: significant[first] & (difference[first] > 0)),
        }
    )
    table["group"] = table["group"].where(tested)
    missing = tuple(name for name in matrix.model_names if name not in values.index)
    return RankRanges(
        preparation=preparation,
        benchmark=benchmark,
        corrected=corrected,
        table=table,
        without_score=missing,
        without_stderr=tuple(order[~tested]),
    )


def distinguishable_pairs(matrix: ScoreMatrix, preparation: Preparation = "trained") -> pd.DataFrame:
    """Return the share of pairs of models whose scores differ significantly, for each benchmark.

    The table is benchmarks x (models, pairs, plain, holm): the number of models, the number of pairs that could be tested, the
    share of pairs that differ by more than 1.96 standard errors, and the share with p < 0.05 after Holm's correction over the
    benchmark's pairs. Shares are NaN if no pair could be tested.
    """
    table = {}
    for task in matrix.benchmark_names:
        found = pairwise_tests(matrix, task, preparation)
        rows, columns = np.triu_indices(len(found.p), k=1)
        p, corrected = found.p.to_numpy()[rows, columns], found.holm.to_numpy()[rows, columns]
        tested = np.isfinite(p)
        shares = (
            [(p < 2 * ndtr(-Z_THRESHOLD))[tested].mean(), (corrected < 0.05)[tested].mean()] if tested.any() else [np.nan] * 2
        )
        table[task] = [len(found.p), int(tested.sum()), *shares]
    return pd.DataFrame.from_dict(table, orient="index", columns=["models", "pairs", "plain", "holm"])


def tie_groups(models: int, worse_than: Callable[[int], npt.NDArray[np.bool_]]) -> list[int]:
    """Return the tie group of each model, best first, numbered from 1.

    Args:
        models: number of models.
        worse_than: function from the index of a model to a mask of the models that are significantly worse, shape (models,).
    """
    groups = [1] if models else []
    worse = worse_than(0) if models else None
    for model in range(1, models):
        assert worse is not None
        groups.append(groups[-1] + int(worse[model]))
        if worse[model]:
            worse = worse_than(model)
    return groups


def holm(p: Floats) -> Floats:
    """Return p-values corrected by Holm's step-down method (Holm 1979), of the same shape; NaN stays NaN and is no test.

    The k-th smallest of m p-values is multiplied by m - k + 1. The results are made monotone and are limited to 1.
    """
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _column(matrix: ScoreMatrix, benchmark: str, preparation: Preparation) -> tuple[pd.Series[float], pd.Series[float]]:
    """Return the oriented scores of one benchmark and their standard errors, for the models that have a score."""
    if benchmark not in matrix.benchmark_names:
        near = did_you_mean(benchmark, matrix.benchmark_names)
        raise UsageError(f"benchmark {benchmark!r} is not in {matrix.source}.{near} It has {', '.join(matrix.benchmark_names)}.")
    values = matrix.oriented(preparation)[benchmark].dropna()
    return values, matrix.scores(preparation).stderrs.loc[values.index, benchmark]


def _tests(values: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Return the differences (row minus column) and two-sided p-values of every two models, models x models each."""
    difference = values[:, None] - values[None, :]
    spread = np.sqrt(errors[:, None] ** 2 + errors[None, :] ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Two scores with standard error 0 (all right or all wrong) are equal or differ with certainty.
        z = np.where(difference == 0, np.where(np.isnan(spread), np.nan, 0.0), difference / spread)
    return difference, 2 * ndtr(-np.abs(z))
