"""All analyses of a score matrix in one value, with the reason for each analysis that is not possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pandas as pd

from lm_harmony.analysis.agreement import Agreement, AgreementChange, Grouping, agreement, agreement_by, agreement_change
from lm_harmony.analysis.audit import Audit, audit
from lm_harmony.analysis.benchmark_quality import benchmark_quality
from lm_harmony.analysis.correlations import PerplexityAgreement, Scaling, perplexity_agreement, perplexity_change, scaling
from lm_harmony.analysis.leaderboard import Board, own_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.noise_ceiling import NoiseCeiling, ceiling_by, noise_ceiling
from lm_harmony.analysis.pca import Components, components
from lm_harmony.analysis.preparation_comparison import PreparationComparison, compare_preparations
from lm_harmony.analysis.rate_comparison import RateComparison
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.analysis.significance import RankRanges, distinguishable_pairs, rank_ranges
from lm_harmony.analysis.stability import Stability, stability
from lm_harmony.analysis.training_runs import LAST, TrainingRuns, training_runs
from lm_harmony.errors import UsageError

GROUPINGS: tuple[Grouping, ...] = ("family", "kind", "size")
"""Attributes by which models are grouped."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisSummary:
    """The results of all analyses of one matrix."""

    matrix: ScoreMatrix
    """Scores that were analysed."""
    boards: Mapping[Preparation, Board]
    """Leaderboard of each preparation."""
    agreements: Mapping[Preparation, Agreement]
    """Agreement of the benchmarks without text corpora, by preparation."""
    preparations: PreparationComparison | None
    """Agreement for each preparation on common models and benchmarks; None: there are no direct scores with examples."""
    change: AgreementChange | None
    """Agreement before and after train-before-test; None: a preparation has no scores."""
    groups: Mapping[Grouping, pd.DataFrame]
    """Mean tau within each family, kind and size class (``agreement.agreement_by``)."""
    components: Mapping[Preparation, Components]
    """Principal components without text corpora, by preparation."""
    scaling: Mapping[Preparation, Scaling]
    """PC1 beside model size and compute, by preparation."""
    perplexity: tuple[PerplexityAgreement, ...]
    """Agreement of text corpora with benchmarks."""
    ranges: Mapping[tuple[Preparation, str], RankRanges]
    """Rank ranges and tie groups by preparation and benchmark."""
    distinguishable: Mapping[Preparation, pd.DataFrame]
    """Share of significantly different pairs of models by benchmark (``significance.distinguishable_pairs``)."""
    stability: Mapping[Preparation, Stability]
    """Stability of the ranks by preparation."""
    ceilings: Mapping[Preparation, NoiseCeiling]
    """Noise ceiling of the agreement, by preparation."""
    ceiling_groups: Mapping[Preparation, pd.DataFrame]
    """Noise ceiling within each size class, by preparation (``noise_ceiling.ceiling_by``)."""
    quality: Mapping[Preparation, pd.DataFrame]
    """Quality of each benchmark, by preparation (``benchmark_quality.benchmark_quality``)."""
    audit: Audit | None
    """Direct beside trained ranks; None: not possible."""
    perplexity_change: pd.DataFrame
    """Direct beside trained bits per byte, by corpus (``correlations.perplexity_change``)."""
    training_runs: TrainingRuns | None
    """Checkpoints of training runs; None: no run has two."""
    skipped: tuple[str, ...]
    """Analyses that were not possible, with the reason."""
    rates: RateComparison | None = None
    """Chosen beside fixed learning rates; None: there are no results to compare with."""


def analyze_matrix(
    matrix: ScoreMatrix, *, seeds: Sequence[ScoreMatrix] = (), tokens_per_step: float | None = None, last: int = LAST
) -> AnalysisSummary:
    """Return the results of every analysis that is possible for ``matrix``.

    Args:
        matrix: scores to analyse.
        seeds: the matrix of each seed alone, for ``stability``.
        tokens_per_step: training tokens of an optimizer step, for ``training_runs``.
        last: number of last checkpoints whose scores give the noise, for ``training_runs``.

    Raises:
        UsageError: the matrix has no scores at all.
    """
    present = [preparation for preparation in matrix.preparations if matrix.has(preparation)]
    if not present:
        raise UsageError(f"analyze: {matrix.source} has no scores. Run a study with the test split scored.")
    skipped = [f"{name}: {matrix.source} has no {name} scores" for name in PREPARATIONS if name not in present]
    downstream = matrix.downstream()

    def each(name: str, analysis: Callable[[Preparation], Result]) -> dict[Preparation, Result]:
        found = {one: _attempt(partial(analysis, one), skipped, f"{name}, {one}: ") for one in present}
        return {preparation: result for preparation, result in found.items() if result is not None}

    agreements = each("agreement", lambda preparation: agreement(downstream, preparation))
    fitted = each("components", lambda preparation: components(downstream, preparation))
    stabilities = each("stability", lambda preparation: stability(downstream, preparation, seeds=seeds))
    ceilings = each("noise ceiling", lambda preparation: noise_ceiling(downstream, preparation))
    return AnalysisSummary(
        matrix=matrix,
        boards=each("leaderboard", lambda preparation: own_board(matrix, preparation)),
        agreements=agreements,
        preparations=_attempt(partial(compare_preparations, downstream), skipped) if downstream.few_shot else None,
        change=agreement_change(downstream) if agreements.keys() >= {*PREPARATIONS} else None,
        groups={grouping: agreement_by(downstream, grouping) for grouping in GROUPINGS} if agreements else {},
        components=fitted,
        scaling={preparation: scaling(matrix, found) for preparation, found in fitted.items()},
        perplexity=_attempt(partial(perplexity_agreement, matrix), skipped) or (),
        ranges={(name, task): rank_ranges(matrix, task, name) for name in present for task in matrix.benchmark_names},
        distinguishable={name: distinguishable_pairs(matrix, name) for name in present},
        stability=stabilities,
        ceilings=ceilings,
        ceiling_groups={preparation: ceiling_by(downstream, "size", preparation) for preparation in ceilings},
        quality=each("benchmark quality", lambda preparation: benchmark_quality(downstream, preparation)),
        audit=_attempt(partial(audit, matrix), skipped) if {*PREPARATIONS} <= {*present} else None,
        perplexity_change=perplexity_change(matrix),
        training_runs=training_runs(downstream, fitted, tokens_per_step=tokens_per_step, last=last),
        skipped=tuple(skipped),
    )


def _attempt(analysis: Callable[[], Result], skipped: list[str], prefix: str = "") -> Result | None:
    """Return the result of an analysis; None: it is not possible, and the reason was appended to ``skipped``."""
    try:
        return analysis()
    except UsageError as error:
        skipped.append(f"{prefix}{error}")
        return None
