"""The published train-before-test board that ships with the package: 61 models x 24 benchmarks.

published_leaderboard.csv is the board as published, in percent with two decimals. Two decimals are too few to reproduce its ranks
(two models swap). The scores are therefore restored to exact fractions: a score on n test questions is k / n for an integer k,
and two decimals determine k for n up to 10,000. published_test_rows.csv has n for each benchmark: the rows of the hub's test
split, or of its validation split where the test answers are not public, at most 10,000. A test checks that every published
accuracy is such a fraction within its rounding, and that the recomputed PC1 agrees with the published one within 0.01. CoLA's
score is a Matthews correlation and is used as published.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.types import MetricKey

SOURCE = "the published board (Zhang, Dominguez-Olmedo, Hardt 2025)"
"""Name of the published board in tables and pages."""


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


TEST_ROWS: Mapping[str, int] = MappingProxyType({row["task"]: int(row["test_rows"]) for row in _rows("published_test_rows.csv")})
"""Number of test questions behind the published score, by task."""


def published_rows() -> ScoreRows:
    """Return the published scores as exact fractions, with binomial standard errors.

    lm_eval's standard error of a mean of n zeros and ones is sqrt(p (1 - p) / (n - 1)). The standard error of a Matthews
    correlation cannot be computed from the score alone, so that of CoLA is not known.
    """
    scores = [
        _score_row(row["model"], task, float(row[task])) for row in _rows("published_leaderboard.csv") for task in BENCHMARKS
    ]
    return ScoreRows(source=SOURCE, rows=tuple(scores))


def _score_row(model: str, task: str, percent: float) -> ScoreRow:
    rows = TEST_ROWS[task]
    value, stderr = percent / 100, None
    if MetricKey.parse(BENCHMARKS[task].metric).metric != "mcc":
        value = round(value * rows) / rows
        stderr = math.sqrt(value * (1 - value) / (rows - 1))
    return ScoreRow(model=model, benchmark=task, preparation="trained", value=value, stderr=stderr, count=rows)
