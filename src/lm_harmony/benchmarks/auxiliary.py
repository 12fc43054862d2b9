"""Training and validation rows of another benchmark, written in the tested benchmark's own format (``train_on``).

For benchmarks without training rows: models that know the task's format and models that do not are compared after equal training.
Source: Dominguez-Olmedo, Dorner, Hardt, "Training on the Test Task Confounds Evaluation and Emergence" (arXiv 2407.07890).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lm_harmony.benchmarks.choice_questions import ChoiceQuestion, ScoredQuestions
from lm_harmony.benchmarks.harness import Benchmark, HarnessTask, open_benchmark, open_task
from lm_harmony.benchmarks.harness.answer_fields import question_fields
from lm_harmony.benchmarks.harness.choice_fields import ChoiceFields
from lm_harmony.benchmarks.harness.question_columns import refuse_other_kinds, refuse_unscorable
from lm_harmony.benchmarks.near_duplicates import drop_near_duplicates
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.benchmarks.recurrence import NearDuplicateRule
from lm_harmony.benchmarks.row_counts import TrainOnRecord
from lm_harmony.benchmarks.splits import Splits, cut, disjoint, make_splits, permutation, rendered
from lm_harmony.benchmarks.types import Caps, ChatTemplate, Example, SplitProtocol, SplitUse
from lm_harmony.errors import BenchmarkError
from lm_harmony.progress import track

log = logging.getLogger(__name__)
_SAMPLE = 100
"""Number of documents from which the columns of a task with training rows are found."""


def open_tasks(
    tasks: Iterable[tuple[str, SplitUse]],
    include_path: Path | None,
    data_dir: Path | None,
    *,
    allow_code: bool = True,
    prompt: Prompt = PLAIN_PROMPT,
) -> tuple[Benchmark, *tuple[HarnessTask, ...]]:
    """Return the opened tasks of a benchmark, as ``catalogue.tasks_of`` lists them. The arguments are those of ``open_task``.

    The first one, which is tested, may be a group of tasks.

    Raises:
        UsageError: no task has that name, it runs code that is not allowed, or the prompt does not suit it.
        BenchmarkError: a task cannot be used, or its rows cannot be loaded.
    """
    given: dict[str, Any] = {"include_path": include_path, "data_dir": data_dir, "allow_code": allow_code, "prompt": prompt}
    (tested, use), *others = tasks
    return open_benchmark(tested, use=use, **given), *(open_task(one, use=use, **given) for one, use in others)


def run_splits(
    task: Benchmark,
    others: Sequence[HarnessTask],
    *,
    caps: Caps,
    seed: int,
    protocol: SplitProtocol,
    chat: ChatTemplate | None,
    near_duplicates: NearDuplicateRule = "keep",
) -> Splits:
    """Choose and render the rows of one run on ``task``.

    Args:
        task: the tested benchmark.
        others: benchmarks whose rows are trained on; empty: the tested benchmark's own rows are.
        caps: as for ``make_splits``, like the following.
        seed: seed of the splits.
        protocol: how splits are made.
        chat: the model's chat template, or None.
        near_duplicates: "drop" leaves out rows as ``drop_near_duplicates`` does.

    Raises:
        BenchmarkError: a split is empty, a row does not fit its task, or rows of one task cannot be written as rows of the other.
    """
    if others:
        splits = _written_splits(task, others, caps=caps, seed=seed, chat=chat)
    else:
        splits = make_splits(task, caps=caps, seed=seed, protocol=protocol, chat=chat)
    return drop_near_duplicates(task, splits) if near_duplicates == "drop" else splits


def _written_splits(
    task: Benchmark, others: Sequence[HarnessTask], *, caps: Caps, seed: int, chat: ChatTemplate | None
) -> Splits:
    """Return the test rows of ``task``, and rows of the others as training and validation rows in its format.

    Each of the others gives at most an equal share of the training and of the validation rows: its own validation rows, or rows
    split off from its training rows as ``make_splits`` does it. A row that recurs in the test split is left out: with the same
    question and right answer, or with 13 consecutive words. If ``task`` is a group, the rows are written in the formats of its
    tasks in turn.

    Raises:
        BenchmarkError: a split is empty, a row does not fit its task, or rows of one task cannot be written as rows of the other.
    """
    refuse_other_kinds(task, others)
    test, scored, formats = _tested_rows(task, cap=caps.test, seed=seed, chat=chat)
    texts = frozenset(example.request_texts for example in test)
    written = _Writer(formats=formats, scored=scored, texts=texts, chat=chat)
    share = caps.shared_by(len(others))
    shares = {"train": share.train, "validation": share.validation}
    parts: dict[str, list[Example]] = {"train": [], "validation": []}
    for other in others:
        written.add(other, parts, shares=shares, seed=seed)
    for role, examples in parts.items():
        if not examples:
            fewest = min(count for one in formats for count in one.counts)
            raise BenchmarkError(
                f"train_on: benchmark {task.name} gets no {role} rows from {', '.join(one.name for one in others)}: "
                f"{written.unusable:,} rows have no usable question or fewer than {fewest} choices, and "
                f"{written.exact.total() + written.overlapping.total():,} recur in its test rows. Train on another benchmark."
            )
    for example in {example.subtask: example for example in parts["validation"]}.values():
        refuse_unscorable(task, example)
    carved = any("validation" not in one.split_names for one in others)
    splits = disjoint(task.name, parts["train"], parts["validation"], test, carved=carved, clean=True)
    return replace(
        splits,
        dropped_from_train=splits.dropped_from_train + written.dropped("train"),
        dropped_from_validation=splits.dropped_from_validation + written.dropped("validation"),
        train_on=written.record(task.name),
    )


@dataclass(frozen=True, kw_only=True)
class _Format:
    """How a tested task writes a question."""

    fields: ChoiceFields
    """Columns of its documents."""
    counts: frozenset[int]
    """Numbers of choices that its test rows have."""


def _tested_rows(
    task: Benchmark, *, cap: int, seed: int, chat: ChatTemplate | None
) -> tuple[list[Example], list[ChoiceQuestion], list[_Format]]:
    """Return the test rows, their questions, and how each tested task writes a question."""
    test, scored, formats = list[Example](), list[ChoiceQuestion](), list[_Format]()
    for one in task.subtasks:
        rows = one.documents(one.scored_role)
        places, origin = np.arange(len(rows)), one.scored_role
        found = rendered(one, rows, places, role="test", origin=origin, cap=cap, seed=seed, chat=chat, aliases="first")
        fields = question_fields(one, [example.document for example in found])
        questions = fields.check(found, chat)
        formats.append(_Format(fields=fields, counts=frozenset(len(question.choices) for question in questions)))
        test += found
        scored += questions
    return test, scored, formats


@dataclass(kw_only=True)
class _Writer:
    """Writes rows of other tasks as examples of the tested tasks, and counts what is left out."""

    formats: Sequence[_Format]
    scored: Sequence[ChoiceQuestion]
    texts: frozenset[tuple[tuple[str, str], ...]]
    chat: ChatTemplate | None
    rows: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    unusable: int = 0
    exact: Counter[str] = field(default_factory=Counter)
    overlapping: Counter[str] = field(default_factory=Counter)
    _offset: int = 0
    _turn: int = 0

    def __post_init__(self) -> None:
        self._known = ScoredQuestions(self.scored)

    def add(self, task: HarnessTask, parts: Mapping[str, list[Example]], *, shares: Mapping[str, int], seed: int) -> None:
        """Append rows of ``task`` to the training and validation examples, at most its share of each."""
        training = task.documents("train")
        found = question_fields(task, list(training.select(range(min(len(training), _SAMPLE)))))
        if "validation" in task.split_names:
            validation = task.documents("validation")
            parted = (training, "train", np.arange(len(training))), (validation, "validation", np.arange(len(validation)))
        else:
            kept, taken = cut(len(training), seed)
            parted = (training, "train", kept), (training, "train", taken)
        for role, (rows, origin, places) in zip(("train", "validation"), parted, strict=True):
            order = places if len(places) <= shares[role] else places[permutation(len(places), seed)]
            written = map(partial(self._example, found, role, f"{task.name} {origin} row"), order, rows.select(order))
            usable = islice((one for one in written if one is not None), shares[role])
            parts[role].extend(track(usable, f"reading {role} rows of {task.name}", total=min(len(order), shares[role])))
        self._offset += len(training)

    def _example(self, found: ChoiceFields, role: str, rows: str, place: int, document: Mapping[str, Any]) -> Example | None:
        """Return a row as an example of the tested task, and count it; None if it is left out."""
        asked, where = found.read(document), f"{rows} {place}"
        fitted, fields = self._fitted(asked, found, where) if asked is not None and asked.is_usable else (None, found)
        if asked is None or fitted is None:
            self.unusable += 1
            return None
        recurrence = self._known.recurrence(asked)
        example = None if recurrence else fields.render(fitted, self._offset + int(place), self.chat, place=where)
        if example is not None and example.request_texts in self.texts:
            recurrence = "exact"
        if recurrence is not None:
            (self.exact if recurrence == "exact" else self.overlapping)[role] += 1
            return None
        self.shortened += len(fitted.choices) < len(asked.choices)
        self.rows[found.task.name] += 1
        self._turn += 1
        return example

    def _fitted(self, asked: ChoiceQuestion, found: ChoiceFields, place: str) -> tuple[ChoiceQuestion | None, ChoiceFields]:
        """Return a question with a number of choices that the next tested task in turn has, and the columns of that task."""
        for turn in range(self._turn, self._turn + len(self.formats)):
            one = self.formats[turn % len(self.formats)]
            fitted = asked.with_choices(one.counts, shuffle=found.position is not None, seed=place)
            if fitted is not None:
                return fitted, one.fields
        return None, found

    def dropped(self, role: str) -> int:
        """Return the number of rows that were left out because they recur in the test split."""
        return self.exact[role] + self.overlapping[role]

    def record(self, name: str) -> TrainOnRecord:
        """Return what was used and left out, and log it."""
        record = TrainOnRecord(
            rows=dict(self.rows),
            shortened=self.shortened,
            unusable=self.unusable,
            exact=self.exact.total(),
            overlapping=self.overlapping.total(),
        )
        log.info("%s: %s", name, record.sentence())
        return record
