"""Rows of another benchmark are written in the tested benchmark's format, and rows that recur in the test are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rows import ROWS
from shared import DATA, needs_data
from task_files import PARITY, numbers, write_rows, write_task

from lm_harmony.benchmarks.auxiliary import open_tasks, run_splits
from lm_harmony.benchmarks.catalogue import BENCHMARKS, TRAINING_SETS, name_parts, tasks_of, trained_name
from lm_harmony.benchmarks.choice_questions import NGRAM, ChoiceQuestion, ScoredQuestions
from lm_harmony.benchmarks.splits import Splits, make_splits
from lm_harmony.benchmarks.types import Caps
from lm_harmony.errors import BenchmarkError

LETTERS = "ABCDEFGHIJ"
MIX = TRAINING_SETS["mc_mix"]


def _mmlu(number: int, right: int) -> dict[str, Any]:
    choices = [f"{name} {number}" for name in ("red", "green", "blue", "grey")]
    return {"question": f" What is colour {number}?", "subject": "art", "choices": choices, "answer": right}


def _gpqa(number: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {place}": f"wrong {place} of {number}" for place in (1, 2, 3)}
    return {"Question": f"What is asked in {number}?", "Correct Answer": f"right of {number}", **wrong, "Subdomain": "Physics"}


def _pro(number: int, count: int, right: int) -> dict[str, Any]:
    options = [f"option {place} of {number}" for place in range(count)]
    return {"question": f"What is number {number}?", "options": options, "answer": LETTERS[right], "answer_index": right}


def _musr(number: int, count: int, right: int) -> dict[str, Any]:
    choices = [f"person {place} of {number}" for place in range(count)]
    asked = {"narrative": f"A long story {number}.", "question": f"Who did {number}?", "choices": repr(choices)}
    return {**asked, "answer_index": right, "answer_choice": choices[right]}


def _truthful(number: int) -> dict[str, Any]:
    choices = [f"true {number}", f"false {number}", f"untrue {number}"]
    return {"question": f"Is it so in {number}?", "mc1_targets": {"choices": choices, "labels": [1, 0, 0]}}


REPORTED: dict[str, tuple[str, list[dict[str, Any]], str, str]] = {
    "gpqa_main_zeroshot": (
        "train",
        [_gpqa(number) for number in range(6)],
        "What is the correct answer to this question: What is colour 12?\nChoices:\n(A) red 12\n(B) green 12\n(C) blue 12\n"
        "(D) grey 12\nAnswer:",
        " (B)",
    ),
    "mmlu_anatomy": (
        "test",
        [_mmlu(number, number % 4) for number in range(100, 106)],
        "The following are multiple choice questions (with answers) about anatomy.\n\nWhat is colour 12?\nA. red 12\n"
        "B. green 12\nC. blue 12\nD. grey 12\nAnswer:",
        " B",
    ),
    "leaderboard_mmlu_pro": (
        "test",
        [_pro(number, 4 + number % 3, number % 4) for number in range(6)],
        " What is colour 12?\nA. red 12\nB. green 12\nC. blue 12\nD. grey 12\nAnswer:",
        " B",
    ),
    "leaderboard_musr_team_allocation": (
        "test",
        [_musr(number, 4, number % 3) for number in range(6)],
        "\n\n What is colour 12?\n\n1 - red 12\n2 - green 12\n3 - blue 12\n4 - grey 12\n\nAnswer:",
        " green 12",
    ),
}
"""Benchmarks that are reported and have no training rows -> file and rows of the test, and the text of row 12 of mmlu_aux."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the invented rows of all catalogued benchmarks, auxiliary rows of MMLU, and test rows of other benchmarks."""
    folder = tmp_path_factory.mktemp("rows")
    for task, splits in ROWS.items():
        write_rows(folder / task, splits)
    write_rows(folder / "mmlu_aux", {"train": [_mmlu(number, (number + 1) % 4) for number in range(40)]})
    for task, (role, rows, *_) in REPORTED.items():
        write_rows(folder / task, {role: rows})
    write_rows(folder / "truthfulqa_mc1", {"validation": [_truthful(number) for number in range(6)]})
    return folder


