"""The catalogue repeats metadata of lm_eval's task files, and ROWS their row schemas. Both must agree with those files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.registry import is_higher_better
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from rows import ROWS, Row

from lm_harmony.benchmarks.catalogue import BENCHMARKS, BenchmarkInfo, find

TASKS_FOLDER = Path(lm_eval.tasks.__file__).parent
SPLIT_FIELDS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}

each_benchmark = pytest.mark.parametrize("info", BENCHMARKS.values(), ids=BENCHMARKS.keys())
each_choosing_benchmark = pytest.mark.parametrize(
    "info",
    [pytest.param(info, id=name) for name, info in BENCHMARKS.items() if info.metric.startswith("acc")],
)


def split_names(config: dict[str, Any]) -> dict[str, str]:
    """Return role -> split name. If several roles share a split, only the first of them is returned."""
    names: dict[str, str] = {}
    for role, field in SPLIT_FIELDS.items():
        if config.get(field) and config[field] not in names.values():
            names[role] = config[field]
    return names


def build(info: BenchmarkInfo) -> ConfigurableTask:
    """Build lm_eval's own task over ROWS."""
    config = load_yaml(TASKS_FOLDER / info.path)
    for key in ("tag", "group", "task_list"):  # lm_eval's factory removes these too
        config.pop(key, None)
    rows = DatasetDict({split: Dataset.from_list(ROWS[info.task][role]) for role, split in split_names(config).items()})
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: rows, "dataset_kwargs": None})


def documents(task: ConfigurableTask) -> dict[str, list[Row]]:
    readers = {"train": task.training_docs, "validation": task.validation_docs, "test": task.test_docs}
    return {role: list(readers[role]()) for role in split_names(vars(task.config))}


def right_choice(task: ConfigurableTask, document: Row) -> int:
    """Return the position of the right answer. As in lm_eval, the target is an index or the text of a choice."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    return gold if isinstance(gold, int) else task.doc_to_choice(document).index(gold)


def test_catalogue_has_the_24_published_benchmarks_most_training_rows_first() -> None:
    assert len(BENCHMARKS) == 24
    sizes = [info.train_rows for info in BENCHMARKS.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0


def test_titles_are_distinct_and_categories_are_those_of_the_board() -> None:
    assert len({info.title for info in BENCHMARKS.values()}) == 24
    assert {info.category for info in BENCHMARKS.values()} == {
        "Commonsense Reasoning",
        "Language Understanding",
        "Math",
        "Medicine",
        "Physics/Biology/Chemistry",
        "Question Answering",
    }


def test_find_accepts_exact_task_names_only() -> None:
    assert find("gsm8k") is BENCHMARKS["gsm8k"]
    assert find("GSM8K") is None


@each_benchmark
def test_path_is_the_file_that_defines_the_task(info: BenchmarkInfo) -> None:
    assert load_yaml(TASKS_FOLDER / info.path, resolve_func=False)["task"] == info.task


@each_benchmark
def test_splits_are_those_of_the_task_file(info: BenchmarkInfo) -> None:
    config = load_yaml(TASKS_FOLDER / info.path, resolve_func=False)
    assert info.splits == tuple(split_names(config))


@each_benchmark
def test_metric_and_its_direction_are_those_of_the_task_file(info: BenchmarkInfo) -> None:
    config = load_yaml(TASKS_FOLDER / info.path, resolve_func=False)
    name, _, filter_name = info.metric.partition(",")
    [entry] = [entry for entry in config["metric_list"] if entry["metric"] == name]
    assert info.higher_is_better == entry.get("higher_is_better", is_higher_better(name))
    assert filter_name in [entry["name"] for entry in config.get("filter_list") or [{"name": "none"}]]


@each_benchmark
def test_rows_cover_every_role_with_distinct_rows(info: BenchmarkInfo) -> None:
    rows = ROWS[info.task]
    assert {role: len(rows[role]) for role in rows} == {role: 3 if role == "train" else 2 for role in info.splits}
    everything = [str(row) for role in rows for row in rows[role]]
    assert len(set(everything)) == len(everything)


@each_benchmark
def test_lm_eval_renders_every_row(info: BenchmarkInfo) -> None:
    task = build(info)
    read = documents(task)
    assert read.keys() == ROWS[info.task].keys()
    for document in (document for role in read for document in read[role]):
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        assert isinstance(text, int) if task.multiple_input else text.strip()
        if task.config.doc_to_choice is None:
            assert target
            assert isinstance(target, list if info.task == "nq_open" else str)
        else:
            choices = task.doc_to_choice(document)
            assert all(isinstance(choice, str) and choice for choice in choices)
            assert len(set(choices)) == len(choices)
            assert 0 <= right_choice(task, document) < len(choices)


@each_choosing_benchmark
def test_right_answers_differ_within_each_role(info: BenchmarkInfo) -> None:
    task = build(info)
    for role, read in documents(task).items():
        positions = {right_choice(task, document) for document in read}
        assert len(positions) > 1 or info.task == "sciq", role  # sciq's right answer is always its last choice


@each_choosing_benchmark
def test_chance_is_one_over_the_choices_of_a_scored_row(info: BenchmarkInfo) -> None:
    task = build(info)
    scored = documents(task)["test" if "test" in info.splits else "validation"]
    for document in scored:
        assert info.chance == pytest.approx(1 / len(task.doc_to_choice(document)), abs=1e-6)


def test_chance_is_zero_for_correlation_and_generated_answers() -> None:
    others = {info.task: info.chance for info in BENCHMARKS.values() if not info.metric.startswith("acc")}
    assert others == {"nq_open": 0, "cola": 0, "gsm8k": 0}


def test_wic_rows_mark_the_word_itself() -> None:
    for row in (row for rows in ROWS["wic"].values() for row in rows):
        for sentence, start, end in (("sentence1", "start1", "end1"), ("sentence2", "start2", "end2")):
            assert row[sentence][row[start] : row[end]].startswith(row["word"][:4])
