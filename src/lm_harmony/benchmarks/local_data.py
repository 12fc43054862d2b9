"""Rows of a benchmark from local JSONL files, which have the columns of the data set on the hub. No network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from lm_harmony.benchmarks.json_lines import ENCODING, rows_of
from lm_harmony.errors import BenchmarkError

_LARGEST = 2**63


def read_splits(files: Mapping[str, Path]) -> DatasetDict:
    """Read one JSONL file for each split. A column must have one type in all files.

    Args:
        files: split name -> its file.

    Raises:
        BenchmarkError: a file is missing, empty or malformed. The message names the file, the line and the column.
    """
    read = {split: rows_of(path) for split, path in files.items()}
    for split, rows in read.items():
        _refuse_other_columns(files[split], rows)
    _refuse_mixed_types([(files[split], rows) for split, rows in read.items()])
    all_rows = [row for rows in read.values() for _, row in rows]
    columns = list(dict.fromkeys(column for rows in read.values() for column in rows[0][1]))
    try:
        # One table for all splits: a column that is null in one split gets its type from the others.
        table = Dataset.from_dict({column: [row.get(column) for row in all_rows] for column in columns})
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's own errors are of the first two
        raise BenchmarkError(f"{', '.join(map(str, files.values()))}: {error}. Give each column one type.") from error
    splits, start = DatasetDict(), 0
    for split, rows in read.items():
        splits[split] = table.select(range(start, start + len(rows))).select_columns(list(rows[0][1]))
        start += len(rows)
    return splits


def line_of(path: Path, row: int) -> int | None:
    """Return the line (from 1) of row ``row`` (from 0) of a JSONL file; None if the file has no such row."""
    with path.open(encoding=ENCODING) as lines:
        numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return numbers[row] if row < len(numbers) else None


def _refuse_other_columns(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> None:
    for line, row in rows[1:]:
        for column in sorted(rows[0][1].keys() ^ row.keys()):
            state = "lacks" if column not in row else "has"
            raise BenchmarkError(
                f"{path} line {line}: {state} column {column!r}, unlike line {rows[0][0]}. Every row needs the same columns: "
                f"correct that line."
            )


def _refuse_mixed_types(files: list[tuple[Path, list[tuple[int, dict[str, Any]]]]]) -> None:
    """Refuse a value whose type is not that of the first value of its column, in any of the files.

    Integers and floats are not mixed: beside 2.5 the table would store 3 as 3.0, and the rendered text would contain "3.0".
    """
    seen: dict[str, tuple[type, Path, int]] = {}
    for path, rows in files:
        for line, row in rows:
            for column, value in _values(row):
                kind, (first, file, number) = type(value), seen.setdefault(column, (type(value), path, line))
                location = f"{path} line {line}, column {column!r}"
                if kind is not first:
                    where = f"line {number}" if file == path else f"{file} line {number}"
                    hint = " Write whole numbers with .0, or all of them as strings." if {kind, first} == {int, float} else ""
                    raise BenchmarkError(
                        f"{location}: {kind.__name__} where {where} has {first.__name__}. "
                        f"Give the column one type in all splits.{hint}"
                    )
                if kind is int and not -_LARGEST <= value < _LARGEST:
                    raise BenchmarkError(f"{location}: {value} does not fit into 64 bits. Write it as a string.")


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (column, value) of a row and of everything nested in it, without nulls: "choices", "choices.text[]"."""
    if name and value is not None:
        yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _values(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for item in value:
            yield from _values(item, f"{name}[]")