def splits_of(tested: str, train_on: str, folder: Path, *, caps: Caps | None = None, seed: int = 0) -> Splits:
    task, *others = open_tasks(tasks_of(tested, train_on), None, folder)
    return run_splits(task, others, caps=caps or Caps(), seed=seed, protocol="clean", chat=None)


@pytest.mark.parametrize("tested", REPORTED)
def test_auxiliary_rows_have_the_text_that_the_tested_benchmark_gives_them(tested: str, world: Path) -> None:
    _, rows, context, answer = REPORTED[tested]
    splits = splits_of(tested, "mmlu_aux", world)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 8, len(rows)) and splits.carved
    (example,) = [one for one in (*splits.train, *splits.validation) if "colour 12?" in one.context]
    assert (example.context.strip(), example.continuation) == (context.strip(), answer)
    assert {one.request_texts for one in splits.train}.isdisjoint(one.request_texts for one in splits.test)


def test_the_right_choice_is_put_where_the_tested_benchmark_always_has_it(world: Path) -> None:
    splits = splits_of("truthfulqa_mc1", "mmlu_aux", world)
    assert all(example.continuation == example.requests[0].continuation for example in splits.train)
    assert {example.document["mc1_targets"]["choices"][0].split()[0] for example in splits.train} >= {"red", "grey"}


def _labelled(row: dict[str, Any]) -> str:
    return str(row["choices"]["text"][row["choices"]["label"].index(row["answerKey"].strip())])


RIGHT: dict[str, Callable[[dict[str, Any]], str]] = {
    **dict.fromkeys(("arc_challenge", "arc_easy", "commonsense_qa", "openbookqa"), _labelled),
    "headqa_en": lambda row: row["answers"][row["ra"] - 1]["atext"],
    "hellaswag": lambda row: row["endings"][int(row["label"])],
    "mathqa": lambda row: dict(re.findall(r"([a-e]) \) (.*?)(?= , [a-e] \)|$)", row["options"]))[row["correct"]],
    "medmcqa": lambda row: row["op" + "abcd"[row["cop"]]],
    "piqa": lambda row: row[("sol1", "sol2")[row["label"]]],
    "sciq": lambda row: row["correct_answer"],
    "social_iqa": lambda row: row["answer" + "ABC"[int(row["label"]) - 1]],
}
"""Task of the mix -> the text of the right answer of a row, read without lm_eval."""


def _plain(text: str) -> str:
    return " ".join(re.sub(r"\[.*?\]", "", text).split())


def test_every_row_of_the_mix_keeps_its_right_answer(world: Path) -> None:
    splits = splits_of("piqa", "mc_mix", world)
    right = {_plain(RIGHT[task](row)) for task in MIX for role in ("train", "validation") for row in ROWS[task].get(role, ())}
    in_test = {_plain(RIGHT["piqa"](row)) for row in ROWS["piqa"]["validation"]}
    learned = {_plain(str(example.continuation)) for example in (*splits.train, *splits.validation)}
    assert learned == right - in_test and len(learned) > 40
    assert splits.train_on is not None and set(splits.train_on.rows) == set(MIX) and splits.train_on.exact == len(in_test)


@pytest.mark.parametrize("tested", ["hellaswag", "medmcqa", "openbookqa", "sciq", "social_iqa"])
def test_the_mix_is_written_in_every_layout_of_columns(tested: str, world: Path) -> None:
    splits = splits_of(tested, "mc_mix", world)
    columns = {column for example in splits.test for column in example.document}
    assert len(splits.train) >= 26 and {column for example in splits.train for column in example.document} <= columns
    assert {len(example.requests) for example in splits.train} <= {len(example.requests) for example in splits.test}


