"""Reading of study files: runs, recipes, paths, error messages and the JSON schema."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml
from world import write_world

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT
from lm_harmony.cli.main import main
from lm_harmony.cli.run_flags import RunFlags
from lm_harmony.cli.run_spec import given_flags, run_spec
from lm_harmony.errors import UsageError, cause_of
from lm_harmony.models.catalogue import MODELS
from lm_harmony.models.model_folder import write_source
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.studies import study_file
from lm_harmony.studies.config import StudySpec, read_study
from lm_harmony.studies.study import Study


def read(folder: Path, text: str = "", **values: Any) -> StudySpec:
    path = folder / "study.yaml"
    path.write_text(text or yaml.safe_dump({"models": ["some/model"], "benchmarks": ["arc_easy"], **values}), encoding="utf-8")
    return read_study(path)


def test_runs_are_models_by_benchmarks_by_seeds_in_this_order(tmp_path: Path) -> None:
    spec = read(tmp_path, models=["a/a", "b/b"], benchmarks=["arc_easy", "mnli"], seeds=[3, 5])
    found = [(run.model.name, run.benchmark.task, run.seed) for run in spec.runs]
    assert found == [(m, b, s) for m in ("a/a", "b/b") for b in ("arc_easy", "mnli") for s in (3, 5)]
    assert spec.results_dir == tmp_path / "results"


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    """Records have the name that the file of a task or a group defines. Boards could not tell such benchmarks apart."""
    for name, other in (("one", "two"), ("text", "words")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.jsonl").write_text('{"text": "a b c"}\n' * 40, encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}_task\ndataset_path: {other}/x\n", encoding="utf-8")
    (tmp_path / "included.yaml").write_text("include: one.yaml\n", encoding="utf-8")
    group = "group: x\ntask: [arc_easy, sciq]\naggregate_metric_list: [{metric: acc}]\n"
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(group, encoding="utf-8")
    (tmp_path / "c.yaml").write_text(group.replace("group: x", "group: z"), encoding="utf-8")
    for entries, name in (
        (["arc_easy", "a.yaml", "b.yaml"], "x"),
        (["sciq", "one.yaml", "included.yaml"], "one_task"),
        (["sciq", "corpus:one/same.jsonl", "corpus:text/same.jsonl"], "corpus-same"),
    ):
        with pytest.raises(UsageError) as refused:
            read(tmp_path, benchmarks=entries)
        assert f"benchmarks[2]: {entries[2].partition(':')[0]}" in str(refused.value).replace(f"{tmp_path}/", "")
        assert f"has the name {name} on a board, and so has benchmarks[1], " in str(refused.value)
        assert all(entry.rpartition("/")[2] in str(refused.value) for entry in entries[1:])
    both = [{"task": "a.yaml", "max_num_test": 5}, {"task": "a.yaml", "max_num_test": 6}, "c.yaml", "one.yaml", "text.yaml"]
    assert len(read(tmp_path, benchmarks=both).runs) == 5  # negative control


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"near_duplicates": "drop", "split_protocol": "published"}, "near_duplicates = drop contradicts split_protocol"),
        ({"benchmarks": ["nothere"]}, "benchmarks[0].task: lm_eval has no task 'nothere'."),
        (
            {"benchmarks": ["leaderboard10"]},
            "benchmarks[0].task: lm_eval has no task 'leaderboard10'. Did you mean 'leaderboard9'",
        ),
        (
            {"benchmarks": ["arc_easy"], "corpora": ["x.txt"]},
            "corpora = ['x.txt'] has no effect without the benchmark perplexity",
        ),
        ({"recipe": {"lora": None, "quantize": "nf4"}}, "recipe: quantize = nf4 needs an adapter"),
        ({"execution": {"device": "cpu", "device_map": "auto"}}, "execution: device = cpu contradicts device_map = auto"),
        ({"results_dir": ["x"]}, "results_dir must be text, got ['x']. Give one text."),
        (
            {"models": [{"family": "Pythia", "max_params_b": 0.001}]},
            "models[0]: no catalogued model fits {'family': 'Pythia', 'max_params_b': 0.001}. Families: ",
        ),
        ({"benchmarks": [{"task": "arc_easy", "train_on": "nothere"}]}, "benchmarks[0].train_on: lm_eval has no task 'nothere'."),
        (
            {"benchmarks": [{"task": "arc_easy", "train_on": "arc_easy"}]},
            "benchmarks[0].train_on = arc_easy is the benchmark itself",
        ),
        ({"benchmarks": ["mmlu"]}, "benchmarks[0].task: 'mmlu' is a group of lm_eval tasks, and these have no training split"),
        ({"benchmarks": ["no.yaml"]}, "benchmarks[0].task: the file "),
        ({"benchmarks": ["arc*"]}, "benchmarks[0].task = 'arc*' stands for several tasks"),
    ],
)
def test_a_message_names_the_key_that_was_written(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, **values)
    line = str(refused.value).partition("study.yaml, line ")[2].partition(": ")[2]
    assert line.startswith(message) and "task_name" not in line
    assert read(tmp_path, benchmarks=[{"task": "arc_easy", "train_on": "sciq"}]).runs  # negative control


def test_suites_and_groups_come_from_the_catalogues(tmp_path: Path) -> None:
    spec = read(tmp_path, models=[{"family": "pythia", "max_params_b": 1.5}], benchmarks=["paper24"])
    assert {run.benchmark.task for run in spec.runs} == set(BENCHMARKS)
    chosen = {run.model.name for run in spec.runs}
    pythia = {name: info for name, info in MODELS.items() if info.family == "Pythia"}
    assert chosen == {name for name, info in pythia.items() if (info.params_b or info.nominal_params_b) <= 1.5}
    assert len(read(tmp_path, benchmarks=["leaderboard9"]).runs) == 9
    assert len(read(tmp_path, models=[{"kind": "instruct", "family": "Gemma"}]).runs) == 4


def test_recipes_override_each_other_from_study_to_model_to_benchmark(tmp_path: Path) -> None:
    """The study overrides the published recipe, the model overrides the study, and the benchmark overrides the model."""
    spec = read(
        tmp_path,
        recipe={"epochs": 3, "lora": {"r": 16}},
        models=["a/a", {"name": "b/b", "recipe": {"learning_rate": 1e-3, "lora": {"lora_dropout": 0.0}}}],
        benchmarks=["arc_easy", {"task": "mnli", "max_num_train": 7, "recipe": {"epochs": 1, "lora": None}}],
    )
    recipes = {(run.model.name, run.benchmark.task): run.recipe for run in spec.runs}
    assert recipes["a/a", "arc_easy"].epochs == 3 and recipes["a/a", "arc_easy"].learning_rate == 2e-5
    lora = recipes["b/b", "arc_easy"].lora
    assert lora is not None and lora.r == 16 and lora.lora_dropout == 0.0 and lora.lora_alpha == 32
    assert recipes["b/b", "mnli"].lora is None and recipes["b/b", "mnli"].learning_rate == 1e-3
    assert {run.benchmark.caps.train for run in spec.runs if run.benchmark.task == "mnli"} == {7}


def test_a_list_of_learning_rates_is_what_validation_chooses_from(tmp_path: Path) -> None:
    """It is part of the recipe, so a model or a benchmark can have one rate or other rates."""
    spec = read(
        tmp_path,
        choose="validation",
        recipe={"learning_rate": [5e-6, 2e-5]},
        models=["a/a", {"name": "b/b", "recipe": {"learning_rate": 1e-3}}],
        benchmarks=["arc_easy", {"task": "mnli", "recipe": {"learning_rate": [1e-5, 1e-4]}}],
    )
    rates = {(run.model.name, run.benchmark.task): run.recipe.rates for run in spec.runs}
    assert rates["a/a", "arc_easy"] == (5e-6, 2e-5) and rates["b/b", "arc_easy"] == (1e-3,)
    assert rates["a/a", "mnli"] == rates["b/b", "mnli"] == (1e-5, 1e-4)
    plain = read(tmp_path, models=["b/b"], benchmarks=["arc_easy"], recipe={"learning_rate": 1e-3}).runs
    assert [run_id(run) for run in plain] == [run_id(run) for run in spec.runs if len(run.recipe.rates) == 1]


def test_paths_are_relative_to_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "own.yaml").write_text("task: own\n")
    (run,) = read(tmp_path, models=["mine"], benchmarks=["own.yaml"], data_dir="rows", results_dir="out").runs
    assert run.model.name == str(tmp_path / "mine")
    assert run.benchmark.task == str(tmp_path / "own.yaml") and run.benchmark.data_dir == tmp_path / "rows"


def test_the_benchmark_perplexity_expands_to_the_listed_corpora(tmp_path: Path) -> None:
    for name in ("wiki.jsonl", "code.txt"):
        (tmp_path / name).touch()
    spec = read(tmp_path, benchmarks=["perplexity"], corpora=["wiki.jsonl", "code.txt"])
    assert [run.benchmark.task for run in spec.runs] == [f"corpus:{tmp_path / 'wiki.jsonl'}", f"corpus:{tmp_path / 'code.txt'}"]
    with pytest.raises(UsageError, match="needs texts of your own"):
        read(tmp_path, benchmarks=["perplexity"])


def test_a_corpus_path_is_relative_to_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory does not matter. A missing corpus is refused before the first run."""
    folder, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "wiki.jsonl").touch()
    monkeypatch.chdir(elsewhere)
    (run,) = read(folder, benchmarks=["corpus:texts/wiki.jsonl"]).runs
    assert run.benchmark.task == f"corpus:{folder / 'texts' / 'wiki.jsonl'}"
    (elsewhere / "wiki.jsonl").touch()  # negative control: it is not found in the working directory
    with pytest.raises(UsageError, match=r"line 2: benchmarks\[0\]\.task: .*wiki\.jsonl does not exist"):
        read(folder, "models: [a/a]\nbenchmarks: ['corpus:wiki.jsonl']\n")
    absolute = elsewhere / "wiki.jsonl"
    (run,) = read(folder, benchmarks=[f"corpus:{absolute}"]).runs
    assert run.benchmark.task == f"corpus:{absolute}"


