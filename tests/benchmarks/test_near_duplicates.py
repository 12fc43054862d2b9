"""Scored rows whose question recurs in the training rows are found by how they recur; unrelated rows are not found."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from shared import DATA, needs_data
from task_files import PARITY, numbers, own_task, write_task
from tiny import write_tiny_model

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.benchmarks.auxiliary import run_splits
from lm_harmony.benchmarks.choice_questions import NGRAM, consecutive, words
from lm_harmony.benchmarks.harness import HarnessTask, open_task
from lm_harmony.benchmarks.near_duplicates import MOST_ROWS, near_duplicates, recurring_rows
from lm_harmony.benchmarks.recurrence import RECURRENCES, DroppedNearDuplicates
from lm_harmony.benchmarks.splits import Splits, make_splits
from lm_harmony.benchmarks.types import Caps
from lm_harmony.cli.main import main
from lm_harmony.errors import BenchmarkError
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.store import RunStore

CHOICES: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nChoices: {{choices | join(', ')}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ASKED = "How many rooms does the house at the end of the long road behind the old mill have today?"


def row(question: str, *choices: str) -> dict[str, Any]:
    return {"question": question, "choices": list(choices or ("two rooms", "ten rooms")), "label": 0}


def found(task: Any, split: str = "test") -> dict[str, tuple[int, ...]]:
    (one,) = (one for one in near_duplicates(task) if one.split == split)
    return {kind: rows for kind, rows in one.found.items() if rows}


@pytest.mark.parametrize(
    ("test_row", "kind"),
    [
        (row(ASKED), "exact"),
        (row(f"  {ASKED.upper()} ".replace("?", " ?!")), "normalized"),
        (row(ASKED, "ten rooms", "two rooms"), "choices"),
        (row(ASKED, "three rooms", "none", "nine rooms"), "choices"),
        (row(f"Yesterday I asked. {ASKED}"), "overlapping"),
        (row(ASKED.replace("today", "yesterday")), "overlapping"),
    ],
)
def test_a_row_that_recurs_is_found_by_how_it_recurs(tmp_path: Path, test_row: dict[str, Any], kind: str) -> None:
    """Negative control: without the training row, or with rows that share fewer words, nothing is found."""
    other = row("How many rooms does the castle on the hill above the river have?")
    shared = row(" ".join(ASKED.split()[:13]) + " and what else is written in the letter that nobody has read until now?")
    others = [other, row("Who lives there?")]
    rows = {"train": [*others, row(ASKED)], "validation": [row("Why?")], "test": [row("Where is it?"), test_row, shared]}
    assert found(own_task(tmp_path / "with", rows, **CHOICES)) == {kind: (1,)}
    assert found(own_task(tmp_path / "without", {**rows, "train": others}, **CHOICES)) == {}


def test_rows_of_both_scored_splits_are_compared_with_all_training_rows(tmp_path: Path) -> None:
    rows = {"train": numbers(5), "validation": numbers(3, 4), "test": numbers(4, 3)}
    validation, test = near_duplicates(own_task(tmp_path, rows, **PARITY))
    assert (validation.split, validation.rows, validation.training_rows) == ("validation", 3, 5)
    assert (validation.found["exact"], test.found["exact"]) == ((0,), (0, 1))
    assert list(test.found) == list(RECURRENCES) and not any(test.found[kind] for kind in RECURRENCES[1:])


def test_questions_without_words_are_not_equal_to_each_other(tmp_path: Path) -> None:
    rows = {"train": [row("?", "a", "b")], "test": [row("!", "c", "d"), row("?", "a", "b")]}
    assert found(own_task(tmp_path, rows, **CHOICES)) == {"exact": (1,)}


def test_words_of_the_prompt_that_all_rows_share_are_not_compared(tmp_path: Path) -> None:
    """They would make every row overlap, and would take a time that grows with the product of both numbers of rows."""
    prompt = "Read the following text with care and then say in one word what it is about: "
    for count, others, kinds in ((MOST_ROWS, MOST_ROWS, {"overlapping"}), (MOST_ROWS + 1, MOST_ROWS + 1, set()), (10, 9, set())):
        sharing, different = [row(f"{prompt}{number}") for number in range(count)], [row(f"Why {n}?") for n in range(others)]
        rows = {"train": [row(prompt + "rain")], "test": [*sharing, *different]}
        assert set(found(own_task(tmp_path / str(count), rows, **CHOICES))) == kinds


def test_the_command_prints_counts_and_row_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"train": numbers(5), "validation": numbers(3, 10), "test": [*numbers(2, 20), *numbers(2, 4)]}
    words = ["benchmarks", "--overlap", str(write_task(tmp_path, rows, **PARITY)), "--data_dir", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "test, exact: rows 2 (from 0)" in printed and "5 training rows" in printed
    assert main([*words, "--format", "json"]) == 0
    validation, test = json.loads(capsys.readouterr().out)
    assert (test["split"], test["rows"], test["exact"], test["exact_rows"]) == ("test", 4, 1, "2") and validation["exact"] == 0
    assert main([*words, "--format", "csv"]) == 0
    assert [line["exact"] for line in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["0", "1"]


def test_flags_of_the_comparison_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmarks", "--data_dir", str(tmp_path)]) == 1
    assert "Add --overlap TASK" in capsys.readouterr().err


@needs_data
@pytest.mark.parametrize(
    ("task", "rows"), [("arc_challenge", (56, 209, 224, 409)), ("arc_easy", (8, 446)), ("headqa_en", (81, 431, 487))]
)
def test_real_questions_with_other_choices_are_found(task: str, rows: tuple[int, ...]) -> None:
    assert found(open_task(task, data_dir=DATA))["choices"] == rows


def test_a_run_records_and_shows_the_rows_that_recur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Record, output and board name the rows of a run's test split; a run without such rows writes what it wrote before."""
    model = write_tiny_model(tmp_path / "model")
    planted = [row("Where is it?"), row(ASKED, "ten rooms", "two rooms"), row("Who is that?"), row(f"Yesterday I asked. {ASKED}")]
    training = [row(f"What is the number {number} called?") for number in range(8)]
    for name, test in (("with", planted), ("without", planted[::2])):
        folder, results = tmp_path / name, tmp_path / name / "results"
        splits = {"train": [*training, row(ASKED)], "validation": [row("Why?"), row("When?")], "test": test}
        task = write_task(folder, splits, **CHOICES)
        flags = {"base_model": model, "task_name": task, "data_dir": folder, "results_dir": results, "exp_name": "run"}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        assert main(["run", *words, "--device", "cpu", "--train_param.num_train_epochs", "1"]) == 0
        written = json.loads((results / "run" / "record.json").read_text())
        shown, store = " ".join(capsys.readouterr().out.split()), RunStore(results / "run")
        sentence = (
            "2 of 4 test questions recur in the training rows (1 with other choices or in another order of them, 1 with half"
        )
        found = {"choices": [1], "overlapping": [3]} if name == "with" else None
        assert written["data"].get("near_duplicates") == found and (sentence in shown) == (name == "with")
        assert RunRecord.from_dict(store.record().to_dict()) == store.record()
        notes = ScoreMatrix.from_records(results).notes
        assert any(note.startswith(f"own: {sentence}") for note in notes) == (name == "with")


