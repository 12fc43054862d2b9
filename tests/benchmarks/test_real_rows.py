"""Real rows of real benchmarks are loaded with the same code as all other rows."""

from __future__ import annotations

import pytest
from shared import DATA, needs_data

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.splits import make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps
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
