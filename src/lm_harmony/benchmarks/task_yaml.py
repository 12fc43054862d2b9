"""Reads a task's or a group's YAML file without importing lm_eval or the functions that the file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_harmony.errors import BenchmarkError


@dataclass(frozen=True)
class Function:
    """A ``!function`` tag: "module.name"."""

    name: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads ``!function`` tags as values of ``Function``."""


_Loader.add_constructor("!function", lambda loader, node: Function(str(loader.construct_scalar(node))))


def read_task_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds, without the files that it includes.

    Raises:
        BenchmarkError: it cannot be read, or it is no mapping.
    """
    try:
        values = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BenchmarkError(f"{path}: cannot be read as an lm_eval task: {reason}. Correct the file.") from error
    if not isinstance(values, dict):
        raise BenchmarkError(f"{path}: the top level must be a mapping of keys to values. Give an lm_eval task file.")
    return values
