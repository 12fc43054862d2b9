"""Scores as log-odds above chance, an optional scale of the analyses.

A score s of a metric with the expected score c of guessing and the largest value m becomes p = (s - c) / (m - c), the share of
the way from guessing to the best, and then log(p / (1 - p)). Equal steps of p near its ends become larger steps: from 98% to 99%
as much as from 50% to 67%. Principal components of log-odds therefore weigh hard and easy benchmarks alike. p is limited to the
range from 0.01 to 0.99, because scores at chance or below have no log-odds. Standard errors follow by the delta method.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix, changed_scores
from lm_harmony.analysis.metadata import metric_metadata
from lm_harmony.analysis.score_rows import Scores

FLOOR = 0.01
"""Smallest distance of p from 0 and from 1."""
METRIC = "log_odds"
"""Name of the metric of transformed scores."""


def logit_matrix(matrix: ScoreMatrix) -> ScoreMatrix:
    """Return the matrix with log-odds above chance instead of scores whose metric has a largest value.

    Guessing counts as 0 where the expected score of guessing is not known. Text corpora and metrics without a largest value stay
    as they are, and a note names them.
    """
    limits = {}
    for benchmark in matrix.benchmarks:
        metric = metric_metadata(benchmark.metric)
        if metric is not None and benchmark.higher_is_better and np.isfinite(metric.high) and not benchmark.is_perplexity:
            limits[benchmark.task] = (benchmark.chance or 0.0, metric.high)
    kept = [task for task in matrix.benchmark_names if task not in limits]
    note = f"scores are log-odds above chance, limited to {FLOOR:.0%} and {1 - FLOOR:.0%} of the way from chance to the best"
    return replace(
        matrix,
        **changed_scores(matrix, lambda scores: _logits(scores, limits)),
        benchmarks=tuple(
            replace(benchmark, metric=METRIC, chance=None, percent=False) if benchmark.task in limits else benchmark
            for benchmark in matrix.benchmarks
        ),
        samples={},
        notes=(*matrix.notes, note + (f"; unchanged: {', '.join(kept)}" if kept else "")),
    )


def _logits(scores: Scores, limits: dict[str, tuple[float, float]]) -> Scores:
    values, stderrs = scores.values.copy(), scores.stderrs.copy()
    for task, (chance, high) in limits.items():
        share: pd.Series[float] = ((values[task] - chance) / (high - chance)).clip(FLOOR, 1 - FLOOR)
        stderrs[task] = stderrs[task] / (high - chance) / (share * (1 - share))
        values[task] = np.log(share / (1 - share))
    return replace(scores, values=values, stderrs=stderrs)
