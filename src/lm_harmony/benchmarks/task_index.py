"""Find the YAML file of an lm_eval task by its name.

lm_eval parses its 14,000 task files for this, which takes 16 s. Here the catalogue has the paths of its own benchmarks. For all
other names the files are searched as bytes for their ``task:`` line, which takes about 2 s, once in each process.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lm_harmony.benchmarks import catalogue
from lm_harmony.errors import BenchmarkError, UsageError, did_you_mean

# Keys may be quoted: 2,118 of lm_eval's files say "task": "name".
_TASK_LINE = re.compile(rb"^[\"']?task[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_GROUP_LINES = re.compile(rb"^[\"']?(?:group|tag)[\"']?[ \t]*:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_GROUP_NAME = re.compile(rb"[^\s\"'#\[\]{},]+")


def find_task_file(name: str, include_path: Path | None = None) -> Path:
    """Return the YAML file of a task.

    Args:
        name: a task's name, or the path of a file that ends in .yaml or .yml.
        include_path: a folder of the user's own task files, searched first (lm_eval's ``--include_path``).

    Raises:
        UsageError: no task has that name (the message lists similar names), or it is the name of a group of tasks.
    """
    if not name.strip():
        raise UsageError("task_name is empty. Give a task's name; `lm-harmony benchmarks` lists the catalogue.")
    if "*" in name or "," in name:
        raise UsageError(
            f"task_name = {name!r} stands for several tasks, and a run has one. Name each task by itself, several of them in a "
            f"study file (benchmarks: [arc_easy, sst2]) for `lm-harmony study`."
        )
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"task_name: the file {name} does not exist. Give an existing YAML file or a task's name.")
        return path.resolve()
    own: Mapping[str, Path] = {}
    if include_path is not None:
        if not include_path.is_dir():
            raise UsageError(f"include_path = {include_path} is not a folder. Give the folder of your task YAML files.")
        own = _scan(include_path.resolve())
        if name in own:
            return own[name]
    known = catalogue.find(name)
    if known is not None and (lm_eval_tasks_folder() / known.path).is_file():
        return lm_eval_tasks_folder() / known.path
    tasks = _lm_eval_tasks()
    if name in tasks:
        return tasks[name]
    groups = _groups(lm_eval_tasks_folder())
    if name in groups:
        members = sorted({*groups[name], *(task for task in tasks if task.startswith(f"{name}_"))})
        such = f", such as {members[0]}" if members else ""
        raise UsageError(f"task_name: {name!r} is a group of lm_eval tasks. Give the name of one task of that group{such}.")
    hint = did_you_mean(name, {**own, **tasks})
    raise UsageError(
        f"task_name: lm_eval has no task {name!r}.{hint} `lm-harmony benchmarks` lists the catalogue; "
        f"--include_path adds your own."
    )


@cache
def lm_eval_tasks_folder() -> Path:
    """Return the folder of lm_eval's task files without importing lm_eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise BenchmarkError("lm_eval is not installed. Run: pip install lm_eval==0.4.13")
    return Path(spec.origin).parent / "tasks"


@cache
def _lm_eval_tasks() -> Mapping[str, Path]:
    return _scan(lm_eval_tasks_folder())


def _scan(folder: Path) -> Mapping[str, Path]:
    """Return task name -> file. Of several files with one name it is the first by path."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        match = _TASK_LINE.search(path.read_bytes())
        if match:
            found.setdefault(match[1].decode(), path)
    return found


def _groups(folder: Path) -> Mapping[str, list[str]]:
    """Return the name of every group and tag -> the tasks whose own file names it. A file may list several tags."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*.yaml"):
        text = path.read_bytes()
        task = _TASK_LINE.search(text)
        for lines in _GROUP_LINES.findall(text):
            for name in _GROUP_NAME.findall(lines):
                found.setdefault(name.decode(), []).extend([task[1].decode()] if task else [])
    return found
