"""Checks that no finished run is overwritten, and that a run is continued only with the inputs it began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.catalogue import benchmark_name
from lm_harmony.errors import NotCurrent, UsageError
from lm_harmony.runs.fingerprint import other_request, request_differences
from lm_harmony.runs.record import RunConfig, RunRecord
from lm_harmony.runs.sources import Source, SourceCheck, changed_between, model_sources, task_sources
from lm_harmony.runs.spec import RunSpec

OTHER_ASKED = "the requests, targets, metrics, filters, limits or training tokens changed since"
"""Reason given when all sources are equal and the requests differ, for example because of another library version."""

_REMEDY = "Restore what the run was made from, or run it again with --overwrite."

_SUBMITTED = {
    "model": ("model", "this is not the model"),
    "rows": ("data_dir", "these are not the rows"),
    "task": ("include_path", "this is not the task"),
}
"""Kind of a source -> the flag of `lm-harmony board add` that names its folder, and what is wrong with another one."""


def refuse_finished(folder: Path, record: RunRecord, spec: RunSpec) -> None:
    """Refuse to replace a finished run, with a message that says whether it is current and of the request ``spec``.

    Raises:
        UsageError: the run is finished and current.
        NotCurrent: the run is finished and not current.
    """
    changed = SourceCheck().difference(record.sources, record.spec)
    if changed is None:
        other = other_request(record.spec, spec)
        what = "run" if other is None else f"run of another request: {other}"
        raise UsageError(f"exp_name: {folder} holds a finished {what}. Add --overwrite, or choose another --exp_name.")
    raise NotCurrent(
        f"exp_name: {folder} holds a finished run that is not current: {changed}. Restore what it was made from, "
        f"add --overwrite to carry it out again, or choose another --exp_name."
    )


def refuse_other_evaluation(folder: Path, record: RunRecord, spec: RunSpec, plain: RunSpec) -> None:
    """Refuse to score a finished run again by a command that asks for another one; loads nothing.

    Args:
        folder: folder of the run.
        record: its record.
        spec: specification of the command.
        plain: specification of a command with this model and task alone: what both share need not be that of the record.

    Raises:
        UsageError: model, task, or something else that the command gives is not that of the record.
        NotCurrent: a file that the command names has another content.
    """
    given = {"model.name", *request_differences(plain, spec)}
    other = other_request(record.spec, spec, given)
    asked, made = spec.benchmark, record.spec.benchmark
    names = [benchmark_name(one.task) for one in (made, asked)]
    if other is None and names[0] != names[1]:
        other = f"task was {names[0]}, is {names[1]}"
    if other:
        raise UsageError(
            f"only_evaluate: {folder} holds a run of another request: {other}. Repeat its request, or choose another --exp_name."
        )
    data_dir, include_path = asked.data_dir or made.data_dir, asked.include_path or made.include_path
    benchmark = replace(made, task=asked.task, data_dir=data_dir, include_path=include_path)
    here = replace(record.spec, model=replace(record.spec.model, name=spec.model.name), benchmark=benchmark)
    if changed := SourceCheck().difference(record.sources, here):
        raise NotCurrent(f"{folder}: {changed}. {_REMEDY}")


def refuse_other_request(folder: Path, begun: RunConfig, spec: RunSpec, *, resume: bool = True) -> None:
    """Refuse to continue a run with another specification or other files; loads nothing.

    Args:
        folder: folder of the run.
        begun: content of its config.yaml.
        spec: specification of the new command.
        resume: whether the command asks to continue it.

    Raises:
        UsageError: the command does not ask to continue it.
        NotCurrent: the specification or a file differs.
    """
    if not resume:
        raise UsageError(
            f"exp_name: {folder} holds an unfinished run. Add --resume_from_checkpoint to continue it, or --overwrite."
        )
    asked, wanted = begun.spec.to_dict() | {"recipe_fingerprint": begun.recipe_fingerprint}, spec.to_dict()
    other = [
        f"{key} was {asked.get(key)}, is {wanted.get(key)}"
        for key in {**wanted, **asked}
        if _decides(key, asked.get(key)) != _decides(key, wanted.get(key))
    ]
    if other:
        raise NotCurrent(
            f"resume_from_checkpoint: {folder} was begun with another request: {'; '.join(other)}. "
            f"Repeat the first request, or add --overwrite."
        )
    _refuse_changed(folder, SourceCheck().difference(begun.sources, spec))


def refuse_other_content(folder: Path, begun: RunConfig, *, data: str, asked: str | None, sources: Sequence[Source]) -> None:
    """Refuse to continue a run whose rows, requests or sources differ from its beginning, after loading them.

    Raises:
        NotCurrent: they differ.
    """
    changed = changed_between(begun.sources or (), sources)
    if changed is None and begun.data_fingerprint != data:
        changed = "the rows changed since"
    if changed is None and begun.asked_fingerprint != asked:
        changed = OTHER_ASKED
    _refuse_changed(folder, changed)


def refuse_not_current(folder: Path, record: RunRecord, spec: RunSpec) -> None:
    """Refuse to score a finished run again when it is not current; loads nothing.

    Raises:
        NotCurrent: a file has changed, or lm_eval or LM-Harmony has another version.
    """
    changed = SourceCheck().difference(record.sources, spec) or _other_version(record)
    if changed:
        raise NotCurrent(f"{folder}: {changed}. {_REMEDY}")


def refuse_other_files(record: RunRecord, spec: RunSpec) -> None:
    """Refuse to score a submitted run again with other files than its sender's, before anything is loaded.

    Raises:
        NotCurrent: a file of the model, the task or the rows has another SHA-256 than the recorded one.
        HarmonyError: a file cannot be read.
    """
    here = {(one.kind, one.name): one.sha256 for one in (*model_sources(spec.model), *task_sources(spec.benchmark))}
    for source in sorted(record.sources or (), key=lambda one: not one.name.endswith(".safetensors")):  # weights say most
        found = here.get((source.kind, source.name))
        if None not in (found, source.sha256) and found != source.sha256:
            flag, what = _SUBMITTED[source.kind]
            raise NotCurrent(
                f"{flag}: {what} of the submitted run: {source.name} has the SHA-256 {str(found)[:12]}... here, and "
                f"{str(source.sha256)[:12]}... there. Give --{flag} the folder of the right ones, or ask the sender for them."
            )


def refuse_other_answer(folder: Path, record: RunRecord, *, asked: str, sources: Sequence[Source], remedy: str = _REMEDY) -> None:
    """Refuse to score a finished run again when its requests or sources differ, after loading them.

    Raises:
        NotCurrent: the requests or sources differ from the recorded ones.
    """
    changed = changed_between(record.sources or (), sources)
    if changed is None and asked != record.request_fingerprint:
        changed = OTHER_ASKED
    if changed:
        raise NotCurrent(f"{folder}: {changed}. {remedy}")


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
    """Return what a continued run must repeat of a part of the specification: of ``execution`` only what changes rounding."""
    if key == "direct_fewshot":  # each of these scores has a file of its own
        return None
    if key != "execution" or value is None:
        return value
    return {name: value[name] for name in ("engine", "device", "micro_batch", "gradient_checkpointing")}
