"""A group of lm_eval tasks is one benchmark: trained once, every task scored, and aggregated as lm_eval does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.config.group import AggMetricConfig
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from task_files import PARITY, write_rows
from tiny import write_tiny_model

from lm_harmony.analysis.leaderboard import own_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.paired import compare
from lm_harmony.benchmarks.group_checks import AGGREGATE_FIELDS, TASK_FIELDS, check_group
from lm_harmony.benchmarks.harness import open_benchmark
from lm_harmony.benchmarks.harness.provenance import hash_of_samples
from lm_harmony.benchmarks.near_duplicates import drop_near_duplicates, recurring_rows
from lm_harmony.benchmarks.splits import Splits
from lm_harmony.benchmarks.task_files import task_files
from lm_harmony.benchmarks.task_groups import find_group
from lm_harmony.benchmarks.task_index import lm_eval_names
from lm_harmony.benchmarks.task_yaml import read_task_yaml
from lm_harmony.benchmarks.types import Caps
from lm_harmony.cli.main import main
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.errors import BenchmarkError, HarmonyError, StoreError, UsageError, counted
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.report.export import export
from lm_harmony.report.recomputed_scores import recompute
from lm_harmony.report.tables import board_csv
from lm_harmony.runs.protocol import score_again, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.rescoring import score_part_again
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import study_spec
from lm_harmony.studies.workload import workload

SIZES = {"plain": 5, "fewer": 9, "other": 14}
"""Task of the group -> number of its test rows; they differ, so that means by rows and by tasks do."""
ACC = {"metric": "acc", "weight_by_size": True}
NORM = {"metric": "acc_norm", "weight_by_size": False, "filter_list": "none"}
GROUPS: dict[str, dict[str, Any]] = {
    "exams": {"task": ["plain", "inner"], "aggregate_metric_list": [ACC, NORM], "group_alias": "all exams"},
    "inner": {"task": [{"task": "fewer", "task_alias": "less"}, "other_tag"], "aggregate_metric_list": [ACC]},
    "by_tasks": {"task": ["plain", "inner"], "aggregate_metric_list": [{**ACC, "weight_by_size": False}]},
    "spoken": {
        "task": ["say_one", "say_two"],
        "aggregate_metric_list": [{"metric": "exact_match", "filter_list": "first", "weight_by_size": True}],
    },
    "own_rows": {"task": ["left", "right"], "aggregate_metric_list": [ACC]},
    "inline": {"task": ["plain", {"group": "rest", "task": ["fewer"]}], "aggregate_metric_list": ACC},
    "no_score": {"task": ["plain", "fewer"]},
    "empty": {"task": [], "aggregate_metric_list": [ACC]},
    "unknown": {"task": ["plane"], "aggregate_metric_list": [ACC]},
    "other_metric": {"task": ["plain"], "aggregate_metric_list": [{"metric": "f1"}]},
    "wrong_field": {"task": ["plain"], "aggregate_metric_list": [{"metric": "acc", "weight": 1}]},
    "circle": {"task": ["circle_back"], "aggregate_metric_list": [ACC]},
    "circle_back": {"task": ["circle"], "aggregate_metric_list": [ACC]},
    "plain_copy": {"task": ["plain"], "aggregate_metric_list": [ACC]},
}


SPOKEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_choice": None,
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(.).*"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
}
"""Fields of a task with generated answers. The tiny model's answers begin with Q, which is the target of some rows."""


def _rows(count: int, first: int, choices: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which is {number}?",
            "choices": [f"{number + n}" for n in range(choices)],
            "answer": number % choices,
            "target": "Qtqoe"[number % 5],
        }
        for number in range(first, first + count)
    ]


