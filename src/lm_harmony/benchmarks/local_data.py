"""Rows of a benchmark from local JSONL files, and text corpora as perplexity benchmarks (``corpus:PATH``). No network.

JSONL rows have the columns of the data set on the hub. PATH of a corpus is a .jsonl file whose rows have a ``text``, a .txt file
whose documents are separated by blank lines, or a folder with one file of either kind for each of train, validation and test.
A single file is split by the SHA-256 of each document's text. So the split does not depend on the order of the file, and equal
documents are in the same split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX
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


ROLES = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the documents in validation, and also in test; each gets at least one document."""
_KINDS = (".jsonl", ".txt")


def read_corpus(path: Path) -> DatasetDict:
    """Return the splits of a corpus. Each row is one document, in the column ``text``.

    Raises:
        BenchmarkError: the file does not exist, is neither .jsonl nor .txt, or has fewer than three different documents.
    """
    if path.is_dir():
        files = {role: _one_file(path, role) for role in ROLES}
        return _dataset({role: _documents(file) for role, file in files.items()})
    if not path.is_file():
        raise BenchmarkError(f"{CORPUS_PREFIX}{path} does not exist. Give a .jsonl or .txt file, or a folder of them.")
    return _dataset(_cut(path, _documents(path)))


def _one_file(folder: Path, role: str) -> Path:
    found = [folder / f"{role}{kind}" for kind in _KINDS if (folder / f"{role}{kind}").is_file()]
    if len(found) != 1:
        raise BenchmarkError(f"{CORPUS_PREFIX}{folder}: {role} must be one file, .jsonl or .txt, got {len(found)} files.")
    return found[0]


def _documents(path: Path) -> list[str]:
    if path.suffix == ".txt":
        try:
            content = path.read_text(encoding=ENCODING)
        except UnicodeDecodeError as error:
            raise BenchmarkError(f"{path} cannot be read: {error}. Give a UTF-8 file.") from error
        texts = [text.strip("\n") for text in re.split(r"\n[ \t]*\n", content)]
    elif path.suffix == ".jsonl":
        rows = read_splits({"all": path})["all"]
        if "text" not in rows.column_names:
            raise BenchmarkError(f"{path}: rows lack the column 'text', they have {', '.join(rows.column_names)}. Rename it.")
        texts = list(rows["text"])
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                kind = "null" if text is None else type(text).__name__
                raise BenchmarkError(
                    f"{path} line {line_of(path, row)}, column 'text': {kind}, not a string. Write every text as a JSON string."
                )
    else:
        raise BenchmarkError(f"{CORPUS_PREFIX}{path}: a corpus must be .jsonl or .txt, got {path.suffix or 'no ending'}.")
    return [text for text in texts if text.strip()]


def _cut(path: Path, documents: Sequence[str]) -> dict[str, list[str]]:
    if len(set(documents)) < len(ROLES):
        raise BenchmarkError(
            f"{CORPUS_PREFIX}{path}: {len(set(documents))} different documents, but train, validation and test need one each. "
            f"Separate documents by blank lines (.txt), or write one in each line (.jsonl)."
        )
    ordered = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = max(1, int(HELD_OUT * len(ordered)))
    return {"test": ordered[:held], "validation": ordered[held : 2 * held], "train": ordered[2 * held :]}


def _dataset(splits: Mapping[str, Sequence[str]]) -> DatasetDict:
    return DatasetDict({role: Dataset.from_dict({"text": list(splits[role])}) for role in ROLES})
