"""The train, validation and test examples of one run: which rows each split gets, in which order, and how many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from lm_harmony.benchmarks.harness import Benchmark, HarnessTask
from lm_harmony.benchmarks.recurrence import DroppedNearDuplicates
from lm_harmony.benchmarks.row_counts import TrainOnRecord
from lm_harmony.benchmarks.types import (
    TRAIN_SHARE,
    VALIDATION_SHARE,
    Aliases,
    Caps,
    ChatTemplate,
    Example,
    Role,
    SplitProtocol,
    fingerprint_of,
)
from lm_harmony.errors import BenchmarkError, counted
from lm_harmony.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The examples of one run. Under the clean protocol no question is in two splits."""

    train: tuple[Example, ...]
    """Examples that the model is trained on."""
    validation: tuple[Example, ...]
    """Examples on which the epoch is chosen."""
    test: tuple[Example, ...]
    """Examples that are scored once, with the chosen epoch."""
    dropped_from_train: int
    """Number of training rows left out because their question is in validation or test."""
    dropped_from_validation: int
    """Number of validation rows left out because their question is in test."""
    without_answer: int
    """Number of training rows left out because they have no usable answer, including those taken for validation."""
    carved: bool
    """Whether the validation rows were taken from the training rows."""
    train_on: TrainOnRecord | None = None
    """What was used and left out of another benchmark's rows; None: training and validation rows are the benchmark's own."""
    dropped_near_duplicates: DroppedNearDuplicates | None = None
    """Numbers of rows that were left out as near duplicates; None: they are kept."""

    def sizes(self) -> str:
        """Return the number of rows of each split as text."""
        return f"{len(self.train):,} train, {len(self.validation):,} validation, {len(self.test):,} test rows"

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of every request, training text and target in their order."""
        return fingerprint_of(self.train, self.validation, self.test)


def make_splits(task: Benchmark, *, caps: Caps, seed: int, protocol: SplitProtocol, chat: ChatTemplate | None) -> Splits:
    """Choose and render the rows of one run.

    A task with three different splits keeps them. Otherwise the training rows are shuffled and cut 80/20 into train and
    validation, and lm_eval's evaluation documents are the test rows. Each split is then capped. The protocol "published" does
    no more than this, as in the published runs. "clean" also takes validation rows from train where a task names its test split
    as validation, and drops rows whose question is in a later split.

    The rows of a group are those of its tasks one after the other. Each task gives at most an equal share of the training and of
    the validation rows, and at most ``caps.test`` test rows.

    Args:
        task: the benchmark.
        caps: the largest number of rows of each split.
        seed: seed of NumPy's legacy generator, which shuffles and caps (0 in the published runs).
        protocol: "clean" or "published".
        chat: the model's chat template, or None.

    Raises:
        BenchmarkError: a split is empty, a row does not fit the task, or a scored row has no usable answer.
    """
    shared = caps.shared_by(len(task.subtasks))
    train, validation, test, first = list[Example](), list[Example](), list[Example](), 0
    for one in task.subtasks:
        parts = _rows_of(one, caps=shared, seed=seed, protocol=protocol, chat=chat)
        for whole, part in zip((train, validation), parts, strict=False):  # training counts rows by their numbers
            whole += [replace(example, row=first + example.row) for example in part] if first else part
        test += parts[2]
        first = 1 + max(example.row for example in (*train, *validation))
    carved = any(_own_validation(one, protocol) is False for one in task.subtasks)
    return disjoint(task.name, train, validation, test, carved=carved, clean=protocol == "clean")


def _own_validation(task: HarnessTask, protocol: SplitProtocol) -> bool:
    """Return whether a task has validation rows of its own, which are not its test rows."""
    names = task.split_names
    if task.scored_role != "test" or "validation" not in names:
        return False
    return names["validation"] != names["test"] or protocol == "published"


def _rows_of(
    task: HarnessTask, *, caps: Caps, seed: int, protocol: SplitProtocol, chat: ChatTemplate | None
) -> tuple[list[Example], ...]:
    """Return the rendered train, validation and test rows of a task; the arguments are those of ``make_splits``."""
    evaluation, own = task.scored_role, _own_validation(task, protocol)
    rows = {role: task.documents(role) for role in task.split_names}
    if own and task.split_names["validation"] == task.split_names["test"]:
        log.warning("%s: the task names its test split as validation, so the epoch is chosen on test rows.", task.name)
    test = np.arange(len(rows[evaluation]))
    if own:
        train, validation = np.arange(len(rows["train"])), np.arange(len(rows["validation"]))
    else:
        train, validation = cut(len(rows["train"]), seed)
    aliases: Aliases = "joined" if protocol == "published" else "first"
    origins: tuple[tuple[str, Role, np.ndarray, int], ...] = (
        ("train", "train", train, caps.train),
        ("validation", "validation" if own else "train", validation, caps.validation),
        ("test", evaluation, test, caps.test),
    )
    return tuple(
        rendered(task, rows[origin], chosen, role=role, origin=origin, cap=cap, seed=seed, chat=chat, aliases=aliases)
        for role, origin, chosen, cap in origins
    )


def rendered(
    task: HarnessTask,
    rows: Dataset,
    chosen: np.ndarray,
    *,
    role: str,
    origin: Role,
    cap: int,
    seed: int,
    chat: ChatTemplate | None,
    aliases: Aliases,
) -> list[Example]:
    """Render the chosen rows of a split, at most ``cap`` of them.

    Args:
        task: the benchmark.
        rows: its documents of the role ``origin``.
        chosen: numbers of rows.
        role: what the rows are for: train, validation or test.
        origin: role of the split that they come from.
        cap: the largest number of rows.
        seed: decides which rows are kept.
        chat: the model's chat template, or None.
        aliases: which of several right answers is trained on.

    Raises:
        BenchmarkError: there is no row, a row does not fit the task, or a row that is not of the training split has no answer.
    """
    refuse_empty(task.name, role, chosen)
    kept = chosen if len(chosen) <= cap else chosen[permutation(len(chosen), seed)[:cap]]
    documents, split = track(rows.select(kept), f"reading {role} rows", total=len(kept)), task.split_names[origin]
    numbered = zip(kept, documents, strict=True)
    found = [task.example(int(row), one, chat=chat, aliases=aliases, split=split) for row, one in numbered]
    if origin != "train":
        _refuse_unlabelled(task, role, found, split)
    return found


def cut(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training rows that become train and validation where there are no validation rows."""
    order = permutation(rows, seed)
    kept = int(TRAIN_SHARE * len(order))
    return order[:kept], order[kept : kept + int(VALIDATION_SHARE * len(order))]


