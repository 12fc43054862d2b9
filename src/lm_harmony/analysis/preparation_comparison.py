"""Do benchmarks agree more when models are prompted with examples, or when they are trained? Each preparation beside the others.

Mean tau and the share of PC1 are computed for every preparation on the same models and benchmarks, those with all scores. Their
intervals hold two kinds of chance. Which benchmarks were chosen: the delete-one jackknife over benchmarks (Efron and Stein 1981,
The Jackknife Estimate of Variance), because a bootstrap would draw a benchmark twice, which agrees with itself. Which test
questions were asked: the variance over scores drawn from normal distributions around the measured ones with their standard
errors. An interval is the estimate plus or minus Student's t with (benchmarks - 1) degrees of freedom times the root of the sum
of both variances. For a difference of two preparations the jackknife leaves a benchmark out of both. Their noise is drawn
independently, although they have the same questions, so that the interval is rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from lm_harmony.analysis.bootstrap import CONFIDENCE, MIN_BENCHMARKS, in_fixed_order
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.errors import UsageError, counted
from lm_harmony.runs.shots import shown_direct

DRAWS = 200
"""Number of draws of the noise of the test questions."""
COLUMNS = ("tau", "tau_low", "tau_high", "pc1_share", "pc1_share_low", "pc1_share_high")
"""Columns of the tables: mean Kendall's tau-b between benchmarks and share of the variance of PC1, each with its interval."""
_LOWEST = pd.Series([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0], index=COLUMNS)
"""Smallest possible values of the columns; the largest are 1."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparationComparison:
    """Agreement of the benchmarks for each preparation, on the same models and benchmarks."""

    models: tuple[str, ...]
    """Models with all scores of all preparations."""
    benchmarks: tuple[str, ...]
    """Benchmarks with all scores of all preparations."""
    table: pd.DataFrame
    """Preparations x (tau, tau_low, tau_high, pc1_share, pc1_share_low, pc1_share_high). Intervals are NaN with fewer than four
    benchmarks or if a standard error is not known."""
    differences: pd.DataFrame
    """The same columns for each later preparation minus each earlier one, by "<later> - <earlier>"."""

    def sentences(self) -> list[str]:
        """Return the tables as sentences without a full stop, of the differences those with direct or trained scores.

        Differences of shares are in points.
        """
        size = f"on the {len(self.models)} models x {len(self.benchmarks)} benchmarks with all scores"
        lines = []
        compared = [name for name in self.differences.index if name.startswith("trained - ") or name.endswith(" - direct")]
        for rows, sign in ((self.table, ""), (self.differences.loc[compared], "+")):
            for name, row in rows.iterrows():
                shown = " minus ".join(map(shown_direct, str(name).split(" - ")))
                lines.append(f"{shown}, {size}: {shown_agreement(row, sign)}")
        return lines


def shown_agreement(row: pd.Series[float], sign: str = "") -> str:
    """Return a row of ``PreparationComparison.table`` in words, or with the sign "+" one of ``differences``, in points."""
    tau, share = _shown(row[:3], f"{sign}.2f"), _shown(100 * row[3:], f"{sign}.0f", " points" if sign else "%")
    return f"mean tau {tau}, share of PC1 {share}"


def _shown(numbers: Iterable[float], form: str, unit: str = "") -> str:
    """Return an estimate with the ends of its interval, if it has one."""
    value, low, high = numbers
    return f"{value:{form}}{unit}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def compare_preparations(matrix: ScoreMatrix, *, draws: int = DRAWS, seed: int = 0) -> PreparationComparison:
    """Return mean tau and the share of PC1 for every preparation of ``matrix``, with intervals.

    Raises:
        UsageError: fewer than two models or benchmarks have scores of all preparations, or all models have the same score on a
            benchmark.
    """
    present = [name for name in matrix.preparations if matrix.has(name)]
    part = in_fixed_order(_common(matrix, present))
    values = {name: part.oriented(name).to_numpy() for name in present}
    constant = [
        name for name in present if (np.ptp(values[name], axis=0) <= 1e-12 * np.maximum(1.0, np.abs(values[name][0]))).any()
    ]
    if len(part.models) < 2 or len(part.benchmarks) < 2 or constant:
        reason = f"all models have the same {constant[0]} score on one" if constant else "two of each are needed"
        raise UsageError(
            f"comparison of preparations: {matrix.source} has {', '.join(present)} scores of {counted(len(part.models), 'model')}"
            f" on {counted(len(part.benchmarks), 'benchmark')}; {reason}. Add runs, or leave a benchmark out."
        )
    scores = {name: (values[name], part.scores(name).stderrs.to_numpy()) for name in present}
    table, differences = agreement_tables(scores, draws=draws, seed=seed)
    return PreparationComparison(models=part.model_names, benchmarks=part.benchmark_names, table=table, differences=differences)


def agreement_tables(
    scores: Mapping[str, tuple[Floats, Floats]], *, draws: int = DRAWS, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ``PreparationComparison.table`` and ``differences`` of scores by the names of what is compared.

    Args:
        scores: name -> oriented scores without gaps and their standard errors, each models x benchmarks, all of one shape.
        draws: number of draws of the noise of the test questions.
        seed: seed of the draws.
    """
    estimates = {name: _statistics(values) for name, (values, _) in scores.items()}
    left_out = {name: _without_each(values) for name, (values, _) in scores.items()}
    noise = {name: _noise(*both, draws, seed) for name, both in scores.items()}
    table = {name: _line(estimates[name], left_out[name], noise[name]) for name in scores}
    differences = {
        f"{later} - {earlier}": _line(
            estimates[later] - estimates[earlier], left_out[later] - left_out[earlier], noise[later] + noise[earlier]
        )
        for earlier, later in combinations(scores, 2)
    }
    return (
        pd.DataFrame.from_dict(table, orient="index", columns=COLUMNS).clip(lower=_LOWEST, upper=1.0, axis=1),
        pd.DataFrame.from_dict(differences, orient="index", columns=COLUMNS),
    )


