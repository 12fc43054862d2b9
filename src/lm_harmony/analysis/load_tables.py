"""Reads score rows from tables: CSV files in two layouts, and JSON in the layout of the paper's results."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_harmony.analysis.load_open_llm import OPEN_LLM_NOTE, is_open_llm, open_llm_rows
from lm_harmony.analysis.metadata import default_metric, is_corpus, metric_metadata
from lm_harmony.analysis.score_rows import APART, Preparation, ScoreRow, ScoreRows
from lm_harmony.benchmarks.catalogue import BENCHMARKS, name_parts
from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.runs.shots import shots_of

LONG = ("model", "benchmark", "preparation", "score", "stderr", "count", "metric", "higher_is_better")
"""Columns of the long layout, one line per score; the first four are required."""
_BOARD = ("rank", "rank_low", "rank_high", "pc1", "pc1_low", "pc1_high", "basis", "group", "preparation")
"""Columns of the wide layout that are not benchmarks. They are ignored, because ranks and PC1 are computed again."""
_JSON_KEYS: Mapping[Preparation, str] = {"trained": "train_before_test", "direct": "direct_eval"}

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Begin of a text that a spreadsheet takes for a formula, with or without apostrophes before it."""

Row = tuple[str, Mapping[str, str]]
"""The position of a line for messages ("scores.csv, line 3"), and its cells by column."""


def csv_text(cell: Any) -> Any:
    """Return a text so that spreadsheets show it and do not compute it; anything else, such as a number, as it is.

    A text that begins with =, +, -, @, a tab or a carriage return gets an apostrophe, as OWASP recommends ("CSV injection").
    ``csv_rows`` removes it.
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _plain_text(cell: Any) -> Any:
    """Return the text from which ``csv_text`` made a cell."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_rows(path: Path) -> ScoreRows:
    """Read a CSV file in one of two layouts.

    Long layout: one line per score with the columns ``LONG``, scores in the metric's own unit (fractions, bits per byte).
    Wide layout, as boards are published: one line per model and one column per benchmark. Scores are in percent, those of text
    corpora in bits per byte. They are trained scores unless there is a column "preparation". Ranks, PC1 and scores without near
    duplicates are ignored.

    The CSV of the Open LLM Leaderboard (``load_open_llm``) is read as direct scores.

    Raises:
        UsageError: the layout is another one, a column is unknown, a cell is not a number, a number is out of its metric's
            range, or a score occurs twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [_plain_text(name) for name in reader.fieldnames or ()]
            rows = [(f"{path}, line {reader.line_num}", {key: _plain_text(cell) for key, cell in row.items()}) for row in reader]
            columns = tuple(reader.fieldnames)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: it cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from error
    if is_open_llm(columns):
        return ScoreRows(source=str(path), rows=tuple(open_llm_rows(rows, columns)), notes=(OPEN_LLM_NOTE,))
    if "model" not in columns or not rows:
        raise UsageError(
            f"{path}: a table needs the column 'model' and at least one line (got {', '.join(columns) or 'no columns'})."
        )
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(f"{path}, line 1: the column {column!r} occurs twice. Keep one of them.")
    for place, row in rows:
        if None in row:  # csv.DictReader's key for cells behind the last column
            raise UsageError(f"{place}: it has more cells than the table has columns. Write numbers with a point: 0.5, not 0,5.")
        if not row["model"]:
            raise UsageError(f"{place}, column model: it is empty. Name the model.")
    scores = _long(path, rows, columns) if "benchmark" in columns else _wide(path, rows, columns)
    _refuse_duplicates(path, scores)
    return ScoreRows(source=str(path), rows=tuple(scores))


def json_rows(path: Path) -> ScoreRows:
    """Read ``{"train_before_test": {benchmark: {model: score}}, "direct_eval": ..., "..._stderr": ...}``, scores as fractions.

    Raises:
        UsageError: the layout is another one, a value is not a number, or a value is out of its metric's range.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not JSON: {error}. Name a results folder, a .csv file or a complete .json file.") from error
    if not isinstance(values, dict) or not set(_JSON_KEYS.values()) & set(values):
        raise UsageError(f"{path}: it needs the key train_before_test or direct_eval. Name a file in the layout of the paper.")
    rows = []
    for preparation, key in _JSON_KEYS.items():
        errors = values.get(f"{key}_stderr", {})
        for task, scores in values.get(key, {}).items():
            for model, score in scores.items():
                place = f"{path}: {key}: {task}: {model}"
                value = _number(score, place)
                stderr = _number(errors.get(task, {}).get(model), f"{path}: {key}_stderr: {task}: {model}")
                _refuse_out_of_range(place, default_metric(task), value, stderr)
                rows.append(ScoreRow(model=model, benchmark=task, preparation=preparation, value=value, stderr=stderr))
    return ScoreRows(source=str(path), rows=tuple(rows))


