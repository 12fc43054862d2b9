"""Values out of a study file, checked; what is wrong is said with the place where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.recipe import Lora, Recipe


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML, and refuses a key that one mapping has twice: YAML itself keeps the last one without a word."""

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


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        UsageError: it cannot be read, is not YAML, or gives a key twice in one mapping.
    """
    try:
        loader = _UniqueKeys(path.read_text(encoding="utf-8"))
        loader.name = str(path)  # for the messages
        return loader.get_single_data()
    except OSError as error:
        raise UsageError(f"study: {path} cannot be read: {error.strerror}. Give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"study: {path} is not YAML: {' '.join(str(error).split())}. Correct the file.") from error


@contextmanager
def at(where: str) -> Iterator[None]:
    """Put the place in the study file before a message that only names the field."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def mapping_of(values: Any, known: Iterable[str], where: str) -> Mapping[str, Any]:
    """Return a mapping that has no other keys than ``known``.

    Raises:
        UsageError: it is none, or has others.
    """
    known = list(known)
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be a mapping of keys to values, got {values!r}. It takes: {', '.join(known)}.")
    for key in values:
        if key not in known:
            raise UsageError(f"{where} has no key {key!r}.{did_you_mean(str(key), known)} It takes: {', '.join(known)}.")
    return values


def list_of(values: Any, where: str) -> list[Any]:
    """Return a list.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(values, list):
        raise UsageError(f"{where} must be a list, got {values!r}. Write one entry a line, each behind '- '.")
    return values


def recipe_of(overrides: Any, onto: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put ``overrides`` over a recipe's values; a lora mapping changes the keys it names, null trains all weights.

    Raises:
        UsageError: an unknown key, or a value that a recipe refuses (the same rules as for the flags of a single run).
    """
    given = dict(mapping_of(overrides, [one.name for one in fields(Recipe)], where))
    if isinstance(given.get("lora"), Mapping):
        lora = mapping_of(given["lora"], [one.name for one in fields(Lora)], f"{where}.lora")
        given["lora"] = {**(onto["lora"] or asdict(Lora())), **lora}
    for key, value in given.items():
        with at(f"{where}.{key}"):
            Recipe.from_dict({**onto, key: value})
    return {**onto, **given}
