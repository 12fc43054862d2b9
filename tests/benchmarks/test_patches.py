"""Importing our package, opening a task and scoring its rows leave lm_eval and `datasets` unpatched."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import utils as lm_eval_utils
from task_files import PARITY, examples, numbers, write_task

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.harness.patches import files_keyed_by_content, sandboxed_templates

LOADER = """
from datasets import Dataset, DatasetDict

def rows(count):
    for number in range(count):
        yield {"question": f"Is {number} odd or even?", "label": number % 2}

def load(**_):
    made = Dataset.from_generator(rows, gen_kwargs={"count": 8}).shuffle(seed=0)
    return DatasetDict({"train": made.select(range(4)), "test": made.map(lambda row: row).select(range(4, 8))})

def process(documents):
    return documents.map(lambda row: {"label": 1 - row["label"]})
"""


def library_state() -> dict[str, Any]:
    """Return everything a patch could change: the functions, classes and flags of lm_eval and `datasets`."""
    return dict(_state()) | {"caching": datasets.is_caching_enabled()}


def _state() -> Iterator[tuple[str, Any]]:
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in ("lm_eval", "datasets") or module is None:
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                yield f"{name}.{key}", value
            if inspect.isclass(value) and value.__module__ == name:
                yield from ((f"{name}.{key}.{member}", inner) for member, inner in vars(value).items() if callable(inner))
    yield from ((f"env.{key}", value) for key, value in vars(lm_eval_utils.env).items() if callable(value))


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names whose value is another object. Names of modules imported in the meantime are ignored."""
    instance = {key for key in after if key.startswith("env.")}
    return sorted(key for key in before.keys() | instance if before.get(key) is not after.get(key))


def test_importing_the_package_patches_nothing() -> None:
    """The first import of our package in a process replaces no function or class of the two libraries."""
    probe = (
        "import sys, inspect, datasets, datasets.data_files, lm_eval.api.task, lm_eval.evaluator, lm_eval.tasks\n"
        "from collections.abc import Iterator\nfrom typing import Any\nfrom lm_eval import utils as lm_eval_utils\n"
        f"{inspect.getsource(library_state)}\n{inspect.getsource(_state)}\n{inspect.getsource(changed)}\n"
        "before = library_state()\n"
        "assert 'lm_harmony.benchmarks.harness' not in sys.modules\n"
        "import lm_harmony.benchmarks.harness, lm_harmony.benchmarks.splits\n"
        "print(len(before), changed(before, library_state()))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    count, names = done.stdout.strip().split(" ", 1)
    assert names == "[]"
    assert int(count) > 500


def write_functions_task(folder: Path) -> Path:
    """Write a task with a function that generates, maps and shuffles its rows, and a second one that processes them."""
    path = write_task(folder, {"train": [], "test": []}, **PARITY, dataset_path=None)
    (folder / "loader.py").write_text(LOADER, encoding="utf-8")
    tags = "custom_dataset: !function loader.load\nprocess_docs: !function loader.process\n"
    path.write_text(path.read_text(encoding="utf-8") + tags, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["functions", "json", "folder"])
def test_opening_rendering_and_scoring_leave_no_patches(kind: str, tmp_path: Path) -> None:
    """Every patch is removed after rows are loaded, after they are rendered, and after replies are scored."""
    rows = {"train": numbers(4), "test": numbers(4, 4)}
    if kind == "functions":
        path = write_functions_task(tmp_path)
    elif kind == "json":
        files = {role: str(tmp_path / "own" / f"{role}.jsonl") for role in rows}
        path = write_task(tmp_path, rows, **PARITY, dataset_path="json", dataset_kwargs={"data_files": files})
        datasets.load_dataset("json", data_files=files)  # the first time, `datasets` replaces names of its own module
    else:
        path = write_task(tmp_path, rows, **PARITY)
    before = library_state()
    task = HarnessTask(path, tmp_path if kind == "folder" else None)
    assert changed(before, library_state()) == []
    rendered = examples(task, "test")
    assert changed(before, library_state()) == []
    score = task.score(rendered, [[(-1.0, False), (-2.0, False)]] * 4, errors=True, samples=True)
    assert score.documents == 4
    assert changed(before, library_state()) == []


def test_a_patch_is_detected() -> None:
    """Negative control: patches are found inside their `with` blocks. They are also removed after an exception."""
    before = library_state()
    with sandboxed_templates():
        assert changed(before, library_state()) == ["env.from_string"]
    with suppress(ZeroDivisionError), files_keyed_by_content():
        assert set(changed(before, library_state())) == {
            "datasets.data_files.DataFilesList.__init__",
            "datasets.load.LocalDatasetModuleFactory.get_module",
        }
        raise ZeroDivisionError
    assert changed(before, library_state()) == []
    datasets.disable_caching()
    try:
        assert changed(before, library_state()) == ["caching"]
    finally:
        datasets.enable_caching()


def test_rows_that_a_function_shuffled_keep_their_order(tmp_path: Path) -> None:
    """A data set that is copied to memory keeps the selection and order that the task's function gave it."""
    task = HarnessTask(write_functions_task(tmp_path))
    expected = datasets.Dataset.from_dict({"number": list(range(8))}).shuffle(seed=0)["number"]
    questions = [row["question"] for role in ("train", "test") for row in task.documents(role)]  # type: ignore[arg-type]
    assert questions == [f"Is {number} odd or even?" for number in expected]
    assert [row["label"] for row in task.documents("test")] == [1 - number % 2 for number in expected[4:]]


def test_a_template_is_compiled_once_in_a_block() -> None:
    """Two uses of a template share one compiled template inside the block and none outside it."""
    with sandboxed_templates():
        assert lm_eval_utils.env.from_string("{{a}}!") is lm_eval_utils.env.from_string("{{a}}!")
        assert lm_eval_utils.apply_template("{{a}}!", {"a": 1}) == "1!"
    assert lm_eval_utils.env.from_string("{{a}}!") is not lm_eval_utils.env.from_string("{{a}}!")
