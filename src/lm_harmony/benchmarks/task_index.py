"""Find the YAML file of an lm_eval task by its name.

lm_eval parses its 14,000 task files for this, which takes 16 s. Here the catalogue has the paths of its own benchmarks. For all
other names the files are searched as bytes for their ``task:`` line, which takes about 2 s, once in each process.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lm_harmony.benchmarks import catalogue
from lm_harmony.errors import BenchmarkError, UsageError, did_you_mean

# Keys may be quoted: 2,118 of lm_eval's files say "task": "name".
_TASK_LINE = re.compile(rb"^[\"']?task[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_GROUP_LINE = re.compile(rb"^[\"']?group[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_TAG_LINES, _INCLUDE_LINES = (
    re.compile(rb"^[\"']?" + key + rb"[\"']?[ \t]*:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE) for key in (b"tag", b"include")
)
_IGNORED_FOLDERS = frozenset(("__pycache__", ".ipynb_checkpoints"))  # as in lm_eval
_MOST_NAMED = 12
_NAME = re.compile(rb"[^\s\"'#\[\]{},]+")


@dataclass(frozen=True)
class TaskNames:
    """The names that the YAML files of a folder define. Of several files with one name it is the first by path."""

    tasks: Mapping[str, Path]
    """Name of a task -> its file."""
    groups: Mapping[str, Path]
    """Name of a group -> its file."""
    files: Mapping[str, tuple[Path, ...]]
    """Name of a task or a group -> every file that defines it."""


NO_NAMES = TaskNames({}, {}, {})
"""The names of a folder without task files."""


def find_task_file(name: str, include_path: Path | None = None) -> Path:
    """Return the YAML file of a task.

    Args:
        name: a task's name, or the path of a file that ends in .yaml or .yml.
        include_path: a folder of the user's own task files, searched first (lm_eval's ``--include_path``).

    Raises:
        UsageError: no task has that name (the message lists similar names), two files of ``include_path`` define it, or it is
            the name of a group of tasks.
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
    own = NO_NAMES
    if include_path is not None:
        if not include_path.is_dir():
            raise UsageError(f"include_path = {include_path} is not a folder. Give the folder of your task YAML files.")
        own = task_names(include_path.resolve())
        if name in own.tasks:
            refuse_several("task_name", name, own.files[name])
            return own.tasks[name]
    known = catalogue.find(name)
    if known is not None and (lm_eval_tasks_folder() / known.path).is_file():
        return lm_eval_tasks_folder() / known.path
    theirs = lm_eval_names()
    if name in theirs.tasks:
        return theirs.tasks[name]
    raise _no_task(name, own, theirs)


def _no_task(name: str, own: TaskNames, theirs: TaskNames) -> UsageError:
    """Return the error that no task has a name, for a name of a group as well."""
    if name in catalogue.SUITES:
        return UsageError(
            f"task_name: {name!r} is a suite of benchmarks. Name it under benchmarks in a study, or give the name of one task."
        )
    members = tags_of(own.tasks).get(name) or lm_eval_tags().get(name, ())
    if members or name in {**own.groups, **theirs.groups}:
        named = members or tuple(sorted(task for task in theirs.tasks if task.startswith(f"{name}_")))
        such = f", such as {named[0]}" if named else ""
        several = (
            f", or name its tasks in a study (benchmarks: [{', '.join(members)}])" if 1 < len(members) <= _MOST_NAMED else ""
        )
        return UsageError(
            f"task_name: {name!r} is a group of lm_eval tasks. Give the name of one task of that group{such}{several}."
        )
    hint = did_you_mean(name, {*own.tasks, *own.groups, *theirs.tasks, *catalogue.SUITES})
    return UsageError(
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
def lm_eval_names() -> TaskNames:
    """Return the names of lm_eval's own tasks and groups."""
    return task_names(lm_eval_tasks_folder())


@cache
def lm_eval_tags() -> Mapping[str, tuple[str, ...]]:
    """Return lm_eval's tags -> names of their tasks in order."""
    return tags_of(lm_eval_names().tasks)


def task_names(folder: Path, *, below: bool = True) -> TaskNames:
    """Return the names of tasks and groups that the YAML files of ``folder`` define, with its subfolders if ``below``."""
    tasks: dict[str, Path] = {}
    groups: dict[str, Path] = {}
    files: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.rglob("*.yaml") if below else folder.glob("*.yaml")):
        if not _IGNORED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
            continue
        text = path.read_bytes() if path.is_file() else b""
        for found, line in ((tasks, _TASK_LINE), (groups, _GROUP_LINE)):
            match = line.search(text)
            if match:
                name = match[1].decode()
                found.setdefault(name, path)
                files[name] = (*files.get(name, ()), path)
                break  # a task of the past may name the group that it belongs to
    return TaskNames(tasks, groups, files)


@contextmanager
def asked_as(field: str) -> Iterator[None]:
    """Let the message of a UsageError in the block begin with ``field`` where it would begin with task_name."""
    try:
        yield
    except UsageError as error:
        if not str(error).startswith("task_name"):
            raise
        raise UsageError(field + str(error).removeprefix("task_name")) from error


def refuse_several(place: str, name: str, files: Iterable[Path]) -> None:
    """Raise UsageError, whose message begins with ``place``, if ``files`` that define ``name`` are different files."""
    different = [str(path) for path in {path.resolve(): path for path in files}.values()]
    if len(different) > 1:
        raise UsageError(
            f"{place}: {name!r} is defined by several files, {' and '.join(different[:2])}. Remove one of them, or rename "
            f"what it defines."
        )


def tags_of(tasks: Mapping[str, Path]) -> Mapping[str, tuple[str, ...]]:
    """Return the tags of ``tasks`` (name -> file), each with the names of its tasks in order."""
    found: dict[str, list[str]] = {}
    read: dict[Path, tuple[str, ...]] = {}
    for task, path in tasks.items():
        for tag in _tags(path, read):
            found.setdefault(tag, []).append(task)
    return {tag: tuple(sorted(names)) for tag, names in found.items()}


def _tags(path: Path, read: dict[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the tags in a task's file, or else in the files that it includes; ``read`` keeps those that were looked at."""
    if path not in read:
        read[path] = ()  # ends a cycle of files that include each other
        text = path.read_bytes() if path.is_file() else b""
        own = _listed(_TAG_LINES, text)
        read[path] = own or tuple(tag for file in _listed(_INCLUDE_LINES, text) for tag in _tags(path.parent / file, read))
    return read[path]


def _listed(lines: re.Pattern[bytes], text: bytes) -> tuple[str, ...]:
    return tuple(name.decode() for found in lines.findall(text) for name in _NAME.findall(found) if name != b"-")