def test_choices_that_are_too_many_lose_wrong_ones_without_a_preferred_position() -> None:
    asked = [
        ChoiceQuestion(context="", question=f"q{number}", choices=tuple("abcde"), right=number % 5) for number in range(5000)
    ]
    for counts, size in ((frozenset({2}), 2), (frozenset({4, 3}), 4), (frozenset({5, 2}), 5)):
        fitted = [one.with_choices(counts, shuffle=False, seed=one.question) for one in asked]
        found = Counter(one.right for one in fitted if one is not None)
        assert all(one is not None and len(one.choices) == size for one in fitted)
        assert all(
            one is not None and one.choices[one.right] == old.choices[old.right] for one, old in zip(fitted, asked, strict=True)
        )
        assert all(0.9 < count * size / len(asked) < 1.1 for count in found.values()) and len(found) == size
    assert asked[0].with_choices({6, 7}, shuffle=False, seed="") is None
    always = [
        ChoiceQuestion(context="", question="q", choices=tuple("abcd"), right=3).with_choices({4}, shuffle=True, seed=str(n))
        for n in range(400)
    ]
    assert {one.right for one in always if one is not None} == {0, 1, 2, 3}
    assert asked[7].with_choices({3}, shuffle=True, seed="s") == asked[7].with_choices({3}, shuffle=True, seed="s")


LONG = " ".join(f"word{number}" for number in range(20))


@pytest.mark.parametrize(
    ("question", "choices", "found"),
    [
        ("Which colour is the sky?", ("blue", "red"), "exact"),
        ("which COLOUR is the sky", ("green", "Blue!"), "exact"),  # other distractors, order and punctuation
        ("Which colour is the sky?", ("green", "red"), None),  # another right answer
        (f"Begin: {LONG}", ("x", "y"), "overlapping"),
        ("Begin: " + " ".join(LONG.split()[3 : 3 + NGRAM]) + " end", ("x", "y"), "overlapping"),
        ("Begin: " + " ".join(LONG.split()[3 : 2 + NGRAM]) + " end", ("x", "y"), None),  # one word less
        ("Something else?", ("y", " ".join(LONG.split()[:NGRAM])), "overlapping"),
    ],
)
def test_questions_recur_exactly_or_by_thirteen_words(question: str, choices: tuple[str, ...], found: str | None) -> None:
    scored = ScoredQuestions(
        [
            ChoiceQuestion(context="", question="Which colour is the sky?", choices=("red", "blue"), right=1),
            ChoiceQuestion(context="A story.", question=LONG, choices=("1", "2"), right=0),
        ]
    )
    right = next((place for place, choice in enumerate(choices) if choice.lower().strip("!") == "blue"), 0)
    assert scored.recurrence(ChoiceQuestion(context="", question=question, choices=choices, right=right)) == found


def test_rows_that_recur_in_the_test_are_left_out_and_counted(tmp_path: Path) -> None:
    test = [_mmlu(number, number % 4) for number in range(100, 106)]
    passage = " ".join(f"{name} of the story" for name in ("anna", "bert", "carl", "dora", "emil"))
    test += [{**_mmlu(106, 0), "question": f"{passage} who?"}]
    copies = [{**test[0], "choices": [*reversed(test[0]["choices"])], "answer": 3}, {**test[1], "question": "what is COLOUR 101"}]
    near = [{**_mmlu(50, 1), "question": f"Read this: {passage}"}]
    plain = [_mmlu(number, number % 4) for number in range(40)]
    write_rows(tmp_path / "mmlu_anatomy", {"test": test})
    write_rows(tmp_path / "mmlu_aux", {"train": [*plain, *copies, *near]})
    splits = splits_of("mmlu_anatomy", "mmlu_aux", tmp_path)
    record = splits.train_on
    assert record is not None and (record.exact, record.overlapping) == (2, 1)
    assert splits.dropped_from_train + splits.dropped_from_validation == 3
    assert len(splits.train) + len(splits.validation) + 3 == 34 + 8 == sum(record.rows.values()) + 3
    assert (
        "3 rows that recur in the test rows are left out (2 with the same question, 1 with 13 words in a row)"
        in record.sentence()
    )
    write_rows(tmp_path / "mmlu_aux", {"train": plain})  # negative control
    clean = splits_of("mmlu_anatomy", "mmlu_aux", tmp_path)
    assert clean.train_on is not None and (clean.train_on.exact, clean.train_on.overlapping) == (0, 0)


