"""A task's own row files are recognised by their content, and its own functions are called every time that the task is opened.

`datasets` keeps on disk what it made of files, under their names and modification times: a file that was edited and given its old
time back would go on giving the rows of before. It also keeps what a function made of a data set, under the function's name, and
would not see an edited ``process_docs``; it keeps nothing of a data set that it takes to be in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesList
from datasets.fingerprint import generate_random_fingerprint, get_temporary_cache_files_directory
from datasets.table import InMemoryTable

from lm_harmony.benchmarks.harness.hub_rows import sha256
from lm_harmony.benchmarks.task_files import local_row_files
from lm_harmony.errors import BenchmarkError

LOADED_FROM = "loaded_from"
"""Attribute of a data set: the files that its rows were loaded from."""
_MOST_FILES = 4


def call_every_time(config: dict[str, Any]) -> None:
    """Change a task's configuration so that an edited file or function of its own is seen whenever the task is opened."""
    own = config.get("custom_dataset")
    if callable(own):
        datasets.disable_caching()
        config["custom_dataset"] = _called_without_cache(own)
    elif local_row_files(config) or callable(config.get("process_docs")):
        options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
        place = config.get("dataset_path"), config.get("dataset_name")
        config["custom_dataset"] = functools.partial(_load, config["task"], *place, options)


def _called_without_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*positional: Any, **named: Any) -> Any:
        with files_recognised_by_content(), _generators_called_every_time():
            return function(*positional, **named)

    return call


@contextmanager
def _generators_called_every_time() -> Iterator[None]:
    """Let ``Dataset.from_generator`` call its function, which `datasets` otherwise recognises by its name and arguments alone."""
    made = datasets.Dataset.from_generator

    @functools.wraps(made)
    def make(generator: Any, features: Any = None, cache_dir: Any = None, *positional: Any, **named: Any) -> Any:
        place, key = get_temporary_cache_files_directory(), generate_random_fingerprint()  # removed when the process ends
        return made(generator, features, place, *positional, **{**named, "fingerprint": key})

    datasets.Dataset.from_generator = staticmethod(make)
    try:
        yield
    finally:
        datasets.Dataset.from_generator = staticmethod(made)


def _load(task: str, path: Any, name: Any, options: Mapping[str, Any], /, **_: Any) -> Any:
    """Load a data set as lm_eval does, and hide from `datasets` that its rows lie in files; they are not copied.

    Raises:
        BenchmarkError: local files of the task cannot be read; the text names them and the cause.
    """
    try:
        with files_recognised_by_content():
            loaded = datasets.load_dataset(path=path, name=name, **options)
    except Exception as error:  # a broken file raises an error of any kind
        files = list(local_row_files({"dataset_path": path, "dataset_kwargs": options}) or ())
        if not files:
            raise
        more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
        raise BenchmarkError(
            f"benchmark {task}: its rows in {', '.join(files[:_MOST_FILES])}{more} cannot be read: {_cause(error)}. "
            f"Correct these files, or what dataset_path and dataset_kwargs in the task's YAML say of them."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    return datasets.DatasetDict({split: _hidden(rows) for split, rows in loaded.items()})


@contextmanager
def files_recognised_by_content() -> Iterator[None]:
    """Let `datasets` take local files for the same only if their content is, in place of their modification time.

    Its cache is shared by processes as always: the first one converts the rows, the others wait and read what it made.
    """
    digest = functools.cache(sha256)  # `datasets` makes several lists of the same files
    made = DataFilesList.__init__

    @functools.wraps(made)
    def make(self: DataFilesList, data_files: list[str], origin_metadata: list[Any]) -> None:
        known = zip(data_files, origin_metadata, strict=True)
        made(self, data_files, [(digest(Path(file)),) if Path(file).is_file() else other for file, other in known])

    DataFilesList.__init__ = make
    try:
        yield
    finally:
        DataFilesList.__init__ = made


def _cause(error: BaseException) -> str:
    """Return the error that `datasets` wrapped in its own, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


def _hidden(rows: datasets.Dataset) -> datasets.Dataset:
    hidden = datasets.Dataset(InMemoryTable(rows.data.table), info=rows.info, split=rows.split)
    setattr(hidden, LOADED_FROM, [str(file["filename"]) for file in rows.cache_files])
    return hidden
