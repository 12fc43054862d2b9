"""The files that a task's own functions open, such as a word list beside their module: no YAML file names them."""

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
"""Python modules that tasks of this process imported and that no import statement names as a file (``sys.path.insert``)."""
_INSTALLED = frozenset(("__pycache__", "site-packages", "dist-packages", "nltk_data"))
_SYSTEM = ("/proc", "/sys", "/dev")
_watched: list[tuple[frozenset[str], set[Path]]] = []
_hooked = False


@contextmanager
def files_opened_by(modules: Iterable[Path]) -> Iterator[set[Path]]:
    """Yield a set that holds, when the block has ended, the files that code of ``modules`` opened for reading.

    It may have opened them through a library, as long as that opens files in Python.
    A module that was imported from its bytecode is listed by its source, and every module found is added to ``IMPORTED_MODULES``.
    Files of the system, of installed packages and of the caches of Python and the hub are left out, as are names that begin
    with a dot, unless the modules lie below them too.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_note)  # cannot be taken away again; without watched modules it does nothing
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
        found.update(path for path in opened if _counts(path, folders))
        IMPORTED_MODULES.update(path for path in found if path.suffix == ".py")


def _source_of(path: Path) -> Path:
    """Return the source of a module's bytecode: with valid bytecode Python opens nothing else. Other files are returned as is."""
    if path.suffix == ".pyc":
        with suppress(ValueError, NotImplementedError):
            return Path(importlib.util.source_from_cache(str(path)))
    return path


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched:
        return
    path, mode, flags = arguments
    reading = "r" in mode and "+" not in mode if isinstance(mode, str) else flags & os.O_ACCMODE == os.O_RDONLY
    if not reading or not isinstance(path, (str, bytes)):
        return
    for modules, found in _watched:
        if _calls(sys._getframe(1), modules):
            found.add(Path(os.fsdecode(path)).absolute())


def _calls(frame: FrameType | None, modules: frozenset[str]) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in modules:
            return True
        frame = frame.f_back
    return False


def _counts(path: Path, watched: Sequence[Path]) -> bool:
    """Tell whether a file may belong to a task: it is no part of the system, of an installed package or of a cache."""
    shown = Path(os.path.abspath(path))
    if not path.is_file() or _INSTALLED & set(shown.parts) or any(shown.is_relative_to(folder) for folder in _foreign()):
        return False
    # A project may lie below a folder such as ~/.work: only what is hidden as seen from the task counts as hidden.
    return any(not _is_hidden(shown, folder) for folder in watched)


def _foreign() -> list[str]:
    caches = [os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")]
    home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    return [sys.prefix, sys.base_prefix, home, *(os.path.abspath(cache) for cache in caches if cache), *_SYSTEM]


def _is_hidden(path: Path, folder: Path) -> bool:
    """Tell whether a name that begins with a dot stands on the way from the nearest folder above both to ``path``."""
    common = next((above for above in path.parents if folder.is_relative_to(above)), Path())
    return any(part.startswith(".") for part in path.parts[len(common.parts) :])


def unload_modules(files: Iterable[Path]) -> None:
    """Let Python import the modules of these files from their source the next time, whatever it holds of them.

    Python takes a file of the same size and second for the same, a module in memory for what it was, and a module of another
    task's folder that has the same name for this one.
    """
    paths = {str(file) for file in files if file.suffix == ".py"}
    names = {Path(path).stem for path in paths}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file in paths or (name in names and file and not file.startswith((sys.prefix, sys.base_prefix))):
            del sys.modules[name]
    for path in paths:
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(path)).unlink()
