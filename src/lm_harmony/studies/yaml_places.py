"""Reads YAML with the line of every value, so that a message about a value names its file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.studies.study_file import keys_at

Key = tuple[int | str, ...]
"""Path to a value in the file, such as ("models", 2, "name")."""
Content = TypeVar("Content", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Reads YAML and refuses a key that a mapping has twice. YAML itself would keep the last one without a message.

    ``2e-5`` is a number, as in YAML 1.2 and in JSON. PyYAML follows YAML 1.1, where a number with an exponent needs a point.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, known = key.start_mark.line + 1, (key.tag, key.value)
                if known in lines:
                    raise UsageError(
                        f"{key.start_mark.name}, line {line}: key {key.value!r} is given twice, first in line {lines[known]}. "
                        f"Keep one of them."
                    )
                lines[known] = line
        return node


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_yaml(path: Path) -> tuple[Any, Places]:
    """Return the content of a YAML file and the places of its values.

    Raises:
        UsageError: the file cannot be read, is not YAML, or gives a key twice in one mapping.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and a study's YAML file is expected. Give that file, such as study.yaml.")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)  # for the messages
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
        lines = dict(_lines(node, ()))
    except RecursionError as error:
        raise UsageError(f"{path}: an alias (*name) stands inside of what it refers to (&name). Write the values out.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}. Correct the file.") from error
    return values, Places(str(path), lines)


def _lines(node: yaml.Node | None, key: Key) -> Iterator[tuple[Key, int]]:
    """Yield the key and line of every mapping entry and list entry below ``node``."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, str(name.value)), name.start_mark.line + 1
            yield from _lines(value, (*key, str(name.value)))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*key, number), value.start_mark.line + 1
            yield from _lines(value, (*key, number))


@dataclass(frozen=True)
class Places:
    """Writes messages that begin with the file, the line and the key of a value."""

    file: str
    """Path of the file, or what the values are called in messages."""
    lines: Mapping[Key, int] = field(default_factory=dict, repr=False)
    """Line of each mapping entry and list entry, by its key."""
    parent: Key = ()
    """Key of the part of the file that other keys are relative to."""

    def below(self, *key: int | str) -> Places:
        """Return the places of one part of the file."""
        return replace(self, parent=(*self.parent, *key))

    @contextmanager
    def at(self, *key: int | str) -> Iterator[None]:
        """Put the place of ``key`` before the message of a UsageError."""
        try:
            yield
        except UsageError as error:
            raise self.error(key, str(error)) from error

    def validate(self, model: type[Content], values: Any) -> Content:
        """Return ``values`` as ``model``.

        Raises:
            UsageError: an unknown or missing key, or a value that its rule does not allow. The first one is reported.
        """
        try:
            return model.model_validate(values)
        except ValidationError as invalid:
            # An unknown key comes first, because a misspelled key is also a missing one.
            found = min(invalid.errors(), key=lambda error: error["type"] not in ("extra_forbidden", "invalid_key"))
            key, value = found["loc"], found["input"]
            match found["type"]:
                case "extra_forbidden" | "invalid_key":
                    known = keys_at(key[:-1])
                    message = f"no key {key[-1]!r}.{did_you_mean(str(key[-1]), known)} Known keys: {', '.join(known)}."
                    error = self.error(key[:-1], message, line_of=key)
                case "missing":
                    error = self.error(key[:-1], f"the key {key[-1]!r} is missing. Add {key[-1]}: and a value.")
                case "model_type":
                    known = keys_at(key)
                    rule = f"must be a mapping of keys to values, got {value!r}. Known keys: {', '.join(known)}."
                    error = self.error(key, rule, separator=" ")
                case "list_type":
                    rule = f"must be a list, got {value!r}. Write one entry a line, each after '- '."
                    error = self.error(key, rule, separator=" ")
                case _:
                    error = self.error(key, str(found.get("ctx", {}).get("error", found["msg"])))
            raise error from invalid

    def error(self, key: Key, message: str, *, separator: str = ": ", line_of: Key | None = None) -> UsageError:
        """Return an error with a place.

        Args:
            key: the value that is wrong. A message that begins with its last part gets the complete key in place of that.
            message: what is wrong, what is allowed, and what to do.
            separator: stands between place and message.
            line_of: key whose line is shown, if it is another one.
        """
        key, shown = (*self.parent, *key), (*self.parent, *(key if line_of is None else line_of))
        line = next((self.lines[shown[:end]] for end in range(len(shown), 0, -1) if shown[:end] in self.lines), None)
        place = self.file if line is None else f"{self.file}, line {line}"
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
        if key and message.startswith((f"{key[-1]} ", f"{key[-1]}: ")):
            return UsageError(f"{place}: {name}{message.removeprefix(str(key[-1]))}")
        return UsageError(f"{place}: {name}{separator}{message}" if name else f"{place}{separator}{message}")
