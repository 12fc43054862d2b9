"""Writes a small study: three models, four benchmarks and one study file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from micro import TASK
from tiny import write_tiny_model

MODELS = ("llama", "gpt_neox", "gpt2")
BENCHMARKS = ("parity", "threes", "fives", "tens")
SIZES = {"train": 24, "validation": 8, "test": 12}
RECIPE = {"epochs": 2, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}}
WITHOUT_PAUSE = """
import sys
from lm_harmony.cli.main import main
from lm_harmony.studies import study

study.STORE_PAUSE = 0.1
sys.exit(main())
"""
"""The command line. It tries to use a storage or a cluster again after a tenth of a second."""


DEADLY = """\
import os, signal, sys

def process(rows):
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Code of a task that kills the process that reads its rows."""


def let_task_kill_workers(task: Path) -> str:
    """Change a task file so that each worker that reads the task's rows is killed. Return the content that it had before."""
    before = task.read_text(encoding="utf-8")
    (task.parent / "deadly.py").write_text(DEADLY, encoding="utf-8")
    task.write_text(before + "process_docs: !function deadly.process\n", encoding="utf-8")
    return before


def write_world(folder: Path, **changes: object) -> Path:
    """Write models, benchmarks and study.yaml below ``folder``. Return the path of the study file."""
    for model in MODELS:
        write_tiny_model(folder / "models" / model, model)
    for place, benchmark in enumerate(BENCHMARKS):
        (folder / f"{benchmark}.yaml").write_text(TASK.replace("micro", benchmark), encoding="utf-8")
        rows = folder / "data" / benchmark
        rows.mkdir(parents=True)
        number = 0
        for split, size in SIZES.items():
            lines = []
            for _ in range(size):
                lines.append(json.dumps({"number": number, "label": int(number % (2, 3, 5, 10)[place] == 0)}))
                number += 1
            (rows / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    study = {
        "models": [f"models/{model}" for model in MODELS],
        "benchmarks": [f"{benchmark}.yaml" for benchmark in BENCHMARKS],
        "seeds": [0, 1],
        "recipe": RECIPE,
        "direct": True,
        "results_dir": "results",
        "data_dir": "data",
        "execution": {"device": "cpu"},
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path
