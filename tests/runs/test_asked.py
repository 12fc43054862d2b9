"""Fingerprints of requests. Runs share a direct score only if they send the same test requests to the same model."""

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
from lm_harmony.runs.run_setup import RunSetup
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

METRIC = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
EXTRACT, TAKE_FIRST = {"function": "regex", "regex_pattern": "a+"}, {"function": "take_first"}
FILTERS: list[dict[str, Any]] = [{"name": "strict", "filter": [EXTRACT, TAKE_FIRST]}]
GENERATION_TASK: dict[str, Any] = {
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
"""Fields of a task with generated answers."""
CHANGES = {
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
def folder(tmp_path: Path) -> Path:
    rows = {
        role: [{"question": f"{role} {number}", "answer": "a"} for number in range(4)] for role in ("train", "validation", "test")
    }
    write_rows(tmp_path / "own", rows)
    write_tiny_model(tmp_path / "model")
    return tmp_path


def request(folder: Path, **changes: Any) -> RunSpec:
    (folder / "own.yaml").write_text(yaml.safe_dump({**GENERATION_TASK, **changes}))
    return RunSpec(
        model=ModelSpec(name=str(folder / "model")),
        benchmark=BenchmarkSpec(task=str(folder / "own.yaml"), data_dir=folder),
        recipe=Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        execution=Execution(device="cpu"),
    )


def set_up(folder: Path, caches: RunCaches, **changes: Any) -> RunSetup:
    return set_up_run(request(folder, **changes), caches)


def test_every_setting_that_affects_a_score_changes_the_fingerprints(folder: Path, caches: RunCaches) -> None:
    """Each single change gives another run fingerprint, another test fingerprint and another id of the direct score."""
    first = set_up(folder, caches)
    assert (
        set_up(folder, caches).fingerprints == first.fingerprints
        and set_up(folder, caches).direct_score_id() == first.direct_score_id()
    )
    others = {name: set_up(folder, caches, **changes) for name, changes in CHANGES.items()}
    assert len({first.fingerprints.run, *(run.fingerprints.run for run in others.values())}) == len(others) + 1
    assert len({first.fingerprints.test, *(run.fingerprints.test for run in others.values())}) == len(others) + 1
    assert len({first.direct_score_id(), *(run.direct_score_id() for run in others.values())}) == len(others) + 1


def test_training_settings_change_the_run_fingerprint_and_not_the_direct_score_id(folder: Path, caches: RunCaches) -> None:
    spec = request(folder)
    first = set_up_run(spec, caches)
    for other in (
        replace(spec, recipe=replace(spec.recipe, completion_only=True)),
        replace(spec, recipe=replace(spec.recipe, max_length=8)),
        replace(spec, benchmark=replace(spec.benchmark, caps=Caps(train=2))),
    ):
        changed = set_up_run(other, caches)
        assert changed.fingerprints.run != first.fingerprints.run and changed.direct_score_id() == first.direct_score_id()
    other_rate = set_up_run(replace(spec, recipe=replace(spec.recipe, learning_rate=1.0)), caches)
    assert other_rate.fingerprints == first.fingerprints and other_rate.direct_score_id() == first.direct_score_id()
    other_seed = set_up_run(replace(spec, seed=1), caches)
    assert other_seed.direct_score_id() == first.direct_score_id()


def test_the_direct_score_id_depends_on_generation_limit_dtype_model_files_and_test_rows(folder: Path, caches: RunCaches) -> None:
    """It does not depend on the name of the model folder."""
    spec = request(folder)
    ids = [set_up_run(spec, caches).direct_score_id()]
    for other in (
        replace(spec, recipe=replace(spec.recipe, max_new_tokens=3)),
        replace(spec, recipe=replace(spec.recipe, dtype="bfloat16")),
        replace(spec, benchmark=replace(spec.benchmark, caps=Caps(test=3))),
    ):
        ids.append(set_up_run(other, caches).direct_score_id())
    with (folder / "model" / "generation_config.json").open("a") as file:
        file.write("\n")
    ids.append(set_up_run(spec, caches).direct_score_id())
    rows = folder / "own" / "test.jsonl"
    rows.write_text(rows.read_text().replace("}", ', "hint": "a"}'))
    ids.append(set_up_run(spec, caches).direct_score_id())
    assert len(set(ids)) == len(ids)
    (folder / "model").rename(folder / "moved")
    moved = replace(spec, model=replace(spec.model, name=str(folder / "moved")))
    assert set_up_run(moved, caches).direct_score_id() == ids[-1], "the same model in another folder"


def test_two_revisions_share_a_direct_score_only_if_both_are_known_to_be_the_same_commit() -> None:
    fingerprints = RequestFingerprints(run="", test="", sampled=False)

    def score_id(revision: str, commit: str | None) -> str:
        model = ModelSpec(name="nobody/nothing", revision=revision)
        source = Source(kind="model", name=model.name, revision=revision, commit=commit)
        return direct_score_id(RunSpec(model=model, benchmark=BenchmarkSpec(task="own")), fingerprints, [source], dtype="float32")

    assert score_id("main", "1" * 40) == score_id("v1", "1" * 40) != score_id("main", "2" * 40)
    assert score_id("main", None) != score_id("v1", None)


def test_the_seed_changes_the_direct_score_id_of_sampled_answers(folder: Path, caches: RunCaches) -> None:
    sampling = {"until": ["\n"], "max_gen_toks": 2, "do_sample": True, "temperature": 1.0}
    spec = request(folder, generation_kwargs=sampling)
    assert set_up_run(spec, caches).direct_score_id() != set_up_run(replace(spec, seed=1), caches).direct_score_id()


def test_a_direct_score_is_shared_across_seeds_and_not_across_metrics(folder: Path, tmp_path: Path) -> None:
    """A run gets the metrics that it requests from the shared cache. One folder holds all direct scores."""
    shared = RunCaches(direct_scores=DirectScoreCache(tmp_path / "direct"))
    spec = request(folder)
    first = train_before_test(spec, RunStore(tmp_path / "first"), caches=shared)
    second = train_before_test(replace(spec, seed=1), RunStore(tmp_path / "second"), caches=shared)
    assert first.direct == second.direct and len(list((tmp_path / "direct").iterdir())) == 1
    other = replace(request(folder, **CHANGES["another metric"]), metric="bleu,strict")
    third = train_before_test(other, RunStore(tmp_path / "third"), caches=shared)
    alone = train_before_test(other, RunStore(tmp_path / "alone"))
    assert third.direct is not None and third.direct == alone.direct and "bleu,strict" in third.direct.metrics
    assert len(list((tmp_path / "direct").iterdir())) == 2
