"""What is asked has one fingerprint, and a direct score is shared only by runs that ask the same of the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from task_files import write_rows
from tiny import write_tiny_model

from lm_harmony.benchmarks.types import Caps
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.caches import DirectScoreCache, RunCaches
from lm_harmony.runs.fingerprint import RequestFingerprints, direct_score_id
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.setup import RunSetup, set_up_run
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

METRIC = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
EXTRACT, TAKE_FIRST = {"function": "regex", "regex_pattern": "a+"}, {"function": "take_first"}
FILTERS: list[dict[str, Any]] = [{"name": "strict", "filter": [EXTRACT, TAKE_FIRST]}]
WRITTEN: dict[str, Any] = {
    "task": "own",
    "dataset_path": "own",
    "output_type": "generate_until",
    **{f"{role}_split": role for role in ("training", "validation", "test")},
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2, "do_sample": False},
    "metric_list": [METRIC],
    "filter_list": FILTERS,
}
"""A task whose answers are written."""
COUNTED = {
    "another filter": {"filter_list": [{**FILTERS[0], "filter": [{**EXTRACT, "regex_pattern": "b+"}, TAKE_FIRST]}]},
    "another aggregation": {"metric_list": [{**METRIC, "aggregation": "median"}]},
    "another direction": {"metric_list": [{**METRIC, "higher_is_better": False}]},
    "another argument": {"metric_list": [{**METRIC, "ignore_case": True}]},
    "another metric": {"metric_list": [METRIC, {"metric": "bleu"}]},
    "longer answers": {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False}},
    "another stop": {"generation_kwargs": {"until": ["."], "max_gen_toks": 2, "do_sample": False}},
    "another target": {"doc_to_target": "{{answer}}!"},
    "another question": {"doc_to_text": "{{question}}?"},
}


@pytest.fixture(scope="module")
def caches() -> RunCaches:
    return RunCaches()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows = {
        role: [{"question": f"{role} {number}", "answer": "a"} for number in range(4)] for role in ("train", "validation", "test")
    }
    write_rows(tmp_path / "own", rows)
    write_tiny_model(tmp_path / "model")
    return tmp_path


def request(world: Path, **changes: Any) -> RunSpec:
    (world / "own.yaml").write_text(yaml.safe_dump({**WRITTEN, **changes}))
    return RunSpec(
        model=ModelSpec(name=str(world / "model")),
        benchmark=BenchmarkSpec(task=str(world / "own.yaml"), data_dir=world),
        recipe=Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        execution=Execution(device="cpu"),
    )


def prepared(world: Path, caches: RunCaches, **changes: Any) -> RunSetup:
    return set_up_run(request(world, **changes), caches)


def test_whatever_decides_a_score_is_part_of_what_is_asked(world: Path, caches: RunCaches) -> None:
    """Each change alone gives another fingerprint of the run, and another direct score."""
    first = prepared(world, caches)
    assert (
        prepared(world, caches).fingerprints == first.fingerprints
        and prepared(world, caches).direct_score_id == first.direct_score_id
    )
    others = {name: prepared(world, caches, **changes) for name, changes in COUNTED.items()}
    assert len({first.fingerprints.run, *(run.fingerprints.run for run in others.values())}) == len(others) + 1
    assert len({first.fingerprints.test, *(run.fingerprints.test for run in others.values())}) == len(others) + 1
    assert len({first.direct_score_id, *(run.direct_score_id for run in others.values())}) == len(others) + 1


def test_what_is_trained_decides_the_run_and_not_its_direct_score(world: Path, caches: RunCaches) -> None:
    spec = request(world)
    first = set_up_run(spec, caches)
    for other in (
        replace(spec, recipe=replace(spec.recipe, completion_only=True)),
        replace(spec, recipe=replace(spec.recipe, max_length=8)),
        replace(spec, benchmark=replace(spec.benchmark, caps=Caps(train=2))),
    ):
        found = set_up_run(other, caches)
        assert found.fingerprints.run != first.fingerprints.run and found.direct_score_id == first.direct_score_id
    quicker = set_up_run(replace(spec, recipe=replace(spec.recipe, learning_rate=1.0)), caches)
    assert quicker.fingerprints == first.fingerprints and quicker.direct_score_id == first.direct_score_id
    seeded = set_up_run(replace(spec, seed=1), caches)
    assert seeded.direct_score_id == first.direct_score_id


def test_what_a_direct_score_stands_on(world: Path, caches: RunCaches) -> None:
    """The limit of an answer, the type of the weights, every file of the model, the template, columns of the test rows."""
    spec = request(world)
    found = [set_up_run(spec, caches).direct_score_id]
    for other in (
        replace(spec, recipe=replace(spec.recipe, max_new_tokens=3)),
        replace(spec, recipe=replace(spec.recipe, dtype="bfloat16")),
        replace(spec, benchmark=replace(spec.benchmark, caps=Caps(test=3))),
    ):
        found.append(set_up_run(other, caches).direct_score_id)
    with (world / "model" / "generation_config.json").open("a") as file:
        file.write("\n")
    found.append(set_up_run(spec, caches).direct_score_id)
    rows = world / "own" / "test.jsonl"
    rows.write_text(rows.read_text().replace("}", ', "hint": "a"}'))
    found.append(set_up_run(spec, caches).direct_score_id)
    assert len(set(found)) == len(found)
    (world / "model").rename(world / "moved")
    moved = replace(spec, model=replace(spec.model, name=str(world / "moved")))
    assert set_up_run(moved, caches).direct_score_id == found[-1], "the same model in another folder"


def test_two_revisions_share_a_direct_score_only_where_their_commit_is_known_to_be_one() -> None:
    asked = RequestFingerprints(run="", test="", sampled=False)

    def found(revision: str, commit: str | None) -> str:
        model = ModelSpec(name="nobody/nothing", revision=revision)
        source = Source(kind="model", name=model.name, revision=revision, commit=commit)
        return direct_score_id(RunSpec(model=model, benchmark=BenchmarkSpec(task="own")), asked, [source], dtype="float32")

    assert found("main", "1" * 40) == found("v1", "1" * 40) != found("main", "2" * 40)
    assert found("main", None) != found("v1", None)


def test_the_seed_decides_sampled_answers(world: Path, caches: RunCaches) -> None:
    drawn = {"until": ["\n"], "max_gen_toks": 2, "do_sample": True, "temperature": 1.0}
    spec = request(world, generation_kwargs=drawn)
    assert set_up_run(spec, caches).direct_score_id != set_up_run(replace(spec, seed=1), caches).direct_score_id


def test_a_direct_score_is_shared_by_seeds_and_not_by_other_metrics(world: Path, tmp_path: Path) -> None:
    """Every run that takes a shared score gets the metrics that it asks for; one folder holds them all."""
    shared = RunCaches(direct_scores=DirectScoreCache(tmp_path / "direct"))
    spec = request(world)
    first = train_before_test(spec, RunStore(tmp_path / "first"), caches=shared)
    second = train_before_test(replace(spec, seed=1), RunStore(tmp_path / "second"), caches=shared)
    assert first.direct == second.direct and len(list((tmp_path / "direct").iterdir())) == 1
    other = replace(request(world, **COUNTED["another metric"]), metric="bleu,strict")
    third = train_before_test(other, RunStore(tmp_path / "third"), caches=shared)
    alone = train_before_test(other, RunStore(tmp_path / "alone"))
    assert third.direct is not None and third.direct == alone.direct and "bleu,strict" in third.direct.metrics
    assert len(list((tmp_path / "direct").iterdir())) == 2
