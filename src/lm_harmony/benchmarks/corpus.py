"""Text corpora as perplexity benchmarks: the documents of ``corpus:PATH``.

PATH is a .jsonl file whose rows have a ``text``, a .txt file whose documents are separated by blank lines, or a folder with one
file of either kind for each of train, validation and test. A single file is split by the SHA-256 of each document's text. So the
split does not depend on the order of the file, and equal documents are in the same split. This module imports no library, so that
a corpus is checked before anything is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX
from lm_harmony.benchmarks.json_lines import ENCODING, rows_of
from lm_harmony.errors import BenchmarkError

ROLES = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the documents in validation, and also in test; each gets at least one document."""
_KINDS = (".jsonl", ".txt")


def read_corpus(path: Path) -> dict[str, list[str]]:
    """Return the documents of train, validation and test.

    Raises:
        BenchmarkError: the file does not exist, is neither .jsonl nor .txt, cannot be read, has a row without a text, or has
            fewer than three different documents. In a folder, a split has no file, two files, or no documents.
    """
    if path.is_dir():
        files = {role: _one_file(path, role) for role in ROLES}
        documents = {role: _documents(file) for role, file in files.items()}
        empty = next((files[role] for role, texts in documents.items() if not texts), None)
        if empty is not None:
            raise BenchmarkError(f"{empty} has no documents. Put at least one there.")
        return documents
    if not path.is_file():
        raise BenchmarkError(f"{CORPUS_PREFIX}{path} does not exist. Give a .jsonl or .txt file, or a folder of them.")
    return _cut(path, _documents(path))


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
        texts = list(_texts(path))
    else:
        raise BenchmarkError(f"{CORPUS_PREFIX}{path}: a corpus must be .jsonl or .txt, got {path.suffix or 'no ending'}.")
    return [text for text in texts if text.strip()]


def _texts(path: Path) -> Iterator[str]:
    for line, row in rows_of(path):
        if "text" not in row:
            raise BenchmarkError(f"{path} line {line}: the row lacks the column 'text', it has {', '.join(row)}. Rename it.")
        text = row["text"]
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise BenchmarkError(f"{path} line {line}, column 'text': {kind}, not a string. Write every text as a JSON string.")
        yield text


def _cut(path: Path, documents: Sequence[str]) -> dict[str, list[str]]:
    if len(set(documents)) < len(ROLES):
        raise BenchmarkError(
            f"{CORPUS_PREFIX}{path}: {len(set(documents))} different documents, but train, validation and test need one each. "
            f"Separate documents by blank lines (.txt), or write one in each line (.jsonl)."
        )
    ordered = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = max(1, int(HELD_OUT * len(ordered)))
    return {"test": ordered[:held], "validation": ordered[held : 2 * held], "train": ordered[2 * held :]}
