"""Values out of a study file, checked; what is wrong is said with the place where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.recipe import Lora, Recipe


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
        UsageError: an unknown key, or a value that a recipe refuses.
    """
    given = dict(mapping_of(overrides, [one.name for one in fields(Recipe)], where))
    if isinstance(given.get("lora"), Mapping):
        lora = mapping_of(given["lora"], [one.name for one in fields(Lora)], f"{where}.lora")
        given["lora"] = {**(onto["lora"] or asdict(Lora())), **lora}
    merged = {**onto, **given}
    try:
        Recipe.from_dict(merged)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return merged
