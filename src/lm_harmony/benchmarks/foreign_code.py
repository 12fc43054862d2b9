"""Python code that a task runs and that lm_eval does not ship: named before it runs, or refused. Imports no lm_eval.

A task's YAML file runs code by its ``!function`` tags and by metrics of the `evaluate` library, which are downloaded from the
hub. The Jinja templates of a task run in a sandbox (``harness.patches``) and need no permission.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from lm_harmony.benchmarks.task_files import TaskFiles, task_files
from lm_harmony.benchmarks.task_index import lm_eval_tasks_folder
from lm_harmony.errors import UsageError

log = logging.getLogger(__name__)


def check_task_code(task: str, *, include_path: Path | None = None, allowed: bool) -> None:
    """Log one line for each file and module whose code ``task`` runs, or refuse the task before any of it runs.

    Args:
        task: a task's name, its YAML file, or ``corpus:PATH``.
        include_path: folder of the user's own task files.
        allowed: whether the code may run.

    Raises:
        UsageError: the task runs code and ``allowed`` is False, or no task has that name.
        BenchmarkError: a file of the task cannot be read.
    """
    found = list(foreign_code(task_files(task, include_path=include_path)))
    if found and not allowed:
        raise UsageError(
            f"allow_task_code = false: benchmark {task} runs {', '.join(found)}. Read this code; if you trust it, remove "
            f"--no-allow_task_code (in a study: allow_task_code under execution)."
        )
    for code in found:
        log.info("benchmark %s runs %s.", task, code)


def foreign_code(files: TaskFiles) -> Iterator[str]:
    """Yield the code of a task that lm_eval does not ship: Python files, installed modules, and metrics from the hub."""
    for path in sorted(path for path in files.code.values() if path.suffix == ".py"):
        if not path.is_relative_to(lm_eval_tasks_folder()):
            yield f"the Python code of {path}"
    yield from (f"the installed module {name}" for name in files.imported)
    for entry in files.metric_list:
        name = entry.get("metric") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and (entry.get("hf_evaluate") is True or name not in _metrics_of_lm_eval()):
            yield f"the metric {name} from the hub"


@cache
def _metrics_of_lm_eval() -> frozenset[str]:
    """Return the names of lm_eval's own metrics, read from its source."""
    source = lm_eval_tasks_folder().parent.joinpath("api", "metrics.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"""^ *metric=["']([^"']+)["']""", source, re.MULTILINE))