def _task(folder: Path, name: str, rows: dict[str, list[dict[str, Any]]], **fields: Any) -> None:
    """Write a task that names its local files, so that lm_eval reads the same rows."""
    write_rows(folder / name, rows)
    split = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    given = {**PARITY, "doc_to_text": "{{question}} Answer:", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    files = {role: str(folder / name / f"{role}.jsonl") for role in rows}
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        **given,
        "metric_list": metrics,
        **fields,
    }
    config |= {split[role]: role for role in rows} | fields
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tasks with and without training rows, groups of them, and two models."""
    folder = tmp_path_factory.mktemp("world")
    _task(folder, "plain", {"test": _rows(SIZES["plain"], 100, 3)})
    _task(folder, "fewer", {"test": _rows(SIZES["fewer"], 200, 2)}, doc_to_text="Say: {{question}}\nIt is", tag="some_tag")
    _task(folder, "other", {"test": _rows(SIZES["other"], 300, 4)}, description="Numbers.\n\n", tag=["other_tag"])
    _task(folder, "quiz", {"train": [*_rows(30, 0, 4), *_rows(2, 300, 4)]})
    for name, count in (("say_one", 4), ("say_two", 7)):
        _task(folder, name, {"test": _rows(count, 500 + count, 2)}, **SPOKEN)
    _task(folder, "say_quiz", {"train": _rows(20, 0, 2)}, **SPOKEN)
    for name, first in (("left", 0), ("right", 400)):
        _task(folder, name, {"train": [*_rows(10, first, 2), *_rows(1, 450, 2)], "test": _rows(6, first + 50, 2)})
    for name, values in GROUPS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, **values}), encoding="utf-8")
    for seed, model in enumerate(("one", "two")):
        write_tiny_model(folder / model, seed=seed, bos=True)
    return folder


def asked(world: Path, task: str = "exams.yaml", train_on: str | None = "quiz", **fields: Any) -> RunSpec:
    benchmark = BenchmarkSpec(task=str(world / task), include_path=world, train_on=train_on, **fields)
    return RunSpec(
        model=ModelSpec(name=str(world / "one")),
        benchmark=benchmark,
        recipe=Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        execution=Execution(device="cpu", use_git=False),
    )


@pytest.fixture(scope="module")
def run(world: Path) -> RunStore:
    store = RunStore(world / "results" / "exams" / "one" / "seed0")
    train_before_test(asked(world), store)
    return store


@pytest.fixture(scope="module")
def theirs(world: Path) -> Any:
    """What lm_eval gives for the groups with the same model."""
    tasks = TaskManager(include_path=str(world), include_defaults=False)
    found: Any = {}
    for group in ("exams", "by_tasks", "spoken"):
        found[group] = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(world / "one"), "dtype": "float32"},
            device="cpu",
            batch_size=1,
            tasks=[group],
            task_manager=tasks,
            num_fewshot=0,
            bootstrap_iters=1,
        )
    return found


def _written(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("results_*.json")
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _scores(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if "," in key}


def test_aggregates_and_tasks_are_lm_evals(run: RunStore, theirs: Any) -> None:
    ours, expected = _written(run.folder / "direct"), theirs["exams"]
    assert ours["results"].keys() == expected["results"].keys() == {"exams", "inner", *SIZES}
    for name, row in expected["results"].items():
        assert _scores(ours["results"][name]) == pytest.approx(_scores(row), abs=1e-4), name
        assert ours["results"][name]["alias"] == row["alias"] and ours["results"][name]["sample_len"] == row["sample_len"]
    assert len(_scores(expected["results"]["exams"])) == 4 and len(_scores(expected["results"]["inner"])) == 2
    for part in ("group_subtasks", "n-shot", "n-samples", "higher_is_better", "versions"):
        assert ours[part] == expected[part], part
    assert ours["groups"].keys() == expected["groups"].keys() == {"exams", "inner"}
    assert {name: ours["task_hashes"][name] for name in SIZES} == {
        name: hash_of_samples(expected["samples"][name]) for name in SIZES
    }  # the same documents, prompts and targets in the same order


def test_generated_answers_of_a_group_are_scored_as_lm_eval_does(world: Path, theirs: Any) -> None:
    """Trained on free answers, written as the tasks of the group write theirs; the filter of the group is lm_eval's."""
    store = RunStore(world / "spoken_run")
    record = train_before_test(asked(world, "spoken.yaml", "say_quiz"), store)
    assert record.data.train_on is not None and record.data.train_on.rows == {"say_quiz": 20} and record.trained is not None
    ours, expected = _written(store.folder / "direct")["results"], theirs["spoken"]["results"]
    assert _scores(expected["spoken"]).keys() == {"exact_match,first", "exact_match_stderr,first"}
    for name in ("spoken", "say_one", "say_two"):
        assert _scores(ours[name]) == pytest.approx(_scores(expected[name]), abs=1e-4), name
    parts = [expected[name]["exact_match,first"] for name in ("spoken", "say_one", "say_two")]
    assert len(set(parts)) == 3 and 0 < parts[0] < 1  # the comparison has something to find


