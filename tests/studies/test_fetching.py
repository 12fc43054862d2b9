"""The rows and models of a study are downloaded from a hub on loopback. Then the study runs without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fork_server import forked_python
from hub import LoopbackHub, write_arc_dataset
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny import write_tiny_model
from transformers import AutoModelForCausalLM

from lm_harmony.studies.config import read_study

ARC, MODEL, ADAPTER = "allenai/ai2_arc", "EleutherAI/pythia-14m", "user/adapter"
ROWS = {
    split: [
        {
            "id": f"{split}-{number}",
            "question": f"Which of these floats on the {split} lake at {number} o'clock — and why?",
            "choices": {"text": ["a brick", f"a cork of {number}", "Zoë's anvil"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number in range(6)
    ]
    for split in ("train", "validation", "test")
}


def command(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    program = [forked_python(environment), "-m", "lm_harmony.cli", *arguments]
    return subprocess.run(program, env=dict(environment), capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Serve the rows, a model, and an adapter whose base is this model."""
    served = tmp_path_factory.mktemp("served")
    write_arc_dataset(served / "arc", ROWS)
    write_tiny_model(served / "model", "gpt_neox")
    config = LoraConfig(target_modules=["query_key_value"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(served / "model"), config).save_pretrained(str(served / "adapter"))
    file = served / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": MODEL}), encoding="utf-8")
    models = {MODEL: served / "model", ADAPTER: served / "adapter"}
    with LoopbackHub(models=models, datasets={ARC: served / "arc"}) as loopback:
        yield loopback


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a cache. All tests use it, so that one server forks their processes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def online(hub: LoopbackHub, cache: Path) -> dict[str, str]:
    """Empty the cache and return variables of processes that use the hub."""
    shutil.rmtree(cache)
    return hub.environment(cache)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return variables of processes that have no network and an empty cache."""
    empty = str(tmp_path_factory.mktemp("empty"))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": empty, "HF_ENDPOINT": "http://127.0.0.1:9"}


def write_study(folder: Path, *models: str | dict[str, Any]) -> Path:
    file = folder / "study.yaml"
    recipe = {"epochs": 1, "lora": {"target_modules": ["all-linear"]}}
    study = {"models": [*models], "benchmarks": ["arc_easy"], "recipe": recipe, "data_dir": "data", "models_dir": "models"}
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


def test_revisions_of_one_model_are_fetched_into_folders_of_their_own(
    hub: LoopbackHub, online: dict[str, str], tmp_path: Path
) -> None:
    """The branch and its commit: the study then takes both from the folders, and without them it would ask the hub."""
    commit = str(HfApi(endpoint=hub.endpoint).model_info(MODEL).sha)
    file = write_study(tmp_path, {"name": MODEL, "revisions": ["main", commit]})
    done = command(["fetch", str(file)], online)
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "models" / f"{MODEL}@{revision}" for revision in ("main", commit)]
    asked = [json.loads((folder / "source.json").read_text(encoding="utf-8"))["asked"] for folder in folders]
    assert asked == ["main", commit] and not (tmp_path / "models" / MODEL).exists()
    assert [run.model.name for run in read_study(file).runs] == list(map(str, folders))
    shutil.rmtree(folders[1])
    assert [run.model.name for run in read_study(file).runs] == [str(folders[0]), MODEL]


def test_a_downloaded_study_runs_without_network(
    hub: LoopbackHub, online: dict[str, str], offline: dict[str, str], tmp_path: Path
) -> None:
    file = write_study(tmp_path, MODEL)
    done = command(["fetch", str(file)], online)
    assert done.returncode == 0, done.stderr
    assert "fetched       arc_easy" in done.stdout
    assert f"fetched       {MODEL}" in done.stdout
    rows = tmp_path / "data" / "arc_easy"
    for split, expected in ROWS.items():
        lines = (rows / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == expected, "the rows were changed"
    source = json.loads((rows / "source.json").read_text(encoding="utf-8"))
    assert (source["dataset_path"], source["dataset_name"], source["files"]["train.jsonl"]["rows"]) == (ARC, "ARC-Easy", 6)
    assert len(source["revision"]) == 40

    requests = len(hub.requests)
    again = command(["fetch", str(file)], online)
    assert "already there arc_easy" in again.stdout, again.stdout + again.stderr
    assert len(hub.requests) == requests, "the second download sent requests"

    file.write_text(file.read_text(encoding="utf-8").replace(MODEL, f"{{name: {MODEL}, revision: v2}}"), encoding="utf-8")
    other = command(["study", str(file)], online)
    assert other.returncode == 1
    assert "holds revision 'main', asked is 'v2'" in other.stderr
    write_study(tmp_path, MODEL)

    ran = command(["study", str(file)], offline)
    assert ran.returncode == 0, ran.stderr
    assert "1 finished" in ran.stdout


QUIZ = {
    "dataset_path": ARC,
    "dataset_name": "ARC-Easy",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}",
    "doc_to_choice": "{{choices.text}}",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "metric_list": [{"metric": "acc", "higher_is_better": True}],
}
"""Fields of a task without training rows."""


@pytest.mark.parametrize("tested", ["quiz", "exams"])
def test_the_rows_of_all_tasks_of_a_benchmark_are_fetched(
    tested: str, online: dict[str, str], offline: dict[str, str], tmp_path: Path
) -> None:
    """Those of a benchmark that is trained on, and those of every task of a group."""
    group = {"group": "exams", "task": ["quiz", "hard_quiz"], "aggregate_metric_list": [{"metric": "acc"}]}
    files = {"quiz": {"task": "quiz", **QUIZ}, "hard": {"task": "hard_quiz", **QUIZ}, "exams": group}
    for name, fields in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    file = write_study(tmp_path, MODEL)
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    study["benchmarks"] = [{"task": f"{tested}.yaml", "train_on": "arc_easy"}]
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    done = command(["fetch", str(file)], online)
    assert done.returncode == 0, done.stderr
    assert "fetched       quiz" in done.stdout and "fetched       arc_easy" in done.stdout
    assert ("fetched       hard_quiz" in done.stdout) == (tested == "exams")
    for folder in [tmp_path / "data" / "quiz", *(tmp_path / "data").glob("hard_quiz")]:
        assert sorted(path.name for path in folder.iterdir()) == ["source.json", "test.jsonl"]
    ran = command(["study", str(file)], offline)
    assert ran.returncode == 0 and "1 finished" in ran.stdout, ran.stderr
    shutil.rmtree(tmp_path / "data" / "arc_easy")  # negative control: without these rows the study cannot run
    shutil.rmtree(tmp_path / "results")
    assert command(["study", str(file)], offline).returncode == 1


def test_a_failed_download_leaves_no_files_and_does_not_affect_the_other_downloads(
    online: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    file = write_study(tmp_path, MODEL, "nobody/nothing")
    done = command(["fetch", str(file)], online)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "nobody/nothing" in done.stdout
    assert f"fetched       {MODEL}" in done.stdout
    assert not (tmp_path / "models" / "nobody" / "nothing").exists()
    assert not [*tmp_path.rglob(".*.part"), *cache.rglob(".*.part")]


def test_without_network_each_part_is_one_line(offline: dict[str, str], tmp_path: Path) -> None:
    file = write_study(tmp_path, MODEL)
    done = command(["fetch", str(file)], {**offline, "HF_HUB_OFFLINE": "0"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    rows, model = done.stdout.splitlines()
    for line, name in ((rows, "arc_easy"), (model, MODEL)):
        assert line.startswith(f"failed        {name}: {name} cannot be fetched: http://127.0.0.1:9 cannot be reached (")
        assert line.endswith("Connect to the network and repeat.")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["study.yaml"]


def test_downloaded_rows_that_were_edited_are_an_error(online: dict[str, str], tmp_path: Path) -> None:
    file = write_study(tmp_path, MODEL)
    assert command(["fetch", str(file)], online).returncode == 0
    with (tmp_path / "data" / "arc_easy" / "test.jsonl").open("a", encoding="utf-8") as rows:
        rows.write(json.dumps(ROWS["test"][0]) + "\n")
    done = command(["fetch", str(file)], online)
    assert done.returncode == 1
    assert "differs from its checksum in source.json" in done.stdout


def test_an_adapter_is_fetched_with_its_base_model(
    hub: LoopbackHub, online: dict[str, str], offline: dict[str, str], tmp_path: Path
) -> None:
    """The records of a study from the hub name both commits. The same study also runs from the fetched folders."""
    study = write_study(tmp_path, ADAPTER)
    folders = study.read_text(encoding="utf-8")
    from_hub = {key: value for key, value in yaml.safe_load(folders).items() if key not in ("data_dir", "models_dir")}
    study.write_text(yaml.safe_dump(from_hub), encoding="utf-8")
    done = command(["study", str(study)], online)
    assert done.returncode == 0, done.stdout + done.stderr
    study.write_text(folders, encoding="utf-8")
    fetched = command(["fetch", str(study)], online)
    assert fetched.returncode == 0, fetched.stderr
    commits = {name: HfApi(endpoint=hub.endpoint).model_info(name).sha for name in (MODEL, ADAPTER)}
    (record,) = (tmp_path / "results").rglob("record.json")
    values = json.loads(record.read_text(encoding="utf-8"))
    assert values["model_revision"] == commits[ADAPTER]
    assert {one["name"]: one["commit"] for one in values["sources"] if one["kind"] == "model"} == commits
    assert {path.name for path in (tmp_path / "models").glob("*/*")} == {"adapter", "pythia-14m"}
    ran = command(["study", str(study)], offline)
    assert ran.returncode == 0, ran.stderr
    scores = [json.loads(path.read_text(encoding="utf-8"))["trained"] for path in (tmp_path / "results").rglob("record.json")]
    assert len(scores) == 2 and scores[0] == scores[1]