def test_the_chat_template_date_of_a_model_overrides_that_of_the_study(tmp_path: Path) -> None:
    """A date without quotes in YAML is accepted too."""
    text = "models: [a/a, {name: b/b, chat_template_date: '2025-02-03'}]\nbenchmarks: [arc_easy]\napply_chat_template: true\n"
    dates = [run.model.chat_template_date for run in read(tmp_path, text + "chat_template_date: 2026-01-05\n").runs]
    assert dates == ["2026-01-05", "2025-02-03"]
    assert [run.model.chat_template_date for run in read(tmp_path, text).runs] == ["2024-07-26", "2025-02-03"]


def test_several_numbers_of_training_rows_are_runs_of_their_own(tmp_path: Path) -> None:
    """The list of a benchmark replaces that of the study."""
    benchmarks = ["arc_easy", {"task": "mnli", "max_num_train": [7, 3]}, {"task": "sst2", "max_num_train": 9}]
    runs = read(tmp_path, benchmarks=benchmarks, max_num_train=[50, 500], max_num_test=11).runs
    found = [(run.benchmark.task, run.benchmark.caps.train) for run in runs if run.model == runs[0].model]
    assert found == [("arc_easy", 50), ("arc_easy", 500), ("mnli", 7), ("mnli", 3), ("sst2", 9)]
    assert {run.benchmark.caps.test for run in runs} == {11}
    assert len({run_id(run) for run in runs}) == len(runs)


