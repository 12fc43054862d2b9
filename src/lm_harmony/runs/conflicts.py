"""What a run's folder does not allow: to lose a finished run, or to go on with other things than a run was begun with."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_harmony.errors import NotCurrent, UsageError
from lm_harmony.runs.record import RunConfig, RunRecord
from lm_harmony.runs.sources import Source, SourceCheck, changed_between
from lm_harmony.runs.spec import RunSpec

OTHER_ASKED = "the requests, targets, metrics, filters, limits or training tokens changed since"
"""Said where every source is what it was and the run still asks for something else: another version of a library, say."""

_REMEDY = "Restore what the run was made from, or run it again with --overwrite."


def refuse_finished(folder: Path, record: RunRecord) -> None:
    """Refuse to replace a finished run unasked; say whether it is still current.

    Raises:
        UsageError: always; NotCurrent where it is not.
    """
    changed = SourceCheck().difference(record.sources, record.spec)
    if changed is None:
        raise UsageError(f"exp_name: {folder} holds a finished run. Add --overwrite, or choose another --exp_name.")
    raise NotCurrent(
        f"exp_name: {folder} holds a finished run that is not current: {changed}. Restore what it was made from, "
        f"add --overwrite to carry it out again, or choose another --exp_name."
    )


def refuse_other_request(folder: Path, begun: RunConfig, spec: RunSpec) -> None:
    """Refuse to continue a run that was begun with another request, or whose files have changed; nothing is loaded.

    Args:
        folder: the run's.
        begun: what its config.yaml holds.
        spec: what is asked now.

    Raises:
        NotCurrent: it was, or they have.
    """
    asked = begun.spec.to_dict()
    other = [
        f"{key} was {asked.get(key)}, is {value}"
        for key, value in spec.to_dict().items()
        if _decides(key, asked.get(key)) != _decides(key, value)
    ]
    if other:
        raise NotCurrent(
            f"resume_from_checkpoint: {folder} was begun with another request: {'; '.join(other)}. "
            f"Repeat the first request, or add --overwrite."
        )
    _refuse_changed(folder, SourceCheck().difference(begun.sources, spec))


def refuse_other_content(folder: Path, begun: RunConfig, *, data: str, asked: str | None, sources: Sequence[Source]) -> None:
    """Refuse to continue a run that has turned out, once all is loaded, to ask for something else than it was begun with.

    Raises:
        NotCurrent: it does.
    """
    changed = changed_between(begun.sources or (), sources)
    if changed is None and begun.data_fingerprint != data:
        changed = "the rows changed since"
    if changed is None and begun.asked_fingerprint != asked:
        changed = OTHER_ASKED
    _refuse_changed(folder, changed)


def refuse_not_current(folder: Path, record: RunRecord, spec: RunSpec) -> None:
    """Refuse to add to a finished run, or to score it again, when it is not current; nothing is loaded.

    Raises:
        NotCurrent: a file has changed, or lm_eval or LM-Harmony is of another version.
    """
    changed = SourceCheck().difference(record.sources, spec) or _other_version(record)
    if changed:
        raise NotCurrent(f"{folder}: {changed}. {_REMEDY}")


def refuse_other_answer(folder: Path, record: RunRecord, *, asked: str, sources: Sequence[Source]) -> None:
    """Refuse what ``refuse_not_current`` could not see before all was loaded.

    Raises:
        NotCurrent: the run would ask for something else than its record answers.
    """
    changed = changed_between(record.sources or (), sources)
    if changed is None and asked != record.request_fingerprint:
        changed = OTHER_ASKED
    if changed:
        raise NotCurrent(f"{folder}: {changed}. {_REMEDY}")


def _other_version(record: RunRecord) -> str | None:
    for package in ("lm_eval", "lm-harmony"):
        known = (record.environment.get("versions") or {}).get(package)
        if known not in (None, version(package)):
            return f"made with {package} {known}, here is {version(package)}"
    return None


def _refuse_changed(folder: Path, changed: str | None) -> None:
    if changed:
        raise NotCurrent(f"resume_from_checkpoint: {folder}: {changed}. Restore what it was begun with, or add --overwrite.")


def _decides(key: str, value: Any) -> Any:
    """Return of a part of the request what a continued run must repeat: all but where and how often it shows or keeps things."""
    if key != "execution" or value is None:
        return value
    return {name: value[name] for name in ("engine", "device", "micro_batch", "gradient_checkpointing")}
