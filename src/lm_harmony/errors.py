"""What can go wrong, said in one line: field, rule, value, place and remedy.

Every error here is also an error of the standard library, so that callers who know nothing of LM-Harmony can catch it, and
carries one message only, so that it survives pickling between processes.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class HarmonyError(Exception):
    """Base of all errors that a user can mend; its text ends with the remedy."""


class UsageError(HarmonyError, ValueError):
    """What was asked contradicts a rule: an unknown name, a value out of range, a run that is there already."""


class NotCurrent(UsageError):
    """A run that is there was made from other files, commits or requests than those of now."""


class BenchmarkError(HarmonyError, ValueError):
    """A benchmark cannot serve: no training split, an empty split, a row without its column, no data."""


class ModelError(HarmonyError, OSError):
    """A model or its tokenizer cannot be loaded or cannot be used as asked."""


class TrainingDiverged(HarmonyError, ArithmeticError):
    """The training loss is not a finite number any more."""


class ScoreNotFinite(HarmonyError, ArithmeticError):
    """A model's answer holds NaN or an infinite number, over which no score can be computed."""


class StoreError(HarmonyError, OSError):
    """A run's folder cannot be read or written."""


class DamagedFile(StoreError):
    """A file of a run's folder is damaged, or of another program or version."""


class MissingExtra(HarmonyError, ImportError):
    """An optional package is needed; the text names the pip line."""


def check_integer(field: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse a value that is no whole number from ``low`` to ``high`` (None: no upper limit); ``field`` names it in the message.

    Raises:
        UsageError: the value is of another type (true and false are no numbers), or out of the range.
    """
    rule = f"at least {low}" if high is None else f"from {low} to {high}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UsageError(
            f"{field} must be a whole number, {rule}, got {value!r}. Write it without quotes or decimals, such as 8."
        )
    if int(value) < low or (high is not None and int(value) > high):
        raise UsageError(f"{field} must be {rule}, got {value}. Give a whole number in that range.")


def check_number(
    field: str,
    value: object,
    *,
    positive: bool = False,
    low: float = 0.0,
    below: float = math.inf,
    high: float = math.inf,
) -> None:
    """Refuse a value that is no finite number from ``low`` to ``high``, under ``below``, and above 0 where ``positive``.

    Raises:
        UsageError: the value is of another type, is NaN or infinite, or out of the range.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UsageError(f"{field} must be a number, got {value!r}. Write it without quotes, with a decimal point: 1.0e-4.")
    if positive:
        rule = "a positive number"
    elif math.isfinite(below) or math.isfinite(high):
        rule = f"in [{low:g}, {below:g})" if math.isfinite(below) else f"in [{low:g}, {high:g}]"
    else:
        rule = "a finite number, not negative" if low == 0 else f"a finite number of at least {low:g}"
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high and number < below and (number > 0 or not positive)):
        raise UsageError(f"{field} must be {rule}, got {value!r}. Set {field} to a value that is.")


def check_flag(field: str, value: object) -> None:
    """Refuse a value that is neither true nor false: the text "no" would count as true.

    Raises:
        UsageError: it is of another type.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{field} must be true or false, got {value!r}. Write it without quotes.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known names nearest to ``name``, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