def _refuse_unlabelled(task: HarnessTask, role: str, examples: Sequence[Example], split: str) -> None:
    """Refuse scored rows without a usable answer, because every reply to them would be wrong."""
    unlabelled = [example for example in examples if example.continuation is None]
    if unlabelled:
        first = unlabelled[0]
        location = task.location(split, first.row, first.document)
        raise BenchmarkError(
            f"benchmark {task.name}: the {role} split has no public labels: {len(unlabelled):,} of {len(examples):,} rows have "
            f"no usable answer (not one of the choices, -1, empty or null), the first is {location}. "
            f"Give rows with labels, or name another split as {role}_split in the task's YAML."
        )


def permutation(rows: int, seed: int) -> np.ndarray:
    """Return the numbers from 0 to ``rows`` - 1 in an order that ``seed`` decides."""
    # NumPy's legacy generator, because the published splits are defined by it.
    return np.random.RandomState(seed).permutation(rows)


def disjoint(
    name: str,
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    *,
    carved: bool,
    clean: bool,
) -> Splits:
    """Return the splits without rows that have no answer and, if ``clean``, without rows whose question is in a later split.

    Raises:
        BenchmarkError: a split has no rows left.
    """
    rows = len(train) + len(validation)
    train = [example for example in train if example.continuation is not None]
    validation = [example for example in validation if example.continuation is not None]
    trained, chosen, without_answer = tuple(train), tuple(validation), rows - len(train) - len(validation)
    if clean:
        in_test = _questions(test)
        chosen = tuple(example for example in validation if example.request_texts not in in_test)
        scored = in_test | _questions(chosen)
        trained = tuple(example for example in train if example.request_texts not in scored)
    for role, examples in (("train", trained), ("validation", chosen), ("test", test)):
        refuse_empty(name, role, examples)
    splits = Splits(
        train=trained,
        validation=chosen,
        test=tuple(test),
        dropped_from_train=len(train) - len(trained),
        dropped_from_validation=len(validation) - len(chosen),
        without_answer=without_answer,
        carved=carved,
    )
    for count, role, why in (
        (splits.dropped_from_train, "training", "question is in validation or test"),
        (splits.dropped_from_validation, "validation", "question is in test"),
        (splits.without_answer, "training", "answer is not one of the choices, -1, empty or null"),
    ):
        if count:
            log.warning("%s: %s dropped, whose %s.", name, counted(count, f"{role} row"), why)
    return splits


def _questions(examples: Iterable[Example]) -> set[tuple[tuple[str, str], ...]]:
    return {example.request_texts for example in examples}


def refuse_empty(
    name: str, role: str, rows: Sized, other: str = "--split_protocol published, which keeps rows that recur"
) -> None:
    """Refuse a split without rows; ``other`` is what to use instead of giving more rows."""
    if len(rows) == 0:
        raise BenchmarkError(
            f"benchmark {name}: the {role} split has no rows (rows that recur or have no answer are dropped). "
            f"Give more rows, or use {other}."
        )
