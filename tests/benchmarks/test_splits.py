"""Splits contain exactly the rows of the published rule. With "clean", no scored question is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import ROWS
from task_files import PARITY, numbers, own_task, write_rows

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.splits import Splits, make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps, Example, SplitProtocol
from lm_harmony.errors import BenchmarkError, UsageError

ROLES: tuple[Any, ...] = ("train", "validation", "test")
OWN_SPLITS = {"three": ROLES, "no validation": ("train", "test"), "no test": ("train", "validation")}
PROTOCOLS: tuple[SplitProtocol, ...] = ("clean", "published")
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def split(task: HarnessTask, protocol: SplitProtocol = "clean", seed: int = 0, caps: Caps | None = None) -> Splits:
    return make_splits(task, caps=caps or Caps(), seed=seed, protocol=protocol, chat=None)


def sizes_of(kind: str, sizes: Sequence[int]) -> dict[str, int]:
    return dict(zip(OWN_SPLITS[kind], sizes, strict=False))


def sized_task(folder: Path, sizes: Sequence[int], kind: str = "three") -> HarnessTask:
    rows = {role: numbers(size, 100 * place) for place, (role, size) in enumerate(sizes_of(kind, sizes).items())}
    return own_task(folder, rows, **PARITY)


def rows_of(examples: Sequence[Example]) -> list[int]:
    return [example.row for example in examples]


def questions(examples: Sequence[Example]) -> list[str]:
    return [example.document["question"] for example in examples]


def cap(rows: np.ndarray, most: int, seed: int) -> list[int]:
    """Keep the first ``most`` rows of a new permutation. If there are not more, keep all rows in their order."""
    return list(rows if len(rows) <= most else rows[np.random.RandomState(seed).permutation(len(rows))[:most]])


def published_rows(sizes: dict[str, int], caps: Caps, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Return the rows of the published rule, implemented a second time."""
    if len(sizes) == 3:
        train, validation, test = (np.arange(sizes[role]) for role in ROLES)
    else:
        order = np.random.RandomState(seed).permutation(sizes["train"])
        train, rest = order[: int(0.8 * len(order))], order[int(0.8 * len(order)) :]
        validation = rest[: int(0.2 * len(order))]
        test = np.arange(sizes["test" if "test" in sizes else "validation"])
    return cap(train, caps.train, seed), cap(validation, caps.validation, seed), cap(test, caps.test, seed)


SIZES = st.tuples(st.integers(5, 60), st.integers(1, 30), st.integers(1, 30))
CAPS = st.builds(Caps, train=st.integers(1, 60), validation=st.integers(1, 12), test=st.integers(1, 30))


@few
@given(kind=st.sampled_from(sorted(OWN_SPLITS)), sizes=SIZES, caps=CAPS, seed=st.integers(0, 2**32 - 1))
def test_splits_follow_the_published_rule(kind: str, sizes: tuple[int, ...], caps: Caps, seed: int, tmp_path: Path) -> None:
    """Tasks with three splits keep them. Otherwise a seeded permutation is split 80/20. Caps are applied after that."""
    task = sized_task(tmp_path, sizes, kind)
    expected = published_rows(sizes_of(kind, sizes), caps, seed)
    for protocol in PROTOCOLS:  # With distinct questions the two protocols agree.
        splits = split(task, protocol, seed, caps)
        assert (rows_of(splits.train), rows_of(splits.validation), rows_of(splits.test)) == expected
        assert splits.carved == (kind != "three")
        assert splits.dropped_from_train == splits.dropped_from_validation == splits.without_answer == 0


def test_published_rule_in_numbers(tmp_path: Path) -> None:
    """Expected rows for seed 0 on ten and three rows, from NumPy's legacy generator, which is stable since 2011."""
    splits = split(sized_task(tmp_path, (10, 3), "no validation"))
    assert (rows_of(splits.train), rows_of(splits.validation)) == ([2, 8, 4, 9, 1, 6, 7, 3], [0, 5])
    assert rows_of(splits.test) == [0, 1, 2]
    assert rows_of(split(sized_task(tmp_path, (10, 3), "no validation"), caps=Caps(test=2)).test) == [2, 1]


