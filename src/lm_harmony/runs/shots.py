"""Numbers of examples before each question (few-shot), and the names of the direct scores with them. Loads no library."""

from __future__ import annotations

import re

from lm_harmony.errors import UsageError, check_integer


def direct_name(shots: int) -> str:
    """Return the name of the direct score with ``shots`` examples before each question, in files, tables and boards."""
    return f"direct_{shots}shot" if shots else "direct"


def shots_of(name: str) -> int | None:
    """Return the number of examples before each question of the direct score ``name``; None: it is no direct score."""
    found = re.fullmatch(r"direct(?:_([1-9]\d*)shot)?", name)
    return None if found is None else int(found[1] or 0)


def shown_direct(name: str) -> str:
    """Return the name of a direct score for people: "direct", or "direct 5-shot"."""
    shots = shots_of(name)
    return f"direct {shots}-shot" if shots else name


def check_shots(values: object, *, direct: bool = True) -> None:
    """Raise UsageError unless these are different numbers of examples, each a whole number from 0 or "task".

    Args:
        values: the numbers of examples of a run's direct scores.
        direct: whether the run has direct scores; without them any number but the default, 0, contradicts it.
    """
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(f"direct_fewshot must be a list of numbers of examples, got {values!r}. Give numbers such as 0 and 5.")
    for value in values:
        if isinstance(value, str) and value != "task":
            raise UsageError(f"direct_fewshot must be whole numbers from 0, or task, got {value!r}. Give one such as 5.")
        if value != "task":
            check_integer("direct_fewshot", value, 0)
        if values.count(value) > 1:
            raise UsageError(f"direct_fewshot = {value} is given twice. Remove one.")
    if not direct and tuple(values) != (0,):
        raise UsageError(
            f"direct_fewshot = {list(values)} contradicts direct = False: no direct score is computed. Set direct = True, or "
            "leave out direct_fewshot."
        )


def samples_file(name: str) -> str:
    """Return the name of the file with the per-document outcomes of a score, which ``RunRecord.scores`` names."""
    return f"samples_{'test' if name == 'trained' else name}.jsonl"
