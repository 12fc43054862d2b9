"""Temporary replacements inside lm_eval and `datasets`, each undone at the end of its block.

Importing this module replaces nothing.

`datasets` caches on disk what it read from files, keyed by their names and modification times. A file that was edited and got its
old time back would still give the old rows. It also caches the result of a function on a data set, keyed by the function's name,
so that an edited ``process_docs`` would go unnoticed. It caches nothing of a data set that is in memory. The rows of a task with
local files or functions are therefore read with files keyed by content, and handed over as a data set in memory.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import jinja2
from datasets.data_files import DataFilesList
from datasets.fingerprint import Hasher, generate_random_fingerprint, get_temporary_cache_files_directory
from datasets.load import DatasetModule, LocalDatasetModuleFactory
from datasets.table import InMemoryTable
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils as lm_eval_utils

from lm_harmony.benchmarks.harness.hub_rows import sha256
from lm_harmony.benchmarks.row_files import local_part, local_row_files, names_in_archives
from lm_harmony.benchmarks.task_code import note_opened
from lm_harmony.errors import BenchmarkError
from lm_harmony.hub_connection import missing_hub

LOADED_FROM = "loaded_from"
"""Attribute of a data set: the files that its rows were loaded from."""
_MOST_FILES = 4
_MISSING = object()


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a class or an object for the length of the block."""
    original = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@functools.cache
def _sandbox() -> SandboxedEnvironment:
    """Return lm_eval's Jinja environment as one that gives templates no access to Python's internals."""
    theirs = lm_eval_utils.env
    sandbox = SandboxedEnvironment(
        loader=theirs.loader, undefined=theirs.undefined, keep_trailing_newline=theirs.keep_trailing_newline
    )
    sandbox.filters, sandbox.tests, sandbox.globals = theirs.filters, theirs.tests, theirs.globals
    return sandbox


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return _sandbox().from_string(template)


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Render the Jinja templates of tasks in a sandbox in the block, and compile each one once.

    In lm_eval a template can run any Python code, such as ``{{ ''.__class__.__mro__ }}`` and so on, without a ``!function`` tag.
    lm_eval compiles templates for every field of every document. That takes 0.3 ms each, one minute for 50,000 rows.
    """
    with _replaced(lm_eval_utils.env, "from_string", _compiled):
        yield


def bypass_dataset_cache(config: dict[str, Any]) -> None:
    """Change a task's configuration so that edits of its local files and functions take effect whenever the task is opened."""
    function = config.get("custom_dataset")
    if callable(function):
        config["custom_dataset"] = _called_without_cache(function)
    elif local_row_files(config) or callable(config.get("process_docs")):
        options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
        source = config.get("dataset_path"), config.get("dataset_name")
        config["custom_dataset"] = functools.partial(_load, config["task"], *source, options)


def _called_without_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's own loading function, called without the cache of `datasets`, which returns data sets in memory."""

    @functools.wraps(function)
    def call(*positional: Any, **named: Any) -> Any:
        with ExitStack() as blocks:
            for block in (files_keyed_by_content, _generators_always_called, _caching_disabled):
                blocks.enter_context(block())
            return _in_memory(function(*positional, **named))

    return call


@contextmanager
def _caching_disabled() -> Iterator[None]:
    """Switch off the cache in which `datasets` keeps the results of functions on data sets."""
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()


@contextmanager
def _generators_always_called() -> Iterator[None]:
    """Let ``Dataset.from_generator`` call its function every time; `datasets` caches it by name and arguments."""
    original = datasets.Dataset.from_generator

    @functools.wraps(original)
    def from_generator(generator: Any, features: Any = None, cache_dir: Any = None, *positional: Any, **named: Any) -> Any:
        folder, key = get_temporary_cache_files_directory(), generate_random_fingerprint()  # removed when the process ends
        return original(generator, features, folder, *positional, **{**named, "fingerprint": key})

    with _replaced(datasets.Dataset, "from_generator", staticmethod(from_generator)):
        yield


@contextmanager
def files_keyed_by_content() -> Iterator[None]:
    """Let `datasets` identify local files by their content in place of their modification time, and note them as opened.

    Processes still share its cache: the first one converts the rows, the others wait and read the result.
    """
    digest = functools.cache(sha256)  # `datasets` makes several lists of the same files
    original, original_module = DataFilesList.__init__, LocalDatasetModuleFactory.get_module
    listed = dict[str, Any]()

    @functools.wraps(original)
    def init(self: DataFilesList, data_files: list[str], origin_metadata: list[Any]) -> None:
        known = zip(data_files, origin_metadata, strict=True)
        local = {file: path for file in data_files if (path := Path(local_part(file))).is_file()}
        note_opened(local.values())
        metadata = [(digest(local[file]),) if file in local else other for file, other in known]
        listed.update(zip(data_files, metadata, strict=True))
        original(self, data_files, metadata)

    @functools.wraps(original_module)
    def get_module(self: LocalDatasetModuleFactory) -> DatasetModule:
        # Where the card of a folder names files, `datasets` identifies the rows by the names alone, even with new times.
        listed.clear()
        module = original_module(self)
        for config in copy.deepcopy(module.builder_configs_parameters.builder_configs or []):
            with suppress(FileNotFoundError, datasets.exceptions.DatasetsError):  # of a configuration that is not loaded
                config._resolve_data_files(base_path=self.path, download_config=datasets.DownloadConfig())
        return replace(module, hash=Hasher.hash([module.hash, sorted(listed.items())]))

    with _replaced(DataFilesList, "__init__", init), _replaced(LocalDatasetModuleFactory, "get_module", get_module):
        yield


def _load(task: str, path: Any, name: Any, options: Mapping[str, Any], /, **_: Any) -> Any:
    """Load a data set as lm_eval does, and return it as one in memory. The rows are not copied.

    Raises:
        BenchmarkError: local files of the task cannot be read. The message names them and the cause.
    """
    local = local_row_files({"dataset_path": path, "dataset_kwargs": options})
    if local is None:
        missing_hub()
    if inner := next(names_in_archives(options.get("data_files")), None):
        raise BenchmarkError(
            f"benchmark {task}: data_files = {inner}: `datasets` copies a file of an archive once and does not see edits. Give "
            f"the archive itself ({local_part(inner)}), or extract it."
        )
    try:
        with files_keyed_by_content():
            return _in_memory(datasets.load_dataset(path=path, name=name, **options))
    except Exception as error:  # a broken file raises an error of any kind
        files = list(local or ())
        if not files:
            raise
        more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
        raise BenchmarkError(
            f"benchmark {task}: its rows in {', '.join(files[:_MOST_FILES])}{more} cannot be read: {_cause(error)}. "
            f"Correct these files, or dataset_path and dataset_kwargs in the task's YAML."
        ) from error


def _cause(error: BaseException) -> str:
    """Return the error that `datasets` wrapped in its own, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


def _in_memory(loaded: Any) -> Any:
    """Return data sets as data sets in memory, over the same rows; anything else as it is."""
    if isinstance(loaded, Mapping):
        return type(loaded)({split: _in_memory(rows) for split, rows in loaded.items()})  # type: ignore[call-arg]
    if not isinstance(loaded, datasets.Dataset):
        return loaded
    rows = copy.copy(loaded)
    rows._data = InMemoryTable(loaded.data.table)
    if loaded._indices is not None:  # rows that were selected or shuffled
        rows._indices = InMemoryTable(loaded._indices.table)
    setattr(rows, LOADED_FROM, [str(file["filename"]) for file in loaded.cache_files])
    return rows