def test_rows_are_validated_on_the_auxiliary_validation_split_if_there_is_one(world: Path) -> None:
    splits = splits_of("arc_easy", "openbookqa", world)
    stems = {row["question_stem"] for row in ROWS["openbookqa"]["validation"]}
    assert not splits.carved and {example.document["question"] for example in splits.validation} == stems
    assert {example.document["question"] for example in splits.test} == {row["question"] for row in ROWS["arc_easy"]["test"]}


def test_rows_are_split_off_capped_and_ordered_by_the_seed(world: Path) -> None:
    def rows(seed: int, caps: Caps | None = None) -> tuple[list[int], list[int]]:
        splits = splits_of("mmlu_anatomy", "mmlu_aux", world, seed=seed, caps=caps)
        return [one.row for one in splits.train], [one.row for one in splits.validation]

    first, again, other, few = rows(0), rows(0), rows(1), rows(0, Caps(train=7, validation=3))
    assert first == again != other and set(first[0]).isdisjoint(first[1])
    assert (len(few[0]), len(few[1])) == (7, 3) and set(few[0]) <= set(first[0])
    shares = splits_of("piqa", "mc_mix", world, caps=Caps(train=11, validation=22)).train_on
    assert shares is not None and shares.rows.pop("piqa") == 1  # type: ignore[attr-defined]  # its validation rows are tested
    assert set(shares.rows.values()) == {3}  # one training and two validation rows of each


def test_answers_shuffled_by_a_task_are_the_same_in_every_process(world: Path) -> None:
    first, again = (splits_of("gpqa_main_zeroshot", "mmlu_aux", world).fingerprint() for _ in range(2))
    assert first == again


