"""Every finished run below a folder, found by looking: no index that could be wrong. A damaged record hides no other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.errors import HarmonyError, StoreError
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)

_OF_A_RUN = ("adapter", "checkpoints", "trackers")
"""Folders of a run that hold no other run."""
# What reading a file raises that is damaged, or that another program wrote.
_DAMAGE = (HarmonyError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError)


def records_below(results: Path) -> Iterator[RunRecord]:
    """Yield the record of every finished run below ``results``, in the order of their folders' names.

    A record that cannot be read is left out with a warning that names it.
    """
    for store in stores_below(results):
        try:
            ended = read_end(store)
        except StoreError as error:
            log.warning("left out: %s", error)
            continue
        if isinstance(ended, RunRecord):
            yield ended


def stores_below(results: Path) -> Iterator[RunStore]:
    """Yield every run below ``results`` that is finished or was given up, in the order of their folders' names."""
    for folder, folders, files in os.walk(results):
        # A folder with a record may hold other runs: another program's record.json beside them must not hide them.
        folders[:] = sorted(name for name in folders if name not in _OF_A_RUN)
        if "record.json" in files or "failure.json" in files:
            yield RunStore(Path(folder))


def read_end(store: RunStore) -> RunRecord | Failure | None:
    """Return how a run ended: its record, why it was given up, or None where it has not ended.

    Raises:
        StoreError: record.json or failure.json is damaged, or of another program; the text names file and cause.
    """
    return read_record(store) if store.is_finished() else read_failure(store)


def read_record(store: RunStore) -> RunRecord:
    """Read the record of a finished run and check its values.

    Raises:
        StoreError: as ``read_end``.
    """
    with _named(store, "record.json"):
        return store.record()


def read_failure(store: RunStore) -> Failure | None:
    """Read why a run was given up; None where it was not.

    Raises:
        StoreError: as ``read_end``.
    """
    with _named(store, "failure.json"):
        return store.failure()


@contextmanager
def _named(store: RunStore, name: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one error that names it."""
    file = store.folder / name
    try:
        yield
    except _DAMAGE as error:
        remedy = f"Restore the file, or remove {store.folder} and carry the run out again."
        raise StoreError(f"{file} cannot be read: {_cause(error, file)}. {remedy}") from error


def _cause(error: Exception, file: Path) -> str:
    """Return what went wrong, in one line, without the file and without another remedy."""
    said = " ".join(str(error).split()).removeprefix(f"{file} ")
    if isinstance(error, HarmonyError):
        said = said.split(". ")[0].rstrip(".")
        return f"it {said}" if said.startswith("is ") else said
    return f"{type(error).__name__} {said}"[:300].rstrip(" .")


def asked_of(store: RunStore) -> tuple[str, str] | None:
    """Return (model, task) that a run was asked for, whatever became of its record; None where config.yaml does not tell."""
    try:
        asked: Any = store.asked()
        model, task = asked["model"]["name"], asked["benchmark"]["task"]
    except _DAMAGE:
        return None
    return (model, task) if isinstance(model, str) and isinstance(task, str) else None
