"""What a different seed, a dropped benchmark or a dropped family does to the ranks by PC1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components, components, ranks
from lm_harmony.analysis.score_rows import Basis, Preparation
from lm_harmony.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """What one change does to the ranks."""

    change: Literal["benchmark", "family", "seed"]
    """What is dropped, or that another seed is taken."""
    name: str
    """Which."""
    models: int
    """Models that are ranked both ways."""
    tau: float
    """Kendall's tau-b between their PC1 before and after."""
    largest: int
    """Most places that a model moves."""
    mean: float
    """Places that a model moves on average."""
    mover: str
    """The model that moves most; of equals the one that comes first by name."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How firm the ranks are."""

    preparation: Preparation
    """Of which scores."""
    basis: Basis
    """The models and benchmarks that the ranks stand on."""
    changes: tuple[RankChange, ...]
    """One for each change: benchmarks, then families, then seeds."""
    notes: tuple[str, ...]
    """Changes that could not be made, and why."""


def stability(matrix: ScoreMatrix, preparation: Preparation = "trained", *, seeds: Sequence[ScoreMatrix] = ()) -> Stability:
    """Rank anew without each benchmark, without each family, and by each seed alone.

    Without a family, PC1 is fitted on the remaining models, and these are ranked among themselves both ways.

    Args:
        matrix: the scores.
        preparation: of which scores.
        seeds: the same matrix by each seed alone (``ScoreMatrix.from_records(folder, seed=...)``).

    Raises:
        UsageError: as ``components``.
    """
    whole = components(matrix, preparation)
    part = matrix.subset(whole.basis.models, whole.basis.benchmarks)
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
            changes.append(_rank_change(change, name, whole, components(other, preparation)))  # type: ignore[arg-type]
        except UsageError as error:
            notes.append(f"{change} {name}: {error}")
    if not seeds:
        notes.append("seeds: the scores are of one seed each, or of seeds that the source does not tell apart.")
    return Stability(preparation=preparation, basis=whole.basis, changes=tuple(changes), notes=tuple(notes))


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
        mover=str(moved.astype(int).idxmax()),
    )
