"""Everything that can be said of a matrix, in one value: each analysis, or why it cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from lm_harmony.analysis.agreement import Agreement, AgreementChange, Grouping, agreement, agreement_by, agreement_change
from lm_harmony.analysis.correlations import PerplexityAgreement, Scaling, perplexity_agreement, scaling
from lm_harmony.analysis.leaderboard import Board, own_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components, components
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.analysis.significance import RankRanges, distinguishable_pairs, rank_ranges
from lm_harmony.analysis.stability import Stability, stability
from lm_harmony.errors import UsageError

GROUPINGS: tuple[Grouping, ...] = ("family", "kind", "size")
"""Ways to split models."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisSummary:
    """Every analysis of one matrix; what could not be made is in ``skipped``."""

    matrix: ScoreMatrix
    """The scores."""
    boards: Mapping[Preparation, Board]
    """The leaderboard of each preparation."""
    agreements: Mapping[Preparation, Agreement]
    """Agreement of the benchmarks, without text corpora."""
    change: AgreementChange | None
    """What train-before-test does to it."""
    groups: Mapping[Grouping, pd.DataFrame]
    """Mean tau within each family, kind and class of size (``agreement.agreement_by``)."""
    components: Mapping[Preparation, Components]
    """Principal components, without text corpora."""
    scaling: Mapping[Preparation, Scaling]
    """PC1 against size."""
    perplexity: tuple[PerplexityAgreement, ...]
    """Agreement of text corpora with benchmarks."""
    ranges: Mapping[tuple[Preparation, str], RankRanges]
    """Rank ranges and tie groups by preparation and benchmark."""
    distinguishable: Mapping[Preparation, pd.DataFrame]
    """How many pairs of models each benchmark tells apart (``significance.distinguishable_pairs``)."""
    stability: Mapping[Preparation, Stability]
    """What changes do to the ranks."""
    skipped: tuple[str, ...]
    """What could not be made, and why."""


def analyze_matrix(matrix: ScoreMatrix, *, seeds: Sequence[ScoreMatrix] = ()) -> AnalysisSummary:
    """Make every analysis that ``matrix`` allows.

    Args:
        matrix: the scores.
        seeds: the same by each seed alone, for ``stability``.

    Raises:
        UsageError: the matrix has no scores at all.
    """
    there = [preparation for preparation in PREPARATIONS if matrix.has(preparation)]
    if not there:
        raise UsageError(f"analyze: {matrix.source} has no scores. Run a study with the test split scored.")
    skipped = [f"{name}: {matrix.source} has no {name} scores" for name in PREPARATIONS if name not in there]
    downstream = matrix.downstream()

    def each(name: str, make: Callable[[Preparation], Made]) -> dict[Preparation, Made]:
        made: dict[Preparation, Made] = {}
        for preparation in there:
            try:
                made[preparation] = make(preparation)
            except UsageError as error:
                skipped.append(f"{name}, {preparation}: {error}")
        return made

    agreements = each("agreement", lambda preparation: agreement(downstream, preparation))
    fitted = each("components", lambda preparation: components(downstream, preparation))
    stabilities = each("stability", lambda preparation: stability(downstream, preparation, seeds=seeds))
    perplexity: tuple[PerplexityAgreement, ...] = ()
    try:
        perplexity = perplexity_agreement(matrix)
    except UsageError as error:
        skipped.append(str(error))
    return AnalysisSummary(
        matrix=matrix,
        boards=each("leaderboard", lambda preparation: own_board(matrix, preparation)),
        agreements=agreements,
        change=agreement_change(downstream) if len(agreements) == len(PREPARATIONS) else None,
        groups={grouping: agreement_by(downstream, grouping) for grouping in GROUPINGS} if agreements else {},
        components=fitted,
        scaling={preparation: scaling(matrix, found) for preparation, found in fitted.items()},
        perplexity=perplexity,
        ranges={(name, task): rank_ranges(matrix, task, name) for name in there for task in matrix.benchmark_names},
        distinguishable={name: distinguishable_pairs(matrix, name) for name in there},
        stability=stabilities,
        skipped=tuple(skipped),
    )
