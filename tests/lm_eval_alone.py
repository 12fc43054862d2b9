"""What lm_eval does by itself, with no code of ours: the measure that the harness room is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from lm_harmony.benchmarks.types import Example

SPLIT_FIELDS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def lm_eval_task(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> ConfigurableTask:
    """Build the zero-shot task of a YAML file on rows in memory; ``fields`` replace fields of the file."""
    config = {**load_yaml(path), "num_fewshot": 0, **fields}
    for key in ("tag", "group", "task_list"):  # lm_eval's factory takes these out too
        config.pop(key, None)
    splits = DatasetDict(
        {config[field]: Dataset.from_list(list(rows[role])) for role, field in reversed(SPLIT_FIELDS.items()) if role in rows}
    )
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits, "dataset_kwargs": None})


def lm_eval_requests(
    path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], role: str, chat: Callable[..., str] | None = None
) -> list[list[tuple[Any, ...]]]:
    """Return the arguments of each document's requests as lm_eval sends them when it scores the documents of ``role``."""
    task = lm_eval_task(path, rows, test_split=load_yaml(path)[SPLIT_FIELDS[role]])
    task.build_all_requests(apply_chat_template=chat is not None, chat_template=chat)
    documents: list[list[tuple[Any, ...]]] = [[] for _ in task.eval_docs]
    for instance in task.instances:
        documents[instance.doc_id].append(instance.args)
    return documents


def asked(example: Example) -> list[tuple[Any, ...]]:
    """Return the example's requests as the arguments of lm_eval's instances."""
    return [
        (request.continuation,)
        if request.kind == "loglikelihood_rolling"
        else (request.context, dict(request.generation) if request.kind == "generate_until" else request.continuation)
        for request in example.requests
    ]
