"""Groups of lm_eval tasks that are scored as one benchmark (``mmlu``, ``bbh``): which tasks belong to them. No lm_eval.

A group is a YAML file with the keys ``group``, ``task`` and ``aggregate_metric_list``. Its members are tasks, other groups, and
tags, which stand for all tasks that name them. They are found as lm_eval finds them, without its task index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks import catalogue
from lm_harmony.benchmarks.catalogue import corpus_path
from lm_harmony.benchmarks.group_checks import GROUP_FIELDS, check_group, is_group
from lm_harmony.benchmarks.task_index import (
    NO_NAMES,
    TaskNames,
    find_task_file,
    lm_eval_names,
    lm_eval_tags,
    refuse_several,
    tags_of,
    task_names,
)
from lm_harmony.benchmarks.task_yaml import Function, read_task_yaml
from lm_harmony.errors import BenchmarkError, did_you_mean

_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Subtask:
    """A task of a group."""

    name: str
    """Name of the task."""
    file: Path
    """The task's YAML file."""
    changes: Mapping[str, Any]
    """Fields of the task that a group's file replaces."""


@dataclass(frozen=True, kw_only=True)
class TaskGroup:
    """A group of tasks that lm_eval gives one score."""

    name: str
    """Name of the group; of one that is defined inside of another group's file, with the name of that group before it."""
    file: Path
    """The YAML file that defines it."""
    fields: Mapping[str, Any]
    """The fields of the group's file that describe the group (``GROUP_FIELDS``)."""
    members: tuple[Subtask | TaskGroup, ...]
    """Its tasks and groups, in the order of the file."""

    @property
    def subtasks(self) -> tuple[Subtask, ...]:
        """Its tasks and those of its groups in lm_eval's order, each of them once."""
        return tuple({one.name: one for one in self._leaves()}.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The YAML files of the group and of the groups in it."""
        inner = (file for one in self.members if isinstance(one, TaskGroup) for file in one.files)
        return tuple(dict.fromkeys((self.file, *inner)))

    def metrics(self, known: Collection[str]) -> tuple[str, ...]:
        """Return the metric keys of its score, from those that any of its tasks has.

        Raises:
            BenchmarkError: no task has a metric of ``aggregate_metric_list``, with one of the filters that it names.
        """
        given = self.fields.get("aggregate_metric_list") or []
        found: list[str] = []
        for entry in [given] if isinstance(given, Mapping) else given:
            metric, filters = entry["metric"], entry.get("filter_list")
            wanted = [filters] if isinstance(filters, str) else filters
            keys = [key for key in sorted(known) if key.partition(",")[0] == metric]
            keys = [key for key in keys if wanted is None or key.partition(",")[2] in wanted]
            if not keys:
                raise BenchmarkError(
                    f"group {self.name}: no task has a metric of the aggregate_metric_list in {self.file}: {metric}"
                    f"{'' if wanted is None else f' with filter_list {wanted}'}. Its tasks have {', '.join(sorted(known))}. "
                    f"Correct or remove the entry."
                )
            found += keys
        return tuple(found)

    def _leaves(self) -> Iterator[Subtask]:
        for one in self.members:
            yield from one._leaves() if isinstance(one, TaskGroup) else (one,)


def find_group(name: str, include_path: Path | None = None) -> TaskGroup | None:
    """Return the group of that name, or of that YAML file; None: it is no group.

    Args:
        name: name of a group, or the path of its YAML file. Files of its tasks may be in the same folder, not below it.
        include_path: a folder of the user's own task files, searched before lm_eval's.

    Raises:
        UsageError: several of the user's files define the group or one of its members.
        BenchmarkError: the file of a group is wrong, the group has no common score, a member does not exist, or a file cannot be
            read.
    """
    own = NO_NAMES if include_path is None or not include_path.is_dir() else task_names(include_path.resolve())
    if name.endswith((".yaml", ".yml")):
        file = Path(name).resolve()
        values = read_task_yaml(file) if file.is_file() else {}
        if not is_group(file, values):
            return None
        names = _Names(own, task_names(file.parent, below=False))
        return _checked(_build(str(values["group"]), file, values, {}, names, ()))
    if name in catalogue.BENCHMARKS and name not in own.files:
        return None
    if name in own.tasks:  # without lm_eval's files, which take half a second to read
        refuse_several("task_name", name, own.files[name])
        return None
    names = _Names(own)
    kind, found = names.find(name, "task_name")
    return _checked(_build(name, found, read_task_yaml(found), {}, names, ())) if kind == "group" else None


def check_benchmark(name: str, include_path: Path | None = None) -> None:
    """Check that a task or a group has that name or that file.

    Raises:
        UsageError: there is none; the other errors are those of ``find_group``.
    """
    if find_group(name, include_path) is None:
        find_task_file(name, include_path)


def task_title(name: str) -> str:
    """Return the name that records give a benchmark: what the file of a task or a group defines, or else ``benchmark_name``."""
    if not name.endswith((".yaml", ".yml")) or corpus_path(name) is not None:
        return catalogue.benchmark_name(name)
    file, seen = Path(name).resolve(), set[Path]()
    while file.is_file() and file not in seen:
        seen.add(file)
        values = read_task_yaml(file)
        given = values.get("group" if is_group(file, values) else "task")
        if isinstance(given, str):
            return given
        included = values.get("include")
        file = file.parent / str(included[-1] if isinstance(included, list) and included else included)
    return catalogue.benchmark_name(name)


class _Names:
    """The names of tasks, groups and tags in the folder of a group's file, in the user's folder, and in lm_eval's."""

    def __init__(self, own: TaskNames, beside: TaskNames = NO_NAMES) -> None:
        self._own, self._beside = own, beside

    @cached_property
    def _places(self) -> list[tuple[TaskNames, Callable[[], Mapping[str, tuple[str, ...]]]]]:
        beside, own = self._beside, self._own
        return [(beside, lambda: tags_of(beside.tasks)), (own, lambda: tags_of(own.tasks)), (lm_eval_names(), lm_eval_tags)]

    def find(self, name: str, place: str) -> tuple[str, Any]:
        """Return ("task", file), ("group", file), ("tag", names of its tasks), or ("", None).

        The user's folder comes before lm_eval's, as in lm_eval.

        Raises:
            UsageError: several of the user's files define the name, or one beside the group's file and one of lm_eval's do. The
                message begins with ``place``.
        """
        files = [*self._beside.files.get(name, ()), *self._own.files.get(name, ())]
        theirs = lm_eval_names().files.get(name, ())
        if name not in self._own.files and not {path.resolve() for path in files} & {path.resolve() for path in theirs}:
            files += theirs[:1] if files else []
        refuse_several(place, name, files)
        for names, tags in self._places:
            for kind, known in (("task", names.tasks), ("group", names.groups)):
                if name in known:
                    return kind, known[name]
            if found := tags().get(name):
                return "tag", found
        return "", None

    def nearest(self, name: str) -> str:
        return did_you_mean(name, {known: None for names, _ in self._places for known in (*names.tasks, *names.groups)})


def _build(
    name: str, file: Path, values: Mapping[str, Any], changes: Mapping[str, Any], names: _Names, above: tuple[str, ...]
) -> TaskGroup:
    """Return a group with its members, as lm_eval's ``TaskFactory`` builds it.

    Args:
        name: name of the group.
        file: YAML file that defines it.
        values: what the file says of the group.
        changes: fields of its tasks that a group above it replaces.
        names: all names.
        above: names of the groups that it is in.
    """
    if name in above:
        raise BenchmarkError(f"group {above[0]}: {' contains '.join((*above[above.index(name) :], name))}. Correct {file}.")
    check_group(name, file, values)
    own = {key: value for key, value in values.items() if key not in GROUP_FIELDS}
    changes = {**own, **changes}
    members: list[Subtask | TaskGroup] = []
    for item in values["task"]:
        members += _members(item, name, file, changes, names, (*above, name))
    fields = {key: values[key] for key in GROUP_FIELDS if key in values}
    return TaskGroup(name=name, file=file, fields={**fields, "group": name}, members=tuple(members))


def _members(
    item: Any, name: str, file: Path, changes: Mapping[str, Any], names: _Names, above: tuple[str, ...]
) -> Iterator[Subtask | TaskGroup]:
    """Yield the tasks and groups that an entry of a group's ``task`` stands for."""
    given = {"task": item} if isinstance(item, str) else item
    wanted, place = str(given.get("group", given.get("task"))), f"group {name}: {file}: task"
    kind, found = names.find(wanted, place)
    if "group" in given and kind != "group":  # defined here
        yield _build(f"{name}::{wanted}", file, given, changes, names, above)
        return
    changes = {**changes, **{key: value for key, value in given.items() if key not in ("group", "task")}}
    if any(isinstance(value, Function) for value in changes.values()):
        raise BenchmarkError(f"group {name}: {file} gives its tasks a !function, which is not supported. Write it into them.")
    if kind == "group":
        yield _build(wanted, found, read_task_yaml(found), changes, names, above)
    elif kind:
        for task in found if kind == "tag" else (wanted,):
            yield Subtask(name=task, file=names.find(task, place)[1], changes=changes)
    else:
        raise BenchmarkError(
            f"group {name}: {file} lists {wanted!r}, and no task, group or tag has that name.{names.nearest(wanted)} Correct the "
            f"file, or give the folder of the task's file as include_path."
        )


def _checked(group: TaskGroup) -> TaskGroup:
    """Return a group; refuse it if lm_eval gives it no score."""
    if not group.fields.get("aggregate_metric_list"):
        names = [one.name for one in group.subtasks]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        raise BenchmarkError(
            f"group {group.name}: {group.file} has no aggregate_metric_list, so lm_eval gives it no score. Name its tasks in a "
            f"study (benchmarks: [{', '.join(names[:_MOST_NAMED])}]{more}), or add aggregate_metric_list."
        )
    return group
