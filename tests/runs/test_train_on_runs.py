"""Runs that train on rows of another benchmark: their record, their column on boards, and what makes them stale."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from task_files import PARITY, write_rows, write_task
from tiny import write_tiny_model

from lm_harmony import ScoreMatrix
from lm_harmony.analysis.leaderboard import own_board, published_board
from lm_harmony.analysis.load_records import find_runs
from lm_harmony.analysis.metadata import benchmark_metadata, benchmark_order, default_metric
from lm_harmony.cli.main import main
from lm_harmony.errors import HarmonyError, UsageError
from lm_harmony.report.page_data import page_data
from lm_harmony.report.tables import board_csv
from lm_harmony.runs.fingerprint import folder_name, run_id
from lm_harmony.runs.preflight import check_request
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import study_spec

NAME = "exam.train_on.quiz"


def _rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"Which is {number}?", "choices": [f"{number + place}" for place in range(3)], "answer": number % 3}
        for number in range(first, first + count)
    ]


def _task(folder: Path, name: str, rows: Any, **fields: Any) -> Path:
    given = {"doc_to_text": "{{question}} Answer:", "doc_to_choice": "choices", "doc_to_target": "answer", **fields}
    return write_task(folder, rows, name=name, **{**PARITY, **given})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a benchmark with and without use of its training rows, another one, two models, and their finished runs."""
    folder = tmp_path_factory.mktemp("world")
    _task(folder, "exam", {"train": _rows(12), "test": _rows(8, 100)})
    _task(folder, "quiz", {"train": [*_rows(20, 30), *_rows(2, 100)]})
    for seed, model in enumerate(("one", "two")):
        write_tiny_model(folder / model, seed=seed)
    return folder


@pytest.fixture(scope="module")
def results(world: Path) -> Path:
    for model in ("one", "two"):
        for further in ([], ["--train_on", str(world / "quiz.yaml")]):
            words = ["run", "--base_model", str(world / model), "--task_name", str(world / "exam.yaml"), "--device", "cpu"]
            words += ["--train_param.num_train_epochs", "1", "--train_param.max_seq_length", "64", *further]
            assert main([*words, "--data_dir", str(world), "--results_dir", str(world / "results"), "--no-use_git"]) == 0
    return world / "results"


def asked(world: Path, train_on: str | None = "quiz.yaml", **fields: Any) -> RunSpec:
    train_on = train_on and str(world / train_on)
    benchmark = BenchmarkSpec(task=str(world / "exam.yaml"), data_dir=world, train_on=train_on, **fields)
    return RunSpec(model=ModelSpec(name=str(world / "one")), benchmark=benchmark, execution=Execution(device="cpu"))


def test_the_record_says_what_was_trained_on_and_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {(store.folder.parts[-3], store.folder.parts[-2]): store.record() for store in find_runs(results)}
    folders = {folder for folder, _ in records}
    assert folders == {"exam", NAME} == {record.benchmark for record in records.values()}
    record = next(record for record in records.values() if record.benchmark == NAME)
    assert record.data.train_on is not None and record.data.train_on.rows == {"quiz": 19}
    assert (record.data.train, record.data.validation, record.data.test) == (15, 4, 8)  # of 17 and 4, without 2 test questions
    assert record.data.train_on.exact == 2 == record.data.dropped_from_train + record.data.dropped_from_validation
    written = json.loads(next(results.glob(f"{NAME}/*/*/record.json")).read_text(encoding="utf-8"))
    assert RunRecord.from_dict(written) == record and written["spec"]["benchmark"]["train_on"].endswith("quiz.yaml")
    results_file = next(next(results.glob(f"{NAME}/*/*/record.json")).parent.glob("results_*.json"))
    assert json.loads(results_file.read_text(encoding="utf-8"))["results"]["exam"]["alias"] == "exam (train-before-test on quiz)"
    plain = json.loads(next(results.glob("exam/*/*/record.json")).read_text(encoding="utf-8"))
    assert "train_on" not in plain["data"] and "train_on" not in plain["spec"]["benchmark"]  # as versions before wrote it


