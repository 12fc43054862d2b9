"""A text corpus of the user's own as a perplexity benchmark: ``corpus:PATH``, in bits per byte.

PATH is a .jsonl file whose rows have a ``text``, a .txt file whose documents are separated by blank lines, or a folder that holds
train, validation and test as files of either kind. One file alone is cut into train, validation and test by the SHA-256 of each
document's text: the cut does not depend on the order of the file, and equal documents stay together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from lm_harmony.benchmarks.local_rows import ENCODING, line_of, read_splits
from lm_harmony.errors import BenchmarkError

PREFIX = "corpus:"
ROLES = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the documents that validation takes, and test; at least one each."""
_KINDS = (".jsonl", ".txt")


def read_corpus(path: Path) -> DatasetDict:
    """Return the documents of a corpus, split by split, each a row with its ``text``.

    Raises:
        BenchmarkError: there is no such file, it is of another kind, or it has too few documents.
    """
    if path.is_dir():
        files = {role: _one_file(path, role) for role in ROLES}
        return _dataset({role: _documents(file) for role, file in files.items()})
    if not path.is_file():
        raise BenchmarkError(f"{PREFIX}{path}: no such file or folder. Give a .jsonl or .txt file, or a folder of them.")
    return _dataset(_cut(path, _documents(path)))


def _one_file(folder: Path, role: str) -> Path:
    found = [folder / f"{role}{kind}" for kind in _KINDS if (folder / f"{role}{kind}").is_file()]
    if len(found) != 1:
        raise BenchmarkError(f"{PREFIX}{folder}: {role} must be one file, .jsonl or .txt; found {len(found)}.")
    return found[0]


def _documents(path: Path) -> list[str]:
    if path.suffix == ".txt":
        try:
            whole = path.read_text(encoding=ENCODING)
        except UnicodeDecodeError as error:
            raise BenchmarkError(f"{path} cannot be read: {error}. Give a UTF-8 file.") from error
        texts = [text.strip("\n") for text in re.split(r"\n[ \t]*\n", whole)]
    elif path.suffix == ".jsonl":
        rows = read_splits({"all": path})["all"]
        if "text" not in rows.column_names:
            raise BenchmarkError(f"{path}: rows lack the column 'text', they have {', '.join(rows.column_names)}. Name it text.")
        texts = list(rows["text"])
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                kind = "null" if text is None else type(text).__name__
                raise BenchmarkError(
                    f"{path} line {line_of(path, row)}, column 'text': {kind}, not a string. Write every text as a JSON string."
                )
    else:
        raise BenchmarkError(f"{PREFIX}{path}: a corpus is a .jsonl or a .txt file, not {path.suffix or 'one without ending'}.")
    return [text for text in texts if text.strip()]


def _cut(path: Path, documents: Sequence[str]) -> dict[str, list[str]]:
    if len(set(documents)) < len(ROLES):
        raise BenchmarkError(
            f"{PREFIX}{path}: {len(set(documents))} different documents, and train, validation and test need one each. "
            f"Separate documents by blank lines (.txt), or write one a line (.jsonl)."
        )
    ordered = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = max(1, int(HELD_OUT * len(ordered)))
    return {"test": ordered[:held], "validation": ordered[held : 2 * held], "train": ordered[2 * held :]}


def _dataset(splits: Mapping[str, Sequence[str]]) -> DatasetDict:
    return DatasetDict({role: Dataset.from_dict({"text": list(splits[role])}) for role in ROLES})
