"""A benchmark of a few rows, written as an ordinary lm_eval task with JSONL files."""

from __future__ import annotations

import json
from pathlib import Path

TASK = """\
task: micro
dataset_path: micro
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "number {{number}} is"
doc_to_target: label
doc_to_choice: ["odd", "even"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
SIZES = {"train": 24, "validation": 8, "test": 12}


def write_micro(folder: Path, *, sizes: dict[str, int] | None = None) -> Path:
    """Write micro.yaml and micro/{train,validation,test}.jsonl below ``folder``. Return the path of the YAML file."""
    rows = folder / "micro"
    rows.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, size in (sizes or SIZES).items():
        lines = []
        for _ in range(size):
            lines.append(json.dumps({"number": number, "label": 1 - number % 2}))
            number += 1
        (rows / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = folder / "micro.yaml"
    task.write_text(TASK, encoding="utf-8")
    return task
