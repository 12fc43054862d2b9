"""The task or the user states whether a higher metric is better. It is never assumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from micro import TASK, write_micro
from tiny import write_tiny_model

from lm_harmony.errors import BenchmarkError, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

FUNCTION = """\
def counted(doc, results):
    return {"surprise": -results[doc["label"]][0]}
"""
METRIC = """\
process_results: !function counted.counted
metric_list:
  - metric: surprise
    aggregation: mean
"""
"""Negative log-likelihood of the right answer. Lower is better, but neither this file nor lm_eval's registry states it."""


def spec_of(folder: Path, *, declared: str = "", higher: bool | None = None) -> RunSpec:
    """Return a run on a task with a custom metric. ``declared`` is the task's line with higher_is_better."""
    task = write_micro(folder)
    task.write_text(TASK[: TASK.index("metric_list")] + METRIC + declared, encoding="utf-8")
    (folder / "counted.py").write_text(FUNCTION, encoding="utf-8")
    return RunSpec(
        model=ModelSpec(name=str(folder / "model")),
        benchmark=BenchmarkSpec(task=str(task), data_dir=folder),
        recipe=Recipe(epochs=3, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        greater_is_better=higher,
        execution=Execution(device="cpu"),
    )


def test_a_metric_without_direction_is_refused_before_the_model_is_located(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        set_up_run(spec_of(tmp_path))
    message = str(raised.value)
    assert "benchmark micro: metric surprise,none has no higher_is_better" in message
    assert (
        "metric_list of the task's YAML file" in message and "--train_param.greater_is_better" in message and "\n" not in message
    )


@pytest.mark.parametrize("higher", [True, False])
def test_the_flag_sets_the_direction_if_the_task_states_none(tmp_path: Path, higher: bool) -> None:
    """The two directions select different epochs, so a wrong direction would give a wrong score."""
    write_tiny_model(tmp_path / "model")
    store = RunStore(tmp_path / "run")
    record = train_before_test(spec_of(tmp_path, higher=higher), store)
    scores = [epoch.validation["surprise,none"] for epoch in record.epochs]
    assert len(set(scores)) == 3 and record.higher_is_better is higher
    assert record.chosen_epoch == 1 + scores.index(max(scores) if higher else min(scores))
    results = json.loads(next(store.folder.glob("results_*.json")).read_text(encoding="utf-8"))
    assert results["higher_is_better"] == {"micro": {"surprise": higher}}


@pytest.mark.parametrize("word", ["true", "false"])
def test_the_task_sets_the_direction_if_it_states_one(tmp_path: Path, word: str) -> None:
    """Negative control: no flag is needed, and a flag that contradicts the task is refused."""
    write_tiny_model(tmp_path / "model")
    spec = spec_of(tmp_path, declared=f"    higher_is_better: {word}\n")
    assert set_up_run(spec).higher_is_better is (word == "true")
    with pytest.raises(UsageError, match="is better when"):
        set_up_run(dataclasses.replace(spec, greater_is_better=word != "true"))


def test_a_direction_in_quotes_is_refused(tmp_path: Path) -> None:
    """bool("false") is True, so a quoted value would be read as true."""
    with pytest.raises(BenchmarkError, match="higher_is_better of metric surprise must be true or false, got 'false'"):
        set_up_run(spec_of(tmp_path, declared="    higher_is_better: 'false'\n"))
