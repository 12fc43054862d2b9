"""Train, validation and test rows of one benchmark: the rule, the caps, the seed; disjoint by construction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np

from lm_harmony.benchmarks.harness import HarnessTask, Role
from lm_harmony.benchmarks.types import Caps, ChatTemplate, Example, SplitProtocol, fingerprint_of
from lm_harmony.errors import BenchmarkError
from lm_harmony.progress import track

log = logging.getLogger(__name__)

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.2
"""Shares of the training rows where validation rows are carved from them, each rounded down (published)."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The examples of one run. No question of ``train`` is in ``validation`` or ``test`` under the clean protocol."""

    train: tuple[Example, ...]
    """What is learned."""
    validation: tuple[Example, ...]
    """What chooses the epoch."""
    test: tuple[Example, ...]
    """What is scored, once, with the chosen epoch."""
    dropped_from_train: int
    """Training rows left out because their question recurs in validation or test."""
    dropped_from_validation: int
    """Validation rows left out because their question recurs in test."""
    without_answer: int
    """Training rows left out because they have no usable answer, those cut for validation among them."""
    carved: bool
    """Whether validation rows were cut from the training rows."""

    def sizes(self) -> str:
        """Say how many rows each split has."""
        return f"{len(self.train):,} train, {len(self.validation):,} validation, {len(self.test):,} test rows"

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of every request, learned text and target in its order."""
        return fingerprint_of(self.train, self.validation, self.test)


def make_splits(task: HarnessTask, *, caps: Caps, seed: int, protocol: SplitProtocol, chat: ChatTemplate | None) -> Splits:
    """Choose and render the rows of one run.

    The task's own three splits serve where it has them and validation is not test; else the training rows are shuffled and cut
    80/20 into train and validation, and lm_eval's evaluation documents are the test. Rows are then capped. "published" stops
    there, as the published runs did; "clean" also cuts validation from train where validation is test, and drops rows whose
    question recurs in a split that is scored.

    Args:
        task: the benchmark.
        caps: the most rows of each split.
        seed: of NumPy's legacy generator, which decides shuffle and caps (the published runs used 0).
        protocol: "clean" or "published".
        chat: the model's chat template, or None.

    Raises:
        BenchmarkError: a split is empty, a row does not fit the task, or a scored row of its own split has no usable answer.
    """
    evaluation: Role = "test" if "test" in task.split_names else "validation"
    rows = {role: task.documents(role) for role in task.split_names}
    own = "validation" in task.split_names and evaluation == "test"
    if own and task.split_names["validation"] == task.split_names["test"]:
        own = protocol == "published"
        if own:
            log.warning("%s: validation is the test split; the epoch is chosen on its own test rows.", task.name)
    test = np.arange(len(rows[evaluation]))
    if own:
        train, validation = np.arange(len(rows["train"])), np.arange(len(rows["validation"]))
    else:
        order = _permutation(len(rows["train"]), seed)
        kept = int(TRAIN_SHARE * len(order))
        train, validation = order[:kept], order[kept : kept + int(VALIDATION_SHARE * len(order))]
    aliases = "joined" if protocol == "published" else "first"
    rendered = []
    origins: tuple[tuple[str, Role, np.ndarray, int], ...] = (
        ("train", "train", train, caps.train),
        ("validation", "validation" if own else "train", validation, caps.validation),
        ("test", evaluation, test, caps.test),
    )
    for role, origin, chosen, cap in origins:
        _refuse_empty(task.name, role, chosen)
        kept_rows = chosen if len(chosen) <= cap else chosen[_permutation(len(chosen), seed)[:cap]]
        documents = track(rows[origin].select(kept_rows), f"reading {role} rows", total=len(kept_rows))
        numbered, split = zip(kept_rows, documents, strict=True), task.split_names[origin]
        rendered.append([task.example(int(row), one, chat=chat, aliases=aliases, split=split) for row, one in numbered])
        if origin != "train":
            _refuse_unlabelled(task, role, rendered[-1], split)
    return _disjoint(task.name, *rendered, carved=not own, clean=protocol == "clean")


def _refuse_unlabelled(task: HarnessTask, role: str, examples: Sequence[Example], split: str) -> None:
    """Refuse rows that are scored without a right answer: every reply to them would count as wrong."""
    unlabelled = [example for example in examples if example.continuation is None]
    if unlabelled:
        first = unlabelled[0]
        location = task.location(split, first.row, first.document)
        raise BenchmarkError(
            f"benchmark {task.name}: the {role} split has no public labels: {len(unlabelled):,} of {len(examples):,} rows have "
            f"no usable answer (none of their choices, -1, empty or null), the first is {location}. "
            f"Give rows with labels, or name another split as {role}_split in the task's YAML."
        )


def _permutation(rows: int, seed: int) -> np.ndarray:
    # NumPy's legacy generator, because the published splits are defined by it.
    return np.random.RandomState(seed).permutation(rows)


def _disjoint(
    name: str,
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    *,
    carved: bool,
    clean: bool,
) -> Splits:
    rows = len(train) + len(validation)
    train = [example for example in train if example.continuation is not None]
    validation = [example for example in validation if example.continuation is not None]
    learned, chosen, without_answer = tuple(train), tuple(validation), rows - len(train) - len(validation)
    if clean:
        in_test = _identities(test)
        chosen = tuple(example for example in validation if example.request_texts not in in_test)
        scored = in_test | _identities(chosen)
        learned = tuple(example for example in train if example.request_texts not in scored)
    for role, examples in (("train", learned), ("validation", chosen), ("test", test)):
        _refuse_empty(name, role, examples)
    splits = Splits(
        train=learned,
        validation=chosen,
        test=tuple(test),
        dropped_from_train=len(train) - len(learned),
        dropped_from_validation=len(validation) - len(chosen),
        without_answer=without_answer,
        carved=carved,
    )
    for count, what in (
        (splits.dropped_from_train, "training rows dropped: their question recurs in validation or test"),
        (splits.dropped_from_validation, "validation rows dropped: their question recurs in test"),
        (splits.without_answer, "training rows dropped: their answer is none of their choices, -1, empty or null"),
    ):
        if count:
            log.warning("%s: %d %s.", name, count, what)
    return splits


def _identities(examples: Iterable[Example]) -> set[tuple[tuple[str, str], ...]]:
    return {example.request_texts for example in examples}


def _refuse_empty(name: str, role: str, rows: Sized) -> None:
    if len(rows) == 0:
        raise BenchmarkError(
            f"benchmark {name}: the {role} split holds no rows (after dropping rows that recur or have no answer). "
            f"Give more rows, or choose --split_protocol published if rows may recur."
        )
