"""Tasks and rows that cannot be used for fine-tuning or scoring are refused by name, with the reason and the remedy."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import ROWS
from task_files import PARITY, Row, own_task, write_rows, write_task

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.errors import BenchmarkError

SPLITS = "task: own\ntraining_split: train\ntest_split: test\n"
GOOD = {"train": [{"question": "a", "label": 0}], "test": [{"question": "b", "label": 1}]}


def refusal(path: Path, data_dir: Path | None) -> str:
    with pytest.raises(BenchmarkError) as caught:
        HarnessTask(path, data_dir)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_the_unchanged_task_of_these_tests_is_accepted(tmp_path: Path) -> None:
    """Negative control: the task that the tests below damage is valid."""
    task = own_task(tmp_path, GOOD, **PARITY)
    assert task.split_names == {"train": "train", "test": "test"}
    assert task.documents("train").to_list() == GOOD["train"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"training_split": None}, "it has no training split"),
        ({"test_split": None}, "neither a validation nor a test split"),
        ({"doc_to_image": ["question"]}, "needs images or sound"),
        ({"doc_to_audio": ["question"]}, "needs images or sound"),
        ({"unsafe_code": True}, "executes code that the model writes"),
        ({"repeats": 8}, "repeats: 8 is not supported"),
    ],
)
def test_unsupported_tasks_are_refused_with_the_reason(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    """A task that train-before-test cannot use is refused before any data is read."""
    path = write_task(tmp_path, GOOD, **PARITY, **fields)
    message = refusal(path, tmp_path / "no data here")
    assert message.startswith("benchmark own cannot be used: ")
    assert reason in message
    assert message.endswith("Choose another (`lm-harmony benchmarks`).")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("prompts.yaml:one", "Not yet implemented to accept doc_to_choice"), ("promptsource:x", "promptsource is not installed")],
)
def test_prompts_that_lm_eval_cannot_use_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, reason: str
) -> None:
    one = {"doc_to_text": "{{question}}", "doc_to_target": "{{label}}", "doc_to_choice": "[1, 2]"}
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump({"prompts": {"one": one}}))
    monkeypatch.chdir(tmp_path)
    message = refusal(write_task(tmp_path, GOOD, **PARITY, use_prompt=prompt), tmp_path)
    assert message.startswith(f"benchmark own: use_prompt = {prompt!r}: ") and reason in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("squadv2", "Python class"),
        ("mmlu_anatomy", "no training split"),
        ("humaneval", "executes"),
        ("mmmu_val_art", "images"),
    ],
)
def test_unsupported_tasks_of_lm_eval_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    """Real tasks that use a Python class, no training split, executed code or images."""
    assert reason in refusal(find_task_file(name), tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"output_type": "multi_choice"}, "output_type must be one of {}, got 'multi_choice'. Did you mean 'multiple_choice'?"),
        ({"doc_to_choice": None}, "output_type multiple_choice needs doc_to_choice, got None. Add the choices."),
        ({"doc_to_choice": []}, "output_type multiple_choice needs doc_to_choice, got []. Add the choices."),
        ({"metric_list": [{"metric": "accc"}]}, "metric_list: lm_eval has no metric 'accc'. Did you mean 'acc'"),
        (
            {"metric_list": [{"metric": "acc", "aggregation": "meen"}]},
            "metric_list: lm_eval has no aggregation 'meen' (of acc). Did you mean 'mean'",
        ),
    ],
)
def test_wrong_values_of_a_task_file_are_refused_with_file_and_field(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    """lm_eval would accept them without a message, or blame the rows, or fail while the test rows are scored."""
    path = write_task(tmp_path, GOOD, **(PARITY | fields))
    kinds = "loglikelihood, multiple_choice, loglikelihood_rolling, generate_until"
    assert refusal(path, tmp_path).startswith(f"{path}: {expected.replace('{}', kinds)}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: [a, b]\n", "`task` must be the name of one task, got ['a', 'b']"),
        ("group: g\ntask:\n  - a\n", "`task` must be the name of one task, got ['a']"),
        ("training_split: train\n", "`task` must be the name of one task, got None"),
        ("- a\n- b\n", "cannot be read as an lm_eval task: Expected YAML dict"),
        ("", "cannot be read as an lm_eval task"),
        ("task: [\n", "cannot be read as an lm_eval task"),
        (SPLITS + "process_docs: !function nowhere.f\n", "cannot be read as an lm_eval task"),
        ("task: own\ninclude: absent.yaml\n", "cannot be read as an lm_eval task"),
        (SPLITS + "no_such_field: 1\n", "no_such_field"),
        (SPLITS + "output_type: rhyme\n", "rhyme"),
    ],
)
def test_files_that_define_no_task_are_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    """A YAML file that is malformed, or does not define exactly one task, is refused by its path or name."""
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    write_rows(tmp_path / "own", GOOD)
    message = refusal(path, tmp_path)
    assert expected in message
    assert str(path) in message or "benchmark own" in message


def test_a_task_whose_code_fails_is_refused_with_the_reason(tmp_path: Path) -> None:
    """A task's own Python file that cannot be imported is refused with its reason."""
    (tmp_path / "own_code.py").write_text("import no_such_module_anywhere\n", encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(SPLITS + "process_docs: !function own_code.f\n", encoding="utf-8")
    assert "no_such_module_anywhere" in refusal(path, tmp_path)


@pytest.mark.parametrize("unsafe", [True, False])
def test_code_of_an_unsupported_task_is_never_run(tmp_path: Path, unsafe: bool) -> None:
    """Code of a refused task is not imported, because it could download data or fail. Code of a supported task is imported."""
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef f(docs):\n    return docs\n"
    (tmp_path / "own_code.py").write_text(code, encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(SPLITS + f"process_docs: !function own_code.f\nunsafe_code: {str(unsafe).lower()}\n", encoding="utf-8")
    refusal(path, tmp_path)
    assert (tmp_path / "ran").exists() != unsafe


@pytest.mark.parametrize("metadata", [{"version": 2.0}, {"folder": "x", "declared": "y"}])
def test_metadata_of_a_task_is_not_used_for_local_files(tmp_path: Path, metadata: dict[str, Any]) -> None:
    """lm_eval passes a task's metadata to the loader of its data. Local files ignore it."""
    assert own_task(tmp_path, GOOD, metadata=metadata, **PARITY).documents("train").to_list() == GOOD["train"]


def example_refusal(task: HarnessTask, document: Row) -> str:
    with pytest.raises(BenchmarkError) as caught:
        task.example(7, document, chat=None, aliases="first")
    return str(caught.value)


def test_a_row_without_a_column_is_refused_by_number(tmp_path: Path) -> None:
    """If a row lacks a column of the template, the message names the row number, the column and the existing columns."""
    task = own_task(tmp_path, GOOD, **PARITY)
    message = example_refusal(task, {"quastion": "a", "label": 0})
    assert message.startswith("benchmark own, row 7: 'question' is undefined (columns: quastion, label)")
    assert task.example(7, {"question": "a", "label": 0}, chat=None, aliases="first").continuation == " odd"


def test_an_empty_choice_in_the_first_row_is_refused_with_its_line(tmp_path: Path) -> None:
    """lm_eval reads the first letter of every choice of that row."""
    rows = {role: [{"question": "a", "label": 0, "choices": ["odd", "even"]}] * 2 for role in ("train", "test")}
    fields = {**PARITY, "doc_to_choice": "{{choices}}"}
    own_task(tmp_path, rows, **fields)  # negative control
    rows["test"] = [{"question": "a", "label": 0, "choices": ["odd", ""]}, *rows["test"]]
    with pytest.raises(BenchmarkError) as caught:
        own_task(tmp_path, rows, **fields)
    place = f"first test row ({tmp_path / 'own' / 'test'}.jsonl line 1)"
    assert str(caught.value) == f"benchmark own, {place}: doc_to_choice gives an empty choice. Give every choice a text."


HINT = "{{question}}{% if hint %} Hint: {{hint}}{% endif %}"


def null_refusal(folder: Path, role: str, rows: dict[str, list[Row]], **fields: Any) -> str | None:
    """Return the error message for the third row of a role, or None if it can be rendered."""
    task = own_task(folder, rows, **{**PARITY, **fields})
    try:
        task.example(2, task.documents(role)[2], chat=None, aliases="first", split=role)  # type: ignore[arg-type]
    except BenchmarkError as error:
        return str(error)
    return None


def hinted(**third: Any) -> dict[str, list[Row]]:
    row: Row = {"question": "a", "label": 0, "hint": "none", "choices": ["odd", "even"]}
    return {role: [dict(row), dict(row), row | third, dict(row)] for role in ("train", "test")}


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(
    ("fields", "third", "column"),
    [
        ({"doc_to_text": "{{question}} ({{hint}})"}, {"hint": None}, "hint"),
        ({"doc_to_text": "{{question}} ({{hint | lower}})"}, {"hint": None}, "hint"),
        ({"doc_to_text": "{{choices[1]}}"}, {"choices": ["odd", None]}, "choices"),
        ({"doc_to_choice": "choices"}, {"choices": ["odd", None]}, "choices"),
        ({"doc_to_choice": "{{choices}}"}, {"choices": ["odd", None]}, "choices"),
        ({"doc_to_text": HINT}, {"hint": None}, None),
        ({"doc_to_text": "{{question}} {{hint or 'None'}}"}, {"hint": None}, None),
        ({"doc_to_text": "{{question}} None"}, {"hint": None}, None),
        ({"doc_to_text": "{{question}} ({{hint}})"}, {"hint": "None"}, None),
    ],
)
def test_a_null_that_would_be_printed_is_refused_with_its_line(
    role: str, fields: dict[str, Any], third: Row, column: str | None, tmp_path: Path
) -> None:
    """A null that would be rendered as "None" in a question or choice is refused. A template that handles null is accepted."""
    message = null_refusal(tmp_path, role, hinted(**third), **fields)
    if column is None:
        assert message is None
        return
    place = f"{role} row 2 ({tmp_path / 'own' / role}.jsonl line 3)"
    assert message is not None and message.startswith(f"benchmark own, {place}: column {column!r} is null")


PROCESSING = """
def keep_all(docs):
    return docs.map(lambda doc: {"question": doc["question"].strip()})

def print_hint(docs):
    return docs.map(lambda doc: {"question": f"{doc['question']} ({doc['hint']})"}).remove_columns("hint")

def ask_for_hint(docs):
    return docs.map(lambda doc: {"question": f"{doc['question']} ({doc['hint'] or 'nonesuch'})"}).remove_columns("hint")

def drop_first(docs):
    return docs.select(range(1, len(docs)))
"""


@pytest.mark.parametrize(("function", "line"), [("keep_all", " line 3"), ("drop_first", "")])
def test_the_line_is_given_only_if_it_is_known(function: str, line: str, tmp_path: Path) -> None:
    """If a task's own processing moves rows, the file is named without a line."""
    (tmp_path / "own_code.py").write_text(PROCESSING, encoding="utf-8")
    rows = hinted(hint=None)
    rows["train"][3]["hint"] = None
    for number, row in enumerate(rows["train"]):
        row["question"] += str(number)
    path = write_task(tmp_path, rows, **{**PARITY, "doc_to_text": "{{question}} ({{hint}})"})
    path.write_text(path.read_text() + f"process_docs: !function own_code.{function}\n", encoding="utf-8")
    task = HarnessTask(path, tmp_path)
    with pytest.raises(BenchmarkError) as caught:
        task.example(2, task.documents("train")[2], chat=None, aliases="first", split="train")
    assert f"train row 2 ({tmp_path / 'own' / 'train.jsonl'}{line}): column 'hint' is null" in str(caught.value)


@pytest.mark.parametrize(("function", "refused"), [("print_hint", True), ("ask_for_hint", False)])
def test_a_null_that_a_tasks_processing_prints_is_refused(function: str, refused: bool, tmp_path: Path) -> None:
    """Python code that formats a null as "None" is refused. Code that checks for null first is accepted."""
    (tmp_path / "own_code.py").write_text(PROCESSING, encoding="utf-8")
    path = write_task(tmp_path, hinted(hint=None), **PARITY)
    path.write_text(path.read_text() + f"process_docs: !function own_code.{function}\n", encoding="utf-8")
    task = HarnessTask(path, tmp_path)
    documents = task.documents("train")
    assert documents[2]["question"] == ("a (None)" if refused else "a (nonesuch)")
    assert task.example(1, documents[1], chat=None, aliases="first", split="train").context == "a (none)"
    if refused:
        with pytest.raises(BenchmarkError, match=r"train row 2 \(.*train\.jsonl line 3\): column 'hint' is null"):
            task.example(2, documents[2], chat=None, aliases="first", split="train")
    else:
        assert task.example(2, documents[2], chat=None, aliases="first", split="train").context == "a (nonesuch)"


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_row_that_a_tasks_own_code_cannot_process_is_named_with_its_line(role: str, tmp_path: Path) -> None:
    """lm_eval processes all rows at once. The row with the null is still found and named."""
    (tmp_path / "own_code.py").write_text(PROCESSING, encoding="utf-8")
    rows = hinted()
    path = write_task(tmp_path, rows, **PARITY)
    path.write_text(path.read_text() + "process_docs: !function own_code.keep_all\n", encoding="utf-8")
    assert len(HarnessTask(path, tmp_path).documents(role)) == 4  # type: ignore[arg-type]
    rows[role][2]["question"] = None
    write_rows(tmp_path / "own", rows)
    with pytest.raises(BenchmarkError) as caught:
        HarnessTask(path, tmp_path).documents(role)  # type: ignore[arg-type]
    assert f"{role} rows ({tmp_path / 'own' / role}.jsonl line 3): " in str(caught.value)


def render_first(task: HarnessTask) -> None:
    task.example(7, task.documents("train")[0], chat=None, aliases="first")


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_another_schema_are_refused(name: str, tmp_path: Path) -> None:
    """Every catalogued task refuses rows with renamed columns, in train and test. The message names task and columns."""
    strange = [{"x" + column: value for column, value in row.items()} for row in ROWS[name]["train"]]
    scored = "test" if "test" in ROWS[name] else "validation"
    write_rows(tmp_path / name, {**ROWS[name], "train": strange})
    task = HarnessTask(find_task_file(name), tmp_path)
    with pytest.raises(BenchmarkError, match=f"benchmark {name}, (row 7|train rows)"):
        render_first(task)
    write_rows(tmp_path / name, {**ROWS[name], scored: strange})
    assert f"benchmark {name}" in refusal(find_task_file(name), tmp_path)


@pytest.mark.parametrize(("column", "value"), [("question", None), ("label", {"a": 1}), ("label", 1.5)])
def test_values_of_a_wrong_type_are_refused_or_have_no_continuation(tmp_path: Path, column: str, value: Any) -> None:
    """A value of a wrong type never becomes part of a training text."""
    fields = {**PARITY, "doc_to_text": "question"}
    task = own_task(tmp_path, GOOD, **fields)
    document = {**copy.deepcopy(GOOD["train"][0]), column: value}
    if column == "question":
        assert "benchmark own, row 7: Context is not a string! : None" in example_refusal(task, document)
    else:
        assert task.example(7, document, chat=None, aliases="first").continuation is None
