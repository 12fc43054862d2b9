"""All files that define a task, found from its YAML file without importing lm_eval or any code of the task.

These are the YAML file and the files that it includes, the Python modules of its ``!function`` tags with the local modules that
they import, and local files with rows. Of a data set on the hub the name and the revision are returned.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, corpus_path
from lm_harmony.benchmarks.row_files import local_row_files
from lm_harmony.benchmarks.task_groups import Subtask, TaskGroup, find_group
from lm_harmony.benchmarks.task_index import find_task_file, lm_eval_tasks_folder
from lm_harmony.benchmarks.task_yaml import Function, read_task_yaml
from lm_harmony.benchmarks.types import SPLIT_FIELDS, SplitUse, used_splits
from lm_harmony.errors import BenchmarkError

CORPUS_FILE = Path(__file__).with_name("corpus.yaml")
"""Task file of every text corpus: how lm_eval scores it."""


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The files and the data sets that define a task, or all tasks of a group."""

    code: Mapping[str, Path]
    """Task files and Python modules, by their path from the folder of the YAML file of the task or group."""
    rows: Mapping[str, Path]
    """Files with rows, by their path from ``data_dir``, or as the task names them."""
    datasets: tuple[tuple[str, str], ...] = ()
    """Data sets on the hub that have the rows, each with the revision that the task names; empty: the rows are local."""
    imported: tuple[str, ...] = ()
    """Modules of ``!function`` tags that are none of the task's files and belong neither to lm_eval nor to LM-Harmony."""
    metric_list: tuple[Any, ...] = ()
    """Metrics as the task lists them; empty if a function of the task computes them."""
    output_types: Mapping[str, str] = field(default_factory=dict)
    """Task, or each task of a group -> type of its requests, as its file names it; "" for a text corpus."""
    untrained: tuple[str, ...] = ()
    """Tasks that name no training split."""
    metrics: frozenset[str] | None = None
    """Metric keys ("acc,none") of the task, or of any task of a group; None: only lm_eval knows them."""


def task_files(task: str, *, include_path: Path | None = None, data_dir: Path | None = None, use: SplitUse = "all") -> TaskFiles:
    """Return the files and the data sets that define a task, or all tasks of a group.

    Args:
        task: the name of a task or of a group, its YAML file, or ``corpus:PATH``.
        include_path: folder of the user's own task files.
        data_dir: folder that holds <task>/{train,validation,test}.jsonl; None: the rows that the task names.
        use: which of these files are listed.

    Raises:
        UsageError: no task has that name.
        BenchmarkError: a file of the task cannot be read, or a group cannot be one benchmark.
    """
    corpus = corpus_path(task)
    if corpus is not None:
        return TaskFiles(code={CORPUS_FILE.name: CORPUS_FILE}, rows=_corpus_files(corpus), output_types={task: ""})
    group = find_group(task, include_path)
    if group is not None:
        return _files_of_group(group, data_dir, use)
    file = find_task_file(task, include_path).resolve()
    return _files_of_task(Subtask(name=task, file=file, changes={}), file.parent, data_dir, use)


def _files_of_group(group: TaskGroup, data_dir: Path | None, use: SplitUse) -> TaskFiles:
    found = [_files_of_task(one, group.file.parent, data_dir, use) for one in group.subtasks]
    known = [one.metrics for one in found if one.metrics is not None]
    names = [one.name for one in group.subtasks]
    return TaskFiles(
        code=_named(group.files, group.file.parent) | {name: path for one in found for name, path in one.code.items()},
        rows=distinct_names((task, one.rows) for task, one in zip(names, found, strict=True)),
        datasets=tuple(dict.fromkeys(pair for one in found for pair in one.datasets)),
        imported=tuple(dict.fromkeys(module for one in found for module in one.imported)),
        metric_list=tuple(metric for one in found for metric in one.metric_list),
        output_types={task: kind for one in found for task, kind in one.output_types.items()},
        untrained=tuple(task for one in found for task in one.untrained),
        metrics=frozenset().union(*known) if len(known) == len(found) else None,
    )


def distinct_names(parts: Iterable[tuple[str, Mapping[str, Path]]]) -> dict[str, Path]:
    """Return the files of several parts by name. Where a name stands for several files, the name of its part is put before it."""
    files = [(part, name, path) for part, names in parts for name, path in names.items()]
    paths: dict[str, set[Path]] = {}
    for _, name, path in files:
        paths.setdefault(name, set()).add(path.absolute())
    return {name if len(paths[name]) == 1 else f"{part}/{name}": path for part, name, path in files}


def _files_of_task(task: Subtask, folder: Path, data_dir: Path | None, use: SplitUse) -> TaskFiles:
    parts = _Parts({}, {}, {})
    config = {**_read(task.file, parts), **task.changes}
    rows = local_row_files(config) if data_dir is None else _rows_in(config, data_dir, use)
    options, path = config.get("dataset_kwargs"), config.get("dataset_path")
    parts.yamls.update(dict.fromkeys(_prompt_files(config)))
    revision = options.get("revision") if isinstance(options, Mapping) else None
    return TaskFiles(
        code=_named((*parts.yamls, *parts.modules), folder),
        rows=rows or {},
        datasets=((str(path), revision or "main"),) if path and rows is None else (),
        imported=tuple(parts.imported),
        metric_list=() if "process_results" in config else tuple(config.get("metric_list") or ()),
        output_types={task.name: str(config.get("output_type"))},
        untrained=() if config.get(SPLIT_FIELDS["train"]) else (task.name,),
        metrics=_metrics_of(config),
    )


