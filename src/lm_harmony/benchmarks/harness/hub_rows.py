"""Downloads a task's rows from the hub at one commit and writes them to files, without the task's preprocessing."""

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
from lm_harmony.benchmarks.types import SplitUse
from lm_harmony.errors import BenchmarkError


@dataclass(frozen=True, kw_only=True)
class RowsSource:
    """Origin of downloaded rows, as source.json beside them has it."""

    task: str
    """lm_eval's name of the task."""
    dataset_path: str
    """Name of the data set on the hub."""
    dataset_name: str | None
    """Configuration of the data set, if it has several."""
    revision: str
    """Commit of the data set that was read."""
    lm_eval: str
    """Version of lm_eval that the task file belongs to."""
    files: dict[str, dict[str, Any]]
    """File name -> split of the data set, number of rows, and SHA-256 of the file."""


def download_rows(task_file: Path, folder: Path, use: SplitUse = "all") -> RowsSource:
    """Write source.json and, for each split that the task names, train.jsonl, validation.jsonl or test.jsonl.

    Args:
        task_file: the task's YAML file.
        folder: folder for the files.
        use: which splits the task must name; all that it names are written.

    Raises:
        BenchmarkError: the task lacks a split that is used or names no data set, or its rows cannot be downloaded or written as
            JSON.
    """
    config = read_config(task_file, use)
    name, path = str(config["task"]), config.get("dataset_path")
    if not isinstance(path, str):
        raise BenchmarkError(f"benchmark {name}: {task_file} has no dataset_path, so it loads its rows itself.")
    options = dict(config.get("dataset_kwargs") or {})
    options.pop("trust_remote_code", None)  # `datasets` no longer runs code and refuses this option
    try:
        revision = str(HfApi().dataset_info(path, revision=options.pop("revision", None)).sha)
        loaded = datasets.load_dataset(path=path, name=config.get("dataset_name"), revision=revision, **options)
        files = {}
        for role, split in split_names_of(config).items():
            file = folder / f"{role}.jsonl"
            if split not in loaded:
                raise BenchmarkError(f"benchmark {name}: data set {path} has no split {split!r}, only {', '.join(loaded)}.")
            lines = [json.dumps(row, ensure_ascii=False) for row in loaded[split]]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            files[file.name] = {"split": split, "rows": len(lines), "sha256": sha256(file)}
    except BenchmarkError:
        raise
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:  # the hub's errors are OSErrors
        raise BenchmarkError(
            f"benchmark {name}: data set {path!r} cannot be downloaded: {' '.join(str(error).split())[:300]}. "
            f"Check the network and your access to the data set, and repeat."
        ) from error
    source = RowsSource(
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
    """Return the names of files in ``folder`` that are missing or do not have the SHA-256 in source.json."""
    files = json.loads((folder / "source.json").read_text(encoding="utf-8"))["files"]
    return [name for name, known in files.items() if not (folder / name).is_file() or sha256(folder / name) != known["sha256"]]


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
