"""Where a document of local rows stands, for messages: its file and line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from lm_harmony.benchmarks.local_rows import line_of, read_splits

Processing = Callable[[datasets.Dataset], datasets.Dataset]
"""A task's own ``process_docs``."""
TRIED = 300
"""Rows that are tried one by one to find the one that a task's processing cannot take."""


def place_of(file: Path | None, row: int, *, moved: bool) -> str:
    """Return " (FILE line N)" of a document, " (FILE)" where the line is not known, "" where the rows are not local.

    Args:
        file: the split's JSONL file.
        row: the document's number in its split, from 0, after the task's processing.
        moved: whether the task's processing may have made this document of another row of the file.
    """
    if file is None:
        return ""
    line = None if moved else line_of(file, row)
    return f" ({file} line {line})" if line is not None else f" ({file})"


def unprocessed(
    rows: datasets.Dataset, row: int, document: Mapping[str, Any], processing: Processing
) -> Mapping[str, Any] | None:
    """Return the row that a task's processing makes ``document`` of, or None where row ``row`` is another one."""
    if row >= len(rows):
        return None
    made = _processed(rows, row, processing)
    if isinstance(made, Exception) or len(made) != 1 or made[0] != document:
        return None
    found: Mapping[str, Any] = rows[row]
    return found


def misfit_place(file: Path | None, processing: Processing | None) -> str:
    """Return " (FILE line N)" of the first row that a task's processing cannot take, rows that hold a null before others."""
    if file is None:
        return ""
    if processing is not None:
        rows = read_splits({"rows": file})["rows"]
        nulls = [None in row.values() for row in rows]
        for row in sorted(range(len(rows)), key=lambda row: not nulls[row])[:TRIED]:
            if isinstance(_processed(rows, row, processing), Exception):
                return f" ({file} line {line_of(file, row)})"
    return f" ({file})"


def _processed(rows: datasets.Dataset, row: int, processing: Processing) -> datasets.Dataset | Exception:
    try:
        return processing(rows.select([row]))
    except Exception as error:  # noqa: BLE001 whatever the task's code raises is the answer
        return error
