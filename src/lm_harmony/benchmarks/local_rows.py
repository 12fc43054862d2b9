"""Rows of a benchmark from local JSONL files, in the row schema of the hub's data set, with no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from lm_harmony.errors import BenchmarkError


def read_splits(files: Mapping[str, Path]) -> DatasetDict:
    """Read one JSONL file a split.

    Args:
        files: split name of the task -> its file; only files that the task needs are named here.

    Raises:
        BenchmarkError: a file is missing, empty or malformed; the text names the file, the line and the column.
    """
    return DatasetDict({split: _dataset(path) for split, path in files.items()})


def _dataset(path: Path) -> Dataset:
    rows = _rows(path)
    for line, row in rows[1:]:
        for column in sorted(rows[0][1].keys() ^ row.keys()):
            state = "lacks" if column not in row else "has"
            raise BenchmarkError(
                f"{path} line {line}: {state} column {column!r}, unlike line {rows[0][0]}; every row needs the same columns. "
                f"Mend that line."
            )
    try:
        return Dataset.from_list([row for _, row in rows])
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's own errors are of the first two
        raise BenchmarkError(_mixed_types(path, rows) or f"{path}: {error}. Give each column one type.") from error


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number from 1, row) of every line that is not blank."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BenchmarkError(f"{path} does not exist. Put the split's rows there, one JSON object a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}. Give a readable UTF-8 file.") from error
    # Not splitlines(): a JSON string may hold U+2028 and its like, which splitlines() takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(
                f"{path} line {number}, column {error.colno}: not JSON ({error.msg}). Mend that line."
            ) from error
        if not isinstance(row, dict):
            raise BenchmarkError(f"{path} line {number}: a {type(row).__name__}, not an object. One JSON object a line.")
        rows.append((number, row))
    if not rows:
        raise BenchmarkError(f"{path} holds no rows. Put the split's rows there, one JSON object a line.")
    return rows


def _mixed_types(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> str | None:
    """Name the first line whose value in some column has another type than the first value there."""
    for column in rows[0][1]:
        seen: tuple[int, type] | None = None
        for line, row in rows:
            kind = type(row[column])
            if row[column] is None or (seen and {kind, seen[1]} == {int, float}):
                continue
            if seen and kind is not seen[1]:
                return (
                    f"{path} line {line}, column {column!r}: {kind.__name__} where line {seen[0]} has {seen[1].__name__}. "
                    f"Give the column one type."
                )
            seen = seen or (line, kind)
    return None