@pytest.mark.parametrize("kind", sorted(OWN_SPLITS))
def test_a_row_number_is_the_position_of_its_document(kind: str, tmp_path: Path) -> None:
    """An example's row number is the index of its document in the split it comes from."""
    task = sized_task(tmp_path, (20, 5, 5), kind)
    splits = split(task, caps=Caps(train=9, validation=3, test=4), seed=5)
    source = "validation" if kind == "three" else "train"
    for role, examples in (("train", splits.train), (source, splits.validation), (OWN_SPLITS[kind][-1], splits.test)):
        documents = task.documents(role)
        assert [dict(example.document) for example in examples] == [documents[row] for row in rows_of(examples)]


@pytest.mark.parametrize("kind", ["no validation", "no test"])
def test_the_seed_determines_the_split(kind: str, tmp_path: Path) -> None:
    """Equal seeds give equal splits. Another seed splits the same rows differently. The test rows are unchanged."""
    task = sized_task(tmp_path, (40, 10), kind)
    first, again, other = split(task, seed=1), split(task, seed=1), split(task, seed=2)
    assert first == again
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert set(rows_of(first.validation)) != set(rows_of(other.validation))
    assert set(rows_of(first.train + first.validation)) == set(rows_of(other.train + other.validation)) == set(range(40))
    assert first.test == other.test


def test_the_seed_does_not_change_own_splits_below_their_caps(tmp_path: Path) -> None:
    """If the task has three splits, all their rows are used in order, for any seed."""
    task = sized_task(tmp_path, (12, 4, 5))
    assert split(task, seed=1) == split(task, seed=2)
    assert rows_of(split(task, seed=1).train) == list(range(12))
    assert split(task, seed=1, caps=Caps(train=6)) != split(task, seed=2, caps=Caps(train=6))


RECURRING = st.tuples(*(st.lists(st.integers(0, 9), min_size=size, max_size=25) for size in (5, 1, 1)))


def expected_clean(train: list[str], validation: list[str], test: list[str]) -> tuple[list[str], list[str]]:
    kept = [question for question in validation if question not in test]
    return [question for question in train if question not in test + kept], kept


@few
@given(kind=st.sampled_from(sorted(OWN_SPLITS)), drawn=RECURRING, caps=CAPS, seed=st.integers(0, 9))
def test_clean_splits_share_no_question(kind: str, drawn: tuple[list[int], ...], caps: Caps, seed: int, tmp_path: Path) -> None:
    """ "clean" removes test questions from train and validation, and validation questions from train. It counts them."""
    rows = {role: [numbers(1, number)[0] for number in some] for role, some in zip(OWN_SPLITS[kind], drawn, strict=False)}
    task = own_task(tmp_path, rows, **PARITY)
    sizes = {role: len(some) for role, some in rows.items()}
    roles = ROLES if kind == "three" else ("train", "train", OWN_SPLITS[kind][1])
    chosen = published_rows(sizes, caps, seed)
    train, validation, test = ([rows[role][row]["question"] for row in some] for role, some in zip(roles, chosen, strict=True))
    published = split(task, "published", seed, caps)
    assert [questions(published.train), questions(published.validation), questions(published.test)] == [train, validation, test]
    assert published.dropped_from_train == published.dropped_from_validation == 0
    trained_on, kept = expected_clean(train, validation, test)
    if not trained_on or not kept:
        with pytest.raises(BenchmarkError, match="split has no rows"):
            split(task, "clean", seed, caps)
        return
    clean = split(task, "clean", seed, caps)
    assert [questions(clean.train), questions(clean.validation), questions(clean.test)] == [trained_on, kept, test]
    dropped = (len(train) - len(trained_on), len(validation) - len(kept))
    assert (clean.dropped_from_train, clean.dropped_from_validation) == dropped


