"""Reads a JSONL file of rows. It imports no library, so that rows are checked before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_harmony.errors import BenchmarkError

ENCODING = "utf-8-sig"
"""UTF-8, with or without the byte order mark that Windows editors write."""


def rows_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number from 1, row) of every line that is not blank.

    Raises:
        BenchmarkError: the file is missing, has no rows, or a line is not a JSON object in UTF-8.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        text = path.read_text(encoding=ENCODING)
    except FileNotFoundError as error:
        raise BenchmarkError(f"{path} does not exist. Put the split's rows there, one JSON object in each line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}. Give a readable UTF-8 file.") from error
    # Not splitlines(): it also splits at U+2028, which a JSON string may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(
                f"{path} line {number}, column {error.colno}: not JSON ({error.msg}). Correct that line."
            ) from error
        if not isinstance(row, dict):
            raise BenchmarkError(f"{path} line {number}: a {type(row).__name__}, not an object. Write one object a line.")
        rows.append((number, row))
    if not rows:
        raise BenchmarkError(f"{path} has no rows. Put the split's rows there, one JSON object in each line.")
    return rows
