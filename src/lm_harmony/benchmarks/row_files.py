"""Finds the local files with the rows of a task, as its configuration names them, without the library `datasets`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.task_yaml import Function


def local_row_files(config: Mapping[str, Any]) -> dict[str, Path] | None:
    """Return the local files with a task's rows, as its configuration names them; None where the rows are on the hub."""
    path, given = config.get("dataset_path"), config.get("dataset_kwargs")
    options = given if isinstance(given, Mapping) else {}
    if isinstance(config.get("custom_dataset"), Function):
        return _below(options.get("data_dir"))
    if not isinstance(path, str):
        return {}
    if Path(path).is_file():
        return {path: Path(path)}
    files, folder = options.get("data_files"), options.get("data_dir")
    if Path(path).is_dir():
        return _below(path) | _outside(path, files)
    if "/" in path or not (files or folder):
        return None
    # The name of a format (json, csv, parquet, text ...): `datasets` reads the files in dataset_kwargs.
    if not files:
        return _below(folder)
    found: dict[str, Path] = {}
    for pattern in _patterns(files):
        full = os.path.join(str(folder), pattern) if folder else pattern
        for match in sorted(glob.glob(full, recursive=True)) or [full]:
            if not Path(match).is_dir():
                found[match] = Path(match)
    return found


def _outside(folder: str, files: Any) -> dict[str, Path]:
    """Return the files of ``data_files`` that are not below a data set's folder, from which their paths are relative."""
    root = Path(folder).resolve()
    patterns = [os.path.join(folder, pattern) for pattern in _patterns(files)]
    matches = (match for pattern in patterns for match in sorted(glob.glob(pattern, recursive=True)))
    found = [match for match in matches if Path(match).is_file() and not Path(match).resolve().is_relative_to(root)]
    return {Path(os.path.relpath(match, folder)).as_posix(): Path(match) for match in found}


def _patterns(files: Any) -> Iterator[str]:
    """Yield every pattern of local files in ``data_files``."""
    yield from (local for name in _names(files) if "://" not in (local := local_part(name)))


def names_in_archives(files: Any) -> Iterator[str]:
    """Yield every name in ``data_files`` of a file inside of a local archive, as zip://rows.jsonl::PATH."""
    yield from (name for name in _names(files) if "::" in name and "://" not in local_part(name))


def _names(files: Any) -> Iterator[str]:
    """Yield every name in ``data_files``: a string, a list, or a mapping from splits to either."""
    if isinstance(files, str):
        yield files
    for item in files.values() if isinstance(files, Mapping) else files if isinstance(files, list) else ():
        yield from _names(item)


def local_part(name: str) -> str:
    """Return the path in a name of rows as `datasets` takes it: of file://PATH, or of an archive (zip://rows.jsonl::PATH)."""
    return name.rpartition("::")[2].removeprefix("file://")


def _below(folder: Any) -> dict[str, Path]:
    """Return every file below a folder, by its path from there, without hidden ones; none where there is no folder."""
    if not isinstance(folder, str) or not Path(folder).is_dir():
        return {}
    files = {file.relative_to(folder).as_posix(): file for file in sorted(Path(folder).rglob("*")) if file.is_file()}
    return {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.split("/"))}
