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


def place_of(file: Path | None, row: int, document: Mapping[str, Any], processing: Processing | None) -> str:
    """Return " (FILE line N)" of a document, " (FILE)" where the line is not known, "" where the rows are not local.

    Args:
        file: the split's JSONL file.
        row: the document's number in its split, from 0, after the task's processing.
        document: the document.
        processing: may drop and move rows; the line is given only if row ``row`` of the file becomes this document.
    """
    if file is None:
        return ""
    line = line_of(file, row)
    if processing is not None and line is not None:
        alone = _processed(file, row, processing)
        line = line if isinstance(alone, datasets.Dataset) and len(alone) == 1 and alone[0] == document else None
    return f" ({file} line {line})" if line is not None else f" ({file})"


def misfit_place(file: Path | None, processing: Processing | None) -> str:
    """Return " (FILE line N)" of the first row that a task's processing cannot take, rows that hold a null before others."""
    if file is None:
        return ""
    if processing is not None:
        rows = list(read_splits({"rows": file})["rows"])
        ordered = sorted(range(len(rows)), key=lambda row: None not in rows[row].values())
        for row in ordered[:TRIED]:
            if isinstance(_processed(file, row, processing), Exception):
                return f" ({file} line {line_of(file, row)})"
    return f" ({file})"


def _processed(file: Path, row: int, processing: Processing) -> datasets.Dataset | Exception:
    try:
        return processing(read_splits({"rows": file})["rows"].select([row]))
    except Exception as error:  # noqa: BLE001 whatever the task's code raises is the answer
        return error
