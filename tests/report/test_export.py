"""``export``: every score of finished, current runs once, in the formats of other tools, and nothing of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml
from boards import write_failure, write_run
from huggingface_hub import parse_eval_result_entries

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.cli.main import main
from lm_harmony.recipe import PUBLISHED
from lm_harmony.report.finished_scores import dataset_of
from lm_harmony.runs.file_hashes import SMALL, HashCache, _stamp, sha256_of
from lm_harmony.runs.sources import Source

SCHEMA = Path(__file__).parents[1] / "every_eval_ever" / "eval.schema.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_HUB = (Source(kind="rows", name="allenai/ai2_arc", revision="main", commit=COMMIT),)


def file_source(file: Path, kind: str = "rows") -> Source:
    return Source(kind=kind, name=file.name, path=str(file), size=file.stat().st_size, sha256=sha256_of(file))  # type: ignore[arg-type]


def exported(folder: Path, to: str, *more: str) -> Path:
    """Export the runs in ``folder`` and return the folder of the files."""
    assert main(["export", str(folder / "results"), "--to", to, "--output", str(folder / "out"), *more]) == 0
    return folder / "out"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Write runs of two seeds on the hub's rows, a run with a model in a folder, a failed run, and a run whose task changed."""
    results, task = tmp_path / "results", tmp_path / "own.yaml"
    task.write_text("task: own\n")
    for seed, score in ((0, 0.6), (1, 0.7)):
        write_run(results, model="a/a", trained=score, direct=0.25, seed=seed, sources=ON_HUB, parameters=10)
    write_run(results, model=str(tmp_path / "models" / "b"), trained=0.5, sources=ON_HUB, metric="perplexity,none", higher=False)
    write_failure(results, model="c")
    write_run(results, model="d", sources=(file_source(task, "task"),))
    task.write_text("task: own\nchanged: 1\n")
    return tmp_path


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_a_table_has_each_score_once(to: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported(study, to) / f"scores.{to}"
    table = pd.read_csv(file) if to == "csv" else pd.read_parquet(file)
    rows = table[["model", "preparation", "seed", "value", "stderr"]].to_numpy().tolist()
    assert sorted(rows) == [
        ["a/a", "direct", 0, 0.25, 0.05],  # one direct score for both seeds
        ["a/a", "trained", 0, 0.6, 0.05],
        ["a/a", "trained", 1, 0.7, 0.05],
        ["b", "trained", 0, 0.5, 0.05],
    ]
    assert set(table.loc[table["preparation"] == "trained", "notes"]) == {
        "train-before-test, LoRA r 8, learning rate 2e-05, 10 training rows, epoch 1 of 1 chosen on validation, "
        "100 test documents"
    }
    assert str(study) not in file.read_bytes().decode(errors="ignore")
    errors = capsys.readouterr().err
    assert "the run has failed" in errors and "the run is not current: own.yaml changed since" in errors


def test_the_chosen_learning_rate_is_exported(tmp_path: Path) -> None:
    """With the recipe, which names all rates; records of one rate are as before."""
    several = replace(PUBLISHED, learning_rate=(5e-6, 2e-5))
    write_run(tmp_path / "results", model="a/a", direct=0.2, recipe=several, chosen_epoch=2)
    write_run(tmp_path / "results", model="a/b")
    table = pd.read_csv(exported(tmp_path, "csv") / "scores.csv")
    notes = dict(table.loc[table["preparation"] == "trained", ["model", "notes"]].to_numpy())
    assert "learning rate 2e-05 of 2 chosen on validation, 10 training rows, epoch 2 of 2" in notes["a/a"]
    assert "learning rate 2e-05, 10 training rows" in notes["a/b"]
    folder = exported(tmp_path, "every-eval-ever", "--organization", "us")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.rglob("*.json")]
    details = {record["model_info"]["id"]: record["model_info"]["additional_details"] for record in records}
    assert details["a/a@train-before-test"]["chosen_learning_rate"] == "2e-05"
    assert json.loads(details["a/a@train-before-test"]["recipe"])["learning_rate"] == [5e-6, 2e-5]
    assert not {"chosen_learning_rate"} & (details["a/a"].keys() | details["a/b@train-before-test"].keys())


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    write_run(tmp_path / "results", model="=1+1")
    assert (exported(tmp_path, "csv") / "scores.csv").read_text().splitlines()[1].startswith("'=1+1,")


