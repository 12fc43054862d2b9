"""A score matrix and what analysis says of it -> the plain values that the page carries. No arithmetic but rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lm_harmony import __version__
from lm_harmony.analysis.agreement import SIZES, agreement, group_of
from lm_harmony.analysis.cells import PREPARATIONS, Preparation
from lm_harmony.analysis.components import ReferenceBoard, components, fit_reference
from lm_harmony.analysis.facts import BenchmarkFacts, ModelFacts
from lm_harmony.analysis.intervals import CONFIDENCE, DRAWS, pc1_intervals
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.significance import THRESHOLD, rank_ranges
from lm_harmony.errors import UsageError

DIGITS = 10
"""Significant digits of a value in the page: more than a score of 10,000 examples has, fewer than binary fractions need."""
WORDS = {
    "interval": f"Beside ranks and under PC1: {CONFIDENCE:.0%} intervals of {DRAWS:,} bootstrap draws over test examples and benchmarks",
    "groups": f"The coloured edge joins models that the sorted column cannot tell apart ({THRESHOLD} standard errors of a "
    "difference; for PC1 the bootstrap); bold scores are tied with the benchmark's best",
}
"""What the marks of the table mean."""


def page_data(matrix: ScoreMatrix, reference: ReferenceBoard | None = None) -> dict[str, Any]:
    """Gather what the page shows of ``matrix``.

    Args:
        matrix: the scores; text corpora are shown, but take no part in PC1 unless the reader chooses them.
        reference: a fitted board whose axis PC1 of the trained scores is read on; default: the matrix's own.

    Raises:
        UsageError: the matrix has no scores.
    """
    if not any(matrix.has(preparation) for preparation in PREPARATIONS):
        raise UsageError(f"page: {matrix.source} has no scores. Run the study with its test split scored.")
    own = None if reference else _own_reference(matrix)
    fitted_on = set(reference.models) if reference else set(matrix.model_names)
    return {
        "version": __version__,
        "source": matrix.source,
        "reference": _named(reference, own),
        "words": WORDS,
        "sizes": _size_labels(matrix.models),
        "benchmarks": [_benchmark(facts, reference) for facts in matrix.benchmarks],
        "models": [_model(facts, facts.name in fitted_on) for facts in matrix.models],
        "views": {name: _view(matrix, name, reference if name == "trained" else None) for name in PREPARATIONS},
    }


def _own_reference(matrix: ScoreMatrix) -> ReferenceBoard | None:
    """Fit the board on the matrix itself; None where it is too small, which the page then says."""
    preparation: Preparation = "trained" if matrix.has("trained") else "direct"
    try:
        return fit_reference(matrix.downstream(), preparation)
    except UsageError:
        return None


def _named(reference: ReferenceBoard | None, own: ReferenceBoard | None) -> dict[str, Any]:
    board = reference or own
    if board is None:
        return {"text": "none: too few models and benchmarks without gaps"}
    size = f"{len(board.models)} models x {len(board.benchmarks)} benchmarks"
    text = str(board) if reference else f"fitted on {size} of this board, {board.preparation}, reference {board.fingerprint}"
    return {"text": text, "name": board.name, "fingerprint": board.fingerprint, "preparation": board.preparation}


def _size_labels(models: Iterable[ModelFacts]) -> list[str]:
    """Return the classes of size that occur, small to large, "unknown" last."""
    ends = [ModelFacts(name="", params_b=low) for low, _ in SIZES]
    labels = [group_of(model, "size") for model in (*ends, ModelFacts(name=""))]
    present = {group_of(model, "size") for model in models}
    return [label for label in labels if label in present]


def _benchmark(facts: BenchmarkFacts, reference: ReferenceBoard | None) -> dict[str, Any]:
    counts = facts.task in reference.benchmarks if reference else not facts.is_perplexity
    return {
        "task": facts.task,
        "title": facts.title,
        "category": facts.category,
        "metric": facts.metric,
        "higher": facts.higher_is_better,
        "counts": counts,
        # Fractions are shown in percent; bits per byte as they are.
        "scale": 1 if facts.is_perplexity else 100,
        "digits": 3 if facts.is_perplexity else 1,
    }


def _model(facts: ModelFacts, fitted: bool) -> dict[str, Any]:
    size = group_of(facts, "size")
    return {
        "name": facts.name,
        "family": facts.family,
        "kind": facts.kind,
        "params": facts.params_b,
        "size": size,
        "reference": fitted,
    }


def _view(matrix: ScoreMatrix, preparation: Preparation, reference: ReferenceBoard | None) -> dict[str, Any] | None:
    """Return everything that is shown of one preparation, or None where it has no scores."""
    if not matrix.has(preparation):
        return None
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
        "components": _components(matrix.downstream(), preparation, reference),
        **_ranges(matrix, preparation),
    }


def _components(matrix: ScoreMatrix, preparation: Preparation, reference: ReferenceBoard | None) -> dict[str, Any] | None:
    """Return PC1 with its intervals; None where there is too little for it."""
    try:
        explained = components(matrix, preparation).explained
        intervals = pc1_intervals(matrix, preparation)
    except UsageError:
        return None
    table = intervals.table.reindex(matrix.model_names)
    return {
        "explained": [_plain(share) for share in explained],
        "models": len(intervals.basis.models),
        "benchmarks": list(intervals.basis.benchmarks),
        **{name: _column(table[name]) for name in ("pc1", "low", "high", "rank_low", "rank_high")},
        "groups": _column(table["group"]),
    }


def _ranges(matrix: ScoreMatrix, preparation: Preparation) -> dict[str, Any]:
    """Return rank ranges and tie groups, models x benchmarks each."""
    ranges = {task: rank_ranges(matrix, task, preparation).table.reindex(matrix.model_names) for task in matrix.benchmark_names}
    tables: Mapping[str, str] = {"rank_low": "low", "rank_high": "high", "groups": "group"}
    return {name: _table(pd.DataFrame({task: found[of] for task, found in ranges.items()})) for name, of in tables.items()}


def _table(frame: pd.DataFrame) -> list[list[float | None]]:
    return [[_plain(value) for value in row] for row in frame.to_numpy(dtype=float)]


def _column(values: pd.Series[float]) -> list[float | None]:
    return [_plain(value) for value in values.to_numpy(dtype=float)]


def _plain(value: float) -> float | int | None:
    """Return a number as JSON writes it shortest: gaps as null, whole numbers without a point."""
    if math.isnan(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
