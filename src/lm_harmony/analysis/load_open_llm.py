"""Reads score rows from the CSV of the Open LLM Leaderboard, both versions, as direct scores.

Version 2 has the columns "fullname" and, for each benchmark, one in percent ("IFEval", rescaled above chance) and one as a
fraction ("IFEval Raw"). The fractions are read. Version 1 has "fullname" or "Model" and one column in percent for each benchmark.
The other columns (average, licence, parameters and so on) are ignored. A model may stand on several lines, in other number
formats or revisions: the line with the largest average counts, as on the leaderboard's own page, and flagged models are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lm_harmony.analysis.score_rows import ScoreRow
from lm_harmony.errors import UsageError

RAW = ("IFEval", "BBH", "MATH Lvl 5", "GPQA", "MUSR", "MMLU-PRO")
"""Benchmarks of version 2."""
PERCENT = ("ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K")
"""Benchmarks of version 1."""
OPEN_LLM_NOTE = "scores of the Open LLM Leaderboard are direct scores without standard errors, some with examples (few-shot)"
"""Remark for readers of the matrix."""
_NAMES = ("fullname", "Model", "model_name_for_query")
_LINK = re.compile(r"<[^>]*>")


def is_open_llm(columns: Sequence[str]) -> bool:
    """Tell whether a table has the columns of the leaderboard."""
    return any(name in columns for name in _NAMES) and len(_benchmarks(columns)) > 1


def open_llm_rows(rows: Iterable[tuple[str, Mapping[str, str]]], columns: Sequence[str]) -> list[ScoreRow]:
    """Return a direct score of each model on each benchmark.

    Args:
        rows: position of a line for messages, and its cells by column.
        columns: names of the columns.

    Raises:
        UsageError: a cell is not a number, or a score is out of range.
    """
    name_column = next(name for name in _NAMES if name in columns)
    average = next((column for column in columns if column.startswith("Average")), None)
    best: dict[str, tuple[float, list[ScoreRow]]] = {}
    for place, row in rows:
        if (row.get("Flagged") or "").lower() == "true":
            continue
        model = _LINK.sub("", row[name_column] or "").strip()
        scores = [_score(model, row, place, column, scale) for column, scale in _benchmarks(columns).items()]
        mean = _number(row.get(average or ""), place) or 0.0
        if model and (model not in best or mean > best[model][0]):
            best[model] = (mean, scores)
    return [score for _, scores in best.values() for score in scores]


def _benchmarks(columns: Sequence[str]) -> dict[str, float]:
    """Return the columns to read, with the factor that makes fractions of their values."""
    raw = {f"{name} Raw": 1.0 for name in RAW if f"{name} Raw" in columns}
    return raw or {name: 0.01 for name in (*PERCENT, *RAW) if name in columns}


def _score(model: str, row: Mapping[str, str], place: str, column: str, scale: float) -> ScoreRow:
    number = _number(row[column], f"{place}, column {column}")
    value = None if number is None else number * scale
    if value is not None and not 0 <= value <= 1:
        raise UsageError(f"{place}, column {column}: a score is from 0 to {1 / scale:g} (got {number:g}). Correct it.")
    return ScoreRow(
        model=model,
        benchmark=column.removesuffix(" Raw"),
        preparation="direct",
        value=value,
        metric="score",
        higher_is_better=True,
    )


def _number(cell: str | None, place: str) -> float | None:
    try:
        return float(cell) if cell and cell.strip().lower() not in ("nan", "n/a") else None
    except ValueError as error:
        raise UsageError(f"{place}: {cell!r} is not a number. Leave unknown scores empty.") from error
