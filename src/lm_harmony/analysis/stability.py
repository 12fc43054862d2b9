"""Stability of the ranks by PC1: changes when a benchmark or a family is left out, or when a single seed is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components, components, ranks
from lm_harmony.analysis.score_rows import CompletePart, Preparation
from lm_harmony.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """The effect of one change on the ranks by PC1."""

    change: Literal["benchmark", "family", "seed"]
    """Kind of change: a benchmark or a family is left out, or a single seed is used."""
    name: str
    """Name of the benchmark or family, or the seed."""
    models: int
    """Number of models that have a rank before and after."""
    tau: float
    """Kendall's tau-b between PC1 before and after."""
    largest: int
    """Largest absolute change of a rank."""
    mean: float
    """Mean absolute change of the ranks."""
    most_changed: str
    """Model with the largest change of rank; of several the first by name."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The effects of all changes on the ranks by PC1."""

    preparation: Preparation
    """Preparation of the scores."""
    basis: CompletePart
    """Models and benchmarks that the ranks are computed from."""
    changes: tuple[RankChange, ...]
    """Effect of each change: benchmarks, then families, then seeds."""
    notes: tuple[str, ...]
    """Changes that could not be computed, with the reason."""


def stability(matrix: ScoreMatrix, preparation: Preparation = "trained", *, seeds: Sequence[ScoreMatrix] = ()) -> Stability:
    """Recompute the ranks without each benchmark, without each family, and with each seed alone.

    Without a family, PC1 is fitted on the remaining models. Ranks before and after are ranks among these models.

    Args:
        matrix: scores to rank by.
        preparation: preparation of the scores.
        seeds: the matrix of each seed alone (``ScoreMatrix.from_records(folder, seed=...)``).

    Raises:
        UsageError: ``components`` raises it for the matrix.
    """
    full = components(matrix, preparation)
    part = matrix.subset(full.basis.models, full.basis.benchmarks)
    changes: list[RankChange] = []
    notes: list[str] = []
    tasks, families = part.benchmark_names, sorted({model.family or "unknown" for model in part.models})
    changed = [
        *(("benchmark", task, part.subset(benchmarks=[other for other in tasks if other != task])) for task in tasks),
        *(
            ("family", family, part.subset([model.name for model in part.models if (model.family or "unknown") != family]))
            for family in families
        ),
        *(("seed", "+".join(map(str, seed.seeds)), seed.subset(*_shared(seed, part))) for seed in seeds),
    ]
    for change, name, other in changed:
        try:
            changes.append(_rank_change(change, name, full, components(other, preparation)))  # type: ignore[arg-type]
        except UsageError as error:
            notes.append(f"{change} {name}: {error}")
    if not seeds:
        notes.append("seeds: not compared, because each score is of one seed or the source does not give scores by seed.")
    return Stability(preparation=preparation, basis=full.basis, changes=tuple(changes), notes=tuple(notes))


def _shared(other: ScoreMatrix, part: ScoreMatrix) -> tuple[list[str], list[str]]:
    models = [name for name in part.model_names if name in other.model_names]
    return models, [task for task in part.benchmark_names if task in other.benchmark_names]


def _rank_change(change: Literal["benchmark", "family", "seed"], name: str, before: Components, after: Components) -> RankChange:
    models = sorted(after.pc1.index)
    if len(models) < 2:
        raise UsageError("fewer than two models are left.")
    first, second = before.pc1[models], after.pc1[models]
    moved: pd.Series[int] = (ranks(second) - ranks(first)).abs()
    return RankChange(
        change=change,
        name=name,
        models=len(models),
        tau=kendall(first, second),
        largest=int(moved.max()),
        mean=float(moved.mean()),
        most_changed=str(moved.astype(int).idxmax()),
    )