def test_revisions_are_checkpoints_of_one_run(tmp_path: Path) -> None:
    """Revisions on the hub, and folders in the order of their steps; a pattern and a name may give the same folder."""
    for step in (9, 100, 20):
        (tmp_path / "mine" / f"checkpoint-{step}").mkdir(parents=True)
    models = [
        {"name": "EleutherAI/pythia-70m-deduped", "revisions": ["step1000", "main"]},
        {"name": "mine", "revisions": ["checkpoint-*", "checkpoint-9"]},
    ]
    found = [(run.model.name, run.model.revision) for run in read(tmp_path, models=models).runs]
    pythia = "EleutherAI/pythia-70m-deduped"
    folders = [(str(tmp_path / "mine" / f"checkpoint-{step}"), "main") for step in (9, 20, 100)]
    assert found == [(pythia, "step1000"), (pythia, "main"), *folders]


def test_fetched_revisions_have_folders_of_their_own(tmp_path: Path) -> None:
    name, models_dir = "EleutherAI/pythia-70m-deduped", tmp_path / "models"
    for revision in ("step1", "main"):
        folder = models_dir / f"{name}@{revision}"
        folder.mkdir(parents=True)
        write_source(folder, name=name, asked=revision, revision="0" * 40)
    models = [{"name": name, "revisions": ["step1", "main", "step2"]}]
    found = [(run.model.name, run.model.revision) for run in read(tmp_path, models=models, models_dir="models").runs]
    assert found == [(f"{models_dir / name}@step1", "step1"), (f"{models_dir / name}@main", "main"), (name, "step2")]