@needs_data
@pytest.mark.parametrize(("task", "count"), [("arc_challenge", 4), ("arc_easy", 2), ("headqa_en", 3)])
def test_real_rows_of_a_run_recur_as_in_the_whole_task(task: str, count: int) -> None:
    """Of the run's own training rows; without a cap these are all but the validation rows that were taken from them."""
    opened = open_task(task, data_dir=DATA)
    splits = make_splits(opened, caps=Caps(), seed=0, protocol="published", chat=None)
    whole = next(one for one in near_duplicates(opened) if one.split == "test")
    found = recurring_rows(opened, splits.test, splits.train)
    assert {kind: set(rows) for kind, rows in found.items()} == {kind: set(rows) for kind, rows in whole.found.items() if rows}
    assert sum(map(len, found.values())) >= count


def test_a_long_instruction_that_all_rows_share_is_no_question(tmp_path: Path) -> None:
    """A task without known columns asks with its prompt; in a small test split the prompt must not count as the question."""
    fields = {
        "output_type": "generate_until",
        "doc_to_text": f"{ASKED} Answer the next question with one word and nothing else, please. {{{{question}}}}",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"until": ["."]},
        "metric_list": [{"metric": "exact_match"}],
    }
    rows = {"train": numbers(20), "validation": numbers(2, 50), "test": [*numbers(10, 100), *numbers(1, 3)]}
    assert found(own_task(tmp_path, rows, **fields)) == {"exact": (10,)}


def test_words_are_those_of_unicode_in_every_text() -> None:
    """Of texts of ASCII, which are read in another way, and of others."""
    ascii_text = "".join(map(chr, range(128)))
    for text in (ascii_text, ascii_text[::-1], "It's 5.5%, isn't_it?\x1cno\x0byes", "Né à Zürich, in 2020: 日本語 İ", "", " ?! "):
        assert words(text) == re.findall(r"\w+", text.lower())


