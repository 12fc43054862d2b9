"""The leaderboard: models in the order of PC1, with intervals, tie groups and the reference board that PC1 was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from lm_harmony.analysis.bootstrap import CONFIDENCE, MIN_BENCHMARKS, PC1Intervals, pc1_intervals
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement import place, published_placement, refuse_other_metrics
from lm_harmony.analysis.score_rows import PREPARATIONS, PartScore, Preparation, Scores
from lm_harmony.errors import UsageError

RowBasis = Literal["board", "computed", "predicted", "none"]
REPEATED = (
    "what a place is worth: a second training of the published models agrees with this order by Kendall's tau 0.954 (0.863 among "
    "those of 6 billion parameters and more); two of its benchmarks predict this order with tau 0.904, four with 0.918"
)
"""Note of boards with the published models, with figures of ``python -m bench.coverage`` as in docs/analysis.md."""
NEW_MODEL_SUFFIX = " (these results)"
"""Suffix of a new model whose name is also on the published board."""


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    """One model on a board."""

    model: str
    """Name of the model."""
    basis: RowBasis
    """Where PC1 comes from. "board": the reference board was fitted on this model. "computed": projected onto the reference
    board, from all its benchmarks. "predicted": from some of its benchmarks (``placement``). "none": the model has no PC1."""
    pc1: float | None
    """First principal component, times 100."""
    low: float | None
    """Lower end of the interval of PC1."""
    high: float | None
    """Upper end of the interval of PC1."""
    rank: int | None
    """Rank among the models of the reference board; 1 is the best."""
    rank_low: int | None
    """Best rank within the interval."""
    rank_high: int | None
    """Worst rank within the interval."""
    group: int | None
    """Tie group, for models that the reference board was fitted on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """A leaderboard with its scores and notes."""

    preparation: Preparation
    """Preparation of the models whose scores are ranked."""
    reference: str
    """Name and fingerprint of the reference board, or the reason why there is no PC1."""
    explained: float | None
    """Share of the variance that PC1 explains on the reference board."""
    rows: tuple[BoardRow, ...]
    """Models, best first; models without PC1 last, by name."""
    benchmarks: tuple[BenchmarkMetadata, ...]
    """Metadata of the columns of ``scores``."""
    scores: pd.DataFrame
    """Scores in the metrics' own units, models of ``rows`` x benchmarks; NaN: a gap."""
    notes: tuple[str, ...]
    """Remarks for the reader: gaps, models and benchmarks that were left out, predicted values."""
    without_near_duplicates: Mapping[tuple[str, str, str], PartScore] = field(default_factory=dict)
    """Scores without test examples that have a near duplicate in the training rows, by (model, benchmark, preparation)."""


