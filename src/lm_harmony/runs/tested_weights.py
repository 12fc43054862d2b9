"""The folder of the weights that a finished run tested: its checksums, and whether it still holds these weights. No torch."""

from __future__ import annotations

from pathlib import Path

from lm_harmony.errors import DamagedFile, StoreError
from lm_harmony.runs.direct_files import refuse_other_run
from lm_harmony.runs.file_hashes import sha256_of
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.store import RunStore

_WEIGHTS = "weights/"
"""Folder of the weights inside a checkpoint."""


def weights_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder of weights; empty if there is no folder.

    Raises:
        StoreError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ()
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def refuse_other_weights(store: RunStore, record: RunRecord) -> None:
    """Check that the run's folder of weights holds those of the chosen epoch, by the checksums of its checkpoint.

    A folder that was removed is no error here. Nothing is known of runs of older versions, or without epochs.jsonl.

    Raises:
        DamagedFile: a file of weights is missing or has another content, or epochs.jsonl cannot be read.
        StoreError: a file cannot be read, or epochs.jsonl is of another run.
    """
    folder = store.folder / "adapter"
    line = next((line for line in store.epoch_lines() if line.epoch == record.chosen_epoch), None)
    if line is None or not folder.is_dir():
        return
    remedy = f"Restore it, or remove {store.folder} and carry the run out again."
    try:
        refuse_other_run(line.run, store.made_from())
    except StoreError as error:
        raise DamagedFile(f"{store.folder / 'epochs.jsonl'} cannot be read: {error}. {remedy}") from error
    for name, known in line.checkpoint.items():
        file = folder / name.removeprefix(_WEIGHTS)
        if not name.startswith(_WEIGHTS) or file.suffix != ".safetensors":
            continue
        if not file.is_file() or sha256_of(file) != known:
            what = "differs from its checksum in epochs.jsonl" if file.is_file() else "does not exist"
            raise DamagedFile(f"{file} {what}, so these are not the weights that were tested. {remedy}")
