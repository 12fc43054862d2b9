"""Requests with examples before the question equal lm_eval's with the same seed, and no example has the tested question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval_alone import lm_eval_task, request_arguments
from rows import ROWS
from task_files import Row, examples, write_rows, write_task
from tiny import tiny_model

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.harness.few_shot import DirectRows, direct_rows
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.errors import BenchmarkError

QUESTIONS: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer}}",
    "doc_to_choice": ["no", "yes"],
    "metric_list": [{"metric": "acc"}],
}


def questions(count: int, first: int = 0) -> list[Row]:
    return [{"question": f"Is {number} even?", "answer": 1 - number % 2} for number in range(first, first + count)]


def split_of(task: HarnessTask) -> str:
    return "test" if "test" in task.split_names else "validation"


def ours(task: HarnessTask, shots: Any, *, seed: int = 0, chat: Any = None, rows: slice = slice(None)) -> DirectRows:
    [found] = direct_rows(task, examples(task, split_of(task), chat)[rows], [shots], seed=seed, chat=chat).values()
    return found


def theirs(path: Path, rows: dict[str, Sequence[Row]], shots: int, *, seed: int = 0, chat: Any = None) -> list[list[Any]]:
    """Return the arguments that lm_eval itself sends for each document with ``num_fewshot`` and ``fewshot_random_seed``."""
    task = lm_eval_task(path, rows, num_fewshot=shots)
    task.set_fewshot_seed(seed)
    task.build_all_requests(apply_chat_template=chat is not None, fewshot_as_multiturn=chat is not None, chat_template=chat)
    documents: list[list[Any]] = [[] for _ in task.eval_docs]
    for instance in task.instances:
        documents[instance.doc_id].append(instance.args)
    return documents


@pytest.mark.parametrize("chat", [None, tiny_model(chat=True).text.render_chat], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ROWS)
def test_requests_equal_lm_evals(name: str, chat: Any, tmp_path: Path) -> None:
    """On the 24 benchmarks of the board the texts are lm_eval's, with every example as a turn of its own in a chat."""
    rows = {role: list(ROWS[name][role]) for role in ROWS[name]}
    rows["train"] = rows["train"] + [{**row, **other_question(row, place)} for place, row in enumerate(rows["train"])]
    write_rows(tmp_path / name, rows)
    task = HarnessTask(find_task_file(name), tmp_path)
    for shots, seed in ((1, 0), (3, 1234)):
        found = ours(task, shots, seed=seed, chat=chat)
        expected = theirs(find_task_file(name), rows, shots, seed=seed, chat=chat)
        assert [request_arguments(example) for example in found.examples] == expected
        assert found.replaced == 0
        bare = examples(task, split_of(task), chat)
        assert all(
            len(one.requests[0].context) > len(two.requests[0].context) for one, two in zip(found.examples, bare, strict=True)
        )
    assert ours(task, 3, seed=7, chat=chat) != found


def other_question(row: Row, place: int) -> Row:
    """Return the row's longest text column with a word that makes it another question."""
    column = max((key for key, value in row.items() if isinstance(value, str)), key=lambda key: len(row[key]))
    return {column: f"{row[column]} ({place})"}


def own(
    folder: Path, train: Sequence[Row], test: Sequence[Row], **fields: Any
) -> tuple[HarnessTask, Path, dict[str, Sequence[Row]]]:
    rows = {"train": train, "validation": questions(2, 900), "test": test}
    path = write_task(folder, rows, **{**QUESTIONS, **fields})
    return HarnessTask(path, folder), path, rows


@pytest.mark.parametrize("fields", [{}, {"fewshot_config": {"sampler": "first_n"}}, {"fewshot_split": "train"}], ids=str)
def test_a_part_of_the_rows_gets_the_examples_of_a_whole_evaluation(fields: dict[str, Any], tmp_path: Path) -> None:
    """Rows that are capped, and in another order, have the examples that lm_eval gives them when it scores all rows."""
    task, path, rows = own(tmp_path, questions(40), questions(12, 100), **fields)
    whole = theirs(path, rows, 4, seed=3)
    part = ours(task, 4, seed=3, rows=slice(10, 2, -3))
    assert [example.row for example in part.examples] == [10, 7, 4]
    assert [request_arguments(example) for example in part.examples] == [whole[row] for row in (10, 7, 4)]
    shared = len({example.requests[0].context.split("Q: Is 1")[0] for example in ours(task, 4, seed=3).examples})
    assert (shared == 1) == ("fewshot_config" in fields)