def test_every_record_follows_the_schema_and_has_its_direction(study: Path) -> None:
    folder = exported(study, "every-eval-ever", "--organization", "us")
    schema, files = json.loads(SCHEMA.read_text(encoding="utf-8")), sorted(folder.rglob("*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for record in records:
        jsonschema.validate(record, schema)
    found = {
        (record["model_info"]["id"], line["score_details"]["score"], line["metric_config"]["lower_is_better"])
        for record in records
        for line in record["evaluation_results"]
    }
    tested = "@train-before-test"
    assert found == {("a/a", 0.25, False), (f"a/a{tested}", 0.6, False), (f"a/a{tested}", 0.7, False), (f"b{tested}", 0.5, True)}
    assert all(line["source_data"]["hf_repo"] == "allenai/ai2_arc" for record in records for line in record["evaluation_results"])
    assert files[0].relative_to(folder).parts[:3] == ("arc_easy", "a", "a")
    with pytest.raises(jsonschema.ValidationError):  # negative control
        jsonschema.validate({**records[0], "model_info": {}}, schema)


def test_entries_for_the_hub_name_data_set_commit_and_preparation(study: Path) -> None:
    folder = exported(study, "hub")
    (file,) = (folder / "a" / "a").rglob("*.yaml")
    assert file.relative_to(folder / "a" / "a") == Path(".eval_results/arc_easy.yaml")
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert [(entry.dataset_id, entry.task_id, entry.dataset_revision) for entry in entries] == 3 * [
        ("allenai/ai2_arc", "arc_easy", COMMIT)
    ]
    assert sorted(entry.value for entry in entries) == [0.25, 0.6, 0.7]
    assert sum("train-before-test, LoRA r 8" in str(entry.notes) for entry in entries) == 2


def test_a_score_after_training_on_another_benchmark_is_not_exported_to_the_hub(tmp_path: Path) -> None:
    """Its rows are of two data sets, and the hub would show it as a score of one."""
    record = write_run(tmp_path / "results", model="a/a", sources=ON_HUB).record()
    assert dataset_of(record) == ("allenai/ai2_arc", COMMIT)  # negative control
    benchmark = replace(record.spec.benchmark, train_on="mc_mix")
    assert dataset_of(replace(record, spec=replace(record.spec, benchmark=benchmark))) is None


def test_a_table_says_that_weights_were_quantized_and_rows_are_of_another_benchmark(tmp_path: Path) -> None:
    store = write_run(tmp_path / "results", model="a/a", recipe=replace(PUBLISHED, quantize="nf4"))
    record = store.record()
    benchmark = replace(record.spec.benchmark, train_on="mc_mix")
    store.write_record(replace(record, spec=replace(record.spec, benchmark=benchmark)))
    (notes,) = pd.read_csv(exported(tmp_path, "csv") / "scores.csv")["notes"]
    assert "LoRA r 8 on nf4 weights, " in notes and ", 10 training rows of mc_mix, " in notes


@pytest.mark.parametrize("changed", [False, True])
def test_fetched_rows_have_the_data_set_of_their_source_file(
    changed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "data" / "arc_easy" / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}\n")
    files = {"train.jsonl": {"sha256": "0" * 64 if changed else sha256_of(rows)}}
    known = {"dataset_path": "allenai/ai2_arc", "revision": COMMIT, "files": files}
    (rows.parent / "source.json").write_text(json.dumps(known))
    write_run(tmp_path / "results", model="a", sources=(file_source(rows),))
    assert main(["export", str(tmp_path / "results"), "--to", "hub", "--output", str(tmp_path / "out")]) == changed
    assert len(list((tmp_path / "out").rglob("*.yaml"))) == (not changed)
    assert ("their rows are not of one data set of the hub" in capsys.readouterr().err) == changed


def test_the_reason_for_which_runs_are_left_out_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("{}\n")
    for model in "abc":
        write_run(tmp_path / "results", model=model, direct=0.2, sources=(file_source(rows),))
    command = ["export", str(tmp_path / "results"), "--to", "hub", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    told = capsys.readouterr()
    assert (
        told.err.count("\n") == 1
        and "runs left out because their rows are not of one data set of the hub: 3, the first is " in told.err
    )
    assert "`lm-harmony fetch`" in told.err and "0 files in" in told.out
    write_run(tmp_path / "results", model="a/hub", sources=ON_HUB)
    assert main(command) == 0  # negative control: one file is written
    assert "of the hub: 3, the first is " in capsys.readouterr().err


@pytest.mark.parametrize("seen", [True, False])
def test_large_weights_that_changed_in_place_are_read(
    seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that were trained on have the same size, so that only their content says that a score is not theirs."""
    monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(tmp_path / "cache"))
    weights, results = tmp_path / "model.safetensors", tmp_path / "results"
    weights.write_bytes(bytes(SMALL))
    cache = HashCache(tmp_path / "cache")
    source = file_source(weights, "model")
    if seen:  # as by a run whose model is older than two seconds
        cache._append(weights, _stamp(weights), str(source.sha256))
    write_run(results, model="m", sources=(source,), outcomes=[1, 0])
    assert main(["export", str(results), "--to", "csv", "--output", str(tmp_path / "out")]) == 0  # negative control
    with weights.open("r+b") as file:
        file.write(b"1")
    for command in ("export", "submit"):
        options = ["--to", "csv"] if command == "export" else []
        assert main([command, str(results), *options, "--output", str(tmp_path / command)]) == 1
        assert "the run is not current: model.safetensors changed since" in capsys.readouterr().err
    notes = record_rows(results).notes
    assert any("model.safetensors changed since" in note for note in notes) == seen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["results", "--to", "every-eval-ever"], "organization is missing: Every Eval Ever records who publishes a score."),
        (["nowhere", "--to", "csv"], "results: nowhere is not a folder. Name the results_dir of a study."),
        (
            ["empty", "--to", "csv"],
            "no finished and current run lies below empty. Run a study, or name its results_dir.",
        ),
        (["failed", "--to", "hub"], "no finished and current run lies below failed. failed/arc_easy/c/seed0: the run has failed"),
        (["damaged", "--to", "csv"], "carry the run out again. Run a study, or name its results_dir."),
        (["results", "--to", "csv", "-o", "file"], "output: file is a file, so file cannot be a folder. Choose another folder."),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", model="a")
    write_failure(tmp_path / "failed", model="c")
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "damaged", model="a").folder / "record.json").write_text("{")
    (tmp_path / "file").touch()
    assert main(["export", *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
