"""All files that define a task, found from its YAML file without importing lm_eval or any code of the task.

These are the YAML file and the files that it includes, the Python modules of its ``!function`` tags with the local modules that
they import, and local files with rows. Of a data set on the hub the name and the revision are returned.
"""

from __future__ import annotations

import ast
import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, corpus_path
from lm_harmony.benchmarks.task_index import find_task_file, lm_eval_tasks_folder
from lm_harmony.benchmarks.types import SPLIT_FIELDS, SplitUse, used_splits
from lm_harmony.errors import BenchmarkError

CORPUS_FILE = Path(__file__).with_name("corpus.yaml")
"""Task file of every text corpus: how lm_eval scores it."""


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The files and the data set that define a task."""

    code: Mapping[str, Path]
    """Task files and Python modules, by their path from the folder of the task's YAML file."""
    rows: Mapping[str, Path]
    """Files with rows, by their path from ``data_dir``, or as the task names them."""
    dataset: str | None = None
    """Data set on the hub that has the rows; None: the rows are local."""
    revision: str | None = None
    """Revision of the data set that the task names; None: its main branch."""
    imported: tuple[str, ...] = ()
    """Modules of ``!function`` tags that are none of the task's files and belong neither to lm_eval nor to LM-Harmony."""
    metric_list: tuple[Any, ...] = ()
    """Metrics as the task lists them; empty if a function of the task computes them."""
    output_type: str = ""
    """Type of the task's requests, as its file names it; "" for a text corpus."""


def task_files(task: str, *, include_path: Path | None = None, data_dir: Path | None = None, use: SplitUse = "all") -> TaskFiles:
    """Return the files and the data set that define a task.

    Args:
        task: a task's name, its YAML file, or ``corpus:PATH``.
        include_path: folder of the user's own task files.
        data_dir: folder that holds <task>/{train,validation,test}.jsonl; None: the rows that the task names.
        use: which of these files are listed.

    Raises:
        UsageError: no task has that name.
        BenchmarkError: a file of the task cannot be read.
    """
    corpus = corpus_path(task)
    if corpus is not None:
        return TaskFiles(code={CORPUS_FILE.name: CORPUS_FILE}, rows=_corpus_files(corpus))
    file = find_task_file(task, include_path).resolve()
    parts = _Parts({}, {}, {})
    config = _read(file, parts)
    code = {os.path.relpath(path, file.parent).replace(os.sep, "/"): path for path in (*parts.yamls, *parts.modules)}
    rows = local_row_files(config) if data_dir is None else _rows_in(config, data_dir, use)
    options, path = config.get("dataset_kwargs"), config.get("dataset_path")
    revision = options.get("revision") if isinstance(options, Mapping) else None
    return TaskFiles(
        code=code,
        rows=rows or {},
        dataset=str(path) if path and rows is None else None,
        revision=revision if rows is None else None,
        imported=tuple(parts.imported),
        metric_list=() if "process_results" in config else tuple(config.get("metric_list") or ()),
        output_type=str(config.get("output_type")),
    )


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
class _Function:
    """A ``!function`` tag: "module.name"."""

    name: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads a task's YAML file without importing the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: _Function(str(loader.construct_scalar(node))))


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
    try:
        values = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BenchmarkError(f"{path}: cannot be read as an lm_eval task: {reason}. Correct the file.") from error
    if not isinstance(values, dict):
        raise BenchmarkError(f"{path}: the top level must be a mapping of keys to values. Give an lm_eval task file.")
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
    if isinstance(value, _Function):
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


def local_row_files(config: Mapping[str, Any]) -> dict[str, Path] | None:
    """Return the local files with a task's rows, as its configuration names them; None where the rows are on the hub."""
    path, options = config.get("dataset_path"), config.get("dataset_kwargs")
    options = options if isinstance(options, Mapping) else {}
    if isinstance(config.get("custom_dataset"), _Function):
        return _below(options.get("data_dir"))
    if not isinstance(path, str):
        return {}
    if Path(path).is_file():
        return {path: Path(path)}
    files, folder = options.get("data_files"), options.get("data_dir")
    if Path(path).is_dir():
        return _below(path)
    if "/" in path or not (files or folder):
        return None
    # The name of a format (json, csv, parquet, text ...): `datasets` reads the files in dataset_kwargs.
    if not files:
        return _below(folder)
    found: dict[str, Path] = {}
    for pattern in _patterns(files):
        if "://" in pattern:
            continue  # on the hub or elsewhere on the network
        full = os.path.join(str(folder), pattern) if folder else pattern
        for match in sorted(glob.glob(full, recursive=True)) or [full]:
            if not Path(match).is_dir():
                found[match] = Path(match)
    return found


def _patterns(files: Any) -> Iterator[str]:
    """Yield every file pattern of ``data_files``: a string, a list, or a mapping from splits to either."""
    if isinstance(files, str):
        yield files
    for item in files.values() if isinstance(files, Mapping) else files if isinstance(files, list) else ():
        yield from _patterns(item)


def _below(folder: Any) -> dict[str, Path]:
    """Return every file below a folder, by its path from there, without hidden files and folders."""
    if not isinstance(folder, str) or not Path(folder).is_dir():
        return {}
    files = {file.relative_to(folder).as_posix(): file for file in sorted(Path(folder).rglob("*")) if file.is_file()}
    return {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.split("/"))}
