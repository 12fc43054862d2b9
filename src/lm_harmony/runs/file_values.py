"""Values of a run's files: turned into plain ones and back, with one error for every kind of damage. No torch.

A file or line may hold ``check``, a checksum of its other fields. A reader refuses it as damaged if a field was changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from lm_harmony.errors import DamagedFile, HarmonyError, StoreError
from lm_harmony.runs.untrusted_files import MOST_JSON, MOST_LINES, MOST_YAML, load_plain_yaml, read_bounded

T = TypeVar("T")
Upgrade = Callable[[Any], Any]
"""Turns the plain values of a file into those of today's fields: it checks the checksum and fills in what older files lack."""


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


_CHECK = "check"
"""Key of the checksum."""


def with_check(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file or line with a checksum of them: the start of the SHA-256 of their sorted JSON."""
    return {**values, _CHECK: _checksum(values)}


def without_check(values: Any) -> Any:
    """Return the values without their checksum, which files of older versions lack.

    Raises:
        StoreError: a value was changed after the checksum was computed.
    """
    if not isinstance(values, dict) or _CHECK not in values:
        return values
    rest = {key: value for key, value in values.items() if key != _CHECK}
    if values[_CHECK] != _checksum(rest):
        raise StoreError("check differs from the checksum of the other fields, so one was changed after it was written")
    return rest


def _checksum(values: Any) -> str:
    plain = json.loads(json.dumps(values, skipkeys=True, default=repr))  # damaged YAML may hold other keys and values
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path, kind: type[T], upgrade: Upgrade = without_check) -> T:
    """Return what a JSON file holds.

    Raises:
        DamagedFile: it cannot be read, is not JSON, or does not describe a ``kind``; the text names file, field and remedy.
    """
    with damage_in(path):
        return from_plain(kind, upgrade(json.loads(read_bounded(path, MOST_JSON))))


def read_yaml(path: Path, kind: type[T], upgrade: Upgrade = without_check) -> T:
    """Return what a YAML file holds; raises as ``read_json`` does."""
    with damage_in(path):
        return from_plain(kind, upgrade(load_plain_yaml(read_bounded(path, MOST_YAML))))


def read_json_lines(
    path: Path, kind: type[T], upgrade: Upgrade | None = None, *, skip_torn_end: bool = False, sha256: str | None = None
) -> tuple[T, ...]:
    """Return what the lines of a JSONL file hold; raises as ``read_json`` does.

    Args:
        path: the file.
        kind: type of the value in each line.
        upgrade: turns the values of a line into those of ``kind``; ``without_check`` for lines with a checksum.
        skip_torn_end: leave out a last line that no newline ends, because the process that wrote it was killed.
        sha256: SHA-256 of the file; None: not known.
    """
    with damage_in(path):
        text = read_bounded(path, MOST_LINES)
        if sha256 not in (None, hashlib.sha256(text.encode()).hexdigest()):
            raise StoreError("it differs from its checksum")
        # str.splitlines() would also split at line separators that stand inside a text.
        *lines, end = text.split("\n")
        lines += [end] if end and not skip_torn_end else []
        return tuple(_line(kind, line, number, upgrade) for number, line in enumerate(lines, 1))


def _line(kind: type[T], line: str, number: int, upgrade: Upgrade | None) -> T:
    try:
        values = json.loads(line)
        return from_plain(kind, upgrade(values) if upgrade else values)
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