def test_a_mean_by_tasks_is_not_a_mean_by_rows(world: Path, run: RunStore, theirs: Any) -> None:
    """Negative control: the same answers give other scores and errors where the tasks count equally."""
    by_rows, by_tasks = (theirs[name]["results"][name] for name in ("exams", "by_tasks"))
    assert abs(by_rows["acc,none"] - by_tasks["acc,none"]) > 1e-3
    assert abs(by_rows["acc_stderr,none"] - by_tasks["acc_stderr,none"]) > 1e-4
    group = open_benchmark(str(world / "by_tasks.yaml"), include_path=world, use="scoring")
    record, examples = run.record(), set_up_run(asked(world)).splits.test
    replies = {(sample["task"], sample["doc_id"]): [one[0] for one in sample["resps"]] for sample in run.samples("direct")}  # type: ignore[attr-defined]
    score = group.score(examples, [replies[one.subtask, one.row] for one in examples], errors=True, samples=False)
    assert score.metrics == pytest.approx({"acc,none": by_tasks["acc,none"]}, abs=1e-4)
    assert score.stderrs["acc,none"] == pytest.approx(by_tasks["acc_stderr,none"], abs=1e-4)
    assert record.direct is not None and score.subtasks == record.direct.subtasks


def test_the_record_has_the_aggregate_and_every_task(run: RunStore) -> None:
    record = run.record()
    assert record.benchmark == "exams.train_on.quiz" and record.metric == "acc_norm,none"
    assert record.data.train_on is not None and record.data.train_on.rows == {"quiz": 29} and record.data.train_on.exact == 2
    assert record.data.test == sum(SIZES.values())
    for score in (record.direct, record.trained):
        assert score is not None and score.documents == sum(SIZES.values())
        assert {task: part.documents for task, part in score.subtasks.items()} == SIZES and list(score.subtasks) == list(SIZES)
        weighted = sum(part.metrics["acc,none"] * part.documents for part in score.subtasks.values()) / score.documents
        assert score.metrics["acc,none"] == pytest.approx(weighted)
    written = json.loads((run.folder / "record.json").read_text(encoding="utf-8"))
    assert RunRecord.from_dict(written) == record
    samples = run.samples("test")
    assert [(sample["task"], sample["doc_id"]) for sample in samples] == [
        (task, row) for task, count in SIZES.items() for row in range(count)
    ]
    assert score_again(run).trained == record.trained  # from its sources and weights
    assert SourceCheck().difference(record.sources, record.spec) is None


def test_rows_are_written_in_the_formats_of_the_tasks_in_turn(world: Path) -> None:
    splits = set_up_run(asked(world)).splits
    forms = {"plain": "Which is", "fewer": "Say: Which is", "other": "Numbers.\n\nWhich is"}
    for rows in (splits.train, splits.validation):
        counts = [sum(one.subtask == task for one in rows) for task in SIZES]
        assert max(counts) - min(counts) <= 1 and min(counts) >= 1
        assert all(one.context.startswith(forms[one.subtask]) for one in rows)
    assert {len(one.requests) for one in splits.train if one.subtask == "fewer"} == {2}


def test_a_changed_group_file_makes_the_run_stale(world: Path, run: RunStore) -> None:
    record, file = run.record(), world / "inner.yaml"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before + "# more\n", encoding="utf-8")
        assert SourceCheck().difference(record.sources, record.spec) == "inner.yaml changed since"
    finally:
        file.write_text(before, encoding="utf-8")


def test_caps_of_test_rows_hold_for_each_task(world: Path) -> None:
    setup = set_up_run(asked(world, caps=Caps(test=6, train=9, validation=4)))
    assert {task: sum(one.subtask == task for one in setup.splits.test) for task in SIZES} == {"plain": 5, "fewer": 6, "other": 6}
    assert (len(setup.splits.train), len(setup.splits.validation)) == (9, 4)


def test_a_group_with_training_rows_is_trained_on_the_rows_of_all_its_tasks(world: Path) -> None:
    setup = set_up_run(asked(world, "own_rows.yaml", None))
    assert {one.subtask for one in setup.splits.train} == {"left", "right"} == {one.subtask for one in setup.splits.test}
    assert len({one.row for one in setup.splits.train}) == len(setup.splits.train) and setup.answer_too_long == 0
    assert len(setup.splits.test) == 12 and setup.splits.dropped_from_train + setup.splits.dropped_from_validation == 2
    capped = set_up_run(asked(world, "own_rows.yaml", None, caps=Caps(train=6))).splits.train
    assert [sum(one.subtask == task for one in capped) for task in ("left", "right")] == [3, 3]


