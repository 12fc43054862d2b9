"""How questions recur in the training rows: the kinds, the rule of a run for such rows, and sentences for people.

Records and boards use this module, so it imports neither PyTorch nor lm_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lm_harmony.errors import FILE_RULES, UsageError

Recurrence = Literal["exact", "normalized", "choices", "overlapping"]
"""exact: the same question and choices. normalized: the same words in another spacing, case or punctuation. choices: the same
question with other choices, or in another order. overlapping: half of the question's ``NGRAM`` consecutive words or more."""
RECURRENCES: tuple[Recurrence, ...] = get_args(Recurrence)
NearDuplicateRule = Literal["keep", "drop"]
"""What a run does with training rows in which a scored question recurs in one of these kinds. "keep": they are trained on, as in
the published protocol, and counted. "drop": they are left out."""
FEWEST_ROWS = 2
"""Smallest number of test rows without a near duplicate from which a score on them is computed."""
_RECURRENCES = {
    "exact": "unchanged",
    "normalized": "in another spacing, case or punctuation",
    "choices": "with other choices or in another order of them",
    "overlapping": "with half of their sequences of 13 words or more",
}
"""How a question recurs -> the words for users."""


def check_near_duplicates(key: str, value: object, protocol: str = "clean") -> None:
    """Raise UsageError if ``value``, given for ``key``, is no ``NearDuplicateRule`` or contradicts the split protocol."""
    if value not in get_args(NearDuplicateRule):
        raise UsageError(f"{key} must be keep or drop, got {value!r}. Use keep.")
    if value == "drop" and protocol == "published":
        raise UsageError(f"{key} = drop contradicts split_protocol = published. Remove one of them.")


def recurring(near_duplicates: Mapping[str, Sequence[int]], test: int) -> str | None:
    """Return how many of ``test`` questions recur in the training rows, without a full stop; None: none is known.

    Args:
        near_duplicates: how a question recurs -> numbers of these test rows.
        test: number of test rows.
    """
    kinds = ", ".join(f"{len(rows):,} {_RECURRENCES.get(kind, kind)}" for kind, rows in near_duplicates.items())
    count = sum(map(len, near_duplicates.values()))
    left = test - count
    no_score = f"; {left} without a near duplicate remain, too few for a score of their own" if left < FEWEST_ROWS else ""
    return f"{count:,} of {test:,} test questions recur in the training rows ({kinds}){no_score}" if count else None


@dataclass(frozen=True, kw_only=True)
class DroppedNearDuplicates:
    """Numbers of rows that were left out because a scored question nearly recurs in them, by kind (``Recurrence``)."""

    __pydantic_config__ = FILE_RULES

    train: Mapping[str, int]
    """Training rows in which a validation or test question recurs."""
    validation: Mapping[str, int]
    """Validation rows in which a test question recurs."""

    def sentence(self) -> str:
        """Return the numbers as one sentence without a full stop, for people."""
        named = (("training", self.train), ("validation", self.validation))
        parts = ", ".join(f"{sum(found.values()):,} {name} rows{_by_kind(found)}" for name, found in named)
        return f"near duplicates of scored rows are left out: {parts}"


def _by_kind(found: Mapping[str, int]) -> str:
    """Return the numbers of each kind in brackets; nothing: there is none."""
    kinds = ", ".join(f"{count:,} {_RECURRENCES.get(kind, kind)}" for kind, count in found.items())
    return f" ({kinds})" if kinds else ""
