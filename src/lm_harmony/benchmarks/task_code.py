"""The Python code of a task: which files it opens, and how its modules are imported again after an edit.

A function of a task may open a file that no YAML file names, such as a word list beside its module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

IMPORTED_MODULES: set[Path] = set()
"""Modules that tasks of this process imported through a changed ``sys.path``, so that no import statement shows their file."""
_INSTALLED = frozenset(("__pycache__", "site-packages", "dist-packages", "nltk_data"))
_SYSTEM = ("/proc", "/sys", "/dev")
_watched: list[tuple[frozenset[str], set[Path]]] = []
_hooked = False


@contextmanager
def files_opened_by(modules: Iterable[Path]) -> Iterator[set[Path]]:
    """Yield a set that contains, after the block, the files that code of ``modules`` opened for reading.

    Files that a library opened for that code are included, if it opens them in Python. A module that was imported from its
    bytecode is listed by its source. Every module in the set is added to ``IMPORTED_MODULES``. Left out are files of the system,
    of installed packages and of the caches of Python and the hub, and hidden files, unless the modules are hidden as well.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_note)  # cannot be removed again; it does nothing outside such a block
        _hooked = True
    found: set[Path] = set()
    names = frozenset(str(module) for module in modules)
    folders = sorted({Path(os.path.abspath(name)).parent for name in names})
    entry = (names, found)
    _watched.append(entry)
    try:
        yield found
    finally:
        _watched.remove(entry)
        opened = [_source_of(path) for path in found]
        found.clear()
        found.update(path for path in opened if _belongs(path, folders))
        IMPORTED_MODULES.update(path for path in found if path.suffix == ".py")


def note_opened(files: Iterable[Path]) -> None:
    """Add files to every such block that a library opens for a task outside of Python code."""
    for _, found in _watched:
        found.update(file.absolute() for file in files)


def _source_of(path: Path) -> Path:
    """Return the source file of a module's bytecode, or any other file as it is. Of valid bytecode Python opens no source."""
    if path.suffix == ".pyc":
        with suppress(ValueError, NotImplementedError):
            return Path(importlib.util.source_from_cache(str(path)))
    return path


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: add a file that is opened for reading to every block whose modules are on the stack."""
    if event != "open" or not _watched:
        return
    path, mode, flags = arguments
    reading = "r" in mode and "+" not in mode if isinstance(mode, str) else flags & os.O_ACCMODE == os.O_RDONLY
    if not reading or not isinstance(path, (str, bytes)):
        return
    for modules, found in _watched:
        if _on_stack(sys._getframe(1), modules):
            found.add(Path(os.fsdecode(path)).absolute())


def _on_stack(frame: FrameType | None, modules: frozenset[str]) -> bool:
    """Return whether code of one of the modules called this frame."""
    while frame is not None:
        if frame.f_code.co_filename in modules:
            return True
        frame = frame.f_back
    return False


def _belongs(path: Path, watched: Sequence[Path]) -> bool:
    """Return whether a file may belong to a task: it is not part of the system, of an installed package or of a cache."""
    shown = Path(os.path.abspath(path))
    if not path.is_file() or _INSTALLED & set(shown.parts) or any(shown.is_relative_to(folder) for folder in _excluded_folders()):
        return False
    # A project may be below a hidden folder such as ~/.work: hidden means hidden as seen from the task.
    return any(not _is_hidden(shown, folder) for folder in watched)


def _excluded_folders() -> list[str]:
    """Return the folders of Python, of the system and of the hub's caches."""
    caches = [os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")]
    home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    return [sys.prefix, sys.base_prefix, home, *(os.path.abspath(cache) for cache in caches if cache), *_SYSTEM]


def _is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a folder or file on the way from the nearest common parent to ``path`` begins with a dot."""
    common = next((above for above in path.parents if folder.is_relative_to(above)), Path())
    return any(part.startswith(".") for part in path.parts[len(common.parts) :])


def unload_modules(files: Iterable[Path]) -> None:
    """Remove the modules of these files from memory and their bytecode from disk, so that Python reads their source again.

    Python would otherwise reuse the module in memory, a module with the same name from another task's folder, or the bytecode of
    a file that was edited without a change of its size and its modification time in seconds.
    """
    paths = {str(file) for file in files if file.suffix == ".py"}
    if not paths:  # to look at all modules takes a tenth of a second
        return
    names = {Path(path).stem for path in paths}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file in paths or (name in names and file and not file.startswith((sys.prefix, sys.base_prefix))):
            del sys.modules[name]
    for path in paths:
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(path)).unlink()