def test_recurring_rows_have_numbers_of_the_whole_group(world: Path) -> None:
    """Question 450 is the first test row of the second task, and with other choices in training rows of the first."""
    assert set_up_run(asked(world, "own_rows.yaml", None)).near_duplicates == {}  # negative control
    file = world / "left" / "train.jsonl"
    before = file.read_text(encoding="utf-8")
    try:
        copies = [{**_rows(1, 450, 2)[0], "choices": [str(number), "8"]} for number in range(5)]
        write_rows(world / "left", {"train": [*copies, *_rows(10, 0, 2)]})
        assert set_up_run(asked(world, "own_rows.yaml", None)).near_duplicates == {"choices": (6,)}
    finally:
        file.write_text(before, encoding="utf-8")


def test_an_inline_group_has_the_name_that_lm_eval_gives_it(world: Path) -> None:
    group = find_group(str(world / "inline.yaml"), world)
    assert group is not None and [one.name for one in group.members] == ["plain", "inline::rest"]
    assert [one.name for one in group.subtasks] == ["plain", "fewer"]


def test_groups_of_lm_eval_are_found_by_name() -> None:
    """The tasks are those of lm_eval's own index, which takes 16 s to build."""
    mmlu = find_group("mmlu")
    assert mmlu is not None and [one.name for one in mmlu.members] == [
        *("mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities")
    ]
    names = [one.name for one in mmlu.subtasks]
    assert len(names) == 57 and names[:2] == ["mmlu_abstract_algebra", "mmlu_anatomy"] and names[-1] == "mmlu_world_religions"
    bbh = find_group("bbh")
    assert bbh is not None and len(bbh.subtasks) == 27 and bbh.subtasks[0].name == "bbh_cot_fewshot_boolean_expressions"
    assert find_group("arc_easy") is None and find_group("ai2_arc") is None


@pytest.mark.parametrize(
    ("task", "train_on", "message"),
    [
        (
            "exams",
            None,
            "'exams' is a group of lm_eval tasks, and these have no training split: plain, fewer, other. Add",
        ),
        ("empty", "quiz", "empty.yaml: task must be a list of names that is not empty, got []. Write task: [NAME, NAME]."),
        ("wrong_field", "quiz", "aggregate_metric_list[0] has an unknown key 'weight'. Did you mean 'weight_by_size'?"),
        (
            "no_score",
            "quiz",
            "so lm_eval gives it no score. Name its tasks in a study (benchmarks: [plain, fewer])",
        ),
        ("unknown", "quiz", "lists 'plane', and no task, group or tag has that name. Did you mean 'plain'?"),
        ("circle", "quiz", "circle contains circle_back contains circle"),
        ("exams", "inner", "train_on"),
        ("some_tag", "quiz", "is a group of lm_eval tasks"),
        (
            "other_metric",
            "quiz",
            "aggregate_metric_list in {world}/other_metric.yaml: f1. Its tasks have acc,none, acc_norm,none. C",
        ),
    ],
)
def test_a_wrong_group_is_refused_by_a_study(task: str, train_on: str | None, message: str, world: Path) -> None:
    benchmark = {"task": task, **({"train_on": train_on} if train_on else {})}
    values = {"models": [str(world / "one")], "benchmarks": [benchmark], "include_path": str(world)}
    good = {**values, "benchmarks": [{"task": "exams", "train_on": "quiz"}, "own_rows"]}
    assert [run.benchmark.name for run in study_spec(good, world).runs] == ["exams.train_on.quiz", "own_rows"]  # negative control
    with pytest.raises(HarmonyError) as refused:
        study_spec(values, world)
    assert message.replace("{world}", str(world)) in str(refused.value) and "\n" not in str(refused.value)


def test_the_metric_of_a_group_or_a_task_is_checked_when_a_study_is_read(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"models": [str(world / "one")], "include_path": str(world)}
    for task, has in (("exams", "acc,none, acc_norm,none"), ("by_tasks", "acc,none"), ("plain", "acc,none, acc_norm,none")):
        entry = {"task": task, "train_on": "quiz"}
        good = {**values, "benchmarks": [{**entry, "metric": has.split(", ")[-1]}]}
        assert len(study_spec(good, world).runs) == 1  # negative control
        with pytest.raises(UsageError) as refused:
            study_spec({**values, "benchmarks": [{**entry, "metric": "f1,none"}]}, world)
        rule = f"benchmarks[0].metric = f1,none: benchmark {task}.train_on.quiz has no such metric."
        assert rule in str(refused.value) and f"It has: {has}. Give one of them." in str(refused.value)
    command = f"run --base_model {world}/one --include_path {world} --train_on quiz --device cpu"
    assert main([*command.split(), "--task_name", "exams", "--train_param.metric_for_best_model", "f1,none"]) == 1
    assert "train_param.metric_for_best_model = f1,none: benchmark exams.train_on.quiz has no" in capsys.readouterr().err


