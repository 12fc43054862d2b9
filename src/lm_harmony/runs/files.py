"""Files and folders that are there whole or not at all, whatever happens in between.

Whatever a damaged file of a run raises, said as one error that names file, cause and remedy. No torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from lm_harmony.errors import DamagedFile, HarmonyError, StoreError


def replace_folder(scratch: Path, folder: Path) -> None:
    """Put a folder that was written whole under ``scratch`` in the place of ``folder``."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(scratch, folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that its name holds either the old text or the new one, whole, whatever happens in between.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}. What was finished before is whole; make room and resume with "
            f"--resume_from_checkpoint."
        ) from error


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
