"""The published train-before-test board that ships with the package: 61 models x 24 benchmarks, with rank and PC1.

published_leaderboard.csv is the board as published, in percent with two decimals. Two decimals are too few for its own ranks
(two models swap), so the scores are taken back to what they were counted as: a score of n test questions is k / n for a whole
k, and up to n = 10,000 two decimals leave only one k. published_test_rows.csv holds n: the hub's test split, or its validation
split where the test answers are not public, capped at 10,000. Every published accuracy is within its rounding of such a k / n
(a test holds this), and the recomputed PC1 then meets the published one within 0.01. CoLA's score is a Matthews correlation and
stays as published.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.types import MetricKey

SOURCE = "the published board (Zhang, Dominguez-Olmedo, Hardt 2025)"
"""How tables and pages name it."""


@dataclass(frozen=True, kw_only=True)
class PublishedRank:
    """Where the published board puts a model."""

    rank: int
    """1 is the best."""
    pc1: float
    """First principal component, times 100."""


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


TEST_ROWS: Mapping[str, int] = MappingProxyType({row["task"]: int(row["test_rows"]) for row in _rows("published_test_rows.csv")})
"""Task -> test questions behind the published score."""


def published_ranks() -> dict[str, PublishedRank]:
    """Return rank and PC1 as published, by model."""
    rows = _rows("published_leaderboard.csv")
    return {row["model"]: PublishedRank(rank=int(row["rank"]), pc1=float(row["pc1"])) for row in rows}


def published_rows() -> ScoreRows:
    """Return the published scores as counted, with binomial standard errors.

    sqrt(p (1 - p) / (n - 1)) is lm_eval's standard error of a mean of n zeros and ones. A Matthews correlation has no such
    formula without the table of answers: CoLA's is not known.
    """
    rows = [_score_row(row["model"], task, float(row[task])) for row in _rows("published_leaderboard.csv") for task in BENCHMARKS]
    return ScoreRows(source=SOURCE, rows=tuple(rows))


def _score_row(model: str, task: str, percent: float) -> ScoreRow:
    rows = TEST_ROWS[task]
    value, stderr = percent / 100, None
    if MetricKey.parse(BENCHMARKS[task].metric).metric != "mcc":
        value = round(value * rows) / rows
        stderr = math.sqrt(value * (1 - value) / (rows - 1))
    return ScoreRow(model=model, benchmark=task, preparation="trained", value=value, stderr=stderr, count=rows)