def own_board(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Board:
    """Rank the models of ``matrix`` by PC1 of its complete part. Text corpora are shown but do not enter PC1.

    Raises:
        UsageError: the matrix has no scores of that preparation.
    """
    _refuse_empty(matrix, preparation)
    rows: list[BoardRow] = []
    notes: list[str] = []
    explained = None
    try:
        intervals = pc1_intervals(matrix.downstream(), preparation)
        reference = fit_reference(matrix.downstream(), preparation)
        explained, reference_name = reference.explained, str(reference)
        rows = [_row(str(name), found) for name, found in intervals.table.iterrows()]
        basis = replace(intervals.basis, dropped_benchmarks=_titles(matrix, intervals.basis.dropped_benchmarks))
        if basis.dropped_models or basis.dropped_benchmarks:
            notes.append(f"PC1 is computed from {basis}")
        notes.append(_interval_note(intervals, matrix))
    except UsageError as error:
        reference_name = f"no PC1: {error}"
    ranked = {row.model for row in rows}
    rows += [_row_without_pc1(name) for name in sorted(set(matrix.model_names) - ranked)]
    notes += matrix.notes
    gaps = matrix.gaps(preparation)
    if gaps:
        count = f"{len(gaps)} scores are" if len(gaps) > 1 else "1 score is"
        notes.append(f"{count} missing, such as {gaps[0].model} on {_titles(matrix, (gaps[0].benchmark,))[0]}: {gaps[0].cause}")
    return Board(
        preparation=preparation,
        reference=reference_name,
        explained=explained,
        rows=tuple(rows),
        benchmarks=matrix.benchmarks,
        scores=matrix.scores(preparation).values.loc[[row.model for row in rows]],
        notes=tuple(notes),
        without_near_duplicates=matrix.without_near_duplicates,
    )


def published_board(matrix: ScoreMatrix | None = None) -> Board:
    """Return the published board, with the models of ``matrix`` placed on it.

    The reference board is fixed, so new models change neither PC1 nor rank of a published model. Benchmarks that the published
    board does not have are not shown.

    Raises:
        UsageError: ``matrix`` has no trained scores.
    """
    published = ScoreMatrix.published()
    reference = fit_reference(published)
    intervals = pc1_intervals(published)
    rows = [_row(str(name), found) for name, found in intervals.table.iterrows()]
    notes = [_interval_note(intervals, published), REPEATED]
    scores = published.trained.values
    if matrix is not None:
        _refuse_empty(matrix, "trained")
        new_rows = _new_model_rows(matrix, published)
        rows += [row for row, *_ in new_rows]
        scores = pd.concat([scores, *(values.to_frame(row.model).T for row, values, _ in new_rows)])
        notes += matrix.notes
        further = tuple(task for task in matrix.benchmark_names if task not in published.benchmark_names)
        if further:
            notes.append(f"not shown, because the published board does not have them: {', '.join(_titles(matrix, further))}")
        beyond = [f"{row.model} ({', '.join(_titles(published, tasks))})" for row, _, tasks in new_rows if tasks]
        if beyond:
            more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
            names = ", ".join(beyond[:5]) + more
            notes.append(f"extrapolated, because scores are outside the range of the published ones: {names}")
        notes.append("models of these results are ranked among the published models and do not change their PC1 or ranks")
    rows.sort(key=lambda row: (row.pc1 is None, -(row.pc1 or 0), row.model))
    return Board(
        preparation="trained",
        reference=str(reference),
        explained=reference.explained,
        rows=tuple(rows),
        benchmarks=published.benchmarks,
        scores=scores.loc[[row.model for row in rows]],
        notes=tuple(notes),
        without_near_duplicates={} if matrix is None else published_with_new_models(matrix).without_near_duplicates,
    )


def published_with_new_models(matrix: ScoreMatrix) -> ScoreMatrix:
    """Return the published matrix with the models of ``matrix`` appended.

    Only published benchmarks are kept. A new model whose name is published gets ``NEW_MODEL_SUFFIX``, as on the board.
    """
    published = ScoreMatrix.published()
    names = {name: _new_name(name, published) for name in matrix.model_names}
    direct, trained = (_appended(published.scores(name), matrix.scores(name), names) for name in PREPARATIONS)
    nothing = published.direct.values * float("nan")
    empty = Scores(values=nothing, stderrs=nothing, counts=nothing)
    causes = {(names[model], task, name): cause for (model, task, name), cause in matrix.causes.items()}
    parts = {(names[model], task, name): part for (model, task, name), part in matrix.without_near_duplicates.items()}
    return ScoreMatrix(
        direct=direct,
        trained=trained,
        few_shot={name: _appended(empty, scores, names) for name, scores in matrix.few_shot.items()},
        models=(*published.models, *(replace(model, name=names[model.name]) for model in matrix.models)),
        benchmarks=published.benchmarks,
        source=f"{published.source} and {matrix.source}",
        causes={**published.causes, **causes},
        notes=(*published.notes, *matrix.notes),
        without_near_duplicates=parts,
    )


def _new_name(name: str, published: ScoreMatrix) -> str:
    return name + NEW_MODEL_SUFFIX if name in published.model_names else name


def _appended(published: Scores, new: Scores, names: dict[str, str]) -> Scores:
    def stacked(above: pd.DataFrame, below: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([above, below.reindex(columns=above.columns).rename(index=names)])

    return Scores(
        values=stacked(published.values, new.values),
        stderrs=stacked(published.stderrs, new.stderrs),
        counts=stacked(published.counts, new.counts),
    )


def _new_model_rows(matrix: ScoreMatrix, published: ScoreMatrix) -> list[tuple[BoardRow, pd.Series[float], tuple[str, ...]]]:
    """Return row, scores by published benchmark, and benchmarks with a score outside the published range, of each new model."""
    refuse_other_metrics(matrix)
    board, oriented, stderrs = published_placement(), matrix.oriented("trained"), matrix.trained.stderrs
    found = []
    for name in matrix.model_names:
        shown_name = _new_name(name, published)
        values = matrix.trained.values.loc[name].reindex(list(published.benchmark_names))
        if values.notna().any():
            placed = place(board, name, oriented.loc[name], stderrs.loc[name])
            places = {key: getattr(placed, key) for key in ("pc1", "low", "high", "rank", "rank_low", "rank_high")}
            basis: RowBasis = "predicted" if placed.missing else "computed"
            row, outside = BoardRow(model=shown_name, basis=basis, group=None, **places), placed.outside
        else:
            row, outside = _row_without_pc1(shown_name), ()
        found.append((row, values, outside))
    return found


def _refuse_empty(matrix: ScoreMatrix, preparation: Preparation) -> None:
    if not matrix.has(preparation):
        others = " or ".join(name for name in reversed(matrix.preparations) if matrix.has(name))
        remedy = f"Ask for the {others} scores with --preparation {others}." if others else "Run a study first."
        raise UsageError(f"preparation: {matrix.source} has no {preparation} scores. {remedy}")


def _row(name: str, found: pd.Series[float]) -> BoardRow:
    kinds = {"low": float, "high": float, "rank_low": int, "rank_high": int, "group": int}
    known: dict[str, Any] = {column: None if pd.isna(found[column]) else kind(found[column]) for column, kind in kinds.items()}
    return BoardRow(model=name, basis="board", pc1=float(found["pc1"]), rank=int(found["rank"]), **known)


def _row_without_pc1(name: str) -> BoardRow:
    nothing = {"pc1": None, "low": None, "high": None, "rank": None, "rank_low": None, "rank_high": None, "group": None}
    return BoardRow(model=name, basis="none", **nothing)


def _interval_note(intervals: PC1Intervals, matrix: ScoreMatrix) -> str:
    if intervals.table["low"].isna().all():
        return f"no intervals of PC1: at least {MIN_BENCHMARKS} benchmarks are needed (got {len(intervals.basis.benchmarks)})"
    note = f"intervals: {CONFIDENCE:.0%} of {intervals.draws:,} bootstrap draws over test examples and benchmarks"
    without = _titles(matrix, intervals.without_stderr)
    return note + (f"; standard errors are not known for {', '.join(without)}" if without else "")


def _titles(matrix: ScoreMatrix, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that tables show for benchmarks, so that notes name them alike."""
    return tuple(benchmark.title for benchmark in matrix.benchmarks if benchmark.task in tasks)
