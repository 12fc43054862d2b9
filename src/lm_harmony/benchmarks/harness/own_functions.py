"""Rows go through a task's own functions every time that a task is opened: no earlier result of theirs may serve.

`datasets` remembers on disk what a function made of a data set, under the function's name: an edited ``process_docs`` would go on
giving the rows of before. It remembers nothing of a data set that is held in memory.
"""

from __future__ import annotations

from typing import Any

import datasets

_IN_MEMORY = "keep_in_memory"


def call_every_time(config: dict[str, Any]) -> None:
    """Change a task's configuration so that its own functions are called on its rows whenever it is opened."""
    if callable(config.get("custom_dataset")):
        datasets.disable_caching()
    elif callable(config.get("process_docs")):
        config["dataset_kwargs"] = {**(config.get("dataset_kwargs") or {}), _IN_MEMORY: True}


def as_written(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what ``call_every_time`` added to it."""
    options = config.get("dataset_kwargs") or {}
    if _IN_MEMORY not in options:
        return config
    left = {key: value for key, value in options.items() if key != _IN_MEMORY}
    return {key: value for key, value in config.items() if key != "dataset_kwargs"} | ({"dataset_kwargs": left} if left else {})
