"""The data of the page: a score matrix and its analyses as plain JSON values. Nothing is computed but rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pandas as pd

from lm_harmony import __version__
from lm_harmony.analysis.agreement import SIZES, agreement, group_of
from lm_harmony.analysis.audit import audit
from lm_harmony.analysis.leaderboard import Board, own_board, published_board, published_with_new_models
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata, ModelMetadata
from lm_harmony.analysis.noise_ceiling import noise_ceiling
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.analysis.significance import Z_THRESHOLD, rank_ranges
from lm_harmony.errors import UsageError
from lm_harmony.report.shown_names import without_local_paths

DIGITS = 10
"""Significant digits of values in the page: enough for a score on 10,000 examples."""
MARKS = (
    f"bands at the left edge join models whose scores in the sorted column do not differ significantly ({Z_THRESHOLD} standard "
    "errors of a difference; for PC1 the bootstrap) from the band's first model, so neighbours in two bands need not differ; "
    "scores in bold do not differ significantly from the benchmark's best"
)
"""Explanation of the marks in the table."""


def page_data(matrix: ScoreMatrix | None, *, published: bool = False) -> dict[str, Any]:
    """Return everything that the page shows, as values for JSON.

    Args:
        matrix: scores to show. Text corpora are shown, but enter PC1 only if the reader selects them. None: show only the
            published board.
        published: whether to show the models among those of the published board, with its PC1.

    Raises:
        UsageError: the matrix has no scores.
    """
    matrix = None if matrix is None else without_local_paths(matrix)
    if published:
        board, published_matrix = published_board(matrix), ScoreMatrix.published()
        fixed = set(published_matrix.model_names)
        shown = published_matrix if matrix is None else published_with_new_models(matrix)
    else:
        assert matrix is not None
        board, shown, fixed = _own(matrix), matrix, set(matrix.model_names)
    views = {name: _view(shown, name, board) for name in shown.preparations}
    return {
        "version": __version__,
        "source": shown.source,
        "reference": board.reference,
        "marks": MARKS,
        "sizes": _size_labels(shown.models),
        "benchmarks": [_benchmark(benchmark) for benchmark in shown.benchmarks],
        # PC1 of selected benchmarks is fitted on the reference models, and ranks are ranks among them.
        "models": [_model(model, model.name in fixed) for model in shown.models],
        "views": views,
        "ceilings": _ceilings(shown),
        "audit": _audit(shown),
    }


def _ceilings(matrix: ScoreMatrix) -> dict[str, dict[str, Any]]:
    """Return the noise ceiling of each preparation that has one: the mean tau that is allowed, and the measured one."""
    downstream = matrix.downstream()
    found: dict[str, dict[str, Any]] = {}
    for preparation in matrix.preparations:
        with suppress(UsageError):  # too few models or benchmarks, or no standard errors
            ceiling = noise_ceiling(downstream, preparation)
            numbers = {"tau": ceiling.mean_tau, "ceiling": ceiling.mean_ceiling, "share": ceiling.share}
            found[preparation] = {
                **{name: _plain(value) for name, value in numbers.items()},
                "benchmarks": len(ceiling.benchmarks),
                "models": ceiling.models,
            }
    return found


def _audit(matrix: ScoreMatrix) -> dict[str, Any] | None:
    """Return the preparedness audit; None: too few models or benchmarks have direct and trained scores."""
    try:
        found = audit(matrix)
    except UsageError:
        return None
    row = {name: place for place, name in enumerate(matrix.model_names)}
    flagged = found.table[found.table["flagged"]]
    leads = None if found.leads is None else {name: _plain(float(found.leads[name].mean())) for name in PREPARATIONS}
    return {
        "models": len(found.models),
        "benchmarks": len(found.benchmarks),
        "flips": _plain(found.flips),
        "leads": None if leads is None or found.leads is None else {**leads, "pairs": len(found.leads)},
        # Each flagged model by its place in "models", with both ranks, the largest difference in errors first.
        "flagged": [[row[str(name)], _plain(line["direct"]), _plain(line["trained"])] for name, line in flagged.iterrows()],
    }


def _own(matrix: ScoreMatrix) -> Board:
    """Return the board of the matrix: of the trained scores, or of the direct scores if there are no others."""
    present = [name for name in ("trained", *matrix.preparations) if matrix.has(name)]
    if not present:
        raise UsageError(f"page: {matrix.source} has no scores. Run a study with the test split scored.")
    return own_board(matrix, present[0])


def _size_labels(models: Iterable[ModelMetadata]) -> list[str]:
    """Return the size classes of ``models``, from small to large, "unknown" last."""
    ends = [ModelMetadata(name="", params_b=low) for low, _ in SIZES]
    labels = [group_of(model, "size") for model in (*ends, ModelMetadata(name=""))]
    present = {group_of(model, "size") for model in models}
    return [label for label in labels if label in present]


def _benchmark(benchmark: BenchmarkMetadata) -> dict[str, Any]:
    return {
        "task": benchmark.task,
        "title": benchmark.title,
        "category": benchmark.category,
        "metric": benchmark.metric,
        "higher": benchmark.higher_is_better,
        "counts": not benchmark.is_perplexity,
        # The factor of the wide CSV layout: percent, except for text corpora.
        "scale": 1 if benchmark.is_perplexity else 100,
        # How the page shows a score: the factor, and the decimals in the table.
        "factor": benchmark.shown_factor,
        "digits": benchmark.shown_decimals - 1,
    }


def _model(model: ModelMetadata, reference: bool) -> dict[str, Any]:
    return {
        "name": model.name,
        "family": model.family,
        "kind": model.kind,
        "params": model.params_b,
        "size": group_of(model, "size"),
        "reference": reference,
    }


def _view(matrix: ScoreMatrix, preparation: Preparation, board: Board) -> dict[str, Any] | None:
    """Return scores and analyses of one preparation; None: it has no scores."""
    if not matrix.has(preparation):
        return None
    if board.preparation != preparation:
        # Models without any such score are dropped first, so that the notes do not name each of them as left out.
        scored = matrix.scores(preparation).values.notna().any(axis=1)
        board = own_board(matrix.subset(models=scored.index[scored]), preparation)
    scores = matrix.scores(preparation)
    row, column = ({name: i for i, name in enumerate(names)} for names in (matrix.model_names, matrix.benchmark_names))
    gaps = {f"{row[gap.model]} {column[gap.benchmark]}": gap.cause for gap in matrix.gaps(preparation)}
    has_pairs = len(matrix.models) > 1 and len(matrix.benchmarks) > 1
    return {
        "scores": _table(scores.values),
        "stderrs": _table(scores.stderrs),
        "counts": _table(scores.counts),
        "causes": {cell: cause for cell, cause in gaps.items() if cause != "not measured"},
        "tau": _table(agreement(matrix, preparation).tau) if has_pairs else None,
        "components": _components(matrix, board),
        "notes": list(board.notes),
        **_apart(matrix, preparation, row, column),
        **_ranges(matrix, preparation),
    }


def _apart(matrix: ScoreMatrix, preparation: Preparation, row: dict[str, int], column: dict[str, int]) -> dict[str, Any]:
    """Return scores without near duplicates as value, standard error and count by cell; no key if there are none."""
    found = {
        f"{row[model]} {column[task]}": [_plain(part.value), _number(part.stderr), part.count]
        for (model, task, name), part in matrix.without_near_duplicates.items()
        if name == preparation and model in row and task in column
    }
    return {"without_near_duplicates": found} if found else {}


def _components(matrix: ScoreMatrix, board: Board) -> dict[str, Any] | None:
    """Return PC1 with intervals, ranks and tie groups by model; None: the board has no PC1."""
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
    """Return rank ranges and tie groups, each a table of models x benchmarks."""
    ranges = {task: rank_ranges(matrix, task, preparation).table.reindex(matrix.model_names) for task in matrix.benchmark_names}
    columns = {"rank_low": "low", "rank_high": "high", "groups": "group"}
    return {name: _table(pd.DataFrame({task: found[of] for task, found in ranges.items()})) for name, of in columns.items()}


def _table(frame: pd.DataFrame) -> list[list[float | None]]:
    return [[_plain(value) for value in row] for row in frame.to_numpy(dtype=float)]


def _number(value: float | None) -> float | None:
    return None if value is None else _plain(value)


def _plain(value: float) -> float | None:
    """Return a number in its shortest form in JSON: None for NaN, an int for an integral value."""
    if math.isnan(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
