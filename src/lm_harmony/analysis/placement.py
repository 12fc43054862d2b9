"""The placement of a new model on a reference board, from the benchmarks that it was scored on.

With all benchmarks of the reference board, PC1 is computed. With some of them, it is predicted by ``placement_regression``. The
interval is for the PC1 that the model would have had in the training of the reference board: it contains the error of the
prediction and what differs between two trainings (``training_noise``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.special import ndtri

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import PC1_SCALE, fit_reference
from lm_harmony.analysis.placement_regression import (
    CONFIDENCE,
    Floats,
    PlacementBoard,
    PlacementValidation,
    fit_placement,
    placement_board,
    validate,
)
from lm_harmony.analysis.training_noise import published_noise
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError

_Z = float(ndtri((1 + CONFIDENCE) / 2))
"""Half width of a normal confidence interval, in standard errors."""


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
    """Benchmarks with a score outside the range of the reference models, where the regression extrapolates."""
    validation: PlacementValidation
    """Cross-validated errors of placements by these benchmarks."""


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
    errors = np.nan_to_num((stderrs.reindex(tasks) / reference.scales[tasks]).to_numpy())
    missing = tuple(task for task in reference.benchmarks if task not in tasks)
    pc1, low, high = predict_pc1(others, standardised, errors)
    ranks = [1 + int((others.pc1 > value).sum()) for value in (pc1, high, low)]
    seen, own = others.scores[tasks].to_numpy(), standardised.to_numpy()
    beyond = (own < seen.min(axis=0)) | (own > seen.max(axis=0))
    return Placement(
        model=model,
        benchmarks=tuple(tasks),
        missing=missing,
        pc1=pc1,
        low=low,
        high=high,
        rank=ranks[0],
        rank_low=ranks[1],
        rank_high=ranks[2],
        of=len(others.pc1),
        outside=tuple(task for task, is_beyond in zip(tasks, beyond, strict=True) if is_beyond),
        validation=validate(others, tasks),
    )


def predict_pc1(board: PlacementBoard, standardised: pd.Series[float], errors: Floats) -> tuple[float, float, float]:
    """Return PC1 and the ends of its interval: computed from all benchmarks of the reference board, or predicted from some.

    Args:
        board: models to fit on, without the model itself.
        standardised: standardised scores of the model by benchmark.
        errors: their standard errors in standardised units, shape (benchmarks,); 0: not known.
    """
    tasks, target = list(standardised.index), board.reference.loadings * PC1_SCALE
    if len(tasks) == len(target):
        weights: Floats = target[tasks].to_numpy()
        pc1 = low = high = float(weights @ standardised.to_numpy())
    else:
        fit = fit_placement(board, tuple(tasks))
        weights, row = fit.weights[1:], np.concatenate([[1.0], standardised.to_numpy()])
        pc1, (lows, highs) = float(row @ fit.weights), fit.intervals(row[None, :])
        low, high = min(float(lows[0]), pc1), max(float(highs[0]), pc1)
    # The residuals of the fit, and the noise between trainings, contain test errors of the usual size. Only the excess of the
    # model's own errors is added.
    excess = np.maximum(0, errors**2 - np.nan_to_num(board.stderrs[tasks].to_numpy()) ** 2)
    noise = _Z * np.sqrt((weights**2 * excess).sum() + board.noise.repeat_variance(weights, tasks, target))
    return pc1, pc1 - float(np.hypot(pc1 - low, noise)), pc1 + float(np.hypot(high - pc1, noise))


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
