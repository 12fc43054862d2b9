"""Does perplexity tell how models do on benchmarks? Kendall's tau of bits per byte (lower is better) with every benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lm_harmony.analysis.agreement import rank_agreement
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.errors import UsageError

COMPARISONS: tuple[tuple[Preparation, Preparation], ...] = (("direct", "direct"), ("trained", "trained"), ("direct", "trained"))
"""(preparation of the perplexity, preparation of the benchmarks) that are compared."""
EVERYONE = "all"
"""Group of all models."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PerplexityAgreement:
    """Agreement of text corpora with benchmarks."""

    perplexity: Preparation
    """Preparation of the models whose bits per byte are taken."""
    downstream: Preparation
    """Preparation of the models whose benchmark scores are taken."""
    group: str
    """"all", or the kind of the models: base, instruct, unknown."""
    models: tuple[str, ...]
    """Models that have bits per byte on every corpus, in that preparation."""
    without: tuple[str, ...]
    """Models of the group that lack one: left out."""
    tau: pd.DataFrame
    """Corpora x benchmarks; NaN where one of the two tells no models apart."""

    @property
    def mean_tau(self) -> float:
        """Mean over corpora and benchmarks."""
        return float(np.nanmean(self.tau.to_numpy()))


def perplexity_agreement(matrix: ScoreMatrix) -> tuple[PerplexityAgreement, ...]:
    """Compare every corpus of ``matrix`` with every benchmark: each comparison for all models, then for each kind.

    Comparisons that a preparation without scores would need, and groups of fewer than three models, are left out.

    Raises:
        UsageError: the matrix has no corpus, or no benchmark.
    """
    corpora, downstream = matrix.perplexities(), matrix.downstream()
    if not corpora.benchmarks or not downstream.benchmarks:
        what = "text corpus" if not corpora.benchmarks else "benchmark beside text corpora"
        raise UsageError(f"perplexity: {matrix.source} has no {what}. Run one, such as --task_name corpus:texts.jsonl.")
    kinds = dict.fromkeys(model.kind or "unknown" for model in matrix.models)
    found = []
    for perplexity, scores in COMPARISONS:
        if not corpora.has(perplexity) or not downstream.has(scores):
            continue
        known = corpora.oriented(perplexity).notna().all(axis=1)
        for group in (EVERYONE, *kinds):
            members = [model.name for model in matrix.models if group in (EVERYONE, model.kind or "unknown")]
            models = [name for name in members if known[name]]
            if len(models) < 3:
                continue
            left, right = corpora.oriented(perplexity).loc[models], downstream.oriented(scores).loc[models]
            found.append(
                PerplexityAgreement(
                    perplexity=perplexity,
                    downstream=scores,
                    group=group,
                    models=tuple(models),
                    without=tuple(name for name in members if not known[name]),
                    tau=rank_agreement(left, right).tau,
                )
            )
    return tuple(found)
