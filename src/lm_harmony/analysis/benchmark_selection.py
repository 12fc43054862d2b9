"""Selection of a few benchmarks that place models well for few training rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.placement_board import PlacementBoard
from lm_harmony.benchmarks.types import Caps
from lm_harmony.errors import UsageError

MAX_BENCHMARKS = 6
"""Maximum number of benchmarks to select: every subset is evaluated, and 24 benchmarks have 134,596 subsets of 6."""
TOLERANCE = 0.01
"""A subset is considered as good as the best one if its tau is at most this much smaller."""
_CHUNK = 4_096
"""Number of subsets that are evaluated at once; it limits memory."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSubset:
    """A subset of benchmarks with its leave-one-family-out accuracy and its cost."""

    benchmarks: tuple[str, ...]
    """Benchmarks of the subset, in the order of the board."""
    tau: float
    """Kendall's tau-b between true PC1 and PC1 predicted without the model's family (least squares, no penalty)."""
    train_rows: int
    """Number of training rows, each benchmark capped at 50,000 rows as in training."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSelection:
    """The subset with the fewest training rows among those nearly as good as the best one."""

    chosen: BenchmarkSubset
    """Subset with the fewest training rows among those within ``tolerance`` of the best tau."""
    best: BenchmarkSubset
    """Subset with the largest tau."""
    cheapest: BenchmarkSubset
    """Subset with the fewest training rows."""
    tolerance: float
    """Largest accepted difference between the best tau and that of ``chosen``."""
    tried: int
    """Number of subsets evaluated. The best tau of so many is optimistic, unlike that of ``nested_tau``."""


def select_benchmarks(board: PlacementBoard, count: int, *, tolerance: float = TOLERANCE) -> BenchmarkSelection:
    """Evaluate every subset of ``count`` benchmarks and select one.

    Raises:
        UsageError: ``count`` is not between 1 and ``MAX_BENCHMARKS``, the board has fewer benchmarks, or the number of training
            rows of one is not known.
    """
    tasks = list(board.scores.columns)
    if not 1 <= count <= min(MAX_BENCHMARKS, len(tasks)):
        most = min(MAX_BENCHMARKS, len(tasks))
        raise UsageError(
            f"suggest must be between 1 and {most} (got {count}). Ask for {min(3, most)} benchmarks: --suggest {min(3, most)}."
        )
    unknown = [task for task in tasks if not np.isfinite(board.train_rows[task])]
    if unknown:
        raise UsageError(
            f"suggest: the numbers of training rows of {', '.join(unknown)} are not known. Leave these benchmarks out."
        )
    subsets = np.array(list(combinations(range(len(tasks)), count)))
    costs = np.minimum(board.train_rows.to_numpy(), Caps().train)[subsets].sum(axis=1)
    taus = np.concatenate([_taus(board, subsets[start : start + _CHUNK]) for start in range(0, len(subsets), _CHUNK)])

    def subset(index: int) -> BenchmarkSubset:
        names = tuple(tasks[task] for task in subsets[index])
        return BenchmarkSubset(benchmarks=names, tau=float(taus[index]), train_rows=int(costs[index]))

    near = np.flatnonzero(taus >= taus.max() - tolerance)
    return BenchmarkSelection(
        # Ties in cost are broken by the larger tau, ties in tau by the smaller cost.
        chosen=subset(int(near[np.lexsort((-taus[near], costs[near]))[0]])),
        best=subset(int(np.lexsort((costs, -taus))[0])),
        cheapest=subset(int(np.lexsort((-taus, costs))[0])),
        tolerance=tolerance,
        tried=len(subsets),
    )


def nested_tau(board: PlacementBoard, count: int, *, tolerance: float = TOLERANCE) -> float:
    """Return Kendall's tau-b of selection and fit together: both are repeated without the family that is then predicted."""
    predicted = pd.Series(np.nan, index=board.pc1.index)
    for family in board.families.unique():
        members = board.families.index[board.families == family]
        rest = board.without(members)
        tasks = list(select_benchmarks(rest, count, tolerance=tolerance).chosen.benchmarks)
        design, own = (np.column_stack([np.ones(len(part)), part[tasks]]) for part in (rest.scores, board.scores.loc[members]))
        predicted[members] = own @ np.linalg.lstsq(design, rest.pc1.to_numpy(), rcond=None)[0]
    return kendall(predicted, board.pc1)


def _taus(board: PlacementBoard, subsets: npt.NDArray[np.int64]) -> Floats:
    """Return the leave-one-family-out tau of each subset, shape (subsets,).

    Args:
        board: models, scores and families.
        subsets: column indices of the benchmarks, shape (subsets, benchmarks per subset).
    """
    design = np.column_stack([np.ones(len(board.scores)), board.scores.to_numpy()])
    columns = np.column_stack([np.zeros(len(subsets), dtype=int), subsets + 1])
    truth, families = board.pc1.to_numpy(), board.families.to_numpy()
    predicted = np.empty((len(subsets), len(truth)))
    for family in np.unique(families):
        held, rest = design[families == family], design[families != family]
        gram, target = rest.T @ rest, rest.T @ truth[families != family]
        products = gram[columns[:, :, None], columns[:, None, :]]
        weights = np.linalg.solve(products, target[columns][:, :, None])[:, :, 0]
        predicted[:, families == family] = np.einsum("mck,ck->cm", held[:, columns], weights)
    return _tau_with(predicted, truth)


def _tau_with(predicted: Floats, truth: Floats) -> Floats:
    """Return Kendall's tau-b between each row of ``predicted``, subsets x models, and ``truth``."""
    first, second = np.triu_indices(len(truth), k=1)
    order = np.sign(truth[first] - truth[second]).astype(np.float32)
    signs = np.sign(predicted[:, first] - predicted[:, second]).astype(np.float32)
    untied = np.abs(signs).sum(axis=1).astype(np.float64) * float(np.abs(order).sum())
    return (signs @ order).astype(np.float64) / np.sqrt(np.where(untied > 0, untied, np.nan))
