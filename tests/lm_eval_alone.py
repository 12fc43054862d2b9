"""lm_eval by itself: its tasks, its requests and a model that gives known replies. Our harness is compared with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from lm_harmony.benchmarks.harness.scoring import request_of
from lm_harmony.benchmarks.types import Example, Reply, Request

SPLIT_FIELDS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def lm_eval_task(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> ConfigurableTask:
    """Build the zero-shot task of a YAML file on rows in memory. ``fields`` replaces fields of the file."""
    config = {**load_yaml(path), "num_fewshot": 0, **fields}
    for key in ("tag", "group", "task_list"):  # lm_eval's factory removes these too
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


def request_arguments(example: Example) -> list[tuple[Any, ...]]:
    """Return the example's requests as the arguments of lm_eval's instances."""
    return [
        (request.continuation,)
        if request.kind == "loglikelihood_rolling"
        else (request.context, dict(request.generation) if request.kind == "generate_until" else request.continuation)
        for request in example.requests
    ]


class RepliesLM(LM):
    """An lm_eval model with the replies of a function of our requests, so that both sides score the same replies."""

    def __init__(self, answer: Callable[[Sequence[Request]], list[Reply]], chat: Callable[..., str] | None = None) -> None:
        super().__init__()
        self._answer, self._chat = answer, chat

    @property
    def tokenizer_name(self) -> str:
        """Any name: lm_eval refuses a chat template without one."""
        return "replies"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages with the template that was given."""
        assert self._chat is not None
        return self._chat(chat_history, add_generation_prompt=add_generation_prompt)

    def _replies(self, requests: list[Instance]) -> list[Any]:
        return self._answer([request_of(instance) for instance in requests])

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the given replies."""
        return self._replies(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the given replies."""
        return self._replies(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the given replies."""
        return self._replies(requests)