def _prompt_files(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the file of ``use_prompt: FILE.yaml:NAME``, whose path is relative to the working folder, if it exists."""
    file = str(config.get("use_prompt")).partition(":")[0]
    if ".yaml" in file and Path(file).is_file():
        yield Path(file)


def _metrics_of(config: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the metric keys that a task's configuration lists; None if it leaves them to lm_eval, or to a function."""
    listed, filters = config.get("metric_list"), config.get("filter_list") or [{"name": "none"}]
    entries = [one.get("metric") if isinstance(one, Mapping) else None for one in listed] if isinstance(listed, list) else []
    names = [one.get("name") if isinstance(one, Mapping) else None for one in filters] if isinstance(filters, list) else []
    if not entries or not names or not all(isinstance(one, str) for one in (*entries, *names)):
        return None
    return frozenset(f"{metric},{name}" for metric in entries for name in names)


def _named(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Return files by their path from ``folder``."""
    return {os.path.relpath(path, folder).replace(os.sep, "/"): path for path in map(Path.resolve, files)}


def _corpus_files(path: Path) -> dict[str, Path]:
    """Return the files of a text corpus by name.

    Raises:
        BenchmarkError: there is no such file or folder.
    """
    if path.is_file():
        return {path.name: path}
    if not path.is_dir() or path == Path():  # without a path, the working folder would be meant
        raise BenchmarkError(f"{CORPUS_PREFIX}{path} does not exist. Give a .jsonl or .txt file, or a folder of them.")
    return {file.name: file for file in sorted(path.iterdir()) if file.suffix in (".jsonl", ".txt") and file.is_file()}


@dataclass(frozen=True)
class _Parts:
    """The parts of a task, each one once and in the order in which they are found."""

    yamls: dict[Path, None]
    modules: dict[Path, None]
    imported: dict[str, None]


def _read(path: Path, parts: _Parts) -> dict[str, Any]:
    """Return a task file merged with what it includes, as lm_eval merges. Every file is added to ``parts``."""
    path = path.resolve()
    if path in parts.yamls:
        return {}  # lm_eval refuses a cycle when it loads the task
    parts.yamls[path] = None
    values = read_task_yaml(path)
    for function in _functions(values):
        module = function.rpartition(".")[0]
        file = _module_file(module, path.parent)
        _add_module(file, parts.modules)
        if file is None and not _is_trusted(module):
            parts.imported[module] = None
    included = values.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(other), parts)
    return merged | values


def _functions(value: Any) -> Iterator[str]:
    """Yield the name of every ``!function`` tag in a value and below it."""
    if isinstance(value, Function):
        yield value.name
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _functions(item)


def _is_trusted(module: str) -> bool:
    """Return whether a module is one of lm_eval or LM-Harmony, whose code runs in any case."""
    return module.split(".")[0] in ("lm_eval", "lm_harmony")


def _add_module(file: Path | None, modules: dict[Path, None]) -> None:
    """Add a Python file to ``modules``, and the local modules that it imports directly or indirectly."""
    if file is None or file in modules:
        return
    modules[file] = None
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # loading the task reports what is wrong with the file
    for node in ast.walk(tree):
        for folder, name in _imported(node, file):
            _add_module(_module_file(name, folder), modules)


def _imported(node: ast.AST, file: Path) -> Iterator[tuple[Path, str]]:
    """Yield (folder to search first, dotted name) of every module that an import statement may load."""
    if isinstance(node, ast.Import):
        yield from ((file.parent, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        folder = file.parents[node.level - 1] if node.level else file.parent
        names = [node.module or "", *(f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names)]
        yield from ((folder, name) for name in names if name)


def _module_file(name: str, folder: Path) -> Path | None:
    """Return the file of a local module, or of a module among lm_eval's tasks; None for installed packages."""
    if not name:
        return None
    roots = [folder, Path.cwd(), *(Path(root) for root in os.environ.get("PYTHONPATH", "").split(os.pathsep) if root)]
    if name.startswith("lm_eval.tasks."):
        roots = [lm_eval_tasks_folder().parents[1]]
    elif _is_trusted(name):
        return None  # the record contains their versions
    for root in roots:
        base = root / name.replace(".", "/")
        for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if file.is_file():
                return file.resolve()
    return None


def _rows_in(config: Mapping[str, Any], data_dir: Path, use: SplitUse) -> dict[str, Path]:
    """Return the row files in ``data_dir``: one for each split, named after the first role that uses the split."""
    named = {role: str(config[key]) for role, key in SPLIT_FIELDS.items() if config.get(key)}
    files = {split: f"{config.get('task')}/{role}.jsonl" for role, split in reversed(named.items())}
    return {files[split]: data_dir / files[split] for split in used_splits(named, use).values()}
