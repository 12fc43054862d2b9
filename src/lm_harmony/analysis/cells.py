"""One score of one model on one benchmark: what every source of a matrix is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Preparation = Literal["direct", "trained"]
PREPARATIONS: tuple[Preparation, ...] = ("direct", "trained")
""""direct": the untouched model; "trained": after train-before-test."""


@dataclass(frozen=True, kw_only=True)
class Cell:
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
class Found:
    """What a source holds."""

    source: str
    """Where it was found, in words."""
    cells: tuple[Cell, ...]
    """Every score; at most one for a model, benchmark and preparation."""
    seeds: tuple[int, ...] = field(default=())
    """Seeds of the runs, where the source has runs."""
