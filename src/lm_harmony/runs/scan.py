"""Every finished run below a folder, found by looking: no index that could be wrong. A damaged record hides no other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from lm_harmony.errors import DamagedFile
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)

_OF_A_RUN = ("adapter", "checkpoints", "trackers")
"""Folders of a run that hold no other run."""


def read_records(results: Path) -> Iterator[RunRecord]:
    """Yield the record of every finished run below ``results``, in the order of their folders' names.

    A record that cannot be read is left out with a warning that names it.
    """
    for store in find_runs(results):
        try:
            ended = read_outcome(store)
        except DamagedFile as error:
            log.warning("left out: %s", error)
            continue
        if isinstance(ended, RunRecord):
            yield ended


def find_runs(results: Path) -> Iterator[RunStore]:
    """Yield every run below ``results`` that is finished or was given up, in the order of their folders' names."""
    for folder, folders, files in os.walk(results):
        # A folder with a record may hold other runs: another program's record.json beside them must not hide them.
        folders[:] = sorted(name for name in folders if name not in _OF_A_RUN)
        if "record.json" in files or "failure.json" in files:
            yield RunStore(Path(folder))


def read_outcome(store: RunStore) -> RunRecord | Failure | None:
    """Return how a run ended: its record, why it was given up, or None where it has not ended.

    Raises:
        DamagedFile: record.json or failure.json is damaged, or of another program; the text names file and cause.
    """
    return store.record() if store.is_finished() else store.failure()


def requested_model_and_task(store: RunStore) -> tuple[str, str] | None:
    """Return (model, task) that a run was asked for, whatever became of its record; None where config.yaml does not tell."""
    try:
        config = store.config()
    except DamagedFile:
        return None
    return None if config is None else (config.model.name, config.benchmark.task)