def _own(folder: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> str:
    given = {"doc_to_text": "{{ask}}", "doc_to_choice": "{{options}}", "doc_to_target": "truth", **fields}
    return str(write_task(folder, {"test": rows}, name=name, **{**PARITY, **given}))


OWN = [
    {
        "ask": f"Ask {number}?",
        "options": [f"p{number}", f"q{number}", f"r{number}", f"s{number}"],
        "truth": number % 4,
        "extra": "e",
    }
    for number in range(6)
]
FIELDS = {"choice_fields": {"question": "ask", "choices": "options", "answer": "truth"}}


def test_a_task_can_name_its_columns(world: Path) -> None:
    splits = splits_of(_own(world, "named", OWN, metadata=FIELDS), "mmlu_aux", world)
    assert splits.train[0].document.keys() == {"ask", "options", "truth"} and len(splits.train) == 32


@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        ({}, OWN, "none of its columns (ask, options, truth, extra) is known as the question"),
        ({"metadata": {"choice_fields": {"question": "ask"}}}, OWN, "is known as the answer"),
        (
            {"metadata": {"choice_fields": {"question": "ask", "answer": "truth", "choices": "none"}}},
            OWN,
            "column 'none' of metadata",
        ),
        (
            {"metadata": {"choice_fields": ["ask"]}},
            OWN,
            "must map question, context, choices and answer to names of columns, got",
        ),
        ({"metadata": {"choice_fields": {"query": "ask"}}}, OWN, "must map question, context, choices and answer"),
        (
            {"metadata": FIELDS, "doc_to_text": "{{extra}} {{ask}}"},
            OWN,
            "needs other columns than these fields: 'extra' is undefined",
        ),
        (
            {"metadata": FIELDS, "doc_to_text": "{{ask}}{% if extra is defined %}!{% endif %}"},
            OWN,
            "test row 0, read and written again, gives another text",
        ),
        ({"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "ask"}, OWN, "output_type: generate_until"),
    ],
)
def test_fields_that_cannot_be_mapped_are_refused(
    fields: dict[str, Any], rows: Any, message: str, world: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "mmlu_aux", {"train": [_mmlu(number, number % 4) for number in range(10)]})
    with pytest.raises(BenchmarkError) as refused:
        splits_of(_own(tmp_path, "refused", rows, **fields), "mmlu_aux", tmp_path)
    assert message in str(refused.value) and "choose another" in str(refused.value) and "\n" not in str(refused.value)


def test_a_context_that_is_empty_in_all_rows_is_written_where_the_task_prints_it(tmp_path: Path) -> None:
    fields = {"doc_to_text": "{{support}} Q: {{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    rows = [{**_mmlu(number, number % 4), "support": "", "passage": ""} for number in range(100, 106)]
    learned = [{**_mmlu(number, number % 4), "context": "A fact."} for number in range(10)]
    given: dict[str, Any] = {**PARITY, **fields, "doc_to_text": "{{context}} {{question}}"}
    aux = write_task(tmp_path, {"train": learned}, name="aux", **given)
    splits = splits_of(_own(tmp_path, "printed", rows, **fields), str(aux), tmp_path)
    assert splits.train[0].document["support"] == "A fact." and splits.train[0].context.startswith("A fact. Q:  What")
    # Negative control: a task that prints no such column gets the text before the question.
    splits = splits_of(_own(tmp_path, "bare", rows, **{**fields, "doc_to_text": "Q: {{question}}"}), str(aux), tmp_path)
    assert "support" not in splits.train[0].document and splits.train[0].context.startswith("Q: A fact.\n What")


SPOKEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Ask: {{question}}",
    "doc_to_choice": None,
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def _sums(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"What is {number} + 1?", "answer": f"It is {number + 1}"} for number in range(first, first + count)]


def _spoken(folder: Path, name: str, rows: dict[str, Any], **fields: Any) -> str:
    return str(write_task(folder, rows, name=name, **{**PARITY, **SPOKEN, **fields}))


def test_free_answers_are_written_as_the_tested_task_writes_them(tmp_path: Path) -> None:
    """A task of BBH, and one whose answers are a list of aliases; a row that recurs in the test is left out."""
    aux = _spoken(tmp_path, "sums", {"train": [*_sums(20), *_sums(1, 100)]})
    rows = [{"input": row["question"], "target": row["answer"]} for row in _sums(5, 100)]
    write_rows(tmp_path / "bbh_zeroshot_object_counting", {"test": rows})
    splits = splits_of("bbh_zeroshot_object_counting", aux, tmp_path)
    assert splits.train_on is not None and (splits.train_on.rows, splits.train_on.exact) == ({"sums": 19}, 1)
    (example,) = [one for one in (*splits.train, *splits.validation) if "What is 7 + 1?" in one.context]
    assert (
        example.context.endswith("Q: What is 7 + 1?\nA:") and example.continuation == " It is 8" and example.target == "It is 8"
    )
    listed = [{"question": row["question"], "answer": [row["answer"], "one more"]} for row in _sums(5, 100)]
    splits = splits_of(_spoken(tmp_path, "listed", {"test": listed}, doc_to_target="{{answer}}"), aux, tmp_path)
    assert {type(one.document["answer"]) for one in splits.train} == {list}


def test_real_tasks_with_generated_answers_teach_each_other(world: Path) -> None:
    splits = splits_of("gsm8k", "nq_open", world)
    assert splits.train[0].context.startswith("Question: ") and splits.train[0].context.endswith("\nAnswer:")
    answers = {str(alias) for row in ROWS["nq_open"]["train"] for alias in row["answer"]}
    assert all(str(one.continuation).strip() in answers for one in splits.train)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"doc_to_target": "{{answer.split()[-1]}}"}, "is known as the answer"),
        ({"doc_to_text": "Ask: {{question}} {{hint}}"}, "needs other columns than these fields: 'hint' is undefined"),
        ({"doc_to_text": "Ask: {{question.upper()}}"}, "is known as the question"),
    ],
)
def test_a_task_whose_answers_cannot_be_written_says_why(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    aux = _spoken(tmp_path, "sums", {"train": _sums(20)})
    rows = [{**row, "hint": "h"} for row in _sums(5, 100)]
    splits_of(_spoken(tmp_path, "plain", {"test": rows}), aux, tmp_path)  # negative control
    with pytest.raises(BenchmarkError) as refused:
        splits_of(_spoken(tmp_path, "own", {"test": rows}, **fields), aux, tmp_path)
    assert message in str(refused.value) and "choose another" in str(refused.value) and "\n" not in str(refused.value)


def test_too_few_choices_are_refused_with_the_counts(world: Path) -> None:
    with pytest.raises(
        BenchmarkError, match="gets no train rows from piqa: 5 rows have no usable question or fewer than 4 choices"
    ):
        splits_of("mmlu_anatomy", "piqa", world)


def test_metrics_that_need_other_columns_are_refused(world: Path, tmp_path: Path) -> None:
    code = tmp_path / "weighted.py"
    code.write_text("def results(doc, replies):\n    return {'acc': doc['weight']}\n", encoding="utf-8")
    rows = [{**row, "weight": 1.0} for row in OWN]
    task = _own(tmp_path, "weighted", rows, metadata=FIELDS)
    text = Path(task).read_text(encoding="utf-8") + "process_results: !function weighted.results\n"
    Path(task).write_text(text, encoding="utf-8")
    write_rows(tmp_path / "mmlu_aux", {"train": [_mmlu(number, number % 4) for number in range(10)]})
    with pytest.raises(BenchmarkError, match="the metrics of benchmark weighted need more than question, choices and answer"):
        splits_of(task, "mmlu_aux", tmp_path)


def test_without_train_on_nothing_changes(tmp_path: Path) -> None:
    file = write_task(tmp_path, {"train": numbers(20), "test": numbers(6, 100)}, **PARITY)
    (task,) = open_tasks(tasks_of(str(file), None), None, tmp_path)
    options: Any = {"caps": Caps(), "seed": 0, "protocol": "clean", "chat": None}
    assert run_splits(task, (), **options) == make_splits(task, **options)
    with pytest.raises(BenchmarkError, match=r"it has no training split; --train_on mmlu_aux"):
        open_tasks(tasks_of("mmlu_anatomy", None), None, tmp_path)


def test_names_of_runs_and_sets() -> None:
    assert trained_name("gpqa", "mmlu_aux") == "gpqa.train_on.mmlu_aux" and trained_name("gpqa", None) == "gpqa"
    assert trained_name("gpqa", "tasks/mine.yaml") == "gpqa.train_on.mine"
    assert name_parts("gpqa.train_on.mmlu_aux") == ("gpqa", "mmlu_aux") and name_parts("gpqa") == ("gpqa", None)
    assert set(MIX) <= set(BENCHMARKS)


@needs_data
@pytest.mark.parametrize("train_on", ["arc_easy", "commonsense_qa", "headqa_en", "medmcqa"])
def test_real_rows_are_written_as_arc_challenge(train_on: str) -> None:
    caps = Caps(train=200, validation=50, test=100)
    splits = splits_of("arc_challenge", train_on, DATA, caps=caps)
    assert len(splits.train) >= 190 and len(splits.test) == 100
    for example in splits.train:
        assert example.context.startswith("Question: ") and example.context.endswith("\nAnswer:")
        assert 3 <= len(example.requests) <= 5 and example.continuation in [one.continuation for one in example.requests]
