"""The placement of a new model on a reference board, from the benchmarks that it was scored on.

With all benchmarks of the reference board, PC1 is computed. With some of them, it is predicted by ``sequential_placement``. The
interval is for the PC1 that the model would have had in the training of the reference board: it contains the error of the
prediction and what differs between two trainings (``training_noise``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement_board import PlacementBoard, placement_board
from lm_harmony.analysis.sequential_placement import SequentialPlacement
from lm_harmony.analysis.training_noise import published_noise
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """PC1 and rank of a model on a reference board."""

    model: str
    """Name of the placed model."""
    benchmarks: tuple[str, ...]
    """Benchmarks that the model has scores on."""
    missing: tuple[str, ...]
    """Benchmarks of the reference board that it has no scores on."""
    pc1: float
    """PC1 on the reference board, times 100: computed if no benchmark is missing, else predicted."""
    low: float
    """Lower end of the interval of PC1."""
    high: float
    """Upper end of the interval of PC1."""
    rank: int
    """Rank among the other models of the reference board."""
    rank_low: int
    """Best rank within the interval."""
    rank_high: int
    """Worst rank within the interval."""
    of: int
    """Number of other models that it is ranked among."""
    outside: tuple[str, ...]
    """Benchmarks with a score outside the range of the reference models, where the prediction extrapolates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementValidation:
    """Leave-one-family-out errors of placements by some benchmarks, on the scores of the reference board itself."""

    predicted: pd.Series[float]
    """PC1 of each model, predicted without its family."""
    tau: float
    """Kendall's tau-b between ``predicted`` and the PC1 of the reference board, over all its models."""
    rmse: float
    """Root mean squared error of PC1, times 100."""
    rank_error: float
    """Mean absolute error of the rank among the other models."""


def place(board: PlacementBoard, model: str, oriented: pd.Series[float], stderrs: pd.Series[float]) -> Placement:
    """Return the placement of a model. A model that is on the board itself is left out of the fit and of the ranking.

    Args:
        board: models to fit on and to rank among.
        model: name of the model.
        oriented: its scores by benchmark in the metrics' own units, larger is better; NaN: not measured.
        stderrs: standard errors of the scores; NaN: not known.

    Raises:
        UsageError: the model has a score on none of the reference board's benchmarks.
    """
    reference = board.reference
    known = oriented.reindex(reference.benchmarks).dropna()
    if known.empty:
        raise UsageError(
            f"model {model!r} has no {reference.preparation} score on any benchmark of {reference.name}. "
            f"Run one of {', '.join(reference.benchmarks)}."
        )
    others = board.without([model])
    tasks = list(known.index)
    standardised = (known - reference.means[tasks]) / reference.scales[tasks]
    errors = stderrs.reindex(tasks) / reference.scales[tasks]
    found = fit_placement(others, family=board.families.get(model)).position(standardised.to_dict(), errors.to_dict())
    seen, own = others.scores[tasks].to_numpy(), standardised.to_numpy()
    beyond = (own < seen.min(axis=0)) | (own > seen.max(axis=0))
    return Placement(
        model=model,
        benchmarks=tuple(tasks),
        missing=tuple(task for task in reference.benchmarks if task not in tasks),
        pc1=found.pc1,
        low=found.low,
        high=found.high,
        rank=1 + int((others.pc1 > found.pc1).sum()),
        rank_low=found.best,
        rank_high=found.worst,
        of=len(others.pc1),
        outside=tuple(task for task, is_beyond in zip(tasks, beyond, strict=True) if is_beyond),
    )


@lru_cache(maxsize=128)  # most models of a study are placed on the same board
def fit_placement(board: PlacementBoard, family: str | None = None) -> SequentialPlacement:
    """Return the distribution of scores and PC1, fitted on ``board``, for a model of ``family`` (None: not known)."""
    return SequentialPlacement(board, family=family)


def validate(board: PlacementBoard, tasks: Sequence[str]) -> PlacementValidation:
    """Predict PC1 of every model of ``board`` from its scores on ``tasks``, with its family left out of the fit."""
    predicted = pd.Series(0.0, index=board.pc1.index)
    for family in board.families.unique():
        members = list(board.families.index[board.families == family])
        fitted = fit_placement(board.without(members))
        for model in members:
            predicted[model] = fitted.position(board.scores.loc[model, list(tasks)].to_dict(), {}).pc1
    ranks = pd.Series({name: 1 + int((board.pc1.drop(name) > pc1).sum()) for name, pc1 in predicted.items()})
    return PlacementValidation(
        predicted=predicted,
        tau=kendall(predicted, board.pc1),
        rmse=float(((predicted - board.pc1) ** 2).mean() ** 0.5),
        rank_error=float((ranks - board.pc1.rank(ascending=False)).abs().mean()),
    )


@cache
def published_placement() -> PlacementBoard:
    """Return the published board in the form that placements are fitted on."""
    published = ScoreMatrix.published()
    return placement_board(published, fit_reference(published), published_noise())


def placement_of(matrix: ScoreMatrix, model: str) -> Placement:
    """Return the placement on the published board of a model of ``matrix``, by its trained scores.

    Raises:
        UsageError: the model is unknown, has none of the published benchmarks, or was scored by another metric on one of them.
    """
    part = matrix.subset(models=[model])
    board = published_placement()
    refuse_other_metrics(part)
    return place(board, model, part.oriented("trained").loc[model], part.trained.stderrs.loc[model])


def refuse_other_metrics(matrix: ScoreMatrix) -> None:
    """Raise UsageError if ``matrix`` scores a published benchmark by another metric than the published board."""
    for benchmark in matrix.benchmarks:
        published = BENCHMARKS.get(benchmark.task)
        if published is not None and benchmark.metric != published.metric:
            raise UsageError(
                f"benchmark {benchmark.task}: {matrix.source} has {benchmark.metric}, the published board {published.metric}. "
                "Run it with the published metric."
            )