def test_boards_show_two_columns_and_say_so(results: Path, tmp_path: Path) -> None:
    matrix = ScoreMatrix.from_records(results)
    assert matrix.benchmark_names == ("exam", NAME)
    assert [benchmark.title for benchmark in matrix.benchmarks] == ["exam", "exam (trained on quiz)"]
    board = own_board(matrix)
    (note,) = [note for note in board.notes if note.startswith(f"{NAME}: trained on rows of quiz in the format of exam")]
    assert "2 rows that recur in the test rows were left out" in note
    csv = tmp_path / "board.csv"
    csv.write_text(board_csv(board), encoding="utf-8")
    assert csv.read_text(encoding="utf-8").splitlines()[0].endswith(f"exam,{NAME}")
    data = page_data(matrix)
    assert [one["title"] for one in data["benchmarks"]] == ["exam", "exam (trained on quiz)"]
    assert any(note in notes for notes in (data["views"]["trained"]["notes"],))


def test_a_catalogued_benchmark_keeps_its_metric_and_chance_and_is_not_the_published_column(tmp_path: Path) -> None:
    found, plain = benchmark_metadata("arc_easy.train_on.mc_mix"), benchmark_metadata("arc_easy")
    assert found is not None and plain is not None
    assert found == replace(plain, task="arc_easy.train_on.mc_mix", title="ARC-Easy (trained on mc_mix)", train_rows=None)
    assert default_metric("arc_easy.train_on.mc_mix") == "acc_norm,none"
    assert benchmark_order("arc_easy") < benchmark_order("arc_easy.train_on.mc_mix") < benchmark_order("arc_challenge")
    table = tmp_path / "scores.csv"
    table.write_text("model,preparation,arc_easy.train_on.mc_mix,sciq\nmine,trained,50,60\n", encoding="utf-8")
    matrix = ScoreMatrix.from_csv(table)
    board = published_board(matrix)
    assert board.scores.loc["mine"].notna().sum() == 1  # sciq only
    assert any("does not have them: ARC-Easy (trained on mc_mix)" in note for note in board.notes)


def test_train_on_is_part_of_the_identity_and_plain_runs_keep_theirs(world: Path) -> None:
    plain, other = asked(world, None), asked(world)
    assert "train_on" not in plain.to_dict()["benchmark"]  # type: ignore[operator]
    assert RunSpec.from_dict(plain.to_dict()) == plain and RunSpec.from_dict(other.to_dict()) == other
    assert len({run_id(plain), run_id(other), run_id(asked(world, "exam2.yaml"))}) == 3
    assert folder_name(other, world).startswith(f"{NAME}/") and folder_name(plain, world).startswith("exam/")
    moved = RunSpec.from_dict(json.loads(json.dumps(other.to_dict())))
    assert run_id(moved, world) == run_id(other, world) != run_id(other)  # paths are relative to the results folder


def test_the_direct_score_is_that_of_the_plain_run(world: Path) -> None:
    plain, other = (set_up_run(asked(world, train_on)) for train_on in (None, "quiz.yaml"))
    assert plain.direct_score_id() == other.direct_score_id()
    assert plain.fingerprints.run != other.fingerprints.run and plain.fingerprints.test == other.fingerprints.test


@pytest.mark.parametrize(("file", "text"), [("quiz/train.jsonl", "{}\n"), ("quiz.yaml", "# a comment\n")])
def test_a_run_is_stale_when_a_file_of_its_training_rows_changes(file: str, text: str, results: Path) -> None:
    world = results.parent
    record = next(store.record() for store in find_runs(results) if store.record().benchmark == NAME)
    kinds = {source.name: source.kind for source in record.sources or ()}
    assert kinds["train_on/quiz/quiz/train.jsonl"] == "rows" == kinds["train_on/quiz/quiz.yaml"]
    assert "exam/train.jsonl" not in kinds and kinds["exam/test.jsonl"] == "rows"  # its own training rows are not read
    assert SourceCheck().difference(record.sources, record.spec) is None  # negative control
    before = (world / file).read_text(encoding="utf-8")
    try:
        (world / file).write_text(before + text, encoding="utf-8")
        assert SourceCheck().difference(record.sources, record.spec) == f"train_on/quiz/{file} changed since"
    finally:
        (world / file).write_text(before, encoding="utf-8")