def _long(path: Path, rows: Iterable[Row], columns: tuple[str, ...]) -> list[ScoreRow]:
    missing = [column for column in LONG[:4] if column not in columns]
    if missing:
        what = "the column" if len(missing) == 1 else "the columns"
        raise UsageError(f"{path}: the long layout lacks {what} {', '.join(missing)}. Its columns are {', '.join(LONG)}.")
    scores = []
    for place, row in rows:
        preparation = _preparation(row["preparation"], place)
        count = _number(row.get("count"), f"{place}, column count")
        if count is not None and (count < 1 or count % 1):
            raise UsageError(
                f"{place}, column count: it must be a whole number of at least 1 (got {count:g}). Leave it empty if unknown."
            )
        metric, value = row.get("metric") or None, _number(row["score"], f"{place}, column score")
        stderr, higher = _number(row.get("stderr"), f"{place}, column stderr"), _direction(row.get("higher_is_better"), place)
        read_as = metric or default_metric(row["benchmark"])
        _refuse_out_of_range(f"{place}, column score", read_as, value, stderr)
        known = None if read_as is None else metric_metadata(read_as)
        if known is not None and higher not in (None, known.higher_is_better):
            raise UsageError(
                f"{place}, column higher_is_better: it is {not higher} for {read_as} (got {higher}). Leave it empty."
            )
        scores.append(
            ScoreRow(
                model=row["model"],
                benchmark=row["benchmark"],
                preparation=preparation,
                value=value,
                stderr=stderr,
                count=None if count is None else int(count),
                metric=metric,
                higher_is_better=higher,
            )
        )
    return scores


def _wide(path: Path, rows: Iterable[Row], columns: tuple[str, ...]) -> list[ScoreRow]:
    tasks = [column for column in columns if column not in ("model", *_BOARD) and not column.endswith(APART)]
    for task in tasks:
        if name_parts(task)[0] not in BENCHMARKS and not is_corpus(task):
            near = did_you_mean(task, BENCHMARKS)
            raise UsageError(
                f"{path}: the column {task!r} is not a catalogued benchmark.{near} Use the long layout for other benchmarks."
            )
    corpora = {task for task in tasks if name_parts(task)[0] not in BENCHMARKS}
    scores = []
    for place, row in rows:
        preparation = _preparation(row.get("preparation") or "trained", place)
        for task in tasks:
            value = _number(row[task], f"{place}, column {task}")
            _refuse_out_of_range(f"{place}, column {task}", default_metric(task), value, percent=task not in corpora)
            scaled = value if value is None or task in corpora else value / 100
            scores.append(ScoreRow(model=row["model"], benchmark=task, preparation=preparation, value=scaled))
    shares = [abs(score.value or 0) for score in scores if score.benchmark not in corpora]
    if shares and max(shares) <= 0.01:
        raise UsageError(f"{path}: no score is above 1, but the wide layout is in percent. Multiply the scores by 100.")
    return scores


def _refuse_out_of_range(
    place: str, metric: str | None, value: float | None, stderr: float | None = None, *, percent: bool = False
) -> None:
    """Raise UsageError for a score or a standard error that is impossible for the metric."""
    if stderr is not None and stderr < 0:
        raise UsageError(f"{place}: a standard error must not be negative (got {stderr:g}). Leave it empty if it is not known.")
    known = None if metric is None else metric_metadata(metric)
    if known is None:
        return
    scale, unit = (100, " percent") if percent else (1, "")
    low, high = known.low * scale, known.high * scale
    if value is not None and not low <= value <= high:
        limits = f"at least {low:g}{unit}" if math.isinf(high) else f"from {low:g} to {high:g}{unit}"
        advice = "This layout is in percent." if percent else "Give it in the metric's own unit: 0.55, not 55."
        raise UsageError(f"{place}: a score of {metric} is {limits} (got {value:g}). {advice} Correct it or leave it empty.")
    if stderr is not None and stderr > (high - low) / 2:
        raise UsageError(
            f"{place}: a standard error of {metric} is at most {(high - low) / 2:g} (got {stderr:g}). "
            f"Give it in the unit of the score, as a fraction."
        )


def _refuse_duplicates(path: Path, rows: Iterable[ScoreRow]) -> None:
    seen = set()
    for row in rows:
        if row.key in seen:
            raise UsageError(f"{path}: {row.model} has two {row.preparation} scores on {row.benchmark}. Keep one of them.")
        seen.add(row.key)


def _number(cell: Any, place: str) -> float | None:
    """Return the number in a cell; None for an empty cell, "N/A" or NaN."""
    if cell is None or str(cell).strip() in ("", "N/A"):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: {cell!r} is not a number. Leave unknown scores empty.") from error
    if math.isinf(number):
        raise UsageError(f"{place}: {cell!r} is not finite. Leave unknown scores empty.")
    return None if math.isnan(number) else number


def _preparation(cell: str, place: str) -> Preparation:
    if cell != "trained" and shots_of(cell) is None:
        raise UsageError(f"{place}: preparation must be direct, direct_<k>shot such as direct_5shot, or trained (got {cell!r}).")
    return cell


def _direction(cell: str | None, place: str) -> bool | None:
    if not cell:
        return None
    if cell.lower() not in ("true", "false"):
        raise UsageError(f"{place}: higher_is_better must be true or false (got {cell!r}).")
    return cell.lower() == "true"
