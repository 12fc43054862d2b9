"""Downloads the rows and models of a study once, pinned to commits. Afterwards its runs need no network.

    <data_dir>/<task>/{train,validation,test}.jsonl, source.json     rows, and their commit on the hub
    <models_dir>/<owner>/<name>/...                                  weights, tokenizer, source.json
    <models_dir>/<owner>/<name>@<revision>/...                       the same, of a model with several revisions

A folder is complete or does not exist: it is written under another name and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lm_harmony.benchmarks.catalogue import benchmark_name, corpus_path
from lm_harmony.benchmarks.harness import open_task
from lm_harmony.benchmarks.harness.hub_rows import download_rows, modified_files
from lm_harmony.benchmarks.task_groups import find_group
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import SplitUse
from lm_harmony.errors import BenchmarkError, HarmonyError, ModelError
from lm_harmony.hub_connection import is_transport_error
from lm_harmony.models.checkpoint_names import revision_name
from lm_harmony.models.model_folder import adapter_base, refuse_other_revision, write_source
from lm_harmony.runs.files import new_folder
from lm_harmony.runs.spec import ModelSpec, RunSpec

_PARTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CODE = ("*.py",)


class DownloadOutcome(StrEnum):
    """How a download ended, in the words that ``lm-harmony fetch`` prints."""

    FETCHED = "fetched"
    ALREADY_THERE = "already there"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """How the download of one benchmark's rows or of one model ended."""

    name: str
    """Name of the task, or of the model on the hub."""
    folder: Path
    """Folder of the rows or of the model, or the parent folder after a failure."""
    outcome: DownloadOutcome
    """How the download ended."""
    error: HarmonyError | None = None
    """The error that ended the download, if it failed."""


def download(runs: Iterable[RunSpec], *, data_dir: Path, models_dir: Path | None = None) -> Iterator[DownloadResult]:
    """Download the rows and models of ``runs`` and yield each result. Existing folders are kept. An error does not end the rest.

    Args:
        runs: the runs of a study.
        data_dir: folder for the rows.
        models_dir: folder for the models; None: models are not downloaded, and runs use the hub's own cache.
    """
    runs = list(runs)
    tasks = {task: (use, run.benchmark.include_path) for run in runs for task, use in run.benchmark.tasks}
    for task, (use, include_path) in tasks.items():
        if corpus_path(task) is None:
            yield from _download_task(task, use, include_path, data_dir)
    models = {(run.model.name, run.model.revision): run.model for run in runs}
    revisions = Counter(name for name, _ in models)
    for (name, revision), model in models.items():
        if models_dir is not None and not Path(name).is_dir():
            place = models_dir / (revision_name(name, revision) if revisions[name] > 1 else name)
            yield _catch_error(name, models_dir, partial(_download_model, model, place, models_dir))


def _catch_error(name: str, folder: Path, task: Callable[[], DownloadResult]) -> DownloadResult:
    try:
        return task()
    except HarmonyError as error:
        return DownloadResult(name=name, folder=folder, outcome=DownloadOutcome.FAILED, error=error)
    except Exception as error:
        if not is_transport_error(error):
            raise
        said = f"{constants.ENDPOINT} cannot be reached ({' '.join(str(error).split())[:300] or type(error).__name__})"
        failed = ModelError(f"{name} cannot be fetched: {said}. Connect to the network and repeat.")
        return DownloadResult(name=name, folder=folder, outcome=DownloadOutcome.FAILED, error=failed)


def _download_task(task: str, use: SplitUse, include_path: Path | None, data_dir: Path) -> Iterator[DownloadResult]:
    """Download the rows of a task, or of each task of a group, and yield the results."""
    name = benchmark_name(task)
    try:
        group = find_group(task, include_path)
        files = {name: find_task_file(task, include_path)} if group is None else {one.name: one.file for one in group.subtasks}
    except HarmonyError as error:
        yield DownloadResult(name=name, folder=data_dir, outcome=DownloadOutcome.FAILED, error=error)
        return
    for one, file in files.items():
        yield _catch_error(one, data_dir, partial(_download_rows, one, file, use, data_dir))


def _download_rows(name: str, file: Path, use: SplitUse, data_dir: Path) -> DownloadResult:
    folder = data_dir / name
    if (folder / "source.json").is_file():
        changed = modified_files(folder)
        if changed:
            raise BenchmarkError(
                f"benchmark {name}: {folder / changed[0]} differs from its checksum in source.json. "
                f"Remove {folder} and fetch again."
            )
    elif not folder.exists():
        with new_folder(folder) as scratch:
            source = download_rows(file, scratch, use)
            if source.task != name:
                raise BenchmarkError(f"benchmark {name}: {file} defines the task {source.task}. Rename it to {source.task}.yaml.")
            open_task(str(file), data_dir=scratch.parent, use=use)  # the rows can be read back
        return DownloadResult(name=name, folder=folder, outcome=DownloadOutcome.FETCHED)
    return DownloadResult(name=name, folder=folder, outcome=DownloadOutcome.ALREADY_THERE)


def _download_model(model: ModelSpec, folder: Path, models_dir: Path) -> DownloadResult:
    if folder.exists():
        refuse_other_revision(folder, model.name, model.revision)
        return DownloadResult(name=model.name, folder=folder, outcome=DownloadOutcome.ALREADY_THERE)
    try:
        info = HfApi().model_info(model.name, revision=model.revision)
        safe = any(one.rfilename.endswith(".safetensors") for one in info.siblings or ())
        if not safe:
            raise ModelError(
                f"model {model.name!r} has no safetensors on the hub. Pickled weights can run code and are never loaded. Give a "
                f"revision that has safetensors (often refs/pr/<n>), or another model."
            )
        wanted = [*_PARTS, "*.safetensors", *(_CODE if model.trust_remote_code else ())]
        with new_folder(folder) as place:
            snapshot_download(model.name, revision=info.sha, local_dir=place, allow_patterns=wanted)
            shutil.rmtree(place / ".cache", ignore_errors=True)
            _download_base(model, place, folder, models_dir)
            write_source(place, name=model.name, asked=model.revision, revision=str(info.sha))
    except ModelError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {model.name!r} cannot be fetched: {' '.join(str(error).split())[:300]}. "
            f"Check the name, the network and your access to the model, and repeat."
        ) from error
    return DownloadResult(name=model.name, folder=folder, outcome=DownloadOutcome.FETCHED)


def _download_base(model: ModelSpec, place: Path, folder: Path, models_dir: Path) -> None:
    """Download the base model of an adapter too, and let the adapter name its folder; do nothing for a whole model.

    Args:
        model: the adapter, or a whole model.
        place: folder of its files now.
        folder: folder that its files will have.
        models_dir: folder for the models.

    Raises:
        ModelError: the base model is not known, or cannot be fetched.
    """
    base = adapter_base(place)
    if base is not None:
        asked = replace(model, name=base.name, revision=base.revision)
        there = _download_model(asked, models_dir / base.name, models_dir).folder
        file = place / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = os.path.relpath(there, folder).replace(os.sep, "/")
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
