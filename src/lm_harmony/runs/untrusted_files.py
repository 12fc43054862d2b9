"""Reads a file of which nobody knows who wrote it, within bounds of memory and time. No torch."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.errors import StoreError

MOST_JSON = 1 << 24
"""Bytes of the largest JSON file that is read. A record has about 20,000; parsed, hostile JSON takes 30 times its size."""
MOST_YAML = 1 << 21
"""Bytes of the largest YAML file that is read."""
MOST_LINES = 1 << 30
"""Bytes of the largest JSONL file that is read; samples of long texts are large."""
_DEEPEST = 50
"""Mappings and lists inside each other in a YAML file, at most."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_bounded(path: Path, most: int) -> str:
    """Return the text of a regular file.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        OSError: it cannot be opened or read.
        UnicodeDecodeError: it is not UTF-8.
        StoreError: it is larger, or no regular file: reading a pipe or a device may never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # opening a folder says what is wrong
        raise StoreError("it is a pipe or a device, not a file")
    if found.st_size > most:
        raise StoreError(f"it has {found.st_size:,} bytes, more than the largest that is read ({most:,})")
    with path.open("rb") as file:
        return file.read(most).decode("utf-8")


def load_plain_yaml(text: str) -> Any:
    """Return the value of a YAML text that has no aliases and is nested at most 50 deep.

    Aliases of aliases are a short text for a value that fills the memory, and deep nesting can end the process.

    Raises:
        yaml.YAMLError: it is not YAML.
        StoreError: it has aliases, or is nested too deep.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            line = 0 if event.start_mark is None else event.start_mark.line
            raise StoreError(f"line {line + 1} has a YAML alias, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise StoreError("it is nested too deep")
    return yaml.load(text, Loader=_LOADER)
