"""Sources of a run: every local file that changes its numbers, with size and SHA-256, and the commits of hub repositories.

A record lists them (``RunRecord.sources``). A result is current while the files that its specification names are those of the
list. Files are compared by content, not by path. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lm_harmony.benchmarks.catalogue import benchmark_name
from lm_harmony.benchmarks.task_files import TaskFiles, distinct_names, task_files
from lm_harmony.errors import FILE_RULES, BenchmarkError, HarmonyError, ModelError, StoreError
from lm_harmony.models.model_folder import AdapterBase, adapter_base, files_read, model_files
from lm_harmony.runs.file_hashes import sha256_of
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec

Kind = Literal["task", "rows", "model"]
UNRECORDED = "made before sources were recorded"
"""Reason given for a run whose record lists no sources, so that a change cannot be seen."""
_MOST_NAMES = 3
_READABLE = "Make it readable and repeat."


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that a run read, or a repository on the hub."""

    __pydantic_config__ = FILE_RULES

    kind: Kind
    """task: task files and their Python modules; rows: files of rows; model: files of the model's folder."""
    name: str
    """Path of the file relative to the folder of the task, rows or model; for a repository its name on the hub."""
    path: str | None = None
    """Absolute path of the file; None: a repository on the hub."""
    size: int | None = None
    """Size of the file in bytes; None: a repository."""
    sha256: str | None = None
    """SHA-256 of the file's bytes; None: a repository."""
    revision: str | None = None
    """Branch, tag or commit that was requested; None: a file."""
    commit: str | None = None
    """Commit of the repository that was read; None: a file, or not known."""

    def to_dict(self) -> dict[str, Any]:
        """Return the source as plain values, without those that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def content(self) -> tuple[str, str, str | None]:
        """Kind, name and digest (of a repository: commit); equal for sources with the same content."""
        return self.kind, self.name, self.sha256 or self.commit


def task_sources(asked: BenchmarkSpec) -> tuple[Source, ...]:
    """Return the current sources of a task and of its rows; the commit of a data set on the hub is filled in later.

    Raises:
        UsageError: there is no such task.
        BenchmarkError: a file of the task, or of its rows, cannot be read.
    """
    files = [_read(kind, name, path) for (kind, name), path in _paths(asked).items()]
    sets = [one for found in _files_of_tasks(asked) for one in found.datasets]
    hub = [Source(kind="rows", name=name, revision=revision) for name, revision in sets]
    return tuple(dict.fromkeys((*files, *hub)))  # several tasks may be of one data set


def sources_opened_by_code(task: Sequence[Source], opened: Iterable[Path]) -> tuple[Source, ...]:
    """Return the files that Python code of a task opened as sources, without those that ``task_sources`` found.

    Raises:
        BenchmarkError: a file cannot be read.
    """
    known = {os.path.realpath(source.path) for source in task if source.path is not None}
    first = next((source for source in task if source.kind == "task" and source.path is not None), None)
    folder = Path(str(first.path)).parent if first else Path.cwd()
    files = sorted({Path(os.path.realpath(path)) for path in opened} - {Path(path) for path in known})
    return tuple(_read("task", os.path.relpath(path, folder).replace(os.sep, "/"), path) for path in files)


def model_sources(asked: ModelSpec) -> tuple[Source, ...]:
    """Return the current sources of a model; the commit of a model on the hub is filled in later.

    Raises:
        ModelError: a file cannot be read.
    """
    files = _files_of_model(asked)
    if files is None:
        return (Source(kind="model", name=asked.name, revision=asked.revision),)
    read, base = tuple(_read("model", name, path) for name, path in files.items()), adapter_base(asked.name)
    if base is None or os.path.isdir(base.name):
        return read
    return (*read, *base_on_hub(base))


def base_on_hub(base: AdapterBase | None) -> tuple[Source, ...]:
    """Return the base model of an adapter as a source; none for a model that is no adapter."""
    return () if base is None else (Source(kind="model", name=base.name, revision=base.revision, commit=base.commit),)


Commits = Mapping[tuple[str, str | None], Iterable[str | None]]
"""Name and requested revision of a hub repository -> its commits that were read; several ones may be in a cache."""


def with_commits(sources: Sequence[Source], kind: Kind, commits: Commits) -> tuple[Source, ...]:
    """Return ``sources`` with the commits of the hub repositories of one kind filled in, as one source for each."""
    on_hub = {one: commits.get((one.name, one.revision)) for one in sources if one.kind == kind and one.path is None}
    return tuple(replace(one, commit=commit) for one in sources for commit in on_hub.get(one) or (one.commit,))


def changed_between(recorded: Iterable[Source], now: Iterable[Source]) -> str | None:
    """Return a sentence that names the first source whose content or commit differs from the recorded one, or None."""
    current = list(now)
    for source in recorded:
        named = [one for one in current if (one.kind, one.name) == (source.kind, source.name)]
        named = [one for one in named if one.revision == source.revision] or named  # tasks may read several of one data set
        if not named or any(None in (source.content[2], one.content[2]) or source.content == one.content for one in named):
            continue
        commits = source.commit, named[0].commit
        moved = "moved from commit {:.12} to {:.12}".format(*commits) if all(commits) else "changed"
        return f"{source.name} {moved} since"
    return None


@dataclass
class SourceCheck:
    """Compares recorded sources with the current files.

    Lists of files and hashes are kept for the next comparison, so create a new object whenever files may have changed.
    """

    _listed: dict[Any, Mapping[tuple[str, str], Path] | HarmonyError] = field(default_factory=dict)
    _hashed: dict[Path, tuple[int, str] | None] = field(default_factory=dict)

    def difference(self, recorded: Sequence[Source] | None, spec: RunSpec) -> str | None:
        """Return what differs from the record ("rte.yaml changed since"), or None.

        A file is read only if its size is the recorded one and its hash is not cached. The network is not used.
        """
        if recorded is None:
            return UNRECORDED
        listed = [self._list(asked) for asked in (spec.benchmark, spec.model)]
        broken = next((one for one in listed if isinstance(one, HarmonyError)), None)
        now = {key: path for one in listed if not isinstance(one, HarmonyError) for key, path in one.items()}
        files = {(source.kind, source.name): source for source in recorded if source.path is not None}
        # Older records also list files of the model's folder that are never read.
        read = {("model", name) for name in files_read(name for kind, name in files if kind == "model")} | now.keys()
        files = {key: source for key, source in files.items() if source.kind != "model" or key in read}
        changed, gone, unread = [], [], []
        # Relative paths do not exist from another working folder. Files are then compared at their recorded paths.
        kinds = {kind for kind, _ in now}
        if spec.benchmark.data_dir is not None and spec.benchmark.data_dir.is_absolute():
            kinds.add("rows")  # it is the same folder from anywhere, also if it lacks the rows
        for key, source in files.items():
            content = self._content(now.get(key) or _place(source, now), source.size)
            if content is None:
                gone.append(source.name)
            elif key not in now and source.kind != "task" and source.kind in kinds and broken is None:
                unread.append(source.name)
            elif content != (source.size, source.sha256):
                changed.append(source.name)
        added = [name for kind, name in now if (kind, name) not in files]
        said = [(changed, "changed since"), (gone, "no longer there"), (unread, "no longer read"), (added, "added since")]
        told = "; ".join(f"{shortened(names)} {what}" for names, what in said if names)
        return told or (str(broken) if broken else None)

    def _list(self, asked: BenchmarkSpec | ModelSpec) -> Mapping[tuple[str, str], Path] | HarmonyError:
        key = repr(asked)
        if key not in self._listed:
            try:
                self._listed[key] = _paths(asked)
            except HarmonyError as error:
                self._listed[key] = error
        return self._listed[key]

    def _content(self, path: Path, size: int | None) -> tuple[int, str] | None:
        """Return size and hash of a file (an empty hash if the size differs already), or None if it does not exist."""
        if path in self._hashed:
            return self._hashed[path]
        try:
            now = path.stat().st_size
            if not path.is_file():
                return None
        except OSError:
            return None
        if now != size:
            return now, ""
        try:
            self._hashed[path] = (now, sha256_of(path))
        except StoreError:
            self._hashed[path] = None
        return self._hashed[path]


def _place(source: Source, now: Mapping[tuple[str, str], Path]) -> Path:
    """Return the path of a file that only running the task reveals: relative to the task's folder, else the recorded path."""
    yaml = next((path for kind, name in now if kind == "task" for path in (now[kind, name],)), None)
    if source.kind == "task" and yaml is not None and os.path.isfile(yaml.parent / source.name):
        return yaml.parent / source.name
    return Path(str(source.path))


