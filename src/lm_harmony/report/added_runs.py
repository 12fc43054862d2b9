"""Runs that were submitted to a board: copies them into a results folder, if they fit the runs that are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lm_harmony.analysis.load_records import find_runs, record_rows
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.report.submission import Submission
from lm_harmony.runs.files import write_atomically
from lm_harmony.runs.fingerprint import folder_name
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import samples_file
from lm_harmony.runs.store import RunStore


def add(submission: Submission, results: Path) -> Path:
    """Copy a checked submission into a results folder, where a study would have put the run, and return its folder.

    Raises:
        UsageError: the folder has another run there, other weights under the model's name, or runs that contradict this one.
        StoreError: a file cannot be written.
    """
    record = submission.record
    store = RunStore.at(results, folder_name(record.spec))
    if store.folder.exists():
        same = store.is_finished() and store.record() == record
        raise UsageError(
            f"{store.folder} {'holds this run already' if same else 'exists and holds another run'}. Nothing was added."
        )
    for other in _records(results):
        if _model(other) == _model(record) and (
            None in (_weights(other), _weights(record)) or _weights(other) != _weights(record)
        ):
            known = (
                "the results have another model" if _weights(other) and _weights(record) else "it is not known to be the model"
            )
            raise UsageError(
                f"{record.spec.model.name}: {known} of this name. Ask for a submission with another --name. Nothing was added."
            )
    store.folder.mkdir(parents=True)
    try:
        for name in (*map(samples_file, record.scores), "record.json"):  # the record last: a run that has it is finished
            write_atomically(store.folder / name, (submission.store.folder / name).read_text(encoding="utf-8"))
        record_rows(results)
    except BaseException:
        shutil.rmtree(store.folder)
        raise
    return store.folder


def _records(results: Path) -> Iterator[RunRecord]:
    for store in find_runs(results) if results.is_dir() else ():
        try:
            found = store.outcome()
        except StoreError:  # boards name it
            continue
        if isinstance(found, RunRecord):
            yield found


def _model(record: RunRecord) -> tuple[str, str]:
    return record.spec.model.name.lower(), record.spec.model.revision  # the hub's names are equal in any case


def _weights(record: RunRecord) -> frozenset[tuple[str, str, str | None]] | None:
    """Return the content of the model's files, or the commit of its repository; None: not recorded."""
    found = frozenset(source.content for source in record.sources or () if source.kind == "model")
    return found if found and all(digest for *_, digest in found) else None
