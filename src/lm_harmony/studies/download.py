"""What a study needs from the network, fetched once and pinned; then its runs need none.

    <data_dir>/<task>/{train,validation,test}.jsonl, source.json     raw rows, and the commit that they come from
    <models_dir>/<owner>/<name>/...                                  weights and tokenizer, source.json

A folder is there whole or not at all: it is written aside and renamed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lm_harmony.benchmarks.catalogue import benchmark_name, corpus_path
from lm_harmony.benchmarks.harness import open_task
from lm_harmony.benchmarks.harness.hub_rows import download_rows, modified_files
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.errors import BenchmarkError, HarmonyError, ModelError
from lm_harmony.models.model_folder import refuse_other_revision, write_source
from lm_harmony.runs.files import new_folder
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec

_PARTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CODE = ("*.py",)


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """What became of one benchmark's rows or one model."""

    name: str
    """Task, or the model's name on the hub."""
    folder: Path
    """Where it is."""
    outcome: str
    """"fetched" or "there already"."""
    error: HarmonyError | None = None
    """Why it is not there."""


def fetch(runs: Iterable[RunSpec], *, data_dir: Path, models_dir: Path | None = None) -> Iterator[DownloadResult]:
    """Fetch what ``runs`` need, one by one; what is there already stays, and what fails does not stop the rest.

    Args:
        runs: of a study.
        data_dir: where rows go.
        models_dir: where models go; None: models are left to the hub's own cache.
    """
    runs = list(runs)
    for benchmark in {run.benchmark.task: run.benchmark for run in runs}.values():
        if corpus_path(benchmark.task) is None:
            yield _attempt(benchmark.task, data_dir, partial(_fetch_rows, benchmark, data_dir))
    for model in {(run.model.name, run.model.revision): run.model for run in runs}.values():
        if models_dir is not None and not Path(model.name).is_dir():
            yield _attempt(model.name, models_dir, partial(_fetch_model, model, models_dir))


def _attempt(name: str, folder: Path, task: Callable[[], DownloadResult]) -> DownloadResult:
    try:
        return task()
    except HarmonyError as error:
        return DownloadResult(name=name, folder=folder, outcome="failed", error=error)


def _fetch_rows(benchmark: BenchmarkSpec, data_dir: Path) -> DownloadResult:
    file = find_task_file(benchmark.task, benchmark.include_path)
    name = benchmark_name(benchmark.task)
    folder = data_dir / name
    if (folder / "source.json").is_file():
        changed = modified_files(folder)
        if changed:
            raise BenchmarkError(
                f"benchmark {name}: {folder / changed[0]} is not what source.json says of it. Remove {folder} and fetch again."
            )
    elif not folder.exists():
        with new_folder(folder) as scratch:
            source = download_rows(file, scratch)
            if source.task != name:
                raise BenchmarkError(f"benchmark {name}: its file calls it {source.task}. Name the file after its task.")
            open_task(benchmark.task, include_path=benchmark.include_path, data_dir=scratch.parent)  # the rows can be read back
        return DownloadResult(name=name, folder=folder, outcome="fetched")
    return DownloadResult(name=name, folder=folder, outcome="there already")


def _fetch_model(model: ModelSpec, models_dir: Path) -> DownloadResult:
    folder = models_dir / model.name
    if folder.exists():
        refuse_other_revision(folder, model.name, model.revision)
        return DownloadResult(name=model.name, folder=folder, outcome="there already")
    try:
        info = HfApi().model_info(model.name, revision=model.revision)
        safe = any(one.rfilename.endswith(".safetensors") for one in info.siblings or ())
        wanted = [*_PARTS, "*.safetensors" if safe else "*.bin", *(_CODE if model.trust_remote_code else ())]
        with new_folder(folder) as place:
            snapshot_download(model.name, revision=info.sha, local_dir=place, allow_patterns=wanted)
            shutil.rmtree(place / ".cache", ignore_errors=True)
            write_source(place, name=model.name, asked=model.revision, revision=str(info.sha))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {model.name!r} cannot be fetched: {' '.join(str(error).split())[:300]}. "
            f"Check the name, the network and that the model is open to you, and repeat."
        ) from error
    return DownloadResult(name=model.name, folder=folder, outcome="fetched")
