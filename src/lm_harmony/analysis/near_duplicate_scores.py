"""Scores on the test rows that have no near duplicate in the training rows, as the mean over the seeds of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm_harmony.analysis.outcomes import part_of_samples
from lm_harmony.analysis.score_rows import PartScore, Preparation
from lm_harmony.benchmarks.recurrence import FEWEST_ROWS
from lm_harmony.errors import StoreError
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import samples_file
from lm_harmony.runs.store import RunStore


def score_without_near_duplicates(
    runs: Sequence[tuple[RunRecord, RunStore]], preparation: Preparation, metric: str
) -> PartScore | None:
    """Return the mean over seeds of a score without the test rows that have a near duplicate in the training rows.

    A record of an older version has only the numbers of these rows. Its score is then computed from the samples.

    Args:
        runs: the runs of one model on one benchmark, one for each seed.
        preparation: name of the score.
        metric: its metric, as "metric,filter".

    Returns:
        None: no test row of any run has a near duplicate, or the score of a run is not known.
    """
    if not any(record.data.near_duplicates for record, _ in runs):
        return None
    parts = [_part(record, store.folder, preparation, metric) for record, store in runs if preparation in record.scores]
    known = [part for part in parts if part is not None]
    count = min((part.count for part in known), default=None)
    value, stderr = mean_over_seeds([(part.value, part.stderr) for part in known], count)
    if value is None or count is None or len(known) < len(parts):
        return None
    return PartScore(value=value, stderr=stderr, count=count)


def _part(record: RunRecord, folder: Path, preparation: Preparation, metric: str) -> PartScore | None:
    """Return a score of one run without these rows; None: it is not known. It is the whole score if there are no such rows."""
    rows = record.data.recurring_rows
    score = record.without_near_duplicates.get(preparation) if rows else record.scores[preparation]
    if score is not None:
        value = score.metrics.get(metric)
        return None if value is None else PartScore(value=value, stderr=score.stderrs.get(metric), count=score.documents)
    if record.data.test - len(rows) < FEWEST_ROWS or not (folder / samples_file(preparation)).is_file():
        return None
    try:
        found = part_of_samples(
            folder / samples_file(preparation), metric, rows, whole=record.scores[preparation].metrics[metric]
        )
    except StoreError:  # paired tests need the file and name it
        return None
    return None if found is None else PartScore(value=found[0], stderr=found[1], count=record.data.test - len(rows))


def mean_over_seeds(scores: Sequence[tuple[float, float | None]], count: int | None = None) -> tuple[float | None, float | None]:
    """Return the mean of a score over seeds and its standard error, as ``record_rows`` describes; None: not known.

    Args:
        scores: score and standard error of each seed.
        count: number of test examples; None: not known. If the mean is k answers of count x seeds, it is the quotient of these
            numbers, so that models with as many right answers are tied. Sums of fractions differ by rounding.
    """
    if not scores:
        return None, None
    values = [value for value, _ in scores]
    errors = [error for _, error in scores if error is not None]
    mean = float(np.mean(values))
    if count is not None:
        answers = mean * count * len(values)
        if math.isclose(answers, round(answers), rel_tol=1e-12, abs_tol=1e-9):
            mean = round(answers) / (count * len(values))
    spread = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    if len(errors) < len(scores):
        return mean, None
    return mean, math.sqrt(float(np.mean(np.square(errors))) + spread)
