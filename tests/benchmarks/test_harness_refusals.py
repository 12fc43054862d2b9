"""What cannot be fine-tuned or scored is refused by name, with the reason and what to do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
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


def test_the_task_of_these_tests_is_fit(tmp_path: Path) -> None:
    """What the tests below break is whole before."""
    task = own_task(tmp_path, GOOD, **PARITY)
    assert task.declared == {"train": "train", "test": "test"}
    assert task.documents("train").to_list() == GOOD["train"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"training_split": None}, "it has no training split"),
        ({"test_split": None}, "neither a validation nor a test split"),
        ({"doc_to_image": ["question"]}, "needs images or sound"),
        ({"doc_to_audio": ["question"]}, "needs images or sound"),
        ({"unsafe_code": True}, "executes what the model writes"),
        ({"repeats": 8}, "asks each question 8 times"),
    ],
)
def test_unfit_tasks_are_refused_with_the_reason(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    """A task that train-before-test cannot use is refused before any data is read."""
    path = write_task(tmp_path, GOOD, **PARITY, **fields)
    message = refusal(path, tmp_path / "no data here")
    assert message.startswith("benchmark own cannot be used: ")
    assert reason in message
    assert message.endswith("Choose another (`lm-harmony benchmarks`).")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("squadv2", "Python class"),
        ("mmlu_anatomy", "no training split"),
        ("humaneval", "executes"),
        ("mmmu_val_art", "images"),
    ],
)
def test_tasks_of_lm_eval_that_are_unfit(tmp_path: Path, name: str, reason: str) -> None:
    """Real tasks: a Python class, no training split, executed code, images."""
    assert reason in refusal(find_task_file(name), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_files_that_are_no_task_are_named(tmp_path: Path, text: str, said: str) -> None:
    """A YAML file that is malformed, or defines no single task, is refused by its path or name."""
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    write_rows(tmp_path / "own", GOOD)
    message = refusal(path, tmp_path)
    assert said in message
    assert str(path) in message or "benchmark own" in message


def test_code_of_a_task_that_fails_is_named(tmp_path: Path) -> None:
    """A task's own Python file that cannot be imported is refused with its reason."""
    (tmp_path / "own_code.py").write_text("import no_such_module_anywhere\n", encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(SPLITS + "process_docs: !function own_code.f\n", encoding="utf-8")
    assert "no_such_module_anywhere" in refusal(path, tmp_path)


@pytest.mark.parametrize("unsafe", [True, False])
def test_code_of_an_unfit_task_is_never_run(tmp_path: Path, unsafe: bool) -> None:
    """Importing the code of a task that is refused anyway could download or fail; a fit task's is imported."""
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef f(docs):\n    return docs\n"
    (tmp_path / "own_code.py").write_text(code, encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(SPLITS + f"process_docs: !function own_code.f\nunsafe_code: {str(unsafe).lower()}\n", encoding="utf-8")
    refusal(path, tmp_path)
    assert (tmp_path / "ran").exists() != unsafe


@pytest.mark.parametrize("metadata", [{"version": 2.0}, {"folder": "x", "declared": "y"}])
def test_metadata_of_a_task_does_not_meet_its_files(tmp_path: Path, metadata: dict[str, Any]) -> None:
    """lm_eval hands a task's metadata to whoever makes its data; local files do not care."""
    assert own_task(tmp_path, GOOD, metadata=metadata, **PARITY).documents("train").to_list() == GOOD["train"]


def example_refusal(task: HarnessTask, document: Row) -> str:
    with pytest.raises(BenchmarkError) as caught:
        task.example(7, document, chat=None, aliases="first")
    return str(caught.value)


def test_row_without_a_column_is_named(tmp_path: Path) -> None:
    """A row that lacks what a template reads is named with its number, the column and the columns there are."""
    task = own_task(tmp_path, GOOD, **PARITY)
    message = example_refusal(task, {"quastion": "a", "label": 0})
    assert message.startswith("benchmark own, row 7: 'question' is undefined (columns: quastion, label)")
    assert task.example(7, {"question": "a", "label": 0}, chat=None, aliases="first").continuation == " odd"


def render_first(task: HarnessTask) -> None:
    task.example(7, task.documents("train")[0], chat=None, aliases="first")


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_another_schema_are_refused(name: str, tmp_path: Path) -> None:
    """Every catalogued task refuses rows whose columns are renamed, in train as in test, with task and columns named."""
    strange = [{"x" + column: value for column, value in row.items()} for row in ROWS[name]["train"]]
    scored = "test" if "test" in ROWS[name] else "validation"
    write_rows(tmp_path / name, {**ROWS[name], "train": strange})
    task = HarnessTask(find_task_file(name), tmp_path)
    with pytest.raises(BenchmarkError, match=f"benchmark {name}, (row 7|train rows)"):
        render_first(task)
    write_rows(tmp_path / name, {**ROWS[name], scored: strange})
    assert f"benchmark {name}" in refusal(find_task_file(name), tmp_path)


@pytest.mark.parametrize(("column", "value"), [("question", None), ("label", {"a": 1}), ("label", 1.5)])
def test_values_that_no_template_takes(tmp_path: Path, column: str, value: Any) -> None:
    """A value of a wrong type is refused or has no answer; it never becomes a text to learn."""
    fields = {**PARITY, "doc_to_text": "question"}
    task = own_task(tmp_path, GOOD, **fields)
    document = {**copy.deepcopy(GOOD["train"][0]), column: value}
    if column == "question":
        assert "benchmark own, row 7: Context is not a string! : None" in example_refusal(task, document)
    else:
        assert task.example(7, document, chat=None, aliases="first").continuation is None
