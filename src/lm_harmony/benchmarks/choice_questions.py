"""Multiple-choice questions without the format of a benchmark: their number of choices, and whether a scored question recurs."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

NGRAM = 13
"""Number of consecutive words that two different questions hardly share; contamination studies count overlaps of this length."""
_TO_SPACES = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
"""Every ASCII character that is in no word -> a space."""


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A multiple-choice question."""

    context: str
    """Text that the question is about; "" for none."""
    question: str
    """Text of the question, without its choices."""
    choices: tuple[str, ...]
    """Texts of the choices, in their order."""
    right: int
    """Index of the right choice."""

    @property
    def is_usable(self) -> bool:
        """Whether the question and the choices have a text, and the choices differ."""
        texts = {choice.strip() for choice in self.choices}
        return bool(self.question.strip()) and "" not in texts and len(texts) == len(self.choices)

    def with_choices(self, counts: Collection[int], *, shuffle: bool, seed: str) -> ChoiceQuestion | None:
        """Return the question with a number of choices that ``counts`` has; None if it has fewer than the smallest of them.

        Args:
            counts: allowed numbers of choices. If there are too many, wrong ones are left out at random, because leaving out the
                last ones would make some positions of the right choice more frequent than others.
            shuffle: put the choices into a random order, where the right one always has the same position.
            seed: decides what is left out, and the order.
        """
        fitting = [count for count in counts if count <= len(self.choices)]
        if not fitting:
            return None
        drawn, size = random.Random(seed), max(fitting)
        kept = list(range(len(self.choices)))
        if size < len(kept):
            wrong = drawn.sample([index for index in kept if index != self.right], size - 1)
            kept = sorted([*wrong, self.right])
        if shuffle:
            drawn.shuffle(kept)
        return replace(self, choices=tuple(self.choices[index] for index in kept), right=kept.index(self.right))


class ScoredQuestions:
    """The questions of a test split, to find rows that recur in it."""

    def __init__(self, questions: Iterable[ChoiceQuestion]) -> None:
        """Collect the words of ``questions``."""
        self._answered: set[tuple[str, ...]] = set()
        self._ngrams: set[str] = set()
        for question in questions:
            self._answered.add(_answered(question))
            self._ngrams.update(_ngrams(question))

    def recurrence(self, question: ChoiceQuestion) -> Literal["exact", "overlapping"] | None:
        """Return how a question recurs: with the same words and right answer, or with ``NGRAM`` words in a row; None: not."""
        if _answered(question) in self._answered:
            return "exact"
        return None if self._ngrams.isdisjoint(_ngrams(question)) else "overlapping"


def words(text: str) -> list[str]:
    """Return the words of a text in small letters, without punctuation."""
    if text.isascii():  # the same words in half the time
        return text.lower().translate(_TO_SPACES).split()
    return re.findall(r"\w+", text.lower())


def _answered(question: ChoiceQuestion) -> tuple[str, ...]:
    texts = (f"{question.context} {question.question}", question.choices[question.right])
    return tuple(" ".join(words(text)) for text in texts)


def _ngrams(question: ChoiceQuestion) -> Iterator[str]:
    for text in (f"{question.context} {question.question}", *question.choices):
        yield from ngrams(text)


def ngrams(text: str) -> Iterator[str]:
    """Yield all ``NGRAM`` consecutive words of a text."""
    yield from consecutive(words(text), NGRAM)


def consecutive(words: Sequence[str], count: int, step: int = 1) -> Iterator[str]:
    """Yield all ``count`` consecutive words, separated by spaces, or those that begin at every ``step``-th word."""
    yield from (" ".join(words[start : start + count]) for start in range(0, len(words) - count + 1, step))
