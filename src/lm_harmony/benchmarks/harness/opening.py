"""A benchmark by whatever it is called: a task's name, its file, or a corpus."""

from __future__ import annotations

from pathlib import Path

from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.local_data import PREFIX
from lm_harmony.benchmarks.task_index import find_task_file

CORPUS_FILE = Path(__file__).parents[1] / "corpus.yaml"
"""How lm_eval scores a corpus."""


def open_task(name: str, *, include_path: Path | None = None, data_dir: Path | None = None) -> HarnessTask:
    """Load a task by its name, its YAML file, or ``corpus:PATH``.

    Raises:
        UsageError: nothing is called that.
        BenchmarkError: the task cannot be fine-tuned, or its rows cannot be had.
    """
    if name.startswith(PREFIX):
        return HarnessTask(CORPUS_FILE, corpus=Path(name.removeprefix(PREFIX)))
    return HarnessTask(find_task_file(name, include_path), data_dir)