def test_a_task_without_a_metric_of_the_group_is_named(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One task has and does, several have and do. A count of one has no plural."""
    for name, metrics in (("bare", ["acc"]), ("nude", ["acc"])):
        rows = {"test": _rows(3, 700, 2)}
        _task(tmp_path, name, rows, metric_list=[{"metric": one, "aggregation": "mean"} for one in metrics])
    text = (world / "plain.yaml").read_text(encoding="utf-8")
    (tmp_path / "plain.yaml").write_text(text, encoding="utf-8")
    for tasks, words in (
        ("bare", "bare has no acc_norm,none and does not"),
        ("bare, nude", "bare, nude have no acc_norm,none and do"),
    ):
        file = tmp_path / "ga.yaml"
        file.write_text(f"group: ga\ntask: [plain, {tasks}]\naggregate_metric_list: [{{metric: acc_norm}}]\n", encoding="utf-8")
        open_benchmark(str(file), use="scoring")
        assert words in caplog.text
    assert (counted(1, "row"), counted(0, "row"), counted(2000, "row")) == ("1 row", "0 rows", "2,000 rows")
    assert (counted(1, "run is", "runs are"), counted(2, "run is", "runs are")) == ("1 run is", "2 runs are")


def test_metrics_in_files_are_those_of_lm_eval(world: Path) -> None:
    for task in ("exams", "inner", "spoken", "by_tasks", "plain", "say_one"):
        files, opened = task_files(task, include_path=world), open_benchmark(task, include_path=world, use="scoring")
        group = find_group(task, world)
        assert files.metrics is not None
        assert set(files.metrics if group is None else group.metrics(files.metrics)) == set(opened.metrics)


def test_a_wrong_name_of_train_on_is_named_so(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"run --base_model {world}/one --include_path {world} --task_name exams --device cpu"
    for train_on in ("nothere", "no.yaml"):
        assert main([*command.split(), "--train_on", train_on]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("lm-harmony: train_on: ") and train_on in shown and "task_name" not in shown


def test_a_wrong_aggregate_is_refused_when_the_group_is_opened(world: Path) -> None:
    with pytest.raises(BenchmarkError, match="no task has a metric of the aggregate_metric_list"):
        open_benchmark("other_metric", include_path=world, use="scoring")


def test_a_name_of_a_task_and_a_group_is_refused(world: Path, tmp_path: Path) -> None:
    for name in ("plain", "plain_copy"):
        text = (world / f"{name}.yaml").read_text(encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(text.replace("group: plain_copy", "group: plain"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"'plain' is defined by several files, .*plain.yaml and .*plain_copy.yaml. Remove one"):
        find_group("plain", tmp_path)


def _pair(folder: Path, task: str = "plain") -> str:
    """Write a group of ``task`` and ``fewer``, and return its file."""
    folder.mkdir(exist_ok=True)
    file = folder / "pair.yaml"
    file.write_text(f"group: pair\ntask: [{task}, fewer]\naggregate_metric_list: [{{metric: acc}}]\n", encoding="utf-8")
    return str(file)


def test_a_task_of_a_group_that_two_files_define_is_refused(world: Path, tmp_path: Path) -> None:
    """The file beside the group's file counts as well as those of include_path; one file under two paths is one."""
    pair = _pair(tmp_path / "mine")
    shadow = tmp_path / "mine" / "shadow.yaml"
    below = tmp_path / "mine" / "below" / "shadow.yaml"
    below.parent.mkdir()
    for stray, text in ((below, "task: plain\n"), (shadow, "task: fewer_not\n")):
        stray.write_text(text, encoding="utf-8")
    found = find_group(pair, world)  # negative control: an unrelated file, and one below the folder
    assert found is not None and [one.file for one in found.subtasks] == [world / "plain.yaml", world / "fewer.yaml"]
    shadow.unlink()
    shadow.symlink_to(world / "plain.yaml")
    assert find_group(pair, world) is not None
    shadow.unlink()
    shadow.write_text("task: plain\ndoc_to_text: nothing\n", encoding="utf-8")
    for include_path in (world, str(world)):
        with pytest.raises(UsageError) as refused:
            find_group(pair, Path(include_path))
        assert f"group pair: {pair}: task: 'plain' is defined by several files, {shadow} and {world}/plain.yaml" in str(
            refused.value
        )
    command = f"run --base_model {world}/one --task_name {pair} --include_path {world} --train_on quiz --device cpu"
    assert main([*command.split(), "--results_dir", str(tmp_path / "results")]) == 1 and not (tmp_path / "results").exists()


def test_a_file_beside_a_group_does_not_replace_a_task_of_lm_eval(world: Path, tmp_path: Path) -> None:
    """Only include_path replaces tasks of lm_eval, as lm_eval documents it."""
    pair = _pair(tmp_path / "mine", "sciq")
    own = tmp_path / "own"
    own.mkdir()
    for name in ("plain", "fewer"):
        text = (world / f"{name}.yaml").read_text(encoding="utf-8")
        (own / f"{name}.yaml").write_text(text.replace("task: plain", "task: sciq"), encoding="utf-8")
    found = find_group(pair, own)
    assert found is not None and found.subtasks[0].file == own / "plain.yaml"
    (own / "plain.yaml").rename(tmp_path / "mine" / "plain.yaml")
    with pytest.raises(UsageError, match=r"task: 'sciq' is defined by several files, .*mine/plain.yaml and .*sciq.yaml"):
        find_group(pair, own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [plain, fewer]\naggregate_metric_list: [{metric: acc}]", "has no key group, but"),
        ("task: [plain, fewer]", "Add group: NAME, task: [NAME, ...] and aggregate_metric_list: [{metric: acc}]"),
        ("group:\ntask: [plain]", "group must be a text that is not empty, got nothing. Write group: NAME."),
        ("group: [x]\ntask: [plain]", "group must be a text that is not empty, got ['x']"),
        ("group: x\ntask: []", "task must be a list of names that is not empty, got []"),
        ("group: x\naggregate_metric_list: [{metric: acc}]", "task must be a list of names that is not empty, got nothing"),
        (
            "group: x\ntask: plain\naggregate_metric_list: [{metric: acc}]",
            "task must be a list of names that is not empty, got 'pl",
        ),
        (
            "group: x\ntask: [plain, 3]",
            "task[1] must be the name of a task, a group or a tag, or a mapping with such a name, got 3",
        ),
        ("group: x\ntask: [{task_alias: y}]", "task[0] must be the name of a task"),
        ("group: x\ntask: [{task: plain, colour: red}]", "x.yaml: task[0] has an unknown key 'colour'. Known are task, metadata"),
        ("group: x\ntask: [plain, {task: plain}]", "task[1] = plain is listed already as task[0]. Remove one of them."),
        ("group: x\ntask: [plain]\ncolour: red", "x.yaml: the file has an unknown key 'colour'. Known are group, group_alias"),
        ("group: x\ntask: [plain]\ngroup_alias: 3", "group_alias must be a text that is not empty, got 3"),
        ("group: x\ntask: [plain]\nmetadata: [1]", "metadata must be a mapping, got [1]"),
        ("group: x\ntask: [{group: y, task: []}]", "group x::y"),
        *(
            (f"group: x\ntask: [plain]\naggregate_metric_list: {value}", f"aggregate_metric_list{message}")
            for value, message in (
                ("acc", " must be a list of mappings, got 'acc'. Write aggregate_metric_list: [{metric: acc}]."),
                ("[acc]", "[0] must be a mapping with the key metric, got 'acc'. Write aggregate_metric_list: [{metric: acc}]."),
                ("[{weight_by_size: true}]", "[0].metric must be the name of a metric, got nothing. Write metric: acc."),
                (
                    "[{metric: 'acc,none'}]",
                    "[0].metric must be the name of a metric without a filter, got 'acc,none'. Write metric: a",
                ),
                ("[{metric: acc, aggregation: sum}]", "[0].aggregation must be mean, the only one of lm_eval, got 'sum'"),
                ("[{metric: acc, weight_by_size: 'yes'}]", "[0].weight_by_size must be true or false, got 'yes'"),
                (
                    "[{metric: acc, filter_list: [3]}]",
                    "[0].filter_list must be the name of a filter, or a list of such names, got",
                ),
                ("[{metric: acc, filters: none}]", "[0] has an unknown key 'filters'. Did you mean 'filter_list'?"),
            )
        ),
    ],
)
def test_a_wrong_group_file_is_refused_in_one_line(text: str, message: str, world: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError) as refused:
        find_group(str(file), world)
    answer = str(refused.value)
    assert message in answer and str(file) in answer and "\n" not in answer and ".." not in answer.replace("...", "")
    file.write_text(
        "group: x\ngroup_alias: X\nmetadata: {version: 1}\ntask: [plain, {task: fewer, task_alias: less}]\nnum_fewshot: 0\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: false, filter_list: [none]}]",
        encoding="utf-8",
    )
    assert find_group(str(file), world) is not None  # negative control


