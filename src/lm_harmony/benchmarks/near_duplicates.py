"""Scored rows whose question recurs in the training rows, exactly or nearly. The training rows are read once, in linear time.

The clean protocol leaves out a training row whose question recurs exactly. It does not see the same question with other choices,
other spacing or punctuation, or a long passage that both share. Such rows are counted here, and left out on request.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from lm_harmony.benchmarks.choice_questions import NGRAM, consecutive, words
from lm_harmony.benchmarks.harness import Benchmark, HarnessTask
from lm_harmony.benchmarks.harness.choice_fields import ChoiceFields, choices_in
from lm_harmony.benchmarks.recurrence import RECURRENCES, DroppedNearDuplicates, Recurrence
from lm_harmony.benchmarks.splits import Splits, refuse_empty
from lm_harmony.benchmarks.types import Example, Role
from lm_harmony.errors import BenchmarkError
from lm_harmony.progress import track

log = logging.getLogger(__name__)
MOST_ROWS = 100
"""Rows with the same consecutive words from which on these are taken for a part of the task's prompt, and are not compared. Of
fewer scored rows it is half of them."""
_BLOCK = (NGRAM + 1) // 2
"""Number of words in a block. Of the blocks that follow each other in a text, ``NGRAM`` consecutive words contain a whole one."""
_SAMPLE = 100
"""Number of documents from which the columns of the question and of the choices are found."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Rows of a scored split whose question recurs in the training rows. Each row is in the first kind that fits it."""

    split: Role
    """The scored split whose rows are compared."""
    rows: int
    """Number of rows of the split."""
    training_rows: int
    """Number of training rows that they were compared with."""
    found: Mapping[Recurrence, tuple[int, ...]]
    """How they recur -> numbers of the rows, from 0."""


