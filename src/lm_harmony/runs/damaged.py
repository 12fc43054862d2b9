"""Whatever a damaged file of a run raises, said as one error that names file, cause and remedy. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from lm_harmony.errors import DamagedFile, HarmonyError

# What reading a file raises that is damaged, or that another program wrote.
_DAMAGE = (HarmonyError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever the block raises while it reads ``file``, of a run's folder, into one error that names it.

    Raises:
        DamagedFile: the block raised an error of any kind that a file can cause.
    """
    try:
        yield
    except DamagedFile:
        raise
    except _DAMAGE as error:
        remedy = f"Restore the file, or remove {file.parent} and carry the run out again."
        raise DamagedFile(f"{file} cannot be read: {_cause(error)}. {remedy}") from error


def _cause(error: Exception) -> str:
    """Return what went wrong, in one line and without another remedy."""
    said = " ".join(str(error).split())
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {said}"
    if isinstance(error, HarmonyError):
        return said.split(". ")[0].rstrip(".")
    return f"{type(error).__name__} {said}"[:300].rstrip(" .")
