"""The values a matrix is made of: tables of scores, gaps, and what a result stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lm_harmony.analysis.cells import Preparation


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
        said = f"{len(self.models)} models x {len(self.benchmarks)} benchmarks"
        left = [*self.dropped_models, *self.dropped_benchmarks]
        return said + (f"; left out for their gaps: {', '.join(left)}" if left else "")