def test_prompts_come_from_study_model_and_benchmark(tmp_path: Path) -> None:
    """Variables of the template and the end of the think part belong to a model; prefix and limit of answers to a benchmark."""
    models = [
        "a/a",
        {"name": "b/b", "chat_template_args": {"enable_thinking": True, "a": 1}, "think_end_token": "</think>"},
        {"name": "c/c", "think_end_token": 200008, "system_instruction": "Of the model."},
    ]
    benchmarks = ["arc_easy", {"task": "gsm8k", "gen_prefix": "Answer:", "max_gen_toks": 4096}]
    spec = read(tmp_path, models=models, benchmarks=benchmarks, apply_chat_template=True, system_instruction="Of the study.")
    answers = {"gen_prefix": "Answer:", "max_gen_toks": 4096}
    thinks = {"chat_template_args": '{"a": 1, "enable_thinking": true}', "think_end_token": "</think>"}
    study, model = {"system_instruction": "Of the study."}, {"system_instruction": "Of the model."}
    assert [run.prompt.changes() for run in spec.runs] == [
        *(study, study | answers),
        *(thinks | study, thinks | study | answers),
        *({"think_end_token": 200008} | model, {"think_end_token": 200008} | model | answers),
    ]
    assert all(run.prompt == PLAIN_PROMPT for run in read(tmp_path).runs)


