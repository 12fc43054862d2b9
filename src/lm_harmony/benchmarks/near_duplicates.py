"""Scored rows whose question recurs in the training rows, exactly or nearly. The training rows are read once, in linear time.

The clean protocol leaves out a training row whose question recurs exactly. It does not see the same question with other choices,
other spacing or punctuation, or a long passage that both share. These rows are counted here, and stay where they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import Dataset

from lm_harmony.benchmarks.choice_questions import ngrams, words
from lm_harmony.benchmarks.harness import Benchmark, HarnessTask
from lm_harmony.benchmarks.harness.choice_fields import ChoiceFields
from lm_harmony.benchmarks.types import Example, Role
from lm_harmony.errors import BenchmarkError
from lm_harmony.progress import track

Recurrence = Literal["exact", "normalized", "choices", "overlapping"]
"""exact: the same question and choices. normalized: the same words in another spacing, case or punctuation. choices: the same
question with other choices, or in another order. overlapping: half of the question's ``NGRAM`` consecutive words or more."""
RECURRENCES: tuple[Recurrence, ...] = get_args(Recurrence)
MOST_ROWS = 100
"""Rows with the same consecutive words from which on these are taken for a part of the task's prompt, and are not compared. Of
fewer scored rows it is half of them."""
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

    @property
    def keys(self) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """What two questions have in common that are equal, have equal words, or have equal words apart from their choices."""
        question, *choices = (" ".join(words(part)) for part in (self.text, *self.choices))
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
    readers = {}
    for one in task.subtasks:
        documents, others = ([row.document for row in rows if row.subtask == one.subtask] for rows in (train, test))
        readers[one.subtask] = _Reader(one, (documents or others)[:_SAMPLE])
    index = _Index(readers[example.subtask].question(example) for example in test)
    for example in train:
        index.compare(readers[example.subtask].question(example))
    offsets = task.row_offsets
    numbers = [offsets[example.subtask] + example.row for example in test]
    return {kind: tuple(numbers[place] for place in places) for kind, places in index.found().items() if places}


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
        asked = None if self._fields is None else self._fields.read(document)
        return None if asked is None else _Question(f"{asked.context} {asked.question}".strip(), asked.choices)


class _Index:
    """The questions of a scored split, by what a training row may have in common with them."""

    def __init__(self, questions: Iterable[_Question]) -> None:
        self.rows = 0
        self._places: tuple[dict[Any, list[int]], ...] = tuple(defaultdict(list) for _ in RECURRENCES[:3])
        self._grams: dict[str, list[int]] = defaultdict(list)
        self._counts: list[int] = []
        self._kinds: dict[int, int] = {}
        for row, question in enumerate(questions):
            self.rows += 1
            for places, key in zip(self._places, question.keys, strict=True):
                places[key].append(row)
            grams = set(ngrams(question.text))
            self._counts.append(len(grams))
            for gram in grams:
                self._grams[gram].append(row)

    def compare(self, question: _Question) -> None:
        """Note which rows recur in a training row."""
        for kind, (places, key) in enumerate(zip(self._places, question.keys, strict=True)):
            for row in places.get(key, ()) if any(key) else ():  # a question without words is equal to all others
                self._kinds[row] = min(kind, self._kinds.get(row, kind))
        shared: Counter[int] = Counter()
        for gram in set(ngrams(question.text)):
            rows = self._grams.get(gram, ())
            if len(rows) <= min(MOST_ROWS, max(2, self.rows // 2)):
                shared.update(rows)
        for row, count in shared.items():
            if 2 * count >= self._counts[row]:
                self._kinds.setdefault(row, len(self._places))

    def found(self) -> dict[Recurrence, tuple[int, ...]]:
        """Return the rows of each kind."""
        return {
            name: tuple(sorted(row for row, found in self._kinds.items() if found == kind))
            for kind, name in enumerate(RECURRENCES)
        }
