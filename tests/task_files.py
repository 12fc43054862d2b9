"""Benchmarks on disk as users write them: a task's YAML file, and one JSONL file of rows for each split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.types import Example

Row = dict[str, Any]
RowsByRole = Mapping[str, Sequence[Mapping[str, Any]]]

_SPLIT_FIELDS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}

PARITY: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "label",
    "doc_to_choice": ["odd", "even"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
"""Fields of a multiple-choice task on rows {"question", "label"}."""


def numbers(count: int, first: int = 0) -> list[Row]:
    """Return rows of ``PARITY`` with distinct questions, and a column that the task does not read."""
    return [{"question": f"Is {number} odd or even?", "label": number % 2, "note": "n"} for number in range(first, first + count)]


def write_rows(folder: Path, rows: RowsByRole) -> None:
    """Write ``folder``/{role}.jsonl for each role."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, items in rows.items():
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        (folder / f"{role}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_task(folder: Path, rows: RowsByRole, *, name: str = "own", **fields: Any) -> Path:
    """Write <name>.yaml, whose splits are the roles of ``rows``, and <name>/{role}.jsonl. Return the path of the YAML file.

    A field of None is left out.
    """
    config = {"task": name, "dataset_path": name, **{_SPLIT_FIELDS[role]: role for role in rows}, **fields}
    write_rows(folder / name, rows)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return path


def own_task(folder: Path, rows: RowsByRole, *, name: str = "own", **fields: Any) -> HarnessTask:
    """Write a task as ``write_task`` does and load it."""
    return HarnessTask(write_task(folder, rows, name=name, **fields), folder)


def examples(task: HarnessTask, role: Any, chat: Callable[..., str] | None = None, aliases: str = "first") -> list[Example]:
    """Render every document of a role."""
    return [task.example(row, document, chat=chat, aliases=aliases) for row, document in enumerate(task.documents(role))]