THINKER = {"name": "a/a", "chat_template_args": {"enable_thinking": True}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template_date": "today"}, "chat_template_date must be a date as YYYY-MM-DD, got 'today'"),
        ({"sedes": [1]}, "no key 'sedes'. Did you mean 'seeds'"),
        ({"system_instruction": ""}, "line 5: system_instruction must be text, not empty, got ''"),
        (
            {"models": [{"name": "a/a", "think_end_token": -1}]},
            "think_end_token must be text or a token id from 0, not empty, got -1",
        ),
        (
            {"models": [{"name": "a/a", "chat_template_args": ["enable_thinking"]}]},
            "models[0].chat_template_args must be a JSON object",
        ),
        ({"models": [{"name": "a/a", "revisions": []}]}, "models[0].revisions must name at least one"),
        ({"models": [{"name": "a/a", "revisions": ["x"], "revision": "y"}]}, "revisions = ['x'] has revision = y too"),
        (
            {"models": [{"family": "Pythia", "revisions": ["step1"]}]},
            "revisions = ['step1'] has no name. Give the name of one model",
        ),
        ({"models": [{"name": "a/a", "revisions": ["step*"]}]}, "revisions: 'step*' is a pattern, and a/a is no folder"),
        ({"models": [{"name": "a/a", "revisions": ["step1", "step1"]}]}, "a/a on arc_easy with seed 0 is listed twice"),
        ({"models": [THINKER]}, "models[0]: chat_template_args: enable_thinking = true needs think_end_token"),
        (
            {"models": [THINKER | {"think_end_token": "</think>"}]},
            'models[0]: chat_template_args = {"enable_thinking": true} has no',
        ),
        ({"benchmarks": [{"task": "gsm8k", "max_gen_toks": 0}]}, "benchmarks[0].max_gen_toks must be at least 1"),
        ({"benchmarks": [{"task": "gsm8k", "gen_prefix": 5}]}, "benchmarks[0].gen_prefix must be text"),
        ({"recipe": {"epoch": 2}}, "no key 'epoch'. Did you mean 'epochs'"),
        ({"recipe": {"lora": {"rank": 2}}}, "recipe.lora: no key 'rank'"),
        ({"recipe": {"epochs": 0}}, "recipe.epochs: train_param.num_train_epochs must be at least 1, got 0"),
        ({"recipe": {"epochs": "two"}}, "must be a whole number, at least 1, got 'two'"),
        ({"recipe": {"epochs": -2}}, "must be at least 1, got -2"),
        ({"recipe": {"epochs": 2.5}}, "must be a whole number, at least 1, got 2.5"),
        ({"recipe": {"epochs": True}}, "must be a whole number, at least 1, got True"),
        ({"recipe": {"learning_rate": float("nan")}}, "train_param.learning_rate must be a positive number, got nan"),
        ({"recipe": {"learning_rate": float("inf")}}, "train_param.learning_rate must be a positive number, got inf"),
        (
            {"recipe": {"learning_rate": [2e-5, 1e-4]}},
            "recipe.learning_rate = [2e-05, 0.0001] needs a rule to choose by. Add choose",
        ),
        (
            {"models": [{"name": "a/a", "recipe": {"learning_rate": [2e-5, 1e-4]}}]},
            "models[0].recipe.learning_rate = [2e-05, 0.0001] needs a rule",
        ),
        ({"choose": "validation"}, "choose = validation has nothing to choose from. Give a list, such as recipe: {learning_rate"),
        (
            {"choose": "test", "recipe": {"learning_rate": [2e-5, 1e-4]}},
            "choose must be validation, got 'test', because no other",
        ),
        ({"choose": "validation", "recipe": {"learning_rate": []}}, "recipe.learning_rate = [] must have at least two rates"),
        ({"choose": "validation", "recipe": {"learning_rate": [2e-5]}}, "recipe.learning_rate = [2e-05] must have at least two"),
        (
            {"choose": "validation", "recipe": {"learning_rate": [2e-5, 2e-5]}},
            "recipe.learning_rate = [2e-05, 2e-05] has a rate twice",
        ),
        ({"choose": "validation", "recipe": {"learning_rate": [2e-5, -1]}}, "learning_rate[1] must be a positive number, got -1"),
        ({"choose": "validation", "recipe": {"learning_rate": [2e-5, 0]}}, "learning_rate[1] must be a positive number, got 0"),
        ({"choose": "validation", "recipe": {"learning_rate": [2e-5, float("inf")]}}, "must be a positive number, got inf"),
        ({"choose": "validation", "recipe": {"learning_rate": [2e-5, "high"]}}, "must be a number, got 'high'"),
        ({"recipe": {"learning_rate": "high"}}, "must be a number, got 'high'. Write it without quotes: 1e-4"),
        ({"recipe": {"batch_size": 0}}, "recipe.batch_size: batch size must be at least 1, got 0"),
        ({"recipe": {"weight_decay": float("inf")}}, "weight_decay must be a finite number, not negative, got inf"),
        ({"recipe": {"max_grad_norm": -1.0}}, "max_grad_norm must be a finite number, not negative, got -1.0"),
        ({"recipe": {"warmup_ratio": 1.5}}, "warmup_ratio must be in [0, 1], got 1.5"),
        ({"recipe": {"max_steps": 0}}, "max_steps must be at least 1, got 0"),
        ({"recipe": {"completion_only": "no"}}, "completion_only must be true or false, got 'no'"),
        ({"recipe": {"lora": 8}}, "lora must be a mapping, or null to train all weights, got 8"),
        ({"recipe": {"lora": {"r": 0}}}, "peft_config.r must be at least 1, got 0"),
        ({"recipe": {"lora": {"lora_dropout": 1.0}}}, "peft_config.lora_dropout must be in [0, 1), got 1.0"),
        ({"recipe": {"lora": {"target_modules": "all-linear"}}}, "must be a list, got 'all-linear'. Write [all-linear]"),
        ({"recipe": {"optimizer": 5}}, "train_param.optim must be one of"),
        ({"models": [{"name": "a/a", "recipe": {"epochs": 0}}]}, "models[0].recipe.epochs: "),
        ({"models": [{"name": "a/a", "trust_remote_code": "no"}]}, "trust_remote_code must be true or false, got 'no'"),
        ({"models": [{"name": "a/a", "revision": 1234567}]}, "revision must be text, got 1234567"),
        ({"models": [{"family": "Pithia"}]}, "Did you mean 'Pythia'"),
        ({"models": [{"family": "Pythia", "max_params_b": float("nan")}]}, "max_params_b must be a finite number"),
        ({"models": [{"family": "Pythia", "max_params_b": "1B"}]}, "max_params_b must be a number, got '1B'"),
        ({"models": [{"name": "a/a", "famly": "x"}]}, "no key 'famly'. Did you mean 'family'"),
        ({"models": [{"name": "a/a", "family": "Yi"}]}, "gives a name and a group"),
        ({"models": []}, "models must name at least one"),
        ({"models": "a/a"}, "must be a list"),
        ({"benchmarks": ["arc_esay"]}, "no task 'arc_esay'. Did you mean 'arc_easy'"),
        ({"benchmarks": [{"tsk": "arc_easy"}]}, "no key 'tsk'. Did you mean 'task'"),
        ({"benchmarks": [{"recipe": {}}]}, "benchmarks[0]: the key 'task' is missing"),
        ({"benchmarks": ["arc_easy", "arc_easy"]}, "some/model on arc_easy with seed 0 is listed twice"),
        ({"benchmarks": [{"task": "arc_easy", "metric": 5}]}, "metric must be text, got 5"),
        ({"benchmarks": [{"task": "arc_easy", "greater_is_better": "no"}]}, "greater_is_better must be true or false, got 'no'"),
        (
            {"benchmarks": [{"task": "arc_easy", "max_num_test": 0}]},
            "benchmarks[0].max_num_test: dataset_param.max_num_test must be at",
        ),
        ({"seeds": [-1]}, "a seed must be from 0 to 4294967295, got -1"),
        ({"seeds": [2**32]}, "a seed must be from 0 to 4294967295, got 4294967296"),
        ({"seeds": [True]}, "a seed must be a whole number"),
        ({"seeds": 0}, "whole numbers from 0"),
        ({"direct": "yes"}, "direct must be true or false"),
        ({"split_protocol": "leaky"}, "clean or published, got 'leaky'"),
        ({"near_duplicates": True}, "near_duplicates must be keep or drop, got True"),
        ({"near_duplicates": "drop", "split_protocol": "published"}, "near_duplicates = drop contradicts split_protocol"),
        ({"max_num_train": []}, "max_num_train must be a whole number"),
        ({"max_num_train": [5, 0]}, "max_num_train must be at least 1, got 0"),
        ({"max_num_train": [5, 5]}, "max_num_train = [5, 5] has a number twice"),
        ({"max_num_train": 0}, "max_num_train must be at least 1"),
        ({"max_num_train": "all"}, "max_num_train must be a whole number, at least 1, got 'all'"),
        ({"execution": {"devise": "cpu"}}, "no key 'devise'. Did you mean 'device'"),
        ({"execution": {"engine": "fast"}}, "execution.engine must be one of"),
        (
            {"execution": {"micro_batch": 0}},
            "execution.micro_batch: train_param.per_device_train_batch_size must be at least 1, got 0",
        ),
        ({"execution": {"eval_batch_size": 1.5}}, "per_device_eval_batch_size must be a whole number"),
    ],
)
def test_the_error_names_the_wrong_key_and_its_place(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, **values)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "study.yaml")) or "no task" in message


