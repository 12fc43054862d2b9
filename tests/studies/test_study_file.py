"""A study file says what it says, and is refused whole where it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError
from lm_harmony.models.catalogue import MODELS
from lm_harmony.studies.study_file import StudySpec, read_study


def read(folder: Path, text: str = "", **values: Any) -> StudySpec:
    path = folder / "study.yaml"
    path.write_text(text or yaml.safe_dump({"models": ["some/model"], "benchmarks": ["arc_easy"], **values}), encoding="utf-8")
    return read_study(path)


def test_runs_are_models_by_benchmarks_by_seeds_in_this_order(tmp_path: Path) -> None:
    spec = read(tmp_path, models=["a/a", "b/b"], benchmarks=["arc_easy", "mnli"], seeds=[3, 5])
    found = [(run.model.name, run.benchmark.task, run.seed) for run in spec.runs]
    assert found == [(m, b, s) for m in ("a/a", "b/b") for b in ("arc_easy", "mnli") for s in (3, 5)]
    assert spec.results_dir == tmp_path / "results"


def test_suites_and_groups_come_from_the_catalogues(tmp_path: Path) -> None:
    spec = read(tmp_path, models=[{"family": "pythia", "max_params_b": 1.5}], benchmarks=["paper24"])
    assert {run.benchmark.task for run in spec.runs} == set(BENCHMARKS)
    chosen = {run.model.name for run in spec.runs}
    pythia = {name: info for name, info in MODELS.items() if info.family == "Pythia"}
    assert chosen == {name for name, info in pythia.items() if (info.params_b or info.nominal_params_b) <= 1.5}
    assert len(read(tmp_path, benchmarks=["leaderboard9"]).runs) == 9
    assert len(read(tmp_path, models=[{"kind": "instruct", "family": "Gemma"}]).runs) == 4


def test_recipes_are_laid_over_one_another(tmp_path: Path) -> None:
    """The study's over the published one, the model's over the study's, the benchmark's over the model's."""
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


def test_paths_start_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "own.yaml").write_text("task: own\n")
    (run,) = read(tmp_path, models=["mine"], benchmarks=["own.yaml"], data_dir="rows", results_dir="out").runs
    assert run.model.name == str(tmp_path / "mine")
    assert run.benchmark.task == str(tmp_path / "own.yaml") and run.benchmark.data_dir == tmp_path / "rows"


def test_perplexity_stands_for_the_users_corpora(tmp_path: Path) -> None:
    spec = read(tmp_path, benchmarks=["perplexity"], corpora=["wiki.jsonl", "code.txt"])
    assert [run.benchmark.task for run in spec.runs] == [f"corpus:{tmp_path / 'wiki.jsonl'}", f"corpus:{tmp_path / 'code.txt'}"]
    with pytest.raises(UsageError, match="needs texts of your own"):
        read(tmp_path, benchmarks=["perplexity"])


def test_the_date_of_chat_templates_is_the_studys_or_a_models(tmp_path: Path) -> None:
    """An unquoted date in YAML is a date all the same; a model's own goes before the study's."""
    text = "models: [a/a, {name: b/b, chat_template_date: '2025-02-03'}]\nbenchmarks: [arc_easy]\napply_chat_template: true\n"
    dates = [run.model.chat_template_date for run in read(tmp_path, text + "chat_template_date: 2026-01-05\n").runs]
    assert dates == ["2026-01-05", "2025-02-03"]
    assert [run.model.chat_template_date for run in read(tmp_path, text).runs] == ["2024-07-26", "2025-02-03"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template_date": "today"}, "chat_template_date must be a date as YYYY-MM-DD, got 'today'"),
        ({"sedes": [1]}, "no key 'sedes'. Did you mean 'seeds'"),
        ({"recipe": {"epoch": 2}}, "no key 'epoch'. Did you mean 'epochs'"),
        ({"recipe": {"lora": {"rank": 2}}}, "lora has no key 'rank'"),
        ({"recipe": {"epochs": 0}}, "must be at least 1, got 0"),
        ({"recipe": {"epochs": "two"}}, "wrong kind"),
        ({"models": [{"family": "Pithia"}]}, "Did you mean 'Pythia'"),
        ({"models": [{"name": "a/a", "famly": "x"}]}, "no key 'famly'. Did you mean 'family'"),
        ({"models": [{"name": "a/a", "family": "Yi"}]}, "gives a name and a group"),
        ({"models": []}, "models must name at least one"),
        ({"models": "a/a"}, "must be a list"),
        ({"benchmarks": ["arc_esay"]}, "no task 'arc_esay'. Did you mean 'arc_easy'"),
        ({"benchmarks": [{"tsk": "arc_easy"}]}, "no key 'tsk'. Did you mean 'task'"),
        ({"benchmarks": [{"recipe": {}}]}, "lacks the key task"),
        ({"benchmarks": ["arc_easy", "arc_easy"]}, "is asked twice"),
        ({"seeds": [-1]}, "whole numbers from 0"),
        ({"seeds": 0}, "whole numbers from 0"),
        ({"direct": "yes"}, "direct must be true or false"),
        ({"split_protocol": "leaky"}, "clean or published, got 'leaky'"),
        ({"max_num_train": 0}, "max_num_train must be at least 1"),
        ({"max_num_train": "all"}, "wrong kind"),
        ({"execution": {"devise": "cpu"}}, "no key 'devise'. Did you mean 'device'"),
        ({"execution": {"engine": "fast"}}, "engine must be one of"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, **values)
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["models: [a\n", "- a\n", "nothing"])
def test_what_is_no_study_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"study\.yaml"):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_study(tmp_path / "none.yaml")
