"""Damaged parts of an unfinished run: they are set aside, and the run goes back to its last good epoch or begins again.

A part is damaged if it is missing, cannot be read, or differs from its checksum. Each one is named in one line of the log.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import DamagedFile, StoreError
from lm_harmony.runs.direct_files import refuse_other_run
from lm_harmony.runs.file_values import read_json_lines, without_check
from lm_harmony.runs.files import not_written
from lm_harmony.runs.record import EpochLine, EpochRecord
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
"""Name of the file with the optimizer state in a checkpoint's folder."""
_BEGUN = ("epochs.jsonl", "direct.json", "samples_direct.jsonl")
"""Files of an unfinished run that mean nothing without its config.yaml."""


def set_aside(store: RunStore, path: Path) -> None:
    """Rename a damaged file or folder of the run, if it exists, so that it is written again.

    Raises:
        StoreUnavailable: the folder cannot be written.
    """
    numbers = itertools.count(2)
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{next(numbers)}")
    try:
        with store.guard(), suppress(FileNotFoundError):
            path.rename(aside)
    except OSError as error:
        raise not_written(path, error) from error


def recover_request(store: RunStore, *, resume: bool) -> None:
    """Let a continued run begin again whose config.yaml is damaged: nobody knows what its other files were made from."""
    if not resume or store.is_finished():
        return
    config = store.folder / "config.yaml"
    try:
        if store.config() is not None or not any((store.folder / name).exists() for name in _BEGUN):
            return
        cause = f"{config} is missing"
    except DamagedFile as error:
        cause = _said(error)
    few_shot = (path.name for path in store.folder.glob("*direct_*shot.json*"))
    for name in (*_BEGUN, *few_shot, "config.yaml"):
        set_aside(store, store.folder / name)
    store.remove(store.folder / "checkpoints")
    log.warning("%s. It was set aside, and the run begins again.", cause)


def recover_direct_score(store: RunStore, score: str, requests: str | None) -> Score | None:
    """Return a direct score in the run's folder, or None if there is none or it or its samples are damaged.

    Args:
        store: the run's folder.
        score: ``direct_name`` of the number of examples before each question.
        requests: fingerprint of the requests with examples; None: they have none.
    """
    try:
        return store.direct_score(score, requests)
    except DamagedFile as error:
        cause = _said(error)
    for name in (f"{score}.json", f"samples_{score}.jsonl"):
        set_aside(store, store.folder / name)
    log.warning("%s. It was set aside, and the direct score is computed again.", cause)
    return None


def recover_epochs(store: RunStore, chosen: Callable[[Sequence[EpochRecord]], Iterable[EpochRecord]]) -> tuple[EpochRecord, ...]:
    """Return the epochs after which an unfinished run continues, whose checkpoints are complete.

    Args:
        store: the run's folder.
        chosen: of the epochs of a finished training, returns those whose weights are tested.
    """
    lines, cause = _good_lines(store)
    count = len(lines)
    faults = {line.epoch: _fault(store.checkpoint(line.epoch), line) for line in lines}
    weights = {line.epoch: _fault(store.checkpoint(line.epoch) / "weights", line) for line in lines}
    while count:
        records = [line.record for line in lines[:count]]
        needed = [faults[records[-1].epoch], *(weights[epoch.epoch] for epoch in chosen(records))]
        found = next((fault for fault in needed if fault), None)
        if found is None:
            break
        cause, count = cause or found, count - 1
    if cause is None:
        return tuple(line.record for line in lines)
    set_aside(store, store.folder / "epochs.jsonl")
    for line in lines[count:]:
        if faults[line.epoch]:
            set_aside(store, store.checkpoint(line.epoch))
    store.write_epochs(lines[:count])
    if count:
        goes_on = f"the run continues after epoch {count}"
    else:
        goes_on = "the training begins again"
    log.warning("%s. It was set aside, and %s.", cause, goes_on)
    return tuple(line.record for line in lines[:count])


def _good_lines(store: RunStore) -> tuple[list[EpochLine], str | None]:
    """Return the lines of epochs.jsonl before the first damaged one, and what is wrong with that one."""
    path = store.folder / "epochs.jsonl"
    try:
        lines, cause = list(store.epoch_lines()), None
    except DamagedFile as error:
        lines, cause = _lines_before_damage(path), _said(error)
    run = store.made_from()
    for place, line in enumerate(lines, 1):
        if line.epoch != place:
            return lines[: place - 1], f"{path} cannot be read: line {place} is of epoch {line.epoch}"
        try:
            refuse_other_run(line.run, run)
        except StoreError as error:
            return lines[: place - 1], f"{path} cannot be read: line {place}: {error}"
    return lines, cause


def _lines_before_damage(path: Path) -> list[EpochLine]:
    lines: list[EpochLine] = []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for text in texts:
        part = path.with_name(f".{path.name}.line.part")
        try:
            part.write_bytes(text)
            lines += read_json_lines(part, EpochLine, without_check)
        except StoreError:
            break
        finally:
            part.unlink(missing_ok=True)
    return lines


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder``, by its path."""
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(part: Path, line: EpochLine) -> str | None:
    """Return what is wrong with a checkpoint or its weights, or None."""
    whole = part.name != "weights"
    folder = part if whole else part.parent
    try:
        if not line.checkpoint:  # written by an older version
            return _fault_without_checksums(folder, whole=whole)
        if whole and OPTIMIZER not in line.checkpoint:
            return f"{folder} holds no optimizer state (was it run with save_strategy no?)"
        for name, known in line.checkpoint.items():
            if (whole or name != OPTIMIZER) and _sha256(folder / name) != known:
                return f"{folder / name} differs from its checksum in epochs.jsonl"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def _fault_without_checksums(folder: Path, *, whole: bool) -> str | None:
    files = [*(folder / "weights").glob("*.safetensors"), *([folder / OPTIMIZER] if whole else [])]
    for file in files or [folder / "weights"]:
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (OSError, SafetensorError) as error:
            return f"{file} cannot be read: {' '.join(str(error).split())}"
    return None


def _said(error: DamagedFile) -> str:
    """Return the message of an error without its remedy."""
    return str(error).partition(". Restore the file")[0]