@pytest.mark.parametrize("text", ["models: [a\n", "- a\n", "nothing"])
def test_a_file_that_is_not_a_study_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"study\.yaml"):
        read(tmp_path, text)


def test_a_missing_study_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_study(tmp_path / "none.yaml")


FIELDS = [
    *({"recipe": {name: "?"}} for name in (one.name for one in dataclasses.fields(Recipe))),
    *({"recipe": {"lora": {name: "?"}}} for name in (one.name for one in dataclasses.fields(Lora))),
    *({"execution": {name: "?"}} for name in ("micro_batch", "eval_batch_size", "gradient_checkpointing", "use_git", "engine")),
    *({name: "?"} for name in ("max_num_train", "max_num_valid", "max_num_test", "seeds", "direct", "apply_chat_template")),
]
"""One study for each field that takes a number, a flag or a choice. "?" is the placeholder of the value."""


def filled(values: Any, value: object) -> Any:
    return {key: filled(item, value) for key, item in values.items()} if isinstance(values, dict) else value


@pytest.mark.parametrize("field", FIELDS, ids=str)
@pytest.mark.parametrize("value", ["eight", {"a": 1}, -3.7, float("nan"), [[1]]], ids=str)
def test_a_value_of_a_wrong_type_is_refused_in_every_field(tmp_path: Path, field: dict[str, Any], value: object) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, **filled(field, value))


