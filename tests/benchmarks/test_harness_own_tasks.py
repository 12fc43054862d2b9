"""Tasks defined by the user: targets, delimiters, descriptions and answer prefixes of every kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval_alone import lm_eval_requests, request_arguments
from task_files import examples, own_task, write_task
from tiny import tiny_model, tiny_module, tiny_tokenizer

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.errors import BenchmarkError

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["red", "blue", "green"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def hflm() -> HFLM:
    return HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(chat=True), batch_size=1)


def training_text(
    tmp_path: Path, row: dict[str, Any], chat: Callable[..., str] | None = None, **fields: Any
) -> tuple[str, str | None]:
    task = own_task(tmp_path, {"train": [row], "test": [row]}, **fields)
    [example] = examples(task, "train", chat)
    return example.context, example.continuation


@pytest.mark.parametrize(
    ("target", "value"),
    [("a", 1), ("a", "blue"), ("{{a}}", "blue"), ("{{a}}", 1), ("{{['red', 'blue'].index(a)}}", "blue"), (1, 0), ("a", [1, 2])],
)
def test_integer_and_string_targets_select_the_same_choice(tmp_path: Path, target: str | int, value: Any) -> None:
    """A target is an index, a choice's text, a column or a template. The first of several right choices is trained on."""
    assert training_text(tmp_path, {"q": "The sky?", "a": value}, doc_to_target=target, **CHOICE) == ("The sky?", " blue")


@pytest.mark.parametrize("value", [3, -1, "pink", "1", [], [7]])
def test_a_label_that_is_not_a_choice_gives_no_continuation(tmp_path: Path, value: Any) -> None:
    """Such a row cannot be used for training, but it is scored."""
    good = {"q": "Grass?", "a": [2] if isinstance(value, list) else "green" if isinstance(value, str) else 2}
    task = own_task(tmp_path, {"train": [good, {"q": "The sky?", "a": value}], "test": [good]}, doc_to_target="a", **CHOICE)
    known, unknown = examples(task, "train")
    assert (known.context, known.continuation) == ("Grass?", " green")
    assert unknown.continuation is None
    assert [request.continuation for request in unknown.requests] == [" red", " blue", " green"]


def test_a_generated_answer_without_aliases_gives_no_continuation(tmp_path: Path) -> None:
    """A row with an empty list of right answers is not used for training."""
    rows = [{"q": "One?", "a": ["1", "one"]}, {"q": "None?", "a": []}]
    task = own_task(tmp_path, {"train": rows, "test": rows}, **WRITTEN)
    assert [example.continuation for example in examples(task, "train")] == [" 1", None]


def test_the_description_comes_first_and_can_use_the_row(tmp_path: Path) -> None:
    """A description is rendered with the row and begins the context. With a chat template it is the system message."""
    row, fields = {"q": "The sky?", "a": 1, "topic": "colours"}, {**CHOICE, "doc_to_target": "a"}
    description = "About {{topic}}.\n\n"
    assert training_text(tmp_path, row, description=description, **fields) == ("About colours.\n\nThe sky?", " blue")
    chat = tiny_model(chat=True).text.render_chat
    assert training_text(tmp_path, row, chat, description=description, **fields) == (
        "<|sys|>About colours.\n\n\n<|user|>The sky?\n<|assistant|>",
        "blue",
    )


@pytest.mark.parametrize("delimiter", [" ", "\n", ""])
def test_the_target_delimiter_precedes_the_answer(tmp_path: Path, delimiter: str) -> None:
    """The task's delimiter is part of the continuation."""
    row = {"q": "The sky?", "a": "blue"}
    for fields in (WRITTEN, {**CHOICE, "doc_to_target": "a"}):
        assert training_text(tmp_path, row, target_delimiter=delimiter, **fields) == ("The sky?", f"{delimiter}blue")


@pytest.mark.parametrize("kind", ["choice", "written"])
@pytest.mark.parametrize("prefix", ["It is", "It is ", "{{p}}", "s"])
@pytest.mark.parametrize("chat", [False, True])
def test_gen_prefix_is_part_of_the_context(tmp_path: Path, kind: str, prefix: str, chat: bool, hflm: HFLM) -> None:
    """The requests contain gen_prefix as in lm_eval. One space separates it from a generated answer."""
    row = {"q": "The sky?", "a": "blue", "p": "It is", "s": "It is "}
    fields = {**(WRITTEN if kind == "written" else {**CHOICE, "doc_to_target": "a"}), "gen_prefix": prefix}
    task = own_task(tmp_path, {"train": [row], "test": [row]}, **fields)
    render, lm_evals = (tiny_model(chat=True).text.render_chat, hflm.apply_chat_template) if chat else (None, None)
    [example] = examples(task, "train", render)
    assert [request_arguments(example)] == lm_eval_requests(
        tmp_path / "own.yaml", {"train": [row], "test": [row]}, "train", lm_evals
    )
    shown = "It is " if prefix in ("It is ", "s") else "It is"
    assert example.context == (f"<|user|>The sky?\n<|assistant|>{shown}" if chat else f"The sky? {shown}")
    if kind == "written":
        assert f"{example.context}{example.continuation}".endswith("It is blue")
    else:
        assert request_arguments(example)[1] == (example.context, example.continuation)


