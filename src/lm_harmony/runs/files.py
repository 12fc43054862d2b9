"""Files of a run: read as typed values, with one error for every kind of damage, and written atomically. No torch."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from lm_harmony.errors import DamagedFile, HarmonyError, StoreError, StoreUnavailable
from lm_harmony.runs.untrusted_files import MOST_JSON, MOST_LINES, MOST_YAML, load_plain_yaml, read_bounded

T = TypeVar("T")
Upgrade = Callable[[Any], Any]
"""Turns the plain values of a file into those of today's fields: older files lack some, and some are derived from others."""


def to_plain(value: Any) -> Any:
    """Return a dataclass as plain values for JSON and YAML: paths become text, tuples become lists."""
    return _adapter(type(value)).dump_python(value, mode="json", by_alias=True)


def from_plain(kind: type[T], values: Any) -> T:
    """Return the ``kind`` that plain values from JSON or YAML describe.

    Raises:
        StoreError: a field is missing, unknown, of another type, or against a rule of ``kind``; the text names the field.
    """
    try:
        value: T = _adapter(kind).validate_json(to_json(values, inf_nan_mode="constants"))
    except ValidationError as error:
        raise StoreError(_first_fault(error)) from None
    return value


def read_json(path: Path, kind: type[T], upgrade: Upgrade | None = None) -> T:
    """Return what a JSON file holds.

    Raises:
        DamagedFile: it cannot be read, is not JSON, or does not describe a ``kind``; the text names file, field and remedy.
    """
    with damage_in(path):
        values = json.loads(read_bounded(path, MOST_JSON))
        return from_plain(kind, upgrade(values) if upgrade else values)


def read_yaml(path: Path, kind: type[T], upgrade: Upgrade | None = None) -> T:
    """Return what a YAML file holds; raises as ``read_json`` does."""
    with damage_in(path):
        values = load_plain_yaml(read_bounded(path, MOST_YAML))
        return from_plain(kind, upgrade(values) if upgrade else values)


def read_json_lines(path: Path, kind: type[T], *, skip_torn_end: bool = False) -> tuple[T, ...]:
    """Return what the lines of a JSONL file hold; raises as ``read_json`` does.

    Args:
        path: the file.
        kind: type of the value in each line.
        skip_torn_end: leave out a last line that no newline ends, because the process that wrote it was killed.
    """
    with damage_in(path):
        # str.splitlines() would also split at line separators that stand inside a text.
        *lines, end = read_bounded(path, MOST_LINES).split("\n")
        lines += [end] if end and not skip_torn_end else []
        return tuple(_line(kind, line, number) for number, line in enumerate(lines, 1))


def _line(kind: type[T], line: str, number: int) -> T:
    try:
        return from_plain(kind, json.loads(line))
    except json.JSONDecodeError as error:
        raise StoreError(f"line {number} is not JSON: {error}") from None
    except StoreError as error:
        raise StoreError(f"line {number}: {error}") from None


# What reading a damaged file, or one of another program, raises.
_DAMAGE = (HarmonyError, OSError, ValueError, RecursionError, yaml.YAMLError)


@contextmanager
def damage_in(file: Path) -> Iterator[None]:
    """Turn what the block raises while it reads ``file``, of a run's folder, into one error that names it.

    Raises:
        DamagedFile: the block raised an error that a damaged file causes.
    """
    try:
        yield
    except DamagedFile:
        raise
    except _DAMAGE as error:
        remedy = f"Restore the file, or remove {file.parent} and carry the run out again."
        raise DamagedFile(f"{file} cannot be read: {_cause(error)}. {remedy}") from error


def _cause(error: Exception) -> str:
    """Return what went wrong, in one line and without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError):
        return error.strerror or text
    kinds = {json.JSONDecodeError: "it is not JSON", UnicodeDecodeError: "it is not UTF-8", yaml.YAMLError: "it is not YAML"}
    kinds[RecursionError] = "it is nested too deep"
    name = next((name for kind, name in kinds.items() if isinstance(error, kind)), type(error).__name__)
    return f"{name}: {text}"[:300]


def _first_fault(error: ValidationError) -> str:
    """Return the first of pydantic's complaints in one line: the field's path, its value, and what it must be."""
    first, *others = error.errors(include_url=False)
    place, given = ".".join(map(str, first["loc"])), repr(first["input"])
    field = f"field {place}" if place else "the content"
    more = f" ({len(others)} more faults)" if others else ""
    if first["type"] == "missing":
        return f"{field} is missing{more}"
    if first["type"] == "unexpected_keyword_argument":
        return f"{field} is unknown{more}"
    if first["type"] == "value_error":  # raised by the class itself, which names the field and ends with a remedy
        said = str(first["ctx"]["error"])
        return f"{field}: {said.split('. ')[0].rstrip('.')}{more}"
    shown = given if len(given) <= 80 else f"{given[:80]} ..."
    return f"{field} = {shown}: {first['msg'].replace('Input should', 'it must')}{more}"


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's reader and writer of a type, which takes milliseconds to build."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


Guard = Callable[[], AbstractContextManager[None]]
"""Makes the block in which a file takes its name; raises if this process may not write any more (``Lease.writing``)."""


@contextmanager
def new_folder(folder: Path, guard: Guard = nullcontext) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``folder`` when the block ends without an error and is removed otherwise.

    It has the name of ``folder``, alone inside a hidden folder beside it. All of its files are on disk before it takes its name.

    Args:
        folder: path of the folder, which must not exist or be empty.
        guard: block in which the folder takes its name.
    """
    hidden = _scratch(folder)
    scratch = hidden / folder.name
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for root, _, names in os.walk(scratch):
            for name in names:
                _sync(Path(root) / name)
            _sync(Path(root))
        with guard():
            os.replace(scratch, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def new_file(path: Path, guard: Guard = nullcontext) -> Iterator[Path]:
    """Yield the path of a file to write, which becomes ``path`` when the block ends without an error and is removed otherwise.

    Its content is on disk before it takes its name, and its permissions are those of the user's umask.

    Args:
        path: path of the file.
        guard: block in which the file takes its name.
    """
    scratch = _scratch(path)
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)  # safetensors replaces it by a file that only its owner may read
        _sync(scratch)
        with guard():
            os.replace(scratch, path)
        _sync(path.parent)
    finally:
        with suppress(OSError):  # such as a disk that has become read-only, which the first error says
            scratch.unlink(missing_ok=True)


def _scratch(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process and no other call uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on disk.

    Raises:
        OSError: the disk failed, or is full.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some systems do not open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, guard: Guard = nullcontext) -> None:
    """Write a file so that a reader, or a crash, finds either its old text or all of the new one.

    Args:
        path: path of the file.
        text: its new content.
        guard: block in which the new content replaces the old one.

    Raises:
        StoreUnavailable: the disk is full or the folder cannot be written.
    """
    try:
        with new_file(path, guard) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> StoreUnavailable:
    """Return the error that ``path`` cannot be written, with its cause and what to do."""
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return StoreUnavailable(
        f"{path} cannot be written: {cause}. What was finished before is complete. Free disk space, or make {path.parent} "
        f"writable, and resume with --resume_from_checkpoint."
    )
