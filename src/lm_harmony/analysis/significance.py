"""Which differences between scores can be told from chance: pairwise tests, rank ranges, tie groups.

Two models on one benchmark: z = (a - b) / sqrt(e_a^2 + e_b^2), significant where |z| > 1.96 (two-sided, 5%). The models answer
the same questions, so their errors are rather alike than independent, and the test errs on the side of "cannot be told apart";
``paired`` has the sharper tests for two models whose outcomes were kept.
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
"""Standard errors of a difference beyond which it counts (two-sided, 5%)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankRanges:
    """The places that models can hold on one benchmark, given the errors of their scores."""

    preparation: Preparation
    """Of which scores."""
    benchmark: str
    """On which benchmark."""
    corrected: bool
    """Whether Holm's correction over all pairs of models decided, or each pair alone."""
    table: pd.DataFrame
    """Models, best first, x (score, stderr, rank, low, high, group): ``low`` and ``high`` are the best and the worst place,
    1 + the models significantly better and N - the models significantly worse; ``group`` numbers the tie groups from 1."""
    without_score: tuple[str, ...]
    """Models that are not in the table."""
    without_stderr: tuple[str, ...]
    """Models in the table with a rank only: no test is possible, and no other model's range counts them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairwiseTests:
    """Tests between every two models on one benchmark; the tables are models x models."""

    difference: pd.DataFrame
    """Row minus column, larger is better."""
    p: pd.DataFrame
    """Two-sided p-values; NaN where a standard error is missing."""
    holm: pd.DataFrame
    """The same, corrected over all pairs by Holm's method."""


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
    """Say which places each model can hold on one benchmark, and which models share a tie group.

    A tie group is begun by the best model that is in none, and takes the models behind it, in order, until one is significantly
    worse than the one that began it.

    Args:
        matrix: the scores.
        benchmark: the task.
        preparation: of which scores.
        corrected: correct the p-values over all pairs of models (Holm).

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
        beyond = p < 0.05
    else:
        beyond = p < 2 * ndtr(-Z_THRESHOLD)
    better = beyond & (difference < 0)
    tested = errors.notna().to_numpy()
    shown = matrix.scores(preparation).values.loc[order, benchmark]
    table = pd.DataFrame(
        {
            "score": shown,
            "stderr": errors,
            "rank": values.rank(ascending=False, method="min").astype(int),
            "low": np.where(tested, 1 + better.sum(axis=1), np.nan),
            "high": np.where(tested, tested.sum() - better.sum(axis=0), np.nan),
            "group": tie_groups(len(order), lambda leader: beyond[leader] & (difference[leader] > 0)),
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
    """Return how many pairs of models each benchmark tells apart.

    Benchmarks x (models, pairs, plain, holm): ``pairs`` that could be tested, the share of them beyond 1.96 standard errors, and
    the share with p < 0.05 after Holm's correction over the benchmark's pairs. NaN: no pair could be tested.
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


def tie_groups(models: int, beaten_by: Callable[[int], npt.NDArray[np.bool_]]) -> list[int]:
    """Return the tie group of each model, best first, numbered from 1.

    Args:
        models: how many there are.
        beaten_by: for a model, which models it is significantly better than.
    """
    groups = [1] if models else []
    beaten = beaten_by(0) if models else None
    for model in range(1, models):
        assert beaten is not None
        groups.append(groups[-1] + int(beaten[model]))
        if beaten[model]:
            beaten = beaten_by(model)
    return groups


def holm(p: Floats) -> Floats:
    """Return p-values corrected by Holm's step-down method (Holm 1979); NaN stays NaN and does not count as a test.

    The k-th smallest of m is multiplied by m - k + 1; none may be smaller than one before it, none larger than 1.
    """
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _column(matrix: ScoreMatrix, benchmark: str, preparation: Preparation) -> tuple[pd.Series[float], pd.Series[float]]:
    """Return oriented scores of one benchmark and their standard errors, of the models that have a score."""
    if benchmark not in matrix.benchmark_names:
        near = did_you_mean(benchmark, matrix.benchmark_names)
        raise UsageError(f"benchmark {benchmark!r} is not in {matrix.source}.{near} It has {', '.join(matrix.benchmark_names)}.")
    values = matrix.oriented(preparation)[benchmark].dropna()
    return values, matrix.scores(preparation).stderrs.loc[values.index, benchmark]


def _tests(values: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Return differences (row minus column) and two-sided p-values of every two models."""
    difference = values[:, None] - values[None, :]
    spread = np.sqrt(errors[:, None] ** 2 + errors[None, :] ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Two scores without any spread (all right, all wrong) differ for certain or not at all.
        z = np.where(difference == 0, np.where(np.isnan(spread), np.nan, 0.0), difference / spread)
    return difference, 2 * ndtr(-np.abs(z))
