"""Training and scoring use the same text, and it is lm_eval's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval_alone import lm_eval_requests, lm_eval_task, request_arguments
from rows import ROWS
from task_files import examples, write_rows
from tiny import tiny_model, tiny_module, tiny_tokenizer

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.models.text import TextEncoder

GENERATION = ("gsm8k", "nq_open")
NO_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[reply] {% endif %}"
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        write_rows(folder / name, rows)
    return folder


@pytest.fixture(scope="module")
def hflm() -> HFLM:
    return HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(chat=True), batch_size=1)


def right_text(task: Any, document: Mapping[str, Any], aliases: str) -> tuple[str, str]:
    """Return context and right answer, built from the task's own fields and not from its requests."""
    delimiter, description = task.config.target_delimiter, task.config.description
    if task.multiple_input:  # winogrande: the options are in the context. The rest of the sentence follows.
        right = task.doc_to_choice(document)[task.doc_to_text(document)]
        return description + right, delimiter + task.doc_to_target(document)
    target = task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        target = task.doc_to_choice(document)[target] if isinstance(target, int) else target
    elif isinstance(target, list):
        target = target[0] if aliases == "first" else " ".join(target)
    return description + task.doc_to_text(document), delimiter + target


@pytest.mark.parametrize("aliases", ["first", "joined"])
@pytest.mark.parametrize("name", ROWS)
def test_training_text_is_the_context_with_the_right_answer(name: str, aliases: str, data_dir: Path) -> None:
    """The training text is the context, the delimiter and the right answer, rebuilt here from the task's fields."""
    task, lm_evals = HarnessTask(find_task_file(name), data_dir), lm_eval_task(find_task_file(name), ROWS[name])
    for role in ROWS[name]:
        for example in examples(task, role, aliases=aliases):
            assert (example.context, example.continuation) == right_text(lm_evals, example.document, aliases)


@pytest.mark.parametrize("name", ROWS)
def test_examples_hold_their_row_and_target(name: str, data_dir: Path) -> None:
    """An example holds the row as lm_eval preprocesses it, the row number, and all right answers."""
    task, lm_evals = HarnessTask(find_task_file(name), data_dir), lm_eval_task(find_task_file(name), ROWS[name])
    documents = list(lm_evals.training_docs())
    found = examples(task, "train")
    assert [(example.row, dict(example.document)) for example in found] == list(enumerate(documents))
    assert [example.target for example in found] == [str(lm_evals.doc_to_target(document)) for document in documents]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_training_text_is_a_scored_text(name: str, chat: bool, data_dir: Path) -> None:
    """Exactly one of the scored texts is the training text. For generated answers, the contexts are equal."""
    task, lm_evals = HarnessTask(find_task_file(name), data_dir), lm_eval_task(find_task_file(name), ROWS[name])
    render = tiny_model(chat=True).text.render_chat if chat else None
    for role in ROWS[name]:
        for example in examples(task, role, render):
            texts = [request.context + request.continuation for request in example.requests]
            if name in GENERATION:
                assert texts == [example.context]
                answer = right_text(lm_evals, example.document, "first")[1]
                assert example.continuation == (answer.removeprefix(" ") if chat else answer)
            else:
                assert texts.count(f"{example.context}{example.continuation}") == 1
                assert len(set(texts)) == len(texts) > 1
            if chat:
                assert example.context.endswith("<|assistant|>")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_requests_equal_lm_evals(name: str, chat: bool, data_dir: Path, hflm: HFLM) -> None:
    """Every request equals the one that lm_eval builds, also with the chat template of lm_eval's own HFLM."""
    task = HarnessTask(find_task_file(name), data_dir)
    render, lm_evals = (tiny_model(chat=True).text.render_chat, hflm.apply_chat_template) if chat else (None, None)
    for role in ROWS[name]:
        ours = [request_arguments(example) for example in examples(task, role, render)]
        assert ours == lm_eval_requests(find_task_file(name), ROWS[name], role, lm_evals)


def test_requests_differ_with_and_without_a_chat_template(data_dir: Path, hflm: HFLM) -> None:
    """Negative control of the test above: requests without a chat template differ from lm_eval's chat requests."""
    plain = [request_arguments(example) for example in examples(HarnessTask(find_task_file("nq_open"), data_dir), "validation")]
    assert plain != lm_eval_requests(find_task_file("nq_open"), ROWS["nq_open"], "validation", hflm.apply_chat_template)


@pytest.mark.parametrize("name", ["nq_open", "gsm8k", "winogrande"])
def test_templates_without_a_system_role_render_as_in_lm_eval(name: str, data_dir: Path) -> None:
    """If a template refuses the system message (nq_open has a description), it is rendered without one, as in lm_eval."""
    tokenizer = copy.deepcopy(tiny_tokenizer(chat=True))
    tokenizer.chat_template = NO_SYSTEM_ROLE
    lm_evals = HFLM(pretrained=tiny_module(), tokenizer=tokenizer, batch_size=1).apply_chat_template
    render = TextEncoder(tokenizer, name="no system role").render_chat
    ours = [request_arguments(example) for example in examples(HarnessTask(find_task_file(name), data_dir), "train", render)]
    assert ours == lm_eval_requests(find_task_file(name), ROWS[name], "train", lm_evals)
    assert "Answer these questions" not in str(ours)


@pytest.mark.parametrize(
    ("name", "aliases", "text"),
    [
        ("nq_open", "first", "Answer these questions:\n\nQ: how many bells hang in the old tower?\nA:| 12"),
        ("nq_open", "joined", "Answer these questions:\n\nQ: how many bells hang in the old tower?\nA:| 12 twelve a dozen"),
        ("winogrande", "first", "Noor lent José a coat, so José| stayed warm all night."),
        ("cola", "first", "Him gave the to book she.\nQuestion: Does this sentence make sense?\nAnswer:| no"),
        ("openbookqa", "first", "At −5 °C a puddle will| freeze"),
        ("sst2", "first", "two hours of wet cardboard \nQuestion: Is this sentence positive or negative?\nAnswer:| negative"),
    ],
)
def test_the_second_training_row_has_the_expected_text(name: str, aliases: str, text: str, data_dir: Path) -> None:
    """The expected training texts are written by hand from the task's file. A | marks the start of the answer."""
    example = examples(HarnessTask(find_task_file(name), data_dir), "train", aliases=aliases)[1]
    assert f"{example.context}|{example.continuation}" == text


def test_another_label_gives_another_training_text(tmp_path: Path, data_dir: Path) -> None:
    """The trained answer depends on the row's label, not on the position of a choice."""
    changed = [{**row, "label": (row["label"] + 1) % 3} for row in ROWS["mnli"]["train"]]
    write_rows(tmp_path / "mnli", {**ROWS["mnli"], "train": changed})
    before, after = (examples(HarnessTask(find_task_file("mnli"), folder), "train") for folder in (data_dir, tmp_path))
    assert [example.continuation for example in before] == [" True", " Neither", " False"]
    assert [example.continuation for example in after] == [" Neither", " False", " True"]
    assert [example.requests for example in before] == [example.requests for example in after]
