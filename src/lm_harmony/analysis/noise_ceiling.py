"""The noise ceiling: how much agreement the noise of the test questions allows, and correlations without that noise.

Scores have standard errors, so that two benchmarks disagree on some pairs of models even if the true order is the same. Let
x_(1) >= ... >= x_(n) be the sorted scores of one benchmark. Its true scores are estimated by shrinking the deviations from the
mean by sqrt(reliability), so that their variance is that of the scores without noise (reliability = 1 - mean e^2 / variance, Lord
and Novick 1968, Statistical Theories of Mental Test Scores, chapter 3). Of the models at places k < l, a measurement keeps the
order with probability Phi(d / sqrt(e_k^2 + e_l^2)), where d is the difference of their true scores. Its expected sign is

    c(k, l) = 2 Phi(d / sqrt(e_k^2 + e_l^2)) - 1.

The ceiling of two benchmarks with the same true order is the expectation of Kendall's tau, the mean of c_1 c_2 over all pairs
of places. With two measurements of one benchmark it is the test-retest tau, the mean of c^2. With few models this mean is too
low, because c_1 c_2 bends with reliabilities that are estimated. The jackknife over models (Quenouille 1956, Notes on Bias in
Estimation) removes this: G t - (G - 1) m, where t is the mean, and m that of all means without one of G groups of models.
Pearson's r without noise is r divided by the square root of the product of both reliabilities (Spearman 1904, The Proof and
Measurement of Association between Two Things).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr

from lm_harmony.analysis.agreement import SIZES, Grouping, agreement, group_of, upper_triangle
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.errors import UsageError, counted

_MOST_CORRECTED = 200
"""Largest number of models whose ceiling is corrected: with more, less than 0.01 is missing, and it would take seconds."""
_GROUPS = 20
"""Largest number of groups of models that the jackknife leaves out in turn."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseCeiling:
    """The largest expected agreement of the benchmarks of one preparation, beside the measured one."""

    preparation: Preparation
    """Preparation of the scores."""
    benchmarks: tuple[str, ...]
    """Benchmarks with standard errors, in the order of the tables."""
    models: int
    """Number of models that have all these scores."""
    tau: pd.DataFrame
    """Measured Kendall's tau-b, benchmarks x benchmarks."""
    ceiling: pd.DataFrame
    """Expected tau if both benchmarks truly order the models alike, benchmarks x benchmarks; the diagonal is the test-retest
    tau."""
    reliability: pd.Series[float]
    """Share of the variance between models that is not noise of the test questions, by benchmark; at least 0."""
    disattenuated: pd.DataFrame
    """Pearson's r without noise, benchmarks x benchmarks; may exceed 1 by chance, NaN where a reliability is 0."""

    @property
    def mean_tau(self) -> float:
        """Mean of the measured tau over all pairs of different benchmarks."""
        return float(pd.Series(upper_triangle(self.tau)).mean())

    @property
    def mean_ceiling(self) -> float:
        """Mean of the ceiling over all pairs of different benchmarks."""
        return float(pd.Series(upper_triangle(self.ceiling)).mean())

    @property
    def share(self) -> float:
        """Measured agreement as a share of what the noise allows; NaN if it allows none."""
        return self.mean_tau / self.mean_ceiling if self.mean_ceiling else float("nan")

    @property
    def retest(self) -> pd.Series[float]:
        """Expected Kendall's tau of two measurements with other test questions, by benchmark."""
        return pd.Series(np.diag(self.ceiling), index=self.ceiling.index)

    def sentence(self) -> str:
        """Return the result as a sentence."""
        measured = "undefined" if np.isnan(self.mean_tau) else f"{self.mean_tau:.3f}"
        share = "" if np.isnan(self.share) else f" ({self.share:.0%})"
        return (
            f"noise ceiling, {self.preparation}: test questions allow a mean tau of {self.mean_ceiling:.3f}, measured is "
            f"{measured}{share}, on {len(self.benchmarks)} benchmarks with standard errors"
        )