def test_data_that_lm_eval_loads_is_rendered_like_given_rows(tmp_path: Path) -> None:
    """Without a data folder, lm_eval loads the rows of the task's data set. Here they are files on disk."""
    rows = {"train": [{"q": "Grass?", "a": 2}, {"q": "The sky?", "a": 1}], "test": [{"q": "Blood?", "a": 0}]}
    fields = {**CHOICE, "doc_to_target": "a"}
    local = own_task(tmp_path, rows, **fields)
    files = {role: str(tmp_path / "own" / f"{role}.jsonl") for role in rows}
    loading = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")}}
    loaded = HarnessTask(write_task(tmp_path, rows, **fields, **loading))
    for role in rows:
        assert examples(loaded, role) == examples(local, role)


def test_a_data_set_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    """The message names the missing data set and says how to provide its rows."""
    path = write_task(tmp_path, {"train": [], "test": []}, dataset_path=str(tmp_path / "nowhere"), doc_to_target="a", **CHOICE)
    with pytest.raises(BenchmarkError, match=r"data set '.*nowhere' cannot be loaded: .*--data_dir DIR as DIR/own/train\.jsonl"):
        HarnessTask(path)


def task_on_files(folder: Path, kind: str = "json", suffix: str = "jsonl", **texts: str) -> Path:
    """Write a task with ``dataset_path: KIND`` and one file of rows for each role, with these texts."""
    files = {role: str(folder / f"{role}.{suffix}") for role in texts}
    for role, text in texts.items():
        Path(files[role]).write_text(text, encoding="utf-8")
    loading = {"dataset_path": kind, "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
    fields = {"task": "own", "training_split": "train", "test_split": "test", "doc_to_target": "a", **CHOICE, **loading}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return path


GOOD = '{"q": "Grass, 2024-05-01?", "a": 2}\n'


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (GOOD + '{"q": "The sky?", "a": \n', r"train\.jsonl line 2, column 24: not JSON"),
        (GOOD + '{"q": "The sky?", "a": 2.5}\n', r"train\.jsonl line 2, column 'a': float where line 1 has int"),
        (GOOD + '{"q": "The sky?"}\n', r"train\.jsonl line 2: lacks column 'a'"),
        ("", r"train\.jsonl has no rows"),
    ],
)
def test_json_files_that_a_task_names_follow_the_rules_of_given_rows(tmp_path: Path, train: str, expected: str) -> None:
    """A file that `datasets` would change on reading is refused with its line."""
    with pytest.raises(BenchmarkError, match=expected):
        HarnessTask(task_on_files(tmp_path, train=train, test=GOOD))
    assert HarnessTask(task_on_files(tmp_path, train=GOOD + GOOD, test=GOOD)).documents("train").num_rows == 2


def test_a_null_in_a_json_file_that_a_task_names_is_refused_with_its_line(tmp_path: Path) -> None:
    task = HarnessTask(task_on_files(tmp_path, train=GOOD + '\n{"q": null, "a": 1}\n', test=GOOD))
    with pytest.raises(BenchmarkError, match=r"train row 1 \(.*train\.jsonl line 3\): column 'q' is null"):
        task.example(1, task.documents("train")[1], chat=None, aliases="first", split="train")
    assert len(examples(task, "test")) == 1


def test_dates_in_a_json_file_that_a_task_names_are_rendered_as_lm_eval_does(tmp_path: Path) -> None:
    """`datasets` converts a column of dates to timestamps. The text equals lm_eval's, although given rows keep the string."""
    path = task_on_files(tmp_path, train='{"q": "2024-05-01", "a": 2}\n', test='{"q": "2024-05-02", "a": 1}\n')
    task = ConfigurableTask(config={**load_yaml(path), "num_fewshot": 0})
    task.build_all_requests()
    [example] = examples(HarnessTask(path), "test")
    assert request_arguments(example) == [instance.args for instance in task.instances]
    assert example.context == "2024-05-02 00:00:00"
    write = tmp_path / "own"
    write.mkdir()
    for role in ("train", "test"):
        (write / f"{role}.jsonl").write_text((tmp_path / f"{role}.jsonl").read_text())
    assert examples(HarnessTask(path, tmp_path), "test")[0].context == "2024-05-02", "the negative control"


@pytest.mark.parametrize(
    ("kind", "suffix", "train", "expected"),
    [
        ("csv", "csv", "q,a\nGrass?,2\nThe sky?,1,7\n", r"Expected 2 fields in line 3, saw 3"),
        ("parquet", "parquet", "q,a\n", r"[Pp]arquet"),
        ("json", "json", '[{"q": "Grass?", "a": 2},\n', r"position 25"),
    ],
)
def test_other_unreadable_files_that_a_task_names_are_refused_with_the_cause(
    tmp_path: Path, kind: str, suffix: str, train: str, expected: str
) -> None:
    """The message gives the cause and not the wrapper error of `datasets`. It does not mention the hub for a file on disk."""
    path = task_on_files(tmp_path, kind, suffix, train=train, test=train)
    with pytest.raises(BenchmarkError) as caught:
        HarnessTask(path)
    message = str(caught.value)
    assert message.startswith(f"benchmark own: its rows in {tmp_path}/train.{suffix}, {tmp_path}/test.{suffix} cannot be read: ")
    assert re.search(expected, message.partition("cannot be read: ")[2])
    assert "\n" not in message and "hub" not in message and "Correct these files" in message


def test_a_json_file_that_is_one_array_is_read_as_lm_eval_reads_it(tmp_path: Path) -> None:
    text = '[{"q": "Grass?", "a": 2},\n {"q": "The sky?", "a": 1}]'
    task = HarnessTask(task_on_files(tmp_path, "json", "json", train=text, test=text))
    assert [example.context for example in examples(task, "train")] == ["Grass?", "The sky?"]
