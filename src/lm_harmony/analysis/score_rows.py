"""One score of one model on one benchmark: what every source of a matrix is read into.

The values a matrix is made of: tables of scores, gaps, and what a result stands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

Preparation = Literal["direct", "trained"]
PREPARATIONS: tuple[Preparation, ...] = ("direct", "trained")
""""direct": the untouched model; "trained": after train-before-test."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score, or why there is none."""

    model: str
    """Name of the model."""
    benchmark: str
    """Name of the benchmark."""
    preparation: Preparation
    """How the model was prepared."""
    value: float | None
    """Score in the metric's own unit: a fraction, or bits per byte; None: a gap."""
    stderr: float | None = None
    """Standard error of ``value``, same unit; None: not known."""
    count: int | None = None
    """Test examples; None: not known."""
    metric: str | None = None
    """The metric; None: the catalogued one."""
    higher_is_better: bool | None = None
    """Direction of the metric; None: the catalogued one."""
    samples: tuple[Path, ...] = ()
    """Files of per-example outcomes, one for each seed."""
    cause: str | None = None
    """Why there is no value."""


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """What a source holds."""

    source: str
    """Where it was found, in words."""
    rows: tuple[ScoreRow, ...]
    """Every score; at most one for a model, benchmark and preparation."""
    seeds: tuple[int, ...] = field(default=())
    """Seeds of the runs, where the source has runs."""
    notes: tuple[str, ...] = ()
    """What whoever compares these scores has to know."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One preparation's scores: three tables with the same models as rows and the same benchmarks as columns."""

    values: pd.DataFrame
    """Scores in each metric's own unit: fractions, or bits per byte; NaN: a gap."""
    stderrs: pd.DataFrame
    """Standard errors in the same unit; NaN: not known."""
    counts: pd.DataFrame
    """Test examples; NaN: not known."""

    def subset(self, models: Sequence[str], benchmarks: Sequence[str]) -> Scores:
        """Return these models and benchmarks in this order."""
        rows, columns = list(models), list(benchmarks)
        return Scores(
            values=self.values.loc[rows, columns],
            stderrs=self.stderrs.loc[rows, columns],
            counts=self.counts.loc[rows, columns],
        )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A score that is not there."""

    model: str
    """Whose."""
    benchmark: str
    """On what."""
    preparation: Preparation
    """Prepared how."""
    cause: str
    """Why, as far as the source says."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The models and benchmarks that a result stands on, and those it had to leave out."""

    models: tuple[str, ...]
    """Models, in the matrix's order."""
    benchmarks: tuple[str, ...]
    """Benchmarks, in the matrix's order."""
    dropped_models: tuple[str, ...] = ()
    """Left out because of gaps, in the order they went."""
    dropped_benchmarks: tuple[str, ...] = ()
    """Left out because of gaps, in the order they went."""

    def __str__(self) -> str:
        """Say it in one line."""
        models, benchmarks = len(self.models), len(self.benchmarks)
        said = f"{models} model{'s' * (models != 1)} x {benchmarks} benchmark{'s' * (benchmarks != 1)}"
        left = [*self.dropped_models, *self.dropped_benchmarks]
        return said + (f"; left out for their gaps: {', '.join(left)}" if left else "")