@pytest.mark.parametrize(
    ("study", "flags"),
    [
        ({"recipe": {"epochs": -2}}, "--train_param.num_train_epochs -2"),
        ({"recipe": {"learning_rate": float("nan")}}, "--train_param.learning_rate nan"),
        ({"recipe": {"batch_size": 0}}, "--train_param.per_device_train_batch_size 0"),
        ({"recipe": {"weight_decay": float("inf")}}, "--train_param.weight_decay inf"),
        ({"max_num_test": 0}, "--dataset_param.max_num_test 0"),
        ({"system_instruction": ""}, "--dataset_param.system_instruction="),
        ({"execution": {"eval_batch_size": 0}}, "--train_param.per_device_eval_batch_size 0"),
    ],
    ids=str,
)
def test_a_study_refuses_a_value_with_the_same_message_as_a_run(tmp_path: Path, study: dict[str, Any], flags: str) -> None:
    arguments = ["--base_model", "m", "--task_name", "t", *flags.split()]
    with pytest.raises(UsageError) as of_run:
        run_spec(tyro.cli(RunFlags, args=arguments, use_underscores=True), given_flags(arguments))
    with pytest.raises(UsageError) as of_study:
        read(tmp_path, **study)
    assert str(of_study.value).endswith(str(of_run.value))


def test_a_run_refuses_a_negative_seed() -> None:
    arguments = ["--base_model", "m", "--task_name", "t", "--random_seed", "-1"]
    with pytest.raises(UsageError, match="random_seed must be from 0 to 4294967295, got -1"):
        run_spec(tyro.cli(RunFlags, args=arguments, use_underscores=True), given_flags(arguments))


DUPLICATE_KEY = """\
models: [some/model]
benchmarks: [arc_easy]
recipe:
  epochs: 3
  learning_rate: 1.0e-4
  epochs: 5
"""


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"study\.yaml, line 6: key 'epochs' is given twice, first in line 4"):
        read(tmp_path, DUPLICATE_KEY)
    with pytest.raises(UsageError, match=r"study\.yaml, line 3: key 'models' is given twice, first in line 1"):
        read(tmp_path, "models: [a/a]\nbenchmarks: [arc_easy]\nmodels: [b/b]\n")
    with pytest.raises(UsageError, match=r"line 2: key 'recipe' is given twice, first in line 2"):
        read(tmp_path, "models: [a/a]\nbenchmarks: [{task: arc_easy, recipe: {epochs: 1}, recipe: {}}]\n")


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("1E-4", 1e-4), ("2.e-3", 2e-3), ("+3e-1", 0.3), ("2.0e-5", 2e-5)])
def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path, text: str, value: float) -> None:
    """Model names that look similar stay text."""
    runs = read(tmp_path, f"models: [2e, e5]\nbenchmarks: [arc_easy]\nrecipe: {{learning_rate: {text}}}\n").runs
    assert {run.recipe.learning_rate for run in runs} == {value} and {run.model.name for run in runs} == {"2e", "e5"}


def test_a_message_names_line_and_key(tmp_path: Path) -> None:
    text = "models:\n- a/a\n- name: b/b\n  recipe:\n    lora: {r: 0}\nbenchmarks: [arc_easy]\n"
    with pytest.raises(UsageError, match=r"study\.yaml, line 5: models\[1\]\.recipe\.lora\.r: peft_config\.r must be at least 1"):
        read(tmp_path, text)
    with pytest.raises(UsageError, match=r"study\.yaml, line 3: models\[1\]: no key 'nam'\. Did you mean 'name'"):
        read(tmp_path, text.replace("name:", "nam:"))
    with pytest.raises(UsageError, match=r"study\.yaml, line 1: no key 'modles'\. Did you mean 'models'"):
        read(tmp_path, text.replace("models:", "modles:"))
    with pytest.raises(UsageError, match=r"an alias .* inside of what it refers to"):
        read(tmp_path, "models: &all [*all]\nbenchmarks: [arc_easy]\n")
    read(tmp_path, text.replace("r: 0", "r: 1"))  # negative control


def test_a_key_may_recur_in_another_mapping_or_override_a_merged_mapping(tmp_path: Path) -> None:
    """Negative control for the check of duplicate keys."""
    spec = read(
        tmp_path,
        "models: [{name: a/a, recipe: &base {epochs: 2, batch_size: 4}}, {name: b/b, recipe: {<<: *base, epochs: 3}}]\n"
        "benchmarks: [arc_easy]\n",
    )
    assert [(run.recipe.epochs, run.recipe.batch_size) for run in spec.runs] == [(2, 4), (3, 4)]


def test_a_cause_begins_with_a_class_only_if_its_message_was_not_written_for_users() -> None:
    assert cause_of("UsageError", "x = 1 is wrong.") == cause_of("DamagedFile", "x = 1 is wrong.") == "x = 1 is wrong."
    assert cause_of("KeyError", "'x'") == "KeyError: 'x'"


