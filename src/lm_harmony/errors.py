"""Errors with a message in one line: what is wrong (field and value), where, what is allowed, and what to do.

Each class also derives from an exception of the standard library, so that other programs can catch it. Each takes one message
only, so that it can be pickled between processes.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Iterator

FILE_RULES = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""How pydantic reads a class from a file: no unknown field, no conversion between types, no NaN."""


class HarmonyError(Exception):
    """Base of all errors that a user can correct; the message ends with what to do."""


class UsageError(HarmonyError, ValueError):
    """A request breaks a rule: an unknown name, a value out of range, a run that already exists."""


class NotCurrent(UsageError):
    """A run was made from other files, commits or requests than the current ones."""


class BenchmarkError(HarmonyError, ValueError):
    """A benchmark cannot be used: no training split, an empty split, a row without a column, no data."""


class ModelError(HarmonyError, OSError):
    """A model or its tokenizer cannot be loaded, or cannot be used with the given options."""


class TrainingDiverged(HarmonyError, ArithmeticError):
    """The training loss is NaN or infinite."""


class ScoreNotFinite(HarmonyError, ArithmeticError):
    """A log-likelihood, a logit or a metric is NaN or infinite, so that no score can be computed."""


class StoreError(HarmonyError, OSError):
    """The folder of a run cannot be read or written."""


class StoreUnavailable(StoreError):
    """The results cannot be written, or a store cannot be reached: the same request may succeed later."""


class DamagedFile(StoreError):
    """A file of a run is damaged, or was written by another program or version."""


class LeaseHeld(HarmonyError, RuntimeError):
    """Another process executes the run; the message names it."""


class LeaseLost(LeaseHeld):
    """Another process has taken over the run of this one, which must not write any more."""


class MissingExtra(HarmonyError, ImportError):
    """An optional package is not installed; the message holds the pip command."""


def cause_of(kind: str, cause: str) -> str:
    """Return why something failed; the class ``kind`` of the error is named only if its message was not written for users."""
    written = {error.__name__ for error in _subclasses(HarmonyError)}
    return cause if kind in written else f"{kind}: {cause}"


def _subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    for one in error.__subclasses__():
        yield one
        yield from _subclasses(one)


def check_integer(field: str, value: object, low: int, high: int | None = None) -> None:
    """Check that a value is an integer from ``low`` to ``high`` (None: no upper limit); ``field`` names it in the message.

    Raises:
        UsageError: the value has another type (true and false are not numbers), or is out of range.
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
    """Check that a value is a finite number from ``low`` to ``high``, less than ``below``, and above 0 if ``positive``.

    Raises:
        UsageError: the value has another type, is NaN or infinite, or is out of range.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UsageError(f"{field} must be a number, got {value!r}. Write it without quotes: 1e-4.")
    if positive:
        rule = "a positive number"
    elif math.isfinite(below) or math.isfinite(high):
        rule = f"in [{low:g}, {below:g})" if math.isfinite(below) else f"in [{low:g}, {high:g}]"
    else:
        rule = "a finite number, not negative" if low == 0 else f"a finite number of at least {low:g}"
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high and number < below and (number > 0 or not positive)):
        raise UsageError(f"{field} must be {rule}, got {value!r}. Set {field} to a number in that range.")


def check_learning_rates(field: str, rates: tuple[object, ...]) -> None:
    """Check rates from which validation chooses; UsageError: fewer than two, not positive, or one is given twice."""
    if len(rates) < 2:
        raise UsageError(
            f"{field} = {list(rates)} must have at least two rates to choose from. Add rates, or give one number "
            f"(--train_param.learning_rate; in a study: learning_rate: 2e-5)."
        )
    for place, rate in enumerate(rates):
        check_number(f"{field}[{place}]", rate, positive=True)
    if len(set(rates)) < len(rates):
        raise UsageError(f"{field} = {list(rates)} has a rate twice. Remove one.")


def check_flag(field: str, value: object) -> None:
    """Check that a value is true or false, because the text "no" would count as true.

    Raises:
        UsageError: the value has another type.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{field} must be true or false, got {value!r}. Write it without quotes.")


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count with its word: "1 row", "2,000 rows"; ``many`` is the word for several if it is not ``one`` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the known names that are similar to ``name``, or "" if none is similar."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
