"""What can go wrong, said in one line: field, rule, value, place and remedy.

Every error here is also an error of the standard library, so that callers who know nothing of LM-Harmony can catch it, and
carries one message only, so that it survives pickling between processes.
"""

from __future__ import annotations

import difflib
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


class StoreError(HarmonyError, OSError):
    """A run's folder cannot be read or written."""


class MissingExtra(HarmonyError, ImportError):
    """An optional package is needed; the text names the pip line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known names nearest to ``name``, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