def naively_overlapping(test: list[str], train: list[str]) -> set[int]:
    """Return the test texts of which a training text has half of the sequences of words, by comparing all pairs."""
    grams = [set(consecutive(words(text), NGRAM)) for text in test]
    shared = {gram for gram in set().union(*grams) if sum(gram in one for one in grams) > max(2, len(test) // 2)}
    found = set()
    for text in train:
        theirs = set(consecutive(words(text), NGRAM)) - shared
        found |= {row for row, one in enumerate(grams) if one & theirs and 2 * len(one & theirs) >= len(one)}
    return found


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_are_those_of_comparing_all_pairs(tmp_path: Path, seed: int) -> None:
    """At any place of a text, and at its first and last words; texts without an overlap are among them."""
    draw = random.Random(seed)

    def text(count: int) -> list[str]:
        return [f"w{draw.randrange(500)}" for _ in range(count)]

    test = [text(draw.randrange(10, 40)) for _ in range(30)]
    train = [text(30) for _ in range(30)]
    for asked in test[:20]:
        start, length = draw.randrange(len(asked)), draw.randrange(5, 40)
        train.append([*text(draw.randrange(9)), *asked[start : start + length], *text(draw.randrange(9))])
    train += [[*text(draw.randrange(9)), *asked[-draw.randrange(13, 20) :]] for asked in test[20:25]]
    texts = [[" ".join(one) for one in part] for part in (test, train)]
    rows = {"train": [row(one) for one in texts[1]], "test": [row(one, "a", "b") for one in texts[0]]}
    overlapping = naively_overlapping(*texts)
    recurs = found(own_task(tmp_path, rows, **CHOICES))
    assert set(recurs.pop("overlapping")) == overlapping - {one for kind in recurs.values() for one in kind}
    assert 0 < len(overlapping) < len(test)


def planted(folder: Path, **changed: Any) -> HarnessTask:
    """Return a task with near duplicates: of a test row in train and in validation, and of a validation row in train."""
    new = [row(f"What is the number {number} called?") for number in range(8)]
    other = "Where does the old road to the mill begin today?"
    rows = {
        "train": [
            *new[:4],
            *(row(ASKED, "ten rooms", "two rooms"), row(f"Yesterday I asked. {ASKED}"), row(other.upper())),
            *new[4:],
        ],
        "validation": [row("When?"), row(ASKED.upper()), row(other, "here", "there")],
        "test": [row("Who is that?"), row(ASKED), row("How?")],
    }
    return own_task(folder, {**rows, **changed}, **CHOICES)


def dropped(task: HarnessTask, rule: Any = "drop", **options: Any) -> Splits:
    given = {"caps": Caps(), "seed": 0, "protocol": "clean", "chat": None, **options}
    return run_splits(task, (), near_duplicates=rule, **given)


def test_near_duplicates_are_dropped_and_unrelated_rows_are_not(tmp_path: Path) -> None:
    """Those of test rows from training and validation, and those of the validation rows that are left from training."""
    task = planted(tmp_path)
    splits, plain = dropped(task), dropped(task, "keep")
    assert [one.row for one in splits.train] == [0, 1, 2, 3, 7, 8, 9, 10]
    assert [one.row for one in splits.validation] == [0, 2] and splits.test == plain.test
    assert splits.dropped_near_duplicates == DroppedNearDuplicates(
        train={"choices": 2, "overlapping": 1}, validation={"normalized": 1}
    )
    said = splits.dropped_near_duplicates.sentence()
    assert said.startswith(
        "near duplicates of scored rows are left out: 3 training rows (2 with other choices or in another order"
    )
    assert recurring_rows(task, splits.test, splits.train) == {} == recurring_rows(task, splits.validation, splits.train)
    assert plain == make_splits(task, caps=Caps(), seed=0, protocol="clean", chat=None) and len(plain.train) == 11
    assert recurring_rows(task, plain.test, plain.train) == {"choices": (1,)}
    assert (plain.dropped_near_duplicates, splits.dropped_from_train) == (None, plain.dropped_from_train)


def test_where_nothing_recurs_nothing_is_dropped(tmp_path: Path) -> None:
    task = planted(tmp_path, test=[row("Who is that?")], validation=[row("When?")])
    assert dropped(task).dropped_near_duplicates == DroppedNearDuplicates(train={}, validation={})
    assert dropped(task).fingerprint() == dropped(task, "keep").fingerprint()


def test_a_validation_row_is_compared_only_if_it_is_left(tmp_path: Path) -> None:
    """The test text recurs in the middle one, and that one in the training text, which has no word of the test text."""
    first, last = (" ".join(f"{name}{number}" for number in range(count)) for name, count in (("a", 60), ("b", 26)))
    middle = f"{' '.join(last.split()[:19])} {first}"
    rows = {"train": [row(first), row("Why?")], "test": [row(last)]}
    for validation, left in (([row("When?")], 2), ([row("When?"), row(first, "x", "y")], 1), ([row("When?"), row(middle)], 2)):
        task = planted(tmp_path / str(len(validation[-1]["question"])), **rows, validation=validation)
        assert len(dropped(task).train) == left


def test_a_split_of_near_duplicates_alone_is_refused(tmp_path: Path) -> None:
    twin = [row(ASKED, "ten rooms", "two rooms")]
    for role in ("train", "validation"):
        with pytest.raises(BenchmarkError, match=rf"the {role} split has no rows.*use --near_duplicates keep"):
            dropped(planted(tmp_path / role, **{role: twin}))


@needs_data
@pytest.mark.parametrize(("task", "least"), [("arc_challenge", 4), ("headqa_en", 3)])
def test_real_near_duplicates_are_dropped(task: str, least: int) -> None:
    opened = open_task(task, data_dir=DATA)
    plain, splits = dropped(opened, "keep"), dropped(opened)
    rows = recurring_rows(opened, plain.test, plain.train)
    left_out = {one.row for one in plain.train} - {one.row for one in splits.train}
    assert sum(map(len, rows.values())) >= least and len(left_out) == len(plain.train) - len(splits.train) >= least
    assert recurring_rows(opened, splits.test, splits.train) == {}
