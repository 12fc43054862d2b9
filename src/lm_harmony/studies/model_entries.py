"""The models of one entry of a study file: a name, a folder, checkpoints of a training run, or a group of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.prompt import Prompt
from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.models import catalogue
from lm_harmony.models.checkpoint_names import checkpoint_of, revision_name
from lm_harmony.models.model_folder import refuse_other_revision
from lm_harmony.runs.spec import ModelSpec
from lm_harmony.studies.study_file import ModelEntry, StudyFile
from lm_harmony.studies.yaml_places import Places


def models_of(
    entry: ModelEntry, study: StudyFile, base: Path, places: Places
) -> list[tuple[ModelSpec, Prompt, Mapping[str, Any]]]:
    """Return the models of one entry with their prompt and recipe.

    Args:
        entry: the entry.
        study: the whole study, whose values count where the entry gives none.
        base: folder that relative paths start from.
        places: where the entry stands, for messages.

    Raises:
        UsageError: the entry contradicts itself, or names no model.
        ModelError: a folder of ``models_dir`` holds another revision than the entry asks for.
    """
    group = entry.group()
    with places.at():
        if entry.name is not None and group:
            raise UsageError(f"{entry.name!r} gives a name and a group ({', '.join(group)}). Make two entries of it.")
        models_dir = None if study.models_dir is None else base / study.models_dir
        if entry.revisions is not None:
            found = _checkpoints(entry, base, models_dir)
        else:
            names = _group(group) if entry.name is None else [entry.name]
            found = [(_folder_or_name(name, entry.revision, base, models_dir), entry.revision) for name in names]
    chat = entry if "apply_chat_template" in entry.model_fields_set else study
    with places.at():
        prompt = Prompt(
            chat_template_args=json.dumps(entry.chat_template_args),
            system_instruction=entry.system_instruction or study.system_instruction,
            think_end_token=entry.think_end_token,
        )
        prompt.check_chat(chat.apply_chat_template)
    day = entry.chat_template_date or study.chat_template_date
    options = {} if day is None else {"chat_template_date": str(day)}  # YAML reads a date without quotes as a date
    return [
        (
            ModelSpec(
                name=name,
                revision=revision,
                trust_remote_code=entry.trust_remote_code,
                apply_chat_template=chat.apply_chat_template,
                **options,
            ),
            prompt,
            entry.recipe,
        )
        for name, revision in found
    ]


def _checkpoints(entry: ModelEntry, base: Path, models_dir: Path | None) -> list[tuple[str, str]]:
    """Return (name or folder, revision) of each checkpoint: revisions on the hub, or folders inside a folder."""
    name, asked = entry.name, entry.revisions or []
    if name is None or "revision" in entry.model_fields_set:
        other = "no name" if name is None else f"revision = {entry.revision} too"
        raise UsageError(f"revisions = {asked} has {other}. Give the name of one model, and its revisions in this list alone.")
    if not (base / name).is_dir():
        pattern = next((one for one in asked if "*" in one), None)
        if pattern is not None:
            raise UsageError(f"revisions: {pattern!r} is a pattern, and {name} is no folder. List the names of its revisions.")
        return [(_folder_or_name(name, one, base, models_dir), one) for one in asked]
    folders = [one for one in (base / name).iterdir() if one.is_dir()]
    found = []
    for pattern in asked:
        fits = [one for one in folders if fnmatchcase(one.name, pattern)]
        if not fits:
            near = did_you_mean(pattern, [one.name for one in folders])
            raise UsageError(f"revisions: {base / name} has no folder {pattern!r}.{near} Name folders, such as checkpoint-*.")
        found += sorted(fits, key=_step_of)
    return [(str(one), "main") for one in dict.fromkeys(found)]


def _step_of(folder: Path) -> tuple[float, float, str]:
    known = checkpoint_of(str(folder.absolute()))
    return (*(known.order if known else (float("inf"), 0.0)), folder.name)


def _group(rule: Mapping[str, Any]) -> list[str]:
    """Return the names of the catalogued models that fit ``rule``."""
    chosen = catalogue.select(**rule)
    if not rule or not chosen:
        families = sorted({info.family for info in catalogue.MODELS.values()})
        family = str(rule.get("family", ""))
        hint = "" if family in families else did_you_mean(family, families)
        raise UsageError(
            f"no catalogued model fits {dict(rule)!r}.{hint} Families: {', '.join(families)}; kinds: base, instruct. "
            f"Or give the name of one model."
        )
    return chosen


def _folder_or_name(name: str, revision: str, base: Path, models_dir: Path | None) -> str:
    """Return the folder of that name beside the study file, else the one in ``models_dir``, else the name for the hub."""
    if (base / name).is_dir():
        return str(base / name)
    for folder in () if models_dir is None else (models_dir / revision_name(name, revision), models_dir / name):
        if folder.is_dir():
            refuse_other_revision(folder, name, revision)
            return str(folder)
    return name