def test_an_example_with_the_tested_question_is_replaced(tmp_path: Path) -> None:
    """lm_eval shows the answer to a question that recurs in the training split. Here only that row gets another example."""
    train, test = questions(6), [*questions(2, 100), *questions(1, 3), *questions(2, 200)]
    task, path, rows = own(tmp_path, train, test)
    found, expected = ours(task, 5, seed=1), theirs(path, rows, 5, seed=1)
    given = [request_arguments(example) for example in found.examples]
    assert expected[2][0][0].count("Is 3 even") == 2 and given[2][0][0].count("Is 3 even") == 1
    assert found.replaced == 1 and [given[row] for row in (0, 1, 3, 4)] == [expected[row] for row in (0, 1, 3, 4)]
    assert given[2][0][0].count("Q: ") == 6
    with pytest.raises(BenchmarkError, match="fewer than 6 usable rows for examples with another question than row 2"):
        ours(task, 6, seed=1)
    unanswered, _, _ = own(tmp_path / "unanswered", [*train, {"question": "Is it?", "answer": -1}], test[:2])
    assert all("Is it?" not in example.requests[0].context for example in ours(unanswered, 6).examples)


@pytest.mark.parametrize(
    ("fields", "word", "split"),
    [
        ({"fewshot_split": "test"}, "Is 1", "train"),
        ({"fewshot_config": {"split": "validation"}}, "Is 1", "train"),
        ({"fewshot_config": {"samples": [{"question": "Is it?", "answer": 1}] * 3}}, "Is it?", None),
    ],
    ids=str,
)
def test_examples_are_never_rows_of_a_scored_split(
    fields: dict[str, Any], word: str, split: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that takes examples from its test or validation rows gets training rows, with a line; its own texts are kept."""
    train = [{"question": f"Is 1{number} odd?", "answer": number % 2} for number in range(8)]
    task, _, _ = own(tmp_path, train, questions(4, 50), **fields)
    with caplog.at_level(logging.WARNING):
        found = ours(task, 3)
    assert found.split == split and ("They are taken from train" in caplog.text) == (split is not None)
    for example in found.examples:
        before, asked = example.requests[0].context.rsplit("Q: ", 1)
        assert before.count(word) == 3 and " even?" not in before and "even?" in asked


def test_the_tasks_own_number_of_examples_is_named_and_taken_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, _, _ = own(tmp_path, questions(9), questions(3, 100), num_fewshot=4)
    with caplog.at_level(logging.INFO):
        assert list(direct_rows(task, examples(task, "test"), [0], seed=0, chat=None)) == [0]
    assert "its task file asks for 4 examples before each question (num_fewshot)" in caplog.text
    caplog.clear()
    found = direct_rows(task, examples(task, "test"), [0, "task", 4], seed=0, chat=None)
    assert list(found) == [0, 4] and caplog.text == ""
    assert found[0].examples == examples(task, "test") and found[4] == ours(task, 4)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    task, _, _ = own(tmp_path, questions(5), questions(3, 100))
    assert len(ours(task, 5).examples) == 3
    with pytest.raises(BenchmarkError, match=r"direct_fewshot = 6: benchmark own has 5 rows for examples \(split train\)"):
        ours(task, 6)
    dev, _, _ = own(tmp_path / "dev", questions(5), questions(3, 100), fewshot_split="dev")
    with pytest.raises(BenchmarkError, match="takes examples from the split 'dev', and its rows lack it"):
        ours(dev, 2)
    tested = HarnessTask(write_task(tmp_path / "tested", {"test": questions(3)}, **QUESTIONS), tmp_path / "tested", use="scoring")
    with pytest.raises(BenchmarkError, match="has no training split, and its task file names no other rows"):
        ours(tested, 1)


def test_a_split_of_its_own_gives_the_examples_of_a_task_without_training_rows(tmp_path: Path) -> None:
    """As in MMLU: the rows of ``dev`` in their order, before rows that are trained on elsewhere (``train_on``)."""
    write_rows(tmp_path / "own", {"dev": questions(5), "test": questions(6, 100)})
    files = {split: str(tmp_path / "own" / f"{split}.jsonl") for split in ("dev", "test")}
    place = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    fields = {**QUESTIONS, **place, "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    task = HarnessTask(write_task(tmp_path / "task", {"test": questions(1)}, **fields), use="scoring")
    found = ours(task, 5)
    assert found.split == "dev" and len(found.examples) == 6
    before = "".join(f"Q: Is {number} even?\nA: {('yes', 'no')[number % 2]}\n\n" for number in range(5))
    assert [example.requests[0].context for example in found.examples] == [
        f"{before}Q: Is {number} even?\nA:" for number in range(100, 106)
    ]