def test_a_study_takes_train_on_under_a_benchmark(world: Path) -> None:
    benchmarks = ["exam.yaml", {"task": "exam.yaml", "train_on": "quiz.yaml"}, {"task": "mmlu_anatomy", "train_on": "mmlu_aux"}]
    values = {"models": [str(world / "one")], "benchmarks": benchmarks}
    runs = study_spec(values, world).runs
    assert [run.benchmark.train_on for run in runs] == [None, str(world / "quiz.yaml"), "mmlu_aux"]
    assert [run.benchmark.name for run in runs] == ["exam", NAME, "mmlu_anatomy.train_on.mmlu_aux"]


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (
            {"task": "arc_easy", "train_on": "arc_eazy"},
            "benchmarks[0].train_on: lm_eval has no task 'arc_eazy'. Did you",
        ),
        ({"task": "arc_easy", "train_on": "arc_easy"}, "benchmarks[0].train_on = arc_easy is the benchmark itself"),
        (
            {"task": "arc_easy", "train_on": "gsm8k"},
            "rows of gsm8k (output_type generate_until) cannot be written as those of arc_easy (multiple_choice)",
        ),
        (
            {"task": "gsm8k", "train_on": "mc_mix"},
            "rows of arc_challenge (output_type multiple_choice) cannot be written as those of gsm8k (generate_until)",
        ),
        ({"task": "wikitext", "train_on": "gsm8k"}, "and wikitext has loglikelihood_rolling. Choose another task."),
        ({"task": "arc_easy", "train_on": 3}, "benchmarks[0].train_on must be text, got 3"),
        ({"task": "arc_easy", "train_on": " "}, "train_on is empty"),
    ],
)
def test_a_study_with_a_wrong_train_on_is_refused_with_its_place(benchmark: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"models": ["a/b"], "benchmarks": [benchmark]}), encoding="utf-8")
    assert main(["study", str(path), "--dry_run"]) == 1
    with pytest.raises(UsageError) as refused:
        study_spec({"models": ["a/b"], "benchmarks": [benchmark]}, tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_wrong_request_is_refused_before_any_work(world: Path) -> None:
    check_request(asked(world))  # negative control
    for train_on, message in (("none.yaml", "none.yaml does not exist"), ("exam.yaml", "is the benchmark itself")):
        with pytest.raises(HarmonyError, match=message):
            check_request(asked(world, train_on))
    for wrong in ({"split_protocol": "published"}, {"task": "corpus:texts.txt"}, {"train_on": ""}):
        with pytest.raises(UsageError, match="train_on"):
            BenchmarkSpec(**{"task": "arc_easy", "train_on": "sciq", **wrong})
    _task(world, "empty", {"train": _rows(2)})
    (world / "empty" / "train.jsonl").unlink()
    with pytest.raises(HarmonyError, match=r"empty/train\.jsonl does not exist"):
        check_request(asked(world, "empty.yaml"))


def test_a_run_whose_rows_cannot_be_mapped_writes_nothing(world: Path, tmp_path: Path) -> None:
    write_rows(world / "blank", {"train": [{"ask": "a", "choices": ["x", "y", "z"], "answer": 0}] * 9})
    _task(world, "blank", {"train": [{"ask": "a", "choices": ["x", "y", "z"], "answer": 0}] * 9}, doc_to_text="{{ask}}")
    words = ["run", "--base_model", str(world / "one"), "--task_name", str(world / "exam.yaml"), "--data_dir", str(world)]
    words += ["--train_on", str(world / "blank.yaml"), "--results_dir", str(tmp_path / "results"), "--device", "cpu"]
    assert main(words) == 1
    assert not [path for path in (tmp_path / "results").rglob("*") if path.name in ("config.yaml", "record.json", "failure.json")]
    assert RunStore(tmp_path / "results").requested() is None
