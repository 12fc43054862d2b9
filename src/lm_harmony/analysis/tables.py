"""Tables of others -> cells: CSV files, and the JSON layout of the paper's results."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_harmony.analysis.cells import PREPARATIONS, Cell, Found, Preparation
from lm_harmony.analysis.facts import PAPER_CORPORA
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError, did_you_mean

LONG = ("model", "benchmark", "preparation", "score", "stderr", "count", "metric", "higher_is_better")
"""Columns of the long layout, one line a score; the first four are needed."""
_BOARD = ("rank", "rank_low", "rank_high", "pc1", "pc1_low", "pc1_high", "basis", "group", "preparation")
"""Columns of the wide layout that are no benchmarks; they are recomputed or looked up."""
_JSON_KEYS: Mapping[Preparation, str] = {"trained": "train_before_test", "direct": "direct_eval"}


def csv_cells(path: Path) -> Found:
    """Read a CSV file in one of two layouts.

    Long: one line a score, columns as ``LONG``, scores in the metric's own unit (fractions, bits per byte).
    Wide, as boards are published: one line a model, a column for each benchmark, scores in percent (text corpora in bits per
    byte), trained ones unless a column preparation says otherwise. Rank, PC1 and their like are not read: they are computed.

    Raises:
        UsageError: another layout, an unknown column, a cell that is no number, the same score twice.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    if "model" not in columns or not rows:
        raise UsageError(f"{path}: a table needs the column 'model' and at least one line, got columns {', '.join(columns)}.")
    cells = _long(path, rows, columns) if "benchmark" in columns else _wide(path, rows, columns)
    _refuse_twice(path, cells)
    return Found(source=str(path), cells=tuple(cells))


def json_cells(path: Path) -> Found:
    """Read ``{"train_before_test": {benchmark: {model: score}}, "direct_eval": ..., "..._stderr": ...}``, scores as fractions.

    Raises:
        UsageError: another layout, a value that is no number.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}. Name a results folder, a .csv or a whole .json file.") from error
    if not isinstance(held, dict) or not set(_JSON_KEYS.values()) & set(held):
        raise UsageError(f"{path}: it needs the key train_before_test or direct_eval. Name a file in that layout.")
    cells = []
    for preparation, key in _JSON_KEYS.items():
        errors = held.get(f"{key}_stderr", {})
        for task, scores in held.get(key, {}).items():
            for model, score in scores.items():
                place = f"{path}: {key}: {task}: {model}"
                value = _number(score, place)
                stderr = _number(errors.get(task, {}).get(model), place)
                cells.append(Cell(model=model, benchmark=task, preparation=preparation, value=value, stderr=stderr))
    return Found(source=str(path), cells=tuple(cells))


def _long(path: Path, rows: Iterable[Mapping[str, str]], columns: tuple[str, ...]) -> list[Cell]:
    missing = [column for column in LONG[:4] if column not in columns]
    if missing:
        raise UsageError(f"{path}: the long layout lacks the columns {', '.join(missing)}. It has {', '.join(LONG)}.")
    cells = []
    for number, row in enumerate(rows, start=2):
        place = f"{path}, line {number}"
        preparation = _preparation(row["preparation"], place)
        count = _number(row.get("count"), place)
        cells.append(
            Cell(
                model=row["model"],
                benchmark=row["benchmark"],
                preparation=preparation,
                value=_number(row["score"], place),
                stderr=_number(row.get("stderr"), place),
                count=None if count is None else int(count),
                metric=row.get("metric") or None,
                higher_is_better=_direction(row.get("higher_is_better"), place),
            )
        )
    return cells


def _wide(path: Path, rows: Iterable[Mapping[str, str]], columns: tuple[str, ...]) -> list[Cell]:
    tasks = [column for column in columns if column not in ("model", *_BOARD)]
    for task in tasks:
        if task not in BENCHMARKS and task not in PAPER_CORPORA and not task.startswith("corpus:"):
            near = did_you_mean(task, BENCHMARKS)
            raise UsageError(f"{path}: the column {task!r} is no catalogued benchmark.{near} Others need the long layout.")
    corpora = {task for task in tasks if task not in BENCHMARKS}
    cells = []
    for number, row in enumerate(rows, start=2):
        preparation = _preparation(row.get("preparation") or "trained", f"{path}, line {number}")
        for task in tasks:
            value = _number(row[task], f"{path}, line {number}, column {task}")
            scaled = value if value is None or task in corpora else value / 100
            cells.append(Cell(model=row["model"], benchmark=task, preparation=preparation, value=scaled))
    if all(abs(cell.value or 0) <= 0.01 for cell in cells if cell.benchmark not in corpora):
        raise UsageError(f"{path}: no score is above 1, but the wide layout is in percent. Multiply the scores by 100.")
    return cells


def _refuse_twice(path: Path, cells: Iterable[Cell]) -> None:
    seen = set()
    for cell in cells:
        key = (cell.model, cell.benchmark, cell.preparation)
        if key in seen:
            raise UsageError(f"{path}: {cell.model} has two {cell.preparation} scores on {cell.benchmark}. Keep one of them.")
        seen.add(key)


def _number(cell: Any, place: str) -> float | None:
    """Return a cell's number; None for an empty cell, "N/A" or NaN."""
    if cell is None or str(cell).strip() in ("", "N/A"):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: {cell!r} is no number. Leave unknown scores empty.") from error
    if math.isinf(number):
        raise UsageError(f"{place}: {cell!r} is not finite. Leave unknown scores empty.")
    return None if math.isnan(number) else number


def _preparation(cell: str, place: str) -> Preparation:
    for known in PREPARATIONS:
        if cell == known:
            return known
    raise UsageError(f"{place}: preparation must be direct or trained, got {cell!r}.")


def _direction(cell: str | None, place: str) -> bool | None:
    if not cell:
        return None
    if cell.lower() not in ("true", "false"):
        raise UsageError(f"{place}: higher_is_better must be true or false, got {cell!r}.")
    return cell.lower() == "true"