def test_recurring_questions_are_found_whatever_their_label_and_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Label and notes do not distinguish questions. One different character does. A message reports what was dropped."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    same, other, third = rows["test"]
    rows["train"] += [{**same, "label": 1 - same["label"], "note": "x"}, {**other, "question": other["question"] + " "}]
    rows["validation"] += [third, rows["train"][0]]
    task = own_task(tmp_path, rows, **PARITY)
    splits = split(task)
    assert rows_of(splits.train) == [1, 2, 3, 4, 5, 7]
    assert rows_of(splits.validation) == [0, 1, 2, 4]
    assert (splits.dropped_from_train, splits.dropped_from_validation) == (2, 1)
    assert "own: 2 training rows dropped, whose question is in validation or test." in caplog.text
    assert "own: 1 validation row dropped, whose question is in test." in caplog.text
    assert rows_of(split(task, "published").train) == list(range(8))


@pytest.mark.parametrize("label", [7, -1, None])
def test_training_rows_without_a_usable_answer_are_counted(label: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows whose label is not a choice are removed from train, and a message reports it."""
    rows = {role: numbers(4, first) for role, first in zip(ROLES, (0, 10, 20), strict=True)}
    rows["train"].append({"question": "train?", "label": label, "note": "n"})
    task = own_task(tmp_path, rows, **PARITY)
    for protocol in PROTOCOLS:
        splits = split(task, protocol)
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 4, 4)
        assert splits.without_answer == 1
        assert splits.dropped_from_train == 0
        assert all(example.continuation is not None for example in splits.train)
    assert "own: 1 training row dropped, whose answer is not one of the choices, -1, empty or null." in caplog.text
    with pytest.raises(BenchmarkError, match="the train split has no rows"):
        split(own_task(tmp_path, {**rows, "train": rows["train"][-1:]}, **PARITY))


WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ASKED: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def written(count: int, first: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Which number is {number}?", "answer": f" {number}", "more": ["x"]}
        for number in range(first, first + count)
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        (PARITY, {"label": -1}),
        (PARITY, {"label": 2}),
        (PARITY, {"label": None}),
        ({**PARITY, "doc_to_target": "{{label}}"}, {"label": -1}),
        ({**PARITY, "doc_to_target": "{{label}}"}, {"label": None}),
        ({**PARITY, "doc_to_choice": ["None", "Some"], "doc_to_target": "{{label}}"}, {"label": None}),
        (WRITTEN, {"answer": ""}),
        (WRITTEN, {"answer": None}),
        ({**WRITTEN, "doc_to_target": "answer"}, {"answer": None}),
        ({**WRITTEN, "doc_to_target": "more"}, {"more": []}),
        ({**WRITTEN, "doc_to_target": "more"}, {"more": [None]}),
        ({**WRITTEN, "doc_to_target": "label", "doc_to_choice": ["odd", "even"]}, {"label": -1}),
        (ASKED, {"answer": "  "}),
        (ASKED, {"answer": None}),
        ({**ASKED, "doc_to_target": "{{answer}}"}, {"answer": None}),
    ],
)
@pytest.mark.parametrize("role", ["validation", "test"])
def test_scored_rows_without_a_label_are_refused(
    role: str, fields: dict[str, Any], bad: dict[str, Any], protocol: SplitProtocol, tmp_path: Path
) -> None:
    """With hidden labels every answer would be wrong. Such a split is refused with file and line of its first row."""
    make = numbers if "label" in fields["doc_to_target"] else written
    rows = {name: make(4, first) for name, first in zip(ROLES, (0, 10, 20), strict=True)}
    assert split(own_task(tmp_path, rows, **fields), protocol).without_answer == 0
    rows[role][2] |= bad
    with pytest.raises(BenchmarkError) as caught:
        split(own_task(tmp_path, rows, **fields), protocol)
    message = str(caught.value)
    assert message.startswith(f"benchmark own: the {role} split has no public labels: 1 of 4 rows have no usable answer")
    assert f"the first is {role} row 2 ({tmp_path / 'own' / role}.jsonl line 3)." in message


def test_unusable_validation_rows_from_train_are_counted_as_training_rows(tmp_path: Path) -> None:
    """If validation is split from the training rows, rows without an answer are removed from it and counted."""
    rows = {"train": numbers(20), "test": numbers(4, 50)}
    for row in (0, 5, 13):
        rows["train"][row]["label"] = -1
    splits = split(own_task(tmp_path, rows, **PARITY))
    assert splits.carved and splits.without_answer == 3
    assert len(splits.train) + len(splits.validation) == 17
    assert not {0, 5, 13} & {*rows_of(splits.train), *rows_of(splits.validation)}


def medmcqa(folder: Path, validation: int) -> HarnessTask:
    pattern = ROWS["medmcqa"]["train"][0]
    rows = [{**pattern, "question": f"Which bone is number {number}?"} for number in range(20 + validation)]
    write_rows(folder / "medmcqa", {"train": rows[:20], "validation": rows[20:]})
    return HarnessTask(find_task_file("medmcqa"), folder)


def test_medmcqa_validates_on_test_rows_only_with_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its validation split is its test split. "published" keeps that with a warning. "clean" splits validation from train."""
    task, caps = medmcqa(tmp_path, 9), Caps(validation=3)
    published = split(task, "published", caps=caps)
    assert rows_of(published.train) == list(range(20))
    assert rows_of(published.test) == list(range(9))
    assert rows_of(published.validation) == list(np.random.RandomState(0).permutation(9)[:3])
    assert set(questions(published.validation)) < set(questions(published.test))
    assert not published.carved
    assert [record.message for record in caplog.records if record.name.startswith("lm_harmony")] == [
        "medmcqa: the task names its test split as validation, so the epoch is chosen on test rows."
    ]
    caplog.clear()
    clean = split(task, "clean", caps=caps)
    assert clean.carved
    expected = published_rows({"train": 20, "test": 9}, caps, 0)
    assert (rows_of(clean.train), rows_of(clean.validation), rows_of(clean.test)) == expected
    assert not set(questions(clean.train + clean.validation)) & set(questions(clean.test))
    assert "lm_harmony" not in {record.name.split(".")[0] for record in caplog.records if record.levelno >= logging.WARNING}


@pytest.mark.parametrize(
    ("sizes", "kind", "role"),
    [((4, 3), "no validation", "validation"), ((1, 3), "no test", "train")],
)
def test_empty_splits_are_refused(sizes: tuple[int, ...], kind: str, role: str, tmp_path: Path) -> None:
    """Too few rows leave a split empty. The message names the split."""
    with pytest.raises(BenchmarkError, match=f"benchmark own: the {role} split has no rows"):
        split(sized_task(tmp_path, sizes, kind))


def test_a_split_of_recurring_questions_is_refused_with_clean_only(tmp_path: Path) -> None:
    """If every validation row is a test row, validation is empty. The message names the published protocol as a remedy."""
    task = own_task(tmp_path, {"train": numbers(5), "validation": numbers(2, 10), "test": numbers(2, 10)}, **PARITY)
    with pytest.raises(BenchmarkError, match=r"the validation split has no rows.*--split_protocol published"):
        split(task)
    assert len(split(task, "published").validation) == 2


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_caps_must_be_positive(name: str) -> None:
    """A cap of zero is refused with its flag."""
    with pytest.raises(UsageError, match=r"dataset_param\.max_num_(train|valid|test) must be at least 1, got 0"):
        Caps(**{name: 0})
    assert (Caps().train, Caps().validation, Caps().test) == (50_000, 1_000, 10_000)


@pytest.mark.parametrize(("protocol", "trained_on"), [("clean", " 12"), ("published", " 12 twelve a dozen")])
def test_only_the_published_protocol_trains_on_all_aliases(protocol: SplitProtocol, trained_on: str, tmp_path: Path) -> None:
    """ "published" trains on all aliases joined by spaces. "clean" trains on the first."""
    train = [{**ROWS["nq_open"]["train"][1], "question": f"question {number}"} for number in range(5)]
    write_rows(tmp_path / "nq_open", {"train": train, "validation": ROWS["nq_open"]["validation"]})
    splits = split(HarnessTask(find_task_file("nq_open"), tmp_path), protocol)
    assert {example.continuation for example in splits.train} == {trained_on}