@dataclass(frozen=True)
class _Question:
    text: str
    choices: tuple[str, ...]

    def keys(self, question: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Return what two questions have in common that are equal, have equal words, or equal words apart from their choices.

        Args:
            question: the words of its text, separated by spaces.
        """
        choices = (" ".join(words(choice)) for choice in self.choices)
        return (self.text, *self.choices), (question, *choices), question


def near_duplicates(task: HarnessTask) -> tuple[NearDuplicates, ...]:
    """Return for each scored split of a task which of its rows recur in the training rows, and how.

    Raises:
        BenchmarkError: a row does not fit the task.
    """
    training = task.documents("train")
    read = _Reader(task, list(training.select(range(min(len(training), _SAMPLE)))))
    scored = [role for role in ("validation", "test") if role in task.split_names]
    indices = {role: _Index(read.questions(task.documents(role), role)) for role in scored}
    for question in track(read.questions(training, "train"), f"reading training rows of {task.name}", total=len(training)):
        for index in indices.values():
            index.compare(question)
    return tuple(
        NearDuplicates(split=role, rows=index.rows, training_rows=len(training), found=index.found())
        for role, index in indices.items()
    )


def recurring_rows(task: Benchmark, test: Sequence[Example], train: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """Return how test rows of a run recur in its training rows -> numbers of these test rows, without kinds that have none.

    Args:
        task: the tested benchmark. In a group the rows of all tasks are numbered on, in the order of the tasks.
        test: scored rows.
        train: rows that the model is trained on.
    """
    question = _reader_of(task, test, train)
    index = _Index(map(question, test))
    for example in train:
        index.compare(question(example))
    offsets = task.row_offsets
    numbers = [offsets[example.subtask] + example.row for example in test]
    return {kind: tuple(numbers[place] for place in places) for kind, places in index.found().items() if places}


def _reader_of(task: Benchmark, test: Sequence[Example], train: Sequence[Example]) -> Callable[[Example], _Question]:
    """Return the function that reads the question of a row of any task of a benchmark."""
    readers = {}
    for one in task.subtasks:
        documents, others = ([row.document for row in rows if row.subtask == one.subtask] for rows in (train, test))
        readers[one.subtask] = _Reader(one, (documents or others)[:_SAMPLE])
    return lambda example: readers[example.subtask].question(example)


def drop_near_duplicates(task: Benchmark, splits: Splits) -> Splits:
    """Return the splits without training and validation rows in which a question of a later split nearly recurs.

    Validation rows in which a test question recurs are left out first, because the epoch would be chosen on that question. Then
    training rows are left out in which a test question or a question of the other validation rows recurs.

    Raises:
        BenchmarkError: no training or no validation row is left.
    """
    question = _reader_of(task, splits.test, splits.train)
    test = _Index(map(question, splits.test))
    validation, from_validation = _kept(question, splits.validation, test)
    train, from_train = _kept(question, splits.train, test, _Index(map(question, validation)))
    dropped = DroppedNearDuplicates(train=from_train, validation=from_validation)
    for role, examples in (("train", train), ("validation", validation)):
        refuse_empty(task.name, role, examples, "--near_duplicates keep, which trains on them")
    log.info("%s: %s.", task.name, dropped.sentence())
    return replace(splits, train=train, validation=validation, dropped_near_duplicates=dropped)


def _kept(
    read: Callable[[Example], _Question], rows: Sequence[Example], *scored: _Index
) -> tuple[tuple[Example, ...], dict[str, int]]:
    """Return the rows in which no scored question recurs, and the number of the others by kind; each is of its first kind."""
    kept, dropped = list[Example](), Counter[int]()
    for example in rows:
        question = read(example)
        kinds = [kind for index in scored for kind in index.recurring(question).values()]
        if kinds:
            dropped[min(kinds)] += 1
        else:
            kept.append(example)
    return tuple(kept), {RECURRENCES[kind]: dropped[kind] for kind in sorted(dropped)}


class _Reader:
    """Reads the questions of documents: from their columns where these are known, and otherwise as the task asks them."""

    def __init__(self, task: HarnessTask, sample: Sequence[Mapping[str, Any]]) -> None:
        self._task = task
        self._fields: ChoiceFields | None = None
        with suppress(BenchmarkError):
            self._fields = ChoiceFields.find(task, sample)

    def questions(self, documents: Dataset, role: Role) -> Iterator[_Question]:
        """Yield the question of each document."""
        for row, document in enumerate(documents):
            found = self._from_columns(document)
            yield found or self.question(self._task.example(row, document, chat=None, aliases="first", split=role))

    def question(self, example: Example) -> _Question:
        """Return the question of a rendered document."""
        found = self._from_columns(example.document)
        if found is not None:
            return found
        contexts = dict.fromkeys(context for context, _ in example.request_texts)
        return _Question("\n".join(contexts), tuple(dict.fromkeys(choice for _, choice in example.request_texts)))

    def _from_columns(self, document: Mapping[str, Any]) -> _Question | None:
        fields = self._fields
        if fields is None:
            return None
        if fields.choices is None:  # the task computes them
            asked = fields.read(document)
            return None if asked is None else _Question(f"{asked.context} {asked.question}".strip(), asked.choices)
        question, context = document.get(fields.question), document.get(str(fields.context))
        choices = choices_in(document, fields.choices) or []
        if not isinstance(question, str) or not all(isinstance(choice, str) for choice in choices):
            return None
        return _Question(f"{context or ''} {question}".strip(), tuple(choices))


class _Index:
    """The questions of a scored split, by what a training row may have in common with them."""

    def __init__(self, questions: Iterable[_Question]) -> None:
        self.rows = 0
        self._places: tuple[dict[Any, list[int]], ...] = tuple(defaultdict(list) for _ in RECURRENCES[:3])
        self._counts: list[int] = []
        self._kinds: dict[int, int] = {}
        grams: dict[str, list[int]] = defaultdict(list)
        for row, question in enumerate(questions):
            self.rows += 1
            found = words(question.text)
            for places, key in zip(self._places, question.keys(" ".join(found)), strict=True):
                places[key].append(row)
            own = set(consecutive(found, NGRAM))
            self._counts.append(len(own))
            for gram in own:
                grams[gram].append(row)
        most = min(MOST_ROWS, max(2, self.rows // 2))
        self._grams = {gram: rows for gram, rows in grams.items() if len(rows) <= most}
        self._blocks = {block for gram in self._grams for block in consecutive(gram.split(" "), _BLOCK)}

    def compare(self, question: _Question) -> None:
        """Note which rows recur in a training row."""
        for row, kind in self.recurring(question).items():
            self._kinds[row] = min(kind, self._kinds.get(row, kind))

    def recurring(self, question: _Question) -> dict[int, int]:
        """Return the rows that recur in a training row -> the place of their kind in ``RECURRENCES``."""
        found, kinds = words(question.text), dict[int, int]()
        joined = " ".join(found)
        if joined in self._places[-1]:  # questions that are equal have equal words
            for kind, (places, key) in enumerate(zip(self._places, question.keys(joined), strict=True)):
                for row in places.get(key, ()) if any(key) else ():  # a question without words is equal to all others
                    kinds.setdefault(row, kind)
        if not self._blocks.isdisjoint(consecutive(found, _BLOCK, step=_BLOCK)):
            shared = Counter(row for gram in set(consecutive(found, NGRAM)) for row in self._grams.get(gram, ()))
            for row, count in shared.items():
                if 2 * count >= self._counts[row]:
                    kinds.setdefault(row, len(self._places))
        return kinds

    def found(self) -> dict[Recurrence, tuple[int, ...]]:
        """Return the rows of each kind."""
        return {
            name: tuple(sorted(row for row, found in self._kinds.items() if found == kind))
            for kind, name in enumerate(RECURRENCES)
        }