def noise_ceiling(matrix: ScoreMatrix, preparation: Preparation = "trained") -> NoiseCeiling:
    """Return the noise ceiling of the benchmarks of ``matrix`` that have standard errors.

    Raises:
        UsageError: fewer than two benchmarks have scores and standard errors of all models, or there are fewer than three models.
    """
    part, _ = matrix.complete(preparation)
    errors = part.scores(preparation).stderrs
    known = [str(task) for task in errors if errors[task].notna().all()]
    if len(known) < 2 or len(part.models) < 3:
        raise UsageError(
            f"noise ceiling: {matrix.source} has {counted(len(known), 'benchmark')} with {preparation} scores and standard "
            f"errors of {counted(len(part.models), 'model')}, but two benchmarks and three models are needed. "
            f"Run more of them, or add their standard errors."
        )
    part = part.subset(benchmarks=known)
    values, errors = part.oriented(preparation), errors[known]
    reliability = _reliability(values, errors)
    measured = agreement(part, preparation)
    attenuation = np.sqrt(np.outer(reliability, reliability))
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(attenuation > 0, measured.pearson.to_numpy() / attenuation, np.nan)
    np.fill_diagonal(exact, 1.0)
    table = {"index": known, "columns": known}
    return NoiseCeiling(
        preparation=preparation,
        benchmarks=tuple(known),
        models=len(part.models),
        tau=measured.tau,
        ceiling=pd.DataFrame(_ceiling(values, errors), **table),
        reliability=reliability,
        disattenuated=pd.DataFrame(exact, **table),
    )


def ceiling_by(matrix: ScoreMatrix, grouping: Grouping, preparation: Preparation) -> pd.DataFrame:
    """Return mean tau, mean ceiling and their ratio within each family, kind or size class of three models or more."""
    groups: dict[str, list[str]] = {}
    if grouping == "size":
        groups = {group_of(ModelMetadata(name="", params_b=low), "size"): [] for low, _ in SIZES}
    for model in matrix.models:
        groups.setdefault(group_of(model, grouping), []).append(model.name)
    table = {}
    for group, names in groups.items():
        try:
            found = noise_ceiling(matrix.subset(names), preparation)
        except UsageError:  # too few models, or none with standard errors
            continue
        table[group] = [found.models, found.mean_tau, found.mean_ceiling, found.share]
    return pd.DataFrame.from_dict(table, orient="index", columns=["models", "tau", "ceiling", "share"])


def _reliability(values: pd.DataFrame, errors: pd.DataFrame) -> pd.Series[float]:
    variance = values.var(ddof=0)
    return (1 - (errors**2).mean() / variance.where(variance > 0)).clip(lower=0).fillna(0.0)


def _ceiling(values: pd.DataFrame, errors: pd.DataFrame) -> Floats:
    """Return the expected tau of every two benchmarks, corrected by the jackknife, benchmarks x benchmarks."""
    if len(values) > _MOST_CORRECTED:
        return _plain_ceiling(values, errors)
    names = sorted(values.index)  # so that the groups do not depend on the order of the models
    count = min(len(names), _GROUPS)
    rest = [[name for place, name in enumerate(names) if place % count != group] for group in range(count)]
    without = np.mean([_plain_ceiling(values.loc[kept], errors.loc[kept]) for kept in rest], axis=0)
    return np.asarray(np.clip(count * _plain_ceiling(values, errors) - (count - 1) * without, 0.0, 1.0))


def _plain_ceiling(values: pd.DataFrame, errors: pd.DataFrame) -> Floats:
    reliability = _reliability(values, errors)
    signs = np.column_stack([_expected_signs(values[task], errors[task], float(reliability[task])) for task in values])
    return np.asarray(signs.T @ signs / len(signs))


def _expected_signs(values: pd.Series[float], errors: pd.Series[float], reliability: float) -> Floats:
    """Return c(k, l) for every pair of places of one benchmark, shape (pairs,)."""
    order = np.argsort(-values.to_numpy(), kind="stable")
    scores, spread = values.to_numpy()[order], errors.to_numpy()[order]
    exact = scores.mean() + np.sqrt(reliability) * (scores - scores.mean())
    first, second = np.triu_indices(len(scores), k=1)
    difference, noise = exact[first] - exact[second], np.hypot(spread[first], spread[second])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference > 0, difference / noise, 0.0)
    return np.asarray(2 * ndtr(z) - 1, dtype=np.float64)
