"""Every finished run below a folder, found by looking: no index that could be wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.store import RunStore


def records_below(results: Path) -> Iterator[RunRecord]:
    """Yield the record of every finished run below ``results``, in the order of their folders' names.

    Raises:
        StoreError: a record cannot be read.
    """
    for store in stores_below(results):
        if store.is_finished():
            yield store.record()


def stores_below(results: Path) -> Iterator[RunStore]:
    """Yield every run below ``results`` that is finished or was given up, in the order of their folders' names."""
    for folder, folders, files in os.walk(results):
        folders.sort()
        if "record.json" in files or "failure.json" in files:
            folders.clear()  # nothing of a run lies below another
            yield RunStore(Path(folder))
