"""A task's rows from the hub, pinned to a commit and written as they are, before any preprocessing of the task's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi

from lm_harmony.benchmarks.harness.task_file import read_config, split_names_of
from lm_harmony.errors import BenchmarkError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from; source.json beside them."""

    task: str
    """lm_eval's name of the task."""
    dataset_path: str
    """The data set's name on the hub."""
    dataset_name: str | None
    """Its configuration."""
    revision: str
    """The commit that was read."""
    lm_eval: str
    """Version of lm_eval whose task file asked for it."""
    files: dict[str, dict[str, Any]]
    """File name -> the data set's split, rows and SHA-256."""


def download_rows(task_file: Path, folder: Path) -> Source:
    """Write train.jsonl, validation.jsonl, test.jsonl (those that the task declares) and source.json into ``folder``.

    Raises:
        BenchmarkError: the task cannot be fine-tuned, names no data set, or its rows cannot be had or written as JSON.
    """
    config = read_config(task_file)
    name, path = str(config["task"]), config.get("dataset_path")
    if not isinstance(path, str):
        raise BenchmarkError(f"benchmark {name}: {task_file} names no dataset_path. Its rows are already where the task says.")
    options = dict(config.get("dataset_kwargs") or {})
    options.pop("trust_remote_code", None)  # `datasets` runs no code any more and refuses the word
    try:
        revision = str(HfApi().dataset_info(path, revision=options.pop("revision", None)).sha)
        loaded = datasets.load_dataset(path=path, name=config.get("dataset_name"), revision=revision, **options)
        files = {}
        for role, split in split_names_of(config).items():
            file = folder / f"{role}.jsonl"
            if split not in loaded:
                raise BenchmarkError(f"benchmark {name}: data set {path} has no split {split!r}. It has: {', '.join(loaded)}.")
            lines = [json.dumps(row, ensure_ascii=False) for row in loaded[split]]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            files[file.name] = {"split": split, "rows": len(lines), "sha256": sha256(file)}
    except BenchmarkError:
        raise
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:  # the hub's errors are OSErrors
        raise BenchmarkError(
            f"benchmark {name}: data set {path!r} cannot be fetched: {' '.join(str(error).split())[:300]}. "
            f"Check the network and that the data set is open to you, and repeat."
        ) from error
    source = Source(
        task=name,
        dataset_path=path,
        dataset_name=config.get("dataset_name"),
        revision=revision,
        lm_eval=version("lm_eval"),
        files=files,
    )
    (folder / "source.json").write_text(json.dumps(asdict(source), indent=2), encoding="utf-8")
    return source


def modified_files(folder: Path) -> list[str]:
    """Return the names of files in ``folder`` that are no longer what source.json says of them."""
    files = json.loads((folder / "source.json").read_text(encoding="utf-8"))["files"]
    return [name for name, said in files.items() if not (folder / name).is_file() or sha256(folder / name) != said["sha256"]]


def sha256(file: Path) -> str:
    """Return the digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