def test_a_wrong_group_file_is_refused_before_torch_is_loaded(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("group: x\ntask: [plain]\naggregate_metric_list: acc", encoding="utf-8")
    code = (
        "import sys; from lm_harmony.cli.main import main; "
        f"rc = main('run --base_model {world}/one --task_name {file} --include_path {world} --train_on quiz'.split()); "
        "print(rc, sorted({'torch', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []" and "aggregate_metric_list must be a list" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_fields_of_tasks_and_aggregates_are_those_of_lm_eval() -> None:
    assert set(TASK_FIELDS) == {one.name for one in fields(TaskConfig)}
    assert set(AGGREGATE_FIELDS) == {one.name for one in fields(AggMetricConfig)}


def test_groups_of_lm_eval_have_no_wrong_fields() -> None:
    """Three have: `weight_by_size: truez`, a function as a metric, and tasks without a name."""
    refused = []
    for name, file in lm_eval_names().groups.items():
        try:
            check_group(name, file, read_task_yaml(file))
        except BenchmarkError as error:
            refused.append(str(error))
    assert (
        len(refused) == 3 and "t0_eval" in "".join(refused) and "'truez'" in "".join(refused) and "Function(" in "".join(refused)
    )


def test_missing_rows_of_a_task_are_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("plain", "fewer"):
        write_rows(tmp_path / task, {"test": _rows(3, 0, 2)})
    command = f"run --base_model {world}/one --task_name exams --include_path {world} --train_on quiz --data_dir {tmp_path}"
    assert main(command.split()) == 1
    assert f"{tmp_path}/other/test.jsonl does not exist" in capsys.readouterr().err


def test_the_command_prints_the_tasks_of_a_group(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = f"run --base_model {world}/one --task_name exams --include_path {world} --train_on quiz --device cpu"
    more = (
        f" --train_param.num_train_epochs 1 --train_param.max_seq_length 64 --results_dir {tmp_path} --no-use_git --format json"
    )
    assert main((command + more).split()) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row.get("subtask") for row in rows] == [None, None, *SIZES] or rows == []


def test_boards_have_one_column_and_exports_have_the_tasks(world: Path, run: RunStore, tmp_path: Path) -> None:
    results = world / "results"
    assert ScoreMatrix.from_records(results).benchmark_names == ("exams.train_on.quiz",)
    other = replace(asked(world), model=ModelSpec(name=str(world / "two")))
    train_before_test(other, RunStore(results / "exams" / "two" / "seed0"))
    matrix = ScoreMatrix.from_records(results)
    assert board_csv(own_board(matrix)).splitlines()[0].endswith(",exams.train_on.quiz")
    tests = compare(matrix, str(world / "one"), str(world / "two")).tests
    # The metric of the board counts the tasks equally, which no paired test of questions supports.
    assert {one.test for one in tests} <= {"z", "none"} and all("its tasks count equally" in one.note for one in tests)
    export(results, tmp_path / "csv", "csv")
    table = pd.read_csv(tmp_path / "csv" / "scores.csv")
    assert set(table["subtask"].dropna()) == set(SIZES) and table["subtask"].isna().sum() == 8
    assert table.loc[table["is_main_metric"], "subtask"].isna().all()
    export(results, tmp_path / "lm_eval", "lm_eval")
    assert len(list((tmp_path / "lm_eval").rglob("results_*.json"))) == 4
    for folder in (tmp_path / "lm_eval").iterdir():
        assert {file.name.rpartition("_20")[0] for file in folder.glob("samples_*")} == {f"samples_{task}" for task in SIZES}
    file = next((tmp_path / "lm_eval").rglob("results_*.json"))
    values = json.loads(file.read_text(encoding="utf-8"))
    shown = make_table(values, "groups")
    assert "all exams" in shown and "inner" in shown and all(task in make_table(values) for task in ("plain", "less", "other"))
    export(results, tmp_path / "eee", "every-eval-ever", organization="us")
    names = {
        line["evaluation_name"]
        for one in (tmp_path / "eee").rglob("*.json")
        for line in json.loads(one.read_text(encoding="utf-8"))["evaluation_results"]
    }
    assert names == {"exams.train_on.quiz", *(f"exams.train_on.quiz: {task}" for task in SIZES)}


def test_a_submission_of_a_group_is_checked_by_its_tasks(world: Path, run: RunStore, tmp_path: Path) -> None:
    assert main(["submit", str(run.folder), "--output", str(tmp_path / "out"), "--name", "lab/tiny"]) == 0
    (file,) = (tmp_path / "out").iterdir()
    assert main(["board", "add", str(file), "--results", str(tmp_path / "board")]) == 0
    record = run.record()
    part = score_part_again(record, record.spec, run.samples("test"), weights=run.folder / "adapter", share=0.5, seed=0)
    assert part.documents == 14 and part.differing == 0
    assert record.trained is not None
    assert "trained acc,none" in recompute(record, run.folder)[0]
    lies = {
        "mean of its tasks": replace(record.trained, metrics={**record.trained.metrics, "acc,none": 0.99}),
        "trained fewer acc,none": replace(
            record.trained,
            subtasks={**record.trained.subtasks, "fewer": replace(record.trained.subtasks["fewer"], metrics={"acc,none": 0.99})},
        ),
    }
    for message, trained in lies.items():
        with pytest.raises(StoreError, match=message):
            recompute(replace(record, trained=trained), run.folder)


def test_a_plan_counts_the_rows_of_all_tasks(world: Path, run: RunStore) -> None:
    spec = asked(world)
    counted = workload(spec, MemoryBudget())
    assert counted.test_rows == sum(SIZES.values()) and counted.training_rows == run.record().data.train


def test_few_shot_examples_are_those_of_the_row_own_task(world: Path) -> None:
    spec = replace(asked(world, "own_rows.yaml", None), direct_fewshot=(0, 2))
    rows = set_up_run(spec).direct[2].examples
    for one in rows:
        numbers = [int(word.strip("?")) for word in one.requests[0].context.split() if word.endswith("?")]
        assert len(numbers) == 3 and all((number >= 400) == (one.subtask == "right") or number == 450 for number in numbers)


def test_near_duplicates_of_a_group_are_dropped_and_left_out_of_scores(world: Path) -> None:
    """A row number counts in the whole group. The score without some rows is that of the others alone, as lm_eval aggregates."""
    group = open_benchmark(str(world / "exams.yaml"), include_path=world, use="scoring")
    examples = [
        task.example(row, document, chat=None, aliases="first")
        for task in group.subtasks
        for row, document in enumerate(task.documents("test"))
    ]
    replies = [[(-float((place * 7 + number * 5) % 11), True) for number, _ in enumerate(one.requests)]
               for place, one in enumerate(examples)]  # fmt: skip
    whole = group.score(examples, replies, errors=True, samples=True)
    for left_out in ({0, 6, 7, 20}, set(range(5))):  # of three tasks, and all rows of the first one
        kept = [place for place in range(len(examples)) if place not in left_out]
        alone = group.score([examples[place] for place in kept], [replies[place] for place in kept], errors=True, samples=False)
        assert group.score_without(whole, left_out) == alone != whole
    test = tuple(examples)
    twins = [replace(one, row=place) for place, one in enumerate((examples[6], examples[20]))]
    others = tuple(replace(one, document={**one.document, "question": f"And {one.row}?"}) for one in examples[:3])
    splits = Splits(
        train=(*twins, *others),
        validation=others,
        test=test,
        dropped_from_train=0,
        dropped_from_validation=0,
        without_answer=0,
        carved=False,
    )
    assert recurring_rows(group, test, splits.train) == {"exact": (6, 20)}
    with pytest.raises(BenchmarkError, match="train split has no rows"):
        drop_near_duplicates(group, replace(splits, train=tuple(twins)))
    with pytest.raises(BenchmarkError, match="train split has no rows"):  # the validation rows recur too
        drop_near_duplicates(group, splits)
    kept_rows = drop_near_duplicates(group, replace(splits, validation=others[:1]))
    assert kept_rows.train == others[1:] and kept_rows.test == test
