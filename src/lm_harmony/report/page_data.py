"""A score matrix and what analysis says of it -> the plain values that the page carries. No arithmetic but rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from lm_harmony import __version__
from lm_harmony.analysis.agreement import SIZES, agreement, group_of
from lm_harmony.analysis.leaderboard import Board, own_board, published_board, published_with_new_models
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata, ModelMetadata
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.analysis.significance import Z_THRESHOLD, rank_ranges
from lm_harmony.errors import UsageError

DIGITS = 10
"""Significant digits of a value in the page: more than a score of 10,000 examples has, fewer than binary fractions need."""
MARKS = (
    f"the edge of the rows joins models that the sorted column cannot tell apart ({Z_THRESHOLD} standard errors of a difference; "
    "for PC1 the bootstrap); scores in bold are tied with the benchmark's best"
)
"""What the marks of the table mean."""


def page_data(matrix: ScoreMatrix | None, *, published: bool = False) -> dict[str, Any]:
    """Gather what the page shows.

    Args:
        matrix: the scores; text corpora are shown, but take no part in PC1 unless the reader chooses them. None: only the
            published board.
        published: show the models among those of the published board, on its PC1.

    Raises:
        UsageError: there are no scores.
    """
    if published:
        board, published_matrix = published_board(matrix), ScoreMatrix.published()
        fixed = set(published_matrix.model_names)
        shown = published_matrix if matrix is None else published_with_new_models(matrix)
    else:
        assert matrix is not None
        board, shown, fixed = _own(matrix), matrix, set(matrix.model_names)
    views = {name: _view(shown, name, board) for name in PREPARATIONS}
    return {
        "version": __version__,
        "source": shown.source,
        "reference": board.reference,
        "marks": MARKS,
        "sizes": _size_labels(shown.models),
        "benchmarks": [_benchmark(facts) for facts in shown.benchmarks],
        # PC1 of chosen benchmarks is fitted on these models, and ranks are places among them.
        "models": [_model(facts, facts.name in fixed) for facts in shown.models],
        "views": views,
    }


def _own(matrix: ScoreMatrix) -> Board:
    """Return the matrix's own board: of the trained scores, or of the direct ones where there are no others."""
    if not any(matrix.has(preparation) for preparation in PREPARATIONS):
        raise UsageError(f"page: {matrix.source} has no scores. Run the study with its test split scored.")
    return own_board(matrix, "trained" if matrix.has("trained") else "direct")


def _size_labels(models: Iterable[ModelMetadata]) -> list[str]:
    """Return the classes of size that occur, small to large, "unknown" last."""
    ends = [ModelMetadata(name="", params_b=low) for low, _ in SIZES]
    labels = [group_of(model, "size") for model in (*ends, ModelMetadata(name=""))]
    present = {group_of(model, "size") for model in models}
    return [label for label in labels if label in present]


def _benchmark(facts: BenchmarkMetadata) -> dict[str, Any]:
    return {
        "task": facts.task,
        "title": facts.title,
        "category": facts.category,
        "metric": facts.metric,
        "higher": facts.higher_is_better,
        "counts": not facts.is_perplexity,
        # Fractions are shown in percent; bits per byte as they are.
        "scale": 1 if facts.is_perplexity else 100,
        "digits": 3 if facts.is_perplexity else 1,
    }


def _model(facts: ModelMetadata, reference: bool) -> dict[str, Any]:
    return {
        "name": facts.name,
        "family": facts.family,
        "kind": facts.kind,
        "params": facts.params_b,
        "size": group_of(facts, "size"),
        "reference": reference,
    }


def _view(matrix: ScoreMatrix, preparation: Preparation, board: Board) -> dict[str, Any] | None:
    """Return everything that is shown of one preparation, or None where it has no scores."""
    if not matrix.has(preparation):
        return None
    if board.preparation != preparation:
        # Models without any of these scores would be named as left out, one by one.
        there = matrix.scores(preparation).values.notna().any(axis=1)
        board = own_board(matrix.subset(models=there.index[there]), preparation)
    scores = matrix.scores(preparation)
    row, column = ({name: at for at, name in enumerate(names)} for names in (matrix.model_names, matrix.benchmark_names))
    gaps = {f"{row[gap.model]} {column[gap.benchmark]}": gap.cause for gap in matrix.gaps(preparation)}
    many = len(matrix.models) > 1 and len(matrix.benchmarks) > 1
    return {
        "scores": _table(scores.values),
        "stderrs": _table(scores.stderrs),
        "counts": _table(scores.counts),
        "causes": {place: cause for place, cause in gaps.items() if cause != "not measured"},
        "tau": _table(agreement(matrix, preparation).tau) if many else None,
        "components": _components(matrix, board),
        "notes": list(board.notes),
        **_ranges(matrix, preparation),
    }


def _components(matrix: ScoreMatrix, board: Board) -> dict[str, Any] | None:
    """Return PC1 with its intervals, ranks and groups by model; None where there is too little for it."""
    if board.explained is None:
        return None
    rows = {row.model: row for row in board.rows}
    fitted = [row.model for row in board.rows if row.basis == "board"]
    shares = components(matrix.subset(models=fitted).downstream(), board.preparation).explained
    numbers = ("pc1", "low", "high", "rank", "rank_low", "rank_high", "group")
    return {
        "explained": [_plain(share) for share in shares],
        "models": len(fitted),
        **{name: [_number(getattr(rows.get(model), name, None)) for model in matrix.model_names] for name in numbers},
        "basis": [getattr(rows.get(model), "basis", "none") for model in matrix.model_names],
    }


def _ranges(matrix: ScoreMatrix, preparation: Preparation) -> dict[str, Any]:
    """Return rank ranges and tie groups, models x benchmarks each."""
    ranges = {task: rank_ranges(matrix, task, preparation).table.reindex(matrix.model_names) for task in matrix.benchmark_names}
    columns = {"rank_low": "low", "rank_high": "high", "groups": "group"}
    return {name: _table(pd.DataFrame({task: found[of] for task, found in ranges.items()})) for name, of in columns.items()}


def _table(frame: pd.DataFrame) -> list[list[float | None]]:
    return [[_plain(value) for value in row] for row in frame.to_numpy(dtype=float)]


def _number(value: float | None) -> float | None:
    return None if value is None else _plain(value)


def _plain(value: float) -> float | None:
    """Return a number as JSON writes it shortest: gaps as null, whole numbers without a point."""
    if math.isnan(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
