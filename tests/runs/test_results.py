"""A run's results files equal those that lm_eval writes for the same two models, and other tools can distinguish the two."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_file_datetime, get_latest_filename, get_results_filenames, make_table
from lm_eval_alone import lm_eval_task
from micro import TASK, write_micro
from tiny import write_tiny_model

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.benchmarks.types import Caps
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.report.export import export
from lm_harmony.runs.lm_eval_results import direct_results
from lm_harmony.runs.protocol import add_direct_score, score_again, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

SCHEMA = Path(__file__).parents[1] / "every_eval_ever" / "eval.schema.json"
"""Schema 0.3.0 of Every Eval Ever (github.com/evaleval/every_eval_ever). Its MIT license is in the same folder."""
BRIER = """\
  - metric: brier_score
    aggregation: brier_score
    higher_is_better: false
"""
LORA = Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))


def finished_run(
    folder: Path, *, chat: bool = False, recipe: Recipe = LORA, caps: Caps | None = None, model: str = "llama"
) -> RunStore:
    """Execute a run with a direct score on a benchmark of 12 test rows. Its Brier score changes with any training."""
    task = write_micro(folder)
    task.write_text(TASK + BRIER, encoding="utf-8")
    spec = RunSpec(
        model=ModelSpec(name=str(write_tiny_model(folder / "model", model, bos=True, chat=chat)), apply_chat_template=chat),
        benchmark=BenchmarkSpec(task=str(task), data_dir=folder, caps=caps or Caps()),
        recipe=recipe,
        direct=True,
        execution=Execution(device="cpu"),
    )
    store = RunStore(folder / "run")
    train_before_test(spec, store)
    return store


@pytest.fixture(scope="module", params=[False, True], ids=["no chat template", "chat template"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return finished_run(tmp_path_factory.mktemp("run"), chat=request.param)


def files_of(store: RunStore) -> dict[str, Path]:
    """Return the results file of the trained model and that of the base model."""
    (trained,), (direct,) = store.folder.glob("results_*.json"), (store.folder / "direct").glob("results_*.json")
    return {"trained": trained, "direct": direct}


def results_of(store: RunStore) -> dict[str, dict[str, Any]]:
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files_of(store).items()}


def lm_eval_writes(folder: Path, ours: Mapping[str, Any], *, limit: int | None = None) -> dict[str, Any]:
    """Evaluate the model that ``ours`` names with lm_eval on the same rows. Return the results file that lm_eval writes."""
    rows = {
        role: [json.loads(line) for line in (folder / "micro" / f"{role}.jsonl").read_text().splitlines()]
        for role in ("train", "validation", "test")
    }
    output = folder / "lm_eval" / str(len(list(folder.glob("lm_eval/*"))))
    tracker = EvaluationTracker(output_path=str(output))
    results: Any = simple_evaluate(
        model="hf",
        model_args=dict(ours["config"]["model_args"]),
        device="cpu",
        batch_size=1,
        tasks=[lm_eval_task(folder / "micro.yaml", rows)],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=ours["chat_template"] is not None,
        evaluation_tracker=tracker,
        limit=limit,
        bootstrap_iters=1,
    )
    tracker.save_results_aggregated(results, results.pop("samples"))
    (written,) = output.rglob("results_*.json")
    return json.loads(written.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def identity(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a results file that describe the model and the request."""
    keys = ("task_hashes", "chat_template", "chat_template_sha", "max_length", "n-samples", "higher_is_better", "versions")
    named = ("model_source", "model_name", "model_name_sanitized", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id")
    config = ("model_num_parameters", "model_dtype", "model_revision", "model_sha", "peft_sha", "limit", "model_args")
    return {
        **{key: results.get(key) for key in (*keys, *named)},
        **{key: results["config"].get(key) for key in config},
    }


@pytest.mark.parametrize("name", ["trained", "direct"])
def test_lm_eval_gives_the_same_results_with_the_model_args_of_the_file(run: RunStore, name: str) -> None:
    """lm_eval loads the same model from the file's ``model_args``, and writes the same scores and the same fields."""
    ours = results_of(run)[name]
    theirs = lm_eval_writes(run.folder.parent, ours)
    assert identity(ours) == identity(theirs)
    # The standard error of a Brier score is bootstrapped, and lm_eval draws other samples.
    scores = {key: value for key, value in theirs["results"]["micro"].items() if "," in key and "brier_score_stderr" not in key}
    assert len(scores) == 5
    assert {key: ours["results"]["micro"][key] for key in scores} == pytest.approx(scores)


def test_the_two_results_files_describe_the_trained_and_the_base_model(run: RunStore) -> None:
    trained, direct = results_of(run)["trained"], results_of(run)["direct"]
    adapter = run.folder / "adapter"
    assert trained["config"]["model_args"]["peft"] == str(adapter) == trained["model_name"]
    assert "peft" not in direct["config"]["model_args"] and direct["model_name"] == str(run.folder.parent / "model")
    assert trained["config"]["model_num_parameters"] > direct["config"]["model_num_parameters"] > 0
    assert trained["results"]["micro"]["alias"] == "micro (train-before-test)" and direct["results"]["micro"]["alias"] == "micro"
    record = run.record()
    assert record.trained is not None and record.direct is not None
    assert RunRecord.from_dict(trained["train_before_test"]) == record and "train_before_test" not in direct
    brier = "brier_score,none"
    assert trained["results"]["micro"][brier] == record.trained.metrics[brier] != record.direct.metrics[brier]
    assert direct["results"]["micro"][brier] == record.direct.metrics[brier]


def test_the_compared_fields_differ_between_the_two_models(run: RunStore) -> None:
    """Negative control: the comparison with lm_eval would fail if the two files were swapped."""
    trained, direct = (identity(results) for results in results_of(run).values())
    assert {key for key in trained if trained[key] != direct[key]} == {
        *("model_name", "model_name_sanitized", "model_num_parameters", "model_args", "peft_sha")
    }


def test_lm_eval_finds_and_shows_both_results_files(run: RunStore) -> None:
    """The rows in lm_eval's tables differ, and lm_eval's search finds both files in two folders."""
    tables = {name: make_table(results) for name, results in results_of(run).items()}
    assert "micro (train-before-test)" in tables["trained"] and "train-before-test" not in tables["direct"]
    record = run.record()
    for name, score in (("trained", record.trained), ("direct", record.direct)):
        assert score is not None
        cells = [cell.strip() for cell in tables[name].strip().splitlines()[-1].split("|")]
        assert cells[5] == "brier_score" and float(cells[7]) == round(score.metrics["brier_score,none"], 4)
    found = get_results_filenames([str(path) for path in run.folder.rglob("*")])
    assert sorted(found) == sorted(str(file) for file in files_of(run).values())
    assert {Path(file).parent for file in found} == {run.folder, run.folder / "direct"}
    assert get_latest_filename(found) == str(files_of(run)["direct"]) and get_file_datetime(found[0])[:2] == "20"
    names = {GeneralConfigTracker._get_model_name(results["config"]["model_args"]) for results in results_of(run).values()}
    assert len(names) == 2


def test_a_capped_test_split_is_recorded_as_limit_and_sample_counts(tmp_path: Path) -> None:
    """With 8 of 12 rows, ``limit`` is 8 and ``n-samples.original`` is 12, as with lm_eval's --limit."""
    results = results_of(finished_run(tmp_path, caps=Caps(test=8)))
    for ours in results.values():
        assert ours["config"]["limit"] == 8 and ours["n-samples"] == {"micro": {"original": 12, "effective": 8}}
    assert lm_eval_writes(tmp_path, results["direct"], limit=8)["n-samples"] == results["direct"]["n-samples"]


def test_full_fine_tuning_is_recorded_as_a_complete_model_folder(tmp_path: Path) -> None:
    store = finished_run(tmp_path, recipe=dataclasses.replace(LORA, lora=None, learning_rate=1e-3))
    trained = results_of(store)["trained"]
    assert trained["config"]["model_args"] == {"pretrained": str(store.folder / "adapter"), "dtype": "float32"}
    theirs = lm_eval_writes(tmp_path, trained)
    assert identity(trained) == identity(theirs)
    brier = "brier_score,none"
    assert trained["results"]["micro"][brier] == pytest.approx(theirs["results"]["micro"][brier])


def test_the_parameter_count_includes_biases_trained_with_the_adapter_once(tmp_path: Path) -> None:
    """DoRA adds a vector to each layer. ``bias: all`` saves biases of the base model in the adapter file."""
    lora = Lora(target_modules=("all-linear",), use_dora=True, bias="all")
    trained = results_of(finished_run(tmp_path, recipe=dataclasses.replace(LORA, lora=lora), model="gpt_neox"))["trained"]
    assert identity(trained) == identity(lm_eval_writes(tmp_path, trained))


def test_autocast_is_recorded_as_mixed_precision_dtype_of_lm_eval(run: RunStore) -> None:
    """If a model runs under bfloat16 autocast, lm_eval loads it with the same setting."""
    setup, record = set_up_run(run.record().spec), run.record()
    model = dataclasses.replace(setup.model, autocast=torch.bfloat16)
    mixed = dataclasses.replace(setup, scorer=dataclasses.replace(setup.scorer, model=model))
    ours = direct_results(mixed, dataclasses.replace(record, direct=run.direct_score()), date=0.0)
    direct_args = results_of(run)["direct"]["config"]["model_args"]
    assert ours["config"]["model_args"] == {**direct_args, "mixed_precision_dtype": "bfloat16"}
    assert identity(ours) == identity(lm_eval_writes(run.folder.parent, ours))


def test_scoring_again_and_adding_a_direct_score_write_one_direct_results_file(tmp_path: Path) -> None:
    store = finished_run(tmp_path)
    first = files_of(store)
    score_again(store)
    assert len(list(store.folder.glob("results_*.json"))) == 2 and files_of_direct(store) == [first["direct"]]
    first["direct"].unlink()
    without_direct = dataclasses.replace(store.record(), direct=None)
    store.write_record(without_direct)
    add_direct_score(store, without_direct.spec)
    assert len(files_of_direct(store)) == 1 and store.record().direct is not None


def files_of_direct(store: RunStore) -> list[Path]:
    return list((store.folder / "direct").glob("results_*.json"))


def as_every_eval_ever(results: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a results file to a record of Every Eval Ever, using only fields of lm_eval's schema."""
    (task,) = results["results"]
    scores, samples = results["results"][task], results["n-samples"][task]
    args, stamp = results["config"]["model_args"], str(int(results["date"]))
    return {
        "schema_version": "0.3.0",
        "evaluation_id": f"{task}/{results['model_name']}/{stamp}",
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_type": "evaluation_run",
            "source_organization_name": "a test",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {"name": "lm_eval", "version": results["lm_eval_version"]},
        "model_info": {
            "name": scores["alias"],
            "id": results["model_name"],
            "additional_details": {
                "pretrained": args["pretrained"],
                "peft": args.get("peft", ""),
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "num_parameters": str(results["config"]["model_num_parameters"]),
            },
        },
        "evaluation_results": [
            {
                "evaluation_name": task,
                "source_data": {"dataset_name": task, "source_type": "other"},
                "metric_config": {
                    "evaluation_description": key,
                    "lower_is_better": not results["higher_is_better"][task][key.split(",")[0]],
                },
                "score_details": {
                    "score": value,
                    "uncertainty": {
                        "standard_error": {"value": scores[key.replace(",", "_stderr,")]},
                        "num_samples": samples["effective"],
                    },
                },
            }
            for key, value in scores.items()
            if "," in key and "_stderr," not in key
        ],
    }


def test_both_files_convert_to_valid_every_eval_ever_records_that_differ_in_model_and_score(run: RunStore) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    records = {name: as_every_eval_ever(results) for name, results in results_of(run).items()}
    for record in records.values():
        jsonschema.validate(record, schema)
    trained, direct = records["trained"], records["direct"]
    assert trained["model_info"]["id"] == str(run.folder / "adapter")
    assert trained["model_info"]["additional_details"]["pretrained"] == direct["model_info"]["id"]
    assert trained["evaluation_id"] != direct["evaluation_id"]
    record = run.record()
    for name, score in (("trained", record.trained), ("direct", record.direct)):
        assert score is not None
        found = {
            line["metric_config"]["evaluation_description"]: line["score_details"]["score"]
            for line in records[name]["evaluation_results"]
        }
        assert found == dict(score.metrics)
        lower = [line["metric_config"]["lower_is_better"] for line in records[name]["evaluation_results"]]
        assert lower == ["brier_score" in key for key in found]


def test_exported_files_are_read_as_an_output_folder_of_lm_eval(run: RunStore, tmp_path: Path) -> None:
    written = export(run.folder, tmp_path / "out", "lm_eval")
    assert written.left_out == () and len(written.files) == 4
    for name, file in files_of(run).items():
        (copied,) = (tmp_path / "out").rglob(file.name)
        (samples,) = (one for one in copied.parent.iterdir() if one.name.startswith("samples_micro_"))
        assert get_latest_filename([copied.name]) == copied.name and copied.read_bytes() == file.read_bytes()
        split = {"trained": "test", "direct": "direct"}[name]
        assert samples.read_bytes() == (run.folder / f"samples_{split}.jsonl").read_bytes()
    direct = ScoreMatrix.read(tmp_path / "out").scores("direct").values
    assert run.record().direct is not None and direct.notna().any(axis=None)


def test_files_of_another_score_are_not_exported_as_those_of_a_run(run: RunStore, tmp_path: Path) -> None:
    store = RunStore(Path(shutil.copytree(run.folder, tmp_path / "run")))
    trained = files_of(store)["trained"]
    before = json.loads(trained.read_text(encoding="utf-8"))
    changed = json.loads(json.dumps(before))
    changed["results"]["micro"]["acc,none"] += 0.25
    later = trained.with_name("results_2999-01-01T00-00-00.000000.json")
    later.write_text(json.dumps(changed), encoding="utf-8")
    written = export(store.folder, tmp_path / "first", "lm_eval")  # a file that has the scores is copied instead
    assert written.left_out == () and trained.name in {file.name for file in written.files}
    assert later.name not in {file.name for file in written.files}
    later.rename(trained)
    written = export(store.folder, tmp_path / "second", "lm_eval")
    assert written.left_out == (
        f"{store.folder}: no results file has the scores of record.json. Score the run again to write one",
    )
    assert len(written.files) == 2  # of the direct score
    trained.write_text(json.dumps(before), encoding="utf-8")
    samples = store.folder / "samples_test.jsonl"
    first, *others = samples.read_text(encoding="utf-8").splitlines()
    sample = json.loads(first)
    for lines in ([json.dumps({**sample, "acc": 1.0 - sample["acc"]}), *others], others):
        samples.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        written = export(store.folder, tmp_path / "third", "lm_eval")
        assert len(written.left_out) == 1 and "samples_test.jsonl: it is not of this score" in written.left_out[0]
        assert len(written.files) == 3


def test_the_every_eval_ever_schema_refuses_a_record_without_model_or_direction(run: RunStore) -> None:
    """Negative control for the schema validation."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    record = as_every_eval_ever(results_of(run)["trained"])
    for part, key in ((record["model_info"], "id"), (record["evaluation_results"][0]["metric_config"], "lower_is_better")):
        value = part.pop(key)
        with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
            jsonschema.validate(record, schema)
        part[key] = value
