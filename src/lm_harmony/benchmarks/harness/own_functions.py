"""Rows are read from a task's own files, and go through its own functions, every time that the task is opened.

`datasets` keeps on disk what it made of files, under their names and modification times: a file that was edited and given its old
time back would go on giving the rows of before. It also keeps what a function made of a data set, under the function's name, and
would not see an edited ``process_docs``; it keeps nothing of a data set that it takes to be in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import datasets
from datasets.table import InMemoryTable

from lm_harmony.benchmarks.task_files import declared_rows

LOADED_FROM = "loaded_from"
"""Attribute of a data set: the files that its rows were loaded from."""


def call_every_time(config: dict[str, Any]) -> None:
    """Change a task's configuration so that its files are read and its own functions are called whenever it is opened."""
    has_own_files = bool(declared_rows(config))
    if callable(config.get("custom_dataset")):
        datasets.disable_caching()
    elif has_own_files or callable(config.get("process_docs")):
        options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
        if has_own_files:
            options["download_mode"] = datasets.DownloadMode.REUSE_CACHE_IF_EXISTS  # builds the data set from its files again
        config["custom_dataset"] = functools.partial(_load, config.get("dataset_path"), config.get("dataset_name"), options)


def _load(path: Any, name: Any, options: Mapping[str, Any], /, **_: Any) -> Any:
    """Load a data set as lm_eval does, and hide from `datasets` that its rows lie in files; they are not copied."""
    loaded = datasets.load_dataset(path=path, name=name, **options)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    return datasets.DatasetDict({split: _hidden(rows) for split, rows in loaded.items()})


def _hidden(rows: datasets.Dataset) -> datasets.Dataset:
    hidden = datasets.Dataset(InMemoryTable(rows.data.table), info=rows.info, split=rows.split)
    setattr(hidden, LOADED_FROM, [str(file["filename"]) for file in rows.cache_files])
    return hidden