def _common(matrix: ScoreMatrix, present: list[Preparation]) -> ScoreMatrix:
    """Return the models and benchmarks of ``matrix`` with all scores of the preparations."""
    part = matrix
    while True:
        smaller = part
        for name in present:
            smaller, _ = smaller.complete(name)
        if smaller.model_names == part.model_names and smaller.benchmark_names == part.benchmark_names:
            return part
        part = smaller


def _statistics(values: Floats) -> Floats:
    """Return (mean tau over pairs of benchmarks, share of the variance of PC1) of oriented scores, models x benchmarks."""
    first, second = np.triu_indices(len(values), k=1)
    signs = np.sign(values[first] - values[second])
    untied = np.abs(signs).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = (signs.T @ signs / np.sqrt(np.outer(untied, untied)))[np.triu_indices(len(untied), k=1)]
    spread = values.std(axis=0)
    standardised = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    sizes = np.linalg.svd(standardised, compute_uv=False) ** 2
    return np.array([np.nanmean(tau), sizes[0] / sizes.sum()])


def _without_each(values: Floats) -> Floats:
    """Return the statistics without each benchmark in turn, benchmarks x 2; NaN with too few benchmarks for an interval."""
    tasks = values.shape[1]
    if tasks < MIN_BENCHMARKS:
        return np.full((tasks, 2), np.nan)
    return np.array([_statistics(np.delete(values, task, axis=1)) for task in range(tasks)])


def _noise(values: Floats, errors: Floats, draws: int, seed: int) -> Floats:
    """Return the variance of each statistic over other test questions; NaN if a standard error is not known."""
    if not np.isfinite(errors).all():
        return np.full(2, np.nan)
    random = np.random.default_rng(seed)
    drawn = np.array([_statistics(values + errors * random.standard_normal(values.shape)) for _ in range(draws)])
    return np.asarray(drawn.var(axis=0, ddof=1))


def _line(estimate: Floats, left_out: Floats, noise: Floats) -> list[float]:
    """Return the columns of a table from an estimate, the estimates without each benchmark, and the variances of the noise."""
    tasks = len(left_out)
    jackknife = (tasks - 1) / tasks * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    half = stdtrit(tasks - 1, (1 + CONFIDENCE) / 2) * np.sqrt(jackknife + noise)
    return [float(number) for triple in zip(estimate, estimate - half, estimate + half, strict=True) for number in triple]