def _paths(asked: BenchmarkSpec | ModelSpec) -> dict[tuple[str, str], Path]:
    if isinstance(asked, ModelSpec):
        return {("model", name): path for name, path in (_files_of_model(asked) or {}).items()}
    tested, *others = _files_of_tasks(asked)
    found = {("task", name): path for name, path in tested.code.items()}
    found |= {("rows", name): path for name, path in tested.rows.items()}
    for (task, _), other in zip(asked.tasks[1:], others, strict=True):  # all these files have an effect on training rows alone
        names = distinct_names((("code", other.code), ("rows", other.rows)))
        found |= {("rows", f"train_on/{benchmark_name(task)}/{name}"): path for name, path in names.items()}
    return found


def _files_of_model(asked: ModelSpec) -> Mapping[str, Path] | None:
    """Return the files of a model's folder; None: a model on the hub."""
    folder = Path(asked.name)
    try:
        return model_files(folder) if folder.is_dir() else None
    except OSError as error:  # a folder that this user may not open
        raise ModelError(f"model {asked.name}: {error.filename} cannot be read: {error.strerror}. {_READABLE}") from error


def _files_of_tasks(asked: BenchmarkSpec) -> list[TaskFiles]:
    """Return the files of each task that a benchmark reads, and those files of its rows that exist."""
    try:
        places = {"include_path": asked.include_path, "data_dir": asked.data_dir}
        found = [task_files(task, **places, use=use) for task, use in asked.tasks]
        return [replace(one, rows={name: path for name, path in one.rows.items() if path.is_file()}) for one in found]
    except OSError as error:
        raise BenchmarkError(f"{asked.task}: {error.filename} cannot be read: {error.strerror}. {_READABLE}") from error


def _read(kind: Any, name: str, path: Path) -> Source:
    try:
        return Source(kind=kind, name=name, path=str(path.absolute()), size=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:  # not a StoreError, which would stop all runs of a study
        raise (ModelError if kind == "model" else BenchmarkError)(str(error)) from error


def shortened(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
