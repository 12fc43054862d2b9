"""The leaderboard as a value: models in the order of PC1, with intervals, on a reference that is named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import pandas as pd

from lm_harmony.analysis.bootstrap import CONFIDENCE, pc1_intervals
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement import Placement, PlacementBoard, place, placement_board
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError

Basis = Literal["board", "computed", "predicted", "none"]
MINE = " (these results)"
"""Marks a model of the results that has the name of one on the published board."""


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    """One model on a board."""

    model: str
    """Its name."""
    basis: Basis
    """"board": of the models that the reference stands on; "computed": by the reference, from all its benchmarks; "predicted":
    from some of them (``placement``); "none": no PC1."""
    pc1: float | None
    """First principal component, times 100."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end."""
    rank: int | None
    """Place among the reference's models; 1 is the best."""
    rank_low: int | None
    """Best place of the interval."""
    rank_high: int | None
    """Worst place."""
    group: int | None
    """Tie group, for models that the reference stands on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """A leaderboard."""

    preparation: Preparation
    """Of which scores."""
    reference: str
    """What PC1 was fitted on, with its fingerprint; or why there is no PC1."""
    explained: float | None
    """Share of the variance that PC1 explains on the reference."""
    rows: tuple[BoardRow, ...]
    """Best first; models without PC1 last, by name."""
    benchmarks: tuple[BenchmarkMetadata, ...]
    """Columns of ``scores``."""
    scores: pd.DataFrame
    """Rows' models x benchmarks, in the metrics' own units; NaN: a gap."""
    notes: tuple[str, ...]
    """What a reader has to know: gaps, what was left out, what is predicted."""


def own_board(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Board:
    """Rank the models of ``matrix`` by PC1 of its own complete part; text corpora are shown but take no part.

    Raises:
        UsageError: that preparation has no scores.
    """
    _refuse_empty(matrix, preparation)
    rows: list[BoardRow] = []
    notes: list[str] = []
    explained = None
    try:
        intervals = pc1_intervals(matrix.downstream(), preparation)
        reference = fit_reference(matrix.downstream(), preparation)
        explained, named = reference.explained, str(reference)
        rows = [_row(str(name), found) for name, found in intervals.table.iterrows()]
        left = (*intervals.basis.dropped_models, *intervals.basis.dropped_benchmarks)
        if left:
            notes.append(f"PC1 stands on {intervals.basis}")
        notes.append(_interval_note(intervals.draws, intervals.without_stderr))
    except UsageError as error:
        named = f"no PC1: {error}"
    placed = {row.model for row in rows}
    rows += [_unplaced(name) for name in sorted(set(matrix.model_names) - placed)]
    notes += matrix.notes
    gaps = matrix.gaps(preparation)
    if gaps:
        notes.append(f"{len(gaps)} scores are missing, such as {gaps[0].model} on {gaps[0].benchmark}: {gaps[0].cause}")
    return Board(
        preparation=preparation,
        reference=named,
        explained=explained,
        rows=tuple(rows),
        benchmarks=matrix.benchmarks,
        scores=matrix.scores(preparation).values.loc[[row.model for row in rows]],
        notes=tuple(notes),
    )


def published_board(matrix: ScoreMatrix | None = None) -> Board:
    """Return the published board, and where the models of ``matrix`` stand on it.

    The reference is fixed: models of ``matrix`` move no published model. Benchmarks beyond the published ones are not shown.

    Raises:
        UsageError: ``matrix`` has no trained scores.
    """
    published = ScoreMatrix.published()
    reference = fit_reference(published)
    intervals = pc1_intervals(published)
    rows = [_row(str(name), found) for name, found in intervals.table.iterrows()]
    notes = [_interval_note(intervals.draws, intervals.without_stderr)]
    scores = published.trained.values
    if matrix is not None:
        _refuse_empty(matrix, "trained")
        guests = _guests(matrix, published)
        rows += [row for row, _ in guests]
        scores = pd.concat([scores, *(line.to_frame(row.model).T for row, line in guests)])
        notes += matrix.notes
        further = [task for task in matrix.benchmark_names if task not in published.benchmark_names]
        if further:
            notes.append(f"not on the published board, so not shown: {', '.join(further)}")
        notes.append("models of these results are ranked among the published models and move none of them")
    rows.sort(key=lambda row: (row.pc1 is None, -(row.pc1 or 0), row.model))
    return Board(
        preparation="trained",
        reference=str(reference),
        explained=reference.explained,
        rows=tuple(rows),
        benchmarks=published.benchmarks,
        scores=scores.loc[[row.model for row in rows]],
        notes=tuple(notes),
    )


def placement_of(matrix: ScoreMatrix, model: str) -> Placement:
    """Say where a model of ``matrix`` stands on the published board by its trained scores.

    Raises:
        UsageError: the model is unknown, or has none of the published benchmarks, or reads them by another metric.
    """
    part = matrix.subset(models=[model])
    board = published_placement()
    _refuse_other_metrics(part)
    return place(board, model, part.oriented("trained").loc[model], part.trained.stderrs.loc[model])


@cache
def published_placement() -> PlacementBoard:
    """Return what placements on the published board are fitted on."""
    published = ScoreMatrix.published()
    return placement_board(published, fit_reference(published))


def _guests(matrix: ScoreMatrix, published: ScoreMatrix) -> list[tuple[BoardRow, pd.Series[float]]]:
    """Return a row and its scores for each model of ``matrix``."""
    _refuse_other_metrics(matrix)
    board, oriented, stderrs = published_placement(), matrix.oriented("trained"), matrix.trained.stderrs
    found = []
    for name in matrix.model_names:
        shown = name + MINE if name in published.model_names else name
        line = matrix.trained.values.loc[name].reindex(list(published.benchmark_names))
        if line.notna().any():
            placed = place(board, name, oriented.loc[name], stderrs.loc[name])
            row = BoardRow(
                model=shown,
                basis="predicted" if placed.missing else "computed",
                pc1=placed.pc1,
                low=placed.low,
                high=placed.high,
                rank=placed.rank,
                rank_low=placed.rank_low,
                rank_high=placed.rank_high,
                group=None,
            )
        else:
            row = _unplaced(shown)
        found.append((row, line))
    return found


def _refuse_empty(matrix: ScoreMatrix, preparation: Preparation) -> None:
    if not matrix.has(preparation):
        other: Preparation = "direct" if preparation == "trained" else "trained"
        remedy = f"Ask for the {other} scores with --preparation {other}." if matrix.has(other) else "Run a study first."
        raise UsageError(f"preparation: {matrix.source} has no {preparation} scores. {remedy}")


def _refuse_other_metrics(matrix: ScoreMatrix) -> None:
    metrics = {task: info.metric for task, info in BENCHMARKS.items()}
    for fact in matrix.benchmarks:
        if fact.task in metrics and fact.metric != metrics[fact.task]:
            raise UsageError(
                f"benchmark {fact.task}: {matrix.source} has {fact.metric}, the published board {metrics[fact.task]}. "
                "Run it with the published metric."
            )


def _row(name: str, found: pd.Series[float]) -> BoardRow:
    return BoardRow(
        model=name,
        basis="board",
        pc1=float(found["pc1"]),
        low=float(found["low"]),
        high=float(found["high"]),
        rank=int(found["rank"]),
        rank_low=int(found["rank_low"]),
        rank_high=int(found["rank_high"]),
        group=int(found["group"]),
    )


def _unplaced(name: str) -> BoardRow:
    nothing = {"pc1": None, "low": None, "high": None, "rank": None, "rank_low": None, "rank_high": None, "group": None}
    return BoardRow(model=name, basis="none", **nothing)


def _interval_note(draws: int, without: tuple[str, ...]) -> str:
    note = f"intervals: {CONFIDENCE:.0%} of {draws:,} bootstrap draws over test examples and benchmarks"
    return note + (f"; standard errors are not known for {', '.join(without)}" if without else "")
