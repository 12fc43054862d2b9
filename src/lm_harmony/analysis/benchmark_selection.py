"""Which few benchmarks place a model best for the fewest training rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.placement_regression import PlacementBoard, fit_placement
from lm_harmony.benchmarks.types import Caps
from lm_harmony.errors import UsageError

MAX_BENCHMARKS = 6
"""The most benchmarks that can be suggested: every choice is tried, and there are 134,596 of 6 of 24."""
TOLERANCE = 0.01
"""A choice places as well as the best one if its tau is at most this much smaller."""
_CHUNK = 4_096
"""Choices that are tried at once."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSubset:
    """Some benchmarks and how well they place models of families that the fit has not seen."""

    benchmarks: tuple[str, ...]
    """The benchmarks, in the board's order."""
    tau: float
    """Kendall's tau-b between predicted and true PC1 with each model's family left out (least squares, no penalty)."""
    train_rows: int
    """Training rows they need, capped at 50,000 each as the recipe does."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSelection:
    """The cheapest choice that places as well as the best one."""

    chosen: BenchmarkSubset
    """Fewest training rows among those within ``tolerance`` of the best."""
    best: BenchmarkSubset
    """Largest tau of all."""
    cheapest: BenchmarkSubset
    """Fewest training rows of all."""
    tolerance: float
    """How much smaller than the best tau the chosen one may be."""
    tried: int
    """How many choices there were: the best of so many is flattered by the search; ``nested_tau`` is not."""


def select_benchmarks(board: PlacementBoard, count: int, *, tolerance: float = TOLERANCE) -> BenchmarkSelection:
    """Try every choice of ``count`` benchmarks.

    Raises:
        UsageError: ``count`` is not between 1 and ``MAX_BENCHMARKS``, the board has fewer benchmarks, or the number of training
            rows of one is not known.
    """
    tasks = list(board.scores.columns)
    if not 1 <= count <= min(MAX_BENCHMARKS, len(tasks)):
        raise UsageError(
            f"suggest must be between 1 and {min(MAX_BENCHMARKS, len(tasks))}, got {count}. Give a number in between."
        )
    unknown = [task for task in tasks if not np.isfinite(board.train_rows[task])]
    if unknown:
        raise UsageError(f"suggest: the training rows of {', '.join(unknown)} are not known. Leave them out of the board.")
    choices = np.array(list(combinations(range(len(tasks)), count)))
    costs = np.minimum(board.train_rows.to_numpy(), Caps().train)[choices].sum(axis=1)
    taus = np.concatenate([_taus(board, choices[start : start + _CHUNK]) for start in range(0, len(choices), _CHUNK)])

    def choice(index: int) -> BenchmarkSubset:
        names = tuple(tasks[task] for task in choices[index])
        return BenchmarkSubset(benchmarks=names, tau=float(taus[index]), train_rows=int(costs[index]))

    near = np.flatnonzero(taus >= taus.max() - tolerance)
    return BenchmarkSelection(
        # Of equal costs the larger tau, of equal taus the smaller cost.
        chosen=choice(int(near[np.lexsort((-taus[near], costs[near]))[0]])),
        best=choice(int(np.lexsort((costs, -taus))[0])),
        cheapest=choice(int(np.lexsort((-taus, costs))[0])),
        tolerance=tolerance,
        tried=len(choices),
    )


def nested_tau(board: PlacementBoard, count: int, *, tolerance: float = TOLERANCE) -> float:
    """Return the tau of the whole procedure: benchmarks are chosen and fitted without the family that is then predicted."""
    predicted = pd.Series(np.nan, index=board.pc1.index)
    for family in board.families.unique():
        members = board.families.index[board.families == family]
        rest = board.without(members)
        tasks = list(select_benchmarks(rest, count, tolerance=tolerance).chosen.benchmarks)
        weights = fit_placement(rest, tuple(tasks)).solve(penalty=0.0)
        predicted[members] = weights[0] + board.scores.loc[members, tasks].to_numpy() @ weights[1:]
    return kendall(predicted, board.pc1)


def _taus(board: PlacementBoard, choices: npt.NDArray[np.int64]) -> Floats:
    """Return tau of each choice, every family predicted by a fit without it.

    Args:
        board: models, scores, families.
        choices: choices x benchmarks, as numbers of columns.
    """
    design = np.column_stack([np.ones(len(board.scores)), board.scores.to_numpy()])
    columns = np.column_stack([np.zeros(len(choices), dtype=int), choices + 1])
    truth, families = board.pc1.to_numpy(), board.families.to_numpy()
    predicted = np.empty((len(choices), len(truth)))
    for family in np.unique(families):
        held, rest = design[families == family], design[families != family]
        gram, target = rest.T @ rest, rest.T @ truth[families != family]
        products = gram[columns[:, :, None], columns[:, None, :]]
        weights = np.linalg.solve(products, target[columns][:, :, None])[:, :, 0]
        predicted[:, families == family] = np.einsum("mck,ck->cm", held[:, columns], weights)
    return _tau_with(predicted, truth)


def _tau_with(predicted: Floats, truth: Floats) -> Floats:
    """Return Kendall's tau-b of each row of ``predicted`` with ``truth``."""
    first, second = np.triu_indices(len(truth), k=1)
    order = np.sign(truth[first] - truth[second]).astype(np.float32)
    signs = np.sign(predicted[:, first] - predicted[:, second]).astype(np.float32)
    told = np.abs(signs).sum(axis=1).astype(np.float64) * float(np.abs(order).sum())
    return (signs @ order).astype(np.float64) / np.sqrt(np.where(told > 0, told, np.nan))
