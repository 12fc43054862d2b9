"""The data types behind a score matrix: one score per row as sources hold them, tables of scores, gaps, and complete parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lm_harmony.errors import counted
from lm_harmony.runs.shots import shots_of

Preparation = str
"""How a model was prepared before it was scored: "direct" (not fine-tuned), "direct_<k>shot" (not fine-tuned, with k examples
before each question), or "trained" (after train-before-test)."""
PREPARATIONS: tuple[Preparation, ...] = ("direct", "trained")
"""The two preparations that are compared: without examples and without training, and after train-before-test."""

APART = " without near duplicates"
"""End of a column's name that holds scores on the test examples without a near duplicate in the training rows."""


def preparation_order(name: Preparation) -> float:
    """Return the place of a preparation in tables: direct scores by their number of examples, then trained ones."""
    shots = shots_of(name)
    return float("inf") if shots is None else shots


@dataclass(frozen=True, kw_only=True)
class PartScore:
    """A score on a part of the test examples."""

    value: float
    """Score in the metric's own unit."""
    stderr: float | None
    """Standard error of ``value``, in the same unit; None: not known."""
    count: int
    """Number of test examples."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score of one model on one benchmark, or the reason why it is missing."""

    model: str
    """Name of the model."""
    benchmark: str
    """Name of the benchmark."""
    preparation: Preparation
    """Preparation of the model before it was scored."""
    value: float | None
    """Score in the metric's own unit, such as a fraction or bits per byte; None: missing."""
    stderr: float | None = None
    """Standard error of ``value``, in the same unit; None: not known."""
    count: int | None = None
    """Number of test examples; None: not known."""
    metric: str | None = None
    """Metric of the score; None: the catalogued one."""
    higher_is_better: bool | None = None
    """Whether a larger score is better; None: the catalogued direction."""
    samples: tuple[Path, ...] = ()
    """Files of per-example outcomes, one per seed."""
    cause: str | None = None
    """Reason why the value is missing."""
    without_near_duplicates: PartScore | None = None
    """Score on the test examples without a near duplicate in the training rows; None: none has one, or it is not known."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(model, benchmark, preparation): a matrix has at most one row of each."""
        return self.model, self.benchmark, self.preparation


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """All scores of one source."""

    source: str
    """Name of the source, for messages and boards."""
    rows: tuple[ScoreRow, ...]
    """The scores; at most one per model, benchmark and preparation."""
    seeds: tuple[int, ...] = field(default=())
    """Seeds of the runs, if the source is a folder of runs."""
    notes: tuple[str, ...] = ()
    """Remarks for readers who compare these scores."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Recorded number of parameters by model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of one preparation: three tables of equal shape, models x benchmarks."""

    values: pd.DataFrame
    """Scores in each metric's own unit, such as fractions or bits per byte; NaN: missing."""
    stderrs: pd.DataFrame
    """Standard errors of the scores, in the same unit; NaN: not known."""
    counts: pd.DataFrame
    """Numbers of test examples; NaN: not known."""

    def subset(self, models: Sequence[str], benchmarks: Sequence[str]) -> Scores:
        """Return the scores of some models and benchmarks, in the order given.

        Raises:
            KeyError: a name is not in the tables.
        """
        # Positions are looked up once for the three tables, which takes a sixth of the time of ``loc`` with names.
        index, columns = self.values.index, self.values.columns
        rows, places = [index.get_loc(name) for name in models], [columns.get_loc(name) for name in benchmarks]
        axes = {"index": index.take(rows), "columns": columns.take(places)}

        def part(table: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame(table.to_numpy()[np.ix_(rows, places)], **axes)

        return Scores(values=part(self.values), stderrs=part(self.stderrs), counts=part(self.counts))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A missing score."""

    model: str
    """Name of the model."""
    benchmark: str
    """Name of the benchmark."""
    preparation: Preparation
    """Preparation of the model."""
    cause: str
    """Reason, as far as the source states one."""


@dataclass(frozen=True, kw_only=True)
class CompletePart:
    """The models and benchmarks without gaps that a result is computed from, and those that were left out."""

    models: tuple[str, ...]
    """Models that are kept, in the order of the matrix."""
    benchmarks: tuple[str, ...]
    """Benchmarks that are kept, in the order of the matrix."""
    dropped_models: tuple[str, ...] = ()
    """Models left out because of gaps, in the order in which they were dropped."""
    dropped_benchmarks: tuple[str, ...] = ()
    """Benchmarks left out because of gaps, in the order in which they were dropped."""

    def __str__(self) -> str:
        """Return the size and what was left out, in one line."""
        models, benchmarks = len(self.models), len(self.benchmarks)
        size = f"{counted(models, 'model')} x {counted(benchmarks, 'benchmark')}"
        dropped = [*self.dropped_models, *self.dropped_benchmarks]
        return size + (f"; left out because of gaps: {', '.join(dropped)}" if dropped else "")
