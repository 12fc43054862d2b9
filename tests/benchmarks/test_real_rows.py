"""Real rows of real benchmarks are loaded with the same code as all other rows."""

from __future__ import annotations

import pytest
from lm_eval_alone import lm_eval_task, request_arguments
from shared import DATA, needs_data

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.harness.few_shot import direct_rows
from lm_harmony.benchmarks.local_data import read_splits
from lm_harmony.benchmarks.splits import make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps, Role
from lm_harmony.errors import BenchmarkError

INCOMPLETE = {"mathqa": "validation", "piqa": "train", "sciq": "train"}
PRESENT = sorted(path.name for path in DATA.glob("*") if path.is_dir()) if DATA.is_dir() else []


@needs_data
@pytest.mark.parametrize("task", PRESENT)
def test_real_rows_split_cleanly_and_render_as_they_are_scored(task: str) -> None:
    assert task in BENCHMARKS
    if task in INCOMPLETE:
        with pytest.raises(BenchmarkError, match=f"{task}/{INCOMPLETE[task]}.jsonl does not exist"):
            HarnessTask(find_task_file(task), DATA)
        return
    harness = HarnessTask(find_task_file(task), DATA)
    splits = make_splits(harness, caps=Caps(train=200, validation=50, test=50), seed=0, protocol="clean", chat=None)
    trained_on = {example.request_texts for example in splits.train}
    assert not trained_on & {example.request_texts for example in (*splits.validation, *splits.test)}
    for example in splits.train:
        assert example.continuation
        scored = {request.context + request.continuation for request in example.requests}
        generated = harness.output_type == "generate_until"
        assert (example.context if generated else example.context + example.continuation) in scored


@needs_data
@pytest.mark.parametrize("task", [task for task in PRESENT if task not in INCOMPLETE])
def test_few_shot_requests_of_real_rows_are_lm_evals(task: str) -> None:
    """All texts with five examples are lm_eval's, but for rows whose question is among the examples that lm_eval draws."""
    harness, path = HarnessTask(find_task_file(task), DATA), find_task_file(task)
    role: Role = "test" if "test" in harness.split_names else "validation"
    files = {name: DATA / task / f"{name}.jsonl" for name in harness.split_names}
    rows = {name: rows.to_list() for name, rows in read_splits({k: path for k, path in files.items() if path.is_file()}).items()}
    theirs = lm_eval_task(path, rows, num_fewshot=5)
    theirs.set_fewshot_seed(3)
    theirs.build_all_requests(limit=40)
    expected: list[list[tuple[object, ...]]] = [[] for _ in range(40)]
    for instance in theirs.instances:
        expected[instance.doc_id].append(instance.args)
    documents = harness.documents(role).select(range(40))
    test = [harness.example(row, document, chat=None, aliases="first") for row, document in enumerate(documents)]
    found = direct_rows(harness, test, [5], seed=3, chat=None)[5]
    differing = [row for row, one in enumerate(found.examples) if request_arguments(one) != expected[row]]
    assert len(differing) == found.replaced <= 2
    assert [request_arguments(one) for one in direct_rows(harness, test, [5], seed=4, chat=None)[5].examples] != expected