def test_a_benchmark_entry_may_state_the_direction_of_its_metric(tmp_path: Path) -> None:
    spec = read(tmp_path, benchmarks=["mnli", {"task": "arc_easy", "metric": "acc,none", "greater_is_better": False}])
    assert [(run.metric, run.greater_is_better) for run in spec.runs] == [(None, None), ("acc,none", False)]


def test_patterns_that_match_nothing_are_refused_with_the_nearest_names(tmp_path: Path) -> None:
    read(tmp_path, models=["some/model"], benchmarks=["arc_easy", "mnli"])
    path = tmp_path / "study.yaml"
    assert len(Study.read(path, only=["arc_easy"]).runs) == len(Study.read(path, skip=["mnli*"]).runs) == 1
    for flag in ("only", "skip"):
        with pytest.raises(UsageError, match=rf"--{flag}: 'arc_eazy' matches none of the 2 runs\. Did you mean 'arc_easy'"):
            _ = Study.read(path, **{flag: ["mnli", "arc_eazy"]}).runs
    with pytest.raises(UsageError, match=r"'xyz' matches none of the 2 runs\. The runs are of arc_easy, some--model, mnli"):
        _ = Study.read(path, only=["xyz"]).runs
    with pytest.raises(UsageError, match="--only and --skip leave none of the 2 runs"):
        _ = Study.read(path, only=["mnli"], skip=["mnli"]).runs


@pytest.mark.parametrize("workers", [0, -2])
def test_study_and_plan_refuse_fewer_than_one_worker(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path)
    for command in ("study", "plan"):
        assert main([command, str(tmp_path / "study.yaml"), "--workers", str(workers)]) == 1
        assert f"workers must be at least 1, got {workers}" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    with pytest.raises(UsageError, match="workers must be at least 1"):
        Study.read(tmp_path / "study.yaml").run(workers=workers)


SHIPPED_SCHEMA = Path(study_file.__file__).with_name("study.schema.json")


def test_the_shipped_schema_equals_the_generated_schema() -> None:
    """After a change: python -m lm_harmony.studies.study_file > src/lm_harmony/studies/study.schema.json"""
    module = [sys.executable, "-m", "lm_harmony.studies.study_file"]
    printed = subprocess.run(module, capture_output=True, text=True, check=True).stdout
    assert printed == SHIPPED_SCHEMA.read_text(encoding="utf-8")
    jsonschema.Draft202012Validator.check_schema(json.loads(printed))


def schema_validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SHIPPED_SCHEMA.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/studies.md"])
def test_the_schema_accepts_every_example_in_the_docs(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
    assert examples
    for example in examples:
        schema_validator().validate(example)


def test_the_schema_accepts_the_studies_of_the_tests(tmp_path: Path) -> None:
    schema_validator().validate(yaml.safe_load(write_world(tmp_path).read_text(encoding="utf-8")))
    entry = {"task": "mnli", "metric": "acc,none", "greater_is_better": True, "max_num_train": 5, "recipe": {"lora": None}}
    study = {"models": [{"name": "a/a", "recipe": {"lora": {"r": 4}}}, {"family": "Yi"}], "benchmarks": [entry], "data_dir": None}
    schema_validator().validate(study)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sedes": [1]},
        {"models": "a/a"},
        {"models": [{"name": "a/a", "famly": "Yi"}]},
        {"benchmarks": [{"metric": "acc"}]},
        {"benchmarks": [{"task": "mnli", "recipe": {"epoch": 1}}]},
        {"recipe": {"lora": {"rank": 1}}},
        {"recipe": {"epochs": "three"}},
        {"seeds": [-1]},
        {"direct": "yes"},
        {"split_protocol": "leaky"},
        {"near_duplicates": "remove"},
        {"max_num_test": 0},
        {"execution": {"trackers": ["wandb"]}},
        {"models": [{"name": "a/a", "chat_template_args": ["x"]}]},
        {"models": [{"name": "a/a", "think_end_token": 1.5}]},
        {"benchmarks": [{"task": "mnli", "max_gen_toks": 0}]},
    ],
    ids=str,
)
def test_schema_and_study_refuse_the_same_mistakes(tmp_path: Path, wrong: dict[str, Any]) -> None:
    right = {"models": ["a/a"], "benchmarks": ["arc_easy"]}
    schema_validator().validate(right)  # negative control
    assert not schema_validator().is_valid({**right, **wrong})
    with pytest.raises(UsageError):
        read(tmp_path, **wrong)
