"""Runs on rows that nearly recur: dropped on request, and scores on the other test rows beside those on all of them."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from task_files import PARITY, write_task
from tiny import write_tiny_model

from lm_harmony import ScoreMatrix
from lm_harmony.analysis.leaderboard import own_board
from lm_harmony.analysis.load_records import record_rows
from lm_harmony.api import evaluate
from lm_harmony.benchmarks.recurrence import DroppedNearDuplicates
from lm_harmony.cli.main import main
from lm_harmony.cli.run import closing_lines, result_rows
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.recipe import Recipe
from lm_harmony.report.export import export
from lm_harmony.report.page_data import page_data
from lm_harmony.report.submission import open_submission, pack
from lm_harmony.report.tables import board_csv, board_json, board_markdown
from lm_harmony.runs.file_values import with_check
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import study_spec

TWINS = (1, 4, 5)
"""Test rows of the keeping run that recur in its training rows with reordered choices."""


def _row(number: int, *choices: str) -> dict[str, Any]:
    return {"question": f"Which word is number {number}?", "choices": list(choices or ("fox", "dog")), "label": number % 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, a benchmark of 12 test rows of which three recur in reordered training rows, and three runs."""
    folder = tmp_path_factory.mktemp("world")
    rows = {
        "train": [*map(_row, range(20)), *(_row(100 + number, "dog", "fox") for number in TWINS)],
        "validation": [*map(_row, range(40, 46)), _row(104, "wolf", "fox")],
        "test": [_row(100 + number) for number in range(12)],
    }
    fields = {**PARITY, "doc_to_text": "{{question}} Answer:", "doc_to_choice": "choices"}
    write_task(folder, rows, name="boolq", **fields)
    for seed, model in enumerate(("one", "two")):
        write_tiny_model(folder / model, seed=seed)
    for model, rule in (("one", "keep"), ("two", "keep"), ("one", "drop")):
        assert main([*_words(folder, model, rule), "--direct_fewshot", "0", "1"]) == 0
    return folder


def _words(folder: Path, model: str, rule: str) -> list[str]:
    words = f"run --base_model {folder}/{model} --task_name {folder}/boolq.yaml --data_dir {folder} --device cpu --no-use_git"
    words += " --train_param.num_train_epochs 1 --train_param.learning_rate 1e-2 --near_duplicates "
    return [*words.split(), rule, "--results_dir", str(folder / rule), "--exp_name", model]


def _store(world: Path, rule: str = "keep", model: str = "one") -> RunStore:
    return RunStore(world / rule / model)


def _by_hand(store: RunStore, name: str, left_out: tuple[int, ...] = TWINS) -> tuple[float, float]:
    """Return the mean accuracy and its standard error on the other test rows, from the lines of the samples."""
    lines = (store.folder / f"samples_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    values = [sample["acc"] for sample in map(json.loads, lines) if sample["doc_id"] not in left_out]
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def test_scores_without_near_duplicates_equal_a_computation_by_hand(world: Path) -> None:
    """Of the direct scores and of the trained one. Negative control: on all test rows there are other scores."""
    store = _store(world)
    record = store.record()
    assert record.data.near_duplicates == {"choices": TWINS}
    assert list(record.without_near_duplicates) == ["direct", "direct_1shot", "trained"] == list(record.scores)
    for name, score in record.without_near_duplicates.items():
        value, stderr = _by_hand(store, "test" if name == "trained" else name)
        assert score.metrics == {"acc,none": pytest.approx(value)} and score.stderrs == {"acc,none": pytest.approx(stderr)}
        assert score.documents == 9 and record.scores[name].documents == 12
    assert any(score.metrics != record.scores[name].metrics for name, score in record.without_near_duplicates.items())
    assert RunRecord.from_dict(json.loads((store.folder / "record.json").read_text(encoding="utf-8"))) == record


def test_dropping_leaves_out_the_rows_and_keeping_changes_nothing(world: Path) -> None:
    kept, dropped = _store(world).record(), _store(world, "drop").record()
    assert dropped.data.dropped_near_duplicates == DroppedNearDuplicates(train={"choices": 3}, validation={"choices": 1})
    assert (kept.data.train, kept.data.validation, dropped.data.train, dropped.data.validation) == (23, 7, 20, 6)
    assert dropped.data.near_duplicates == {} == dropped.without_near_duplicates
    assert kept.direct == dropped.direct and kept.data.test == dropped.data.test  # the same test rows
    plain, other = (json.loads((_store(world, rule).folder / "record.json").read_text()) for rule in ("keep", "drop"))
    assert "near_duplicates" not in plain["spec"]["benchmark"] and "dropped_near_duplicates" not in plain["data"]
    assert other["spec"]["benchmark"]["near_duplicates"] == "drop" and "without_near_duplicates" not in other
    (line, *_) = [line for line in closing_lines(dropped) if "near duplicates" in line]
    assert line.startswith("boolq: near duplicates of scored rows are left out: 3 training rows (3 with other choices")


def test_only_drop_changes_the_identity_of_a_run() -> None:
    def asked(**fields: Any) -> RunSpec:
        return RunSpec(model=ModelSpec(name="m"), benchmark=BenchmarkSpec(task="arc_easy", **fields))

    assert run_id(asked()) == run_id(asked(near_duplicates="keep")) == "ff8603ea64424624" != run_id(asked(near_duplicates="drop"))
    assert RunSpec.from_dict(asked(near_duplicates="drop").to_dict()) == asked(near_duplicates="drop")
    for wrong in ({"near_duplicates": "none"}, {"near_duplicates": "drop", "split_protocol": "published"}):
        with pytest.raises(UsageError, match="near_duplicates"):
            asked(**wrong)
    values = {"models": ["m"], "benchmarks": ["arc_easy"]}
    for more, rule in (({}, "keep"), ({"near_duplicates": "drop"}, "drop")):
        assert study_spec({**values, **more}, Path()).runs[0].benchmark.near_duplicates == rule


def test_a_python_program_asks_for_it_in_the_benchmark(world: Path) -> None:
    benchmark = BenchmarkSpec(task=str(world / "boolq.yaml"), data_dir=world, near_duplicates="drop")
    record = evaluate(world / "one", benchmark, Recipe(epochs=1, learning_rate=1e-2), device="cpu", direct=False)
    assert record.trained == _store(world, "drop").record().trained


def test_the_run_shows_both(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _store(world).record()
    (line,) = result_rows(record)
    apart = record.without_near_duplicates["trained"]
    assert line["trained_without_near_duplicates"] == apart.metrics["acc,none"] != line["trained"]
    assert line["direct_without_near_duplicates_stderr"] == record.without_near_duplicates["direct"].stderrs["acc,none"]
    assert line["rows_without_near_duplicates"] == 9
    (plain,) = result_rows(_store(world, "drop").record())
    assert not any("without" in name for name in plain)
    assert main([*_words(world, "one", "keep"), "--only_evaluate"]) == 0
    shown = capsys.readouterr().out
    assert "9 rows without near duplicates" in shown and apart.shown("acc,none") in shown


def test_boards_tables_and_the_page_show_both(world: Path, tmp_path: Path) -> None:
    """Beside the score on all rows; a board without near duplicates has no such column, key or table."""
    matrix = ScoreMatrix.from_records(world / "keep")
    parts = matrix.without_near_duplicates
    one, record = str(world / "one"), _store(world).record()
    for name, score in record.without_near_duplicates.items():
        metric = record.metric
        assert asdict(parts[one, "boolq", name]) == {"value": score.metrics[metric], "stderr": score.stderrs[metric], "count": 9}
    board, plain = own_board(matrix), own_board(ScoreMatrix.from_records(world / "drop"))
    assert "| BoolQ | BoolQ* |" in board_markdown(board) and "*: on the test questions that do not" in board_markdown(board)
    assert "BoolQ*" not in board_markdown(plain) and "*:" not in board_markdown(plain)
    (row,) = [row for row in json.loads(board_json(board))["rows"] if row["model"] == one]
    assert row["without_near_duplicates"]["boolq"]["value"] == parts[one, "boolq", "trained"].value
    assert "without_near_duplicates" not in json.loads(board_json(plain))["rows"][0]
    csv = tmp_path / "board.csv"
    csv.write_text(board_csv(board), encoding="utf-8")
    table = pd.read_csv(csv).set_index("model")
    assert table.loc[one, "boolq without near duplicates"] == pytest.approx(100 * parts[one, "boolq", "trained"].value, abs=1e-3)
    assert ScoreMatrix.from_csv(csv).benchmark_names == ("boolq",)
    data = page_data(matrix)
    place = [model["name"] for model in data["models"]].index("one")
    shown = data["views"]["trained"]["without_near_duplicates"][f"{place} 0"]
    assert shown == [pytest.approx(parts[one, "boolq", "trained"].value), pytest.approx(_by_hand(_store(world), "test")[1]), 9]
    assert "without_near_duplicates" not in page_data(ScoreMatrix.from_records(world / "drop"))["views"]["trained"]
    note = (
        "boolq: near duplicates of scored rows are left out: 3 training rows (3 with other choices or in another order of them)"
    )
    assert any(one.startswith(note) and one.endswith("in 1 of 1 run") for one in plain.notes)


def test_exports_have_both(world: Path, tmp_path: Path) -> None:
    record = _store(world).record()
    table = pd.read_csv(export(world / "keep", tmp_path / "csv", "csv").files[0])
    trained = table[(table["preparation"] == "trained") & (table["model"] == "one")].iloc[0]
    score = record.without_near_duplicates["trained"]
    found = [trained[f"{name}_without_near_duplicates"] for name in ("value", "stderr", "test_documents")]
    assert found == [pytest.approx(score.metrics["acc,none"]), pytest.approx(score.stderrs["acc,none"]), 9]
    assert pd.read_csv(export(world / "drop", tmp_path / "drop", "csv").files[0])["value_without_near_duplicates"].isna().all()
    files = export(world / "keep", tmp_path / "eee", "every-eval-ever", organization="a test").files
    for results in (json.loads(path.read_text(encoding="utf-8"))["evaluation_results"] for path in files):
        assert [one["evaluation_name"] for one in results] == ["boolq", "boolq without near duplicates"]
        assert [one["score_details"]["uncertainty"]["num_samples"] for one in results] == [12, 9]


def test_keeping_and_dropping_are_not_mixed_on_a_board(world: Path, tmp_path: Path) -> None:
    for name, rule, model in (("a", "keep", "one"), ("b", "drop", "one")):
        shutil.copytree(world / rule / model, tmp_path / "same" / name)
    with pytest.raises(UsageError, match=r"different settings: benchmark.near_duplicates '(keep' and 'drop|drop' and 'keep)'"):
        record_rows(tmp_path / "same")
    for name, rule, model in (("a", "keep", "two"), ("b", "drop", "one")):
        shutil.copytree(world / rule / model, tmp_path / "other" / name)
    assert "boolq: its models were split by 2 rules" in record_rows(tmp_path / "other").notes
    assert not any("rules" in note for note in record_rows(world / "keep").notes)


def _changed(store: RunStore, folder: Path, change: Callable[[dict[str, Any]], object]) -> RunStore:
    """Return a copy of a run with another record."""
    shutil.copytree(store.folder, folder / "run")
    file = folder / "run" / "record.json"
    values = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key != "check"}
    change(values)
    file.write_text(json.dumps(with_check(values)), encoding="utf-8")
    return RunStore(folder / "run")


def test_scores_of_an_older_record_are_computed_from_its_samples(world: Path, tmp_path: Path) -> None:
    """Without its samples, or with others, they are not known."""
    expected = ScoreMatrix.from_records(world / "keep").without_near_duplicates
    old = _changed(_store(world), tmp_path, lambda values: values.pop("without_near_duplicates"))
    found = ScoreMatrix.from_records(tmp_path).without_near_duplicates
    assert len(found) == 3
    for key, part in found.items():
        assert asdict(part) == pytest.approx(asdict(expected[key]))
    file = old.folder / "samples_test.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    flipped = {**json.loads(lines[0]), "acc": 1 - json.loads(lines[0])["acc"]}
    for text in ("\n".join([json.dumps(flipped), *lines[1:]]) + "\n", "{", None):
        file.write_text(text, encoding="utf-8") if text else file.unlink()
        left = ScoreMatrix.from_records(tmp_path).without_near_duplicates
        assert {name for *_, name in left} == {"direct", "direct_1shot"}


def test_a_submission_with_another_such_score_is_refused(world: Path, tmp_path: Path) -> None:
    def other(values: dict[str, Any]) -> None:
        values["without_near_duplicates"]["trained"]["metrics"]["acc,none"] = 0.987

    for folder, change in ((tmp_path / "right", lambda values: None), (tmp_path / "wrong", other)):
        store = _changed(_store(world), folder, change)
        path = folder / "out" / "run.zip"
        pack(store, store.record(), path)
        (folder / "opened").mkdir()
        if folder.name == "right":
            assert open_submission(path, folder / "opened").record.without_near_duplicates
            continue
        with pytest.raises(
            StoreError, match=r"the trained acc,none without near duplicates of record.json is 0.987 on 9 documents"
        ):
            open_submission(path, folder / "opened")


@pytest.mark.parametrize(("left", "known"), [(0, False), (1, False), (2, True)])
def test_of_fewer_than_two_rows_no_score_is_given_and_a_sentence_says_so(
    world: Path, tmp_path: Path, left: int, known: bool
) -> None:
    """Negative control: with two rows left there is a score."""
    rows = [*(_row(100 + number) for number in TWINS), *map(_row, range(200, 200 + left))]
    (tmp_path / "boolq").mkdir()
    for name in ("boolq.yaml", "boolq/train.jsonl", "boolq/validation.jsonl"):
        shutil.copy(world / name, tmp_path / name)
    (tmp_path / "boolq" / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    benchmark = BenchmarkSpec(task=str(tmp_path / "boolq.yaml"), data_dir=tmp_path)
    record = evaluate(world / "one", benchmark, Recipe(epochs=1), device="cpu", results_dir=tmp_path / "results")
    assert set(record.without_near_duplicates) == ({"direct", "trained"} if known else set())
    said = next(line for line in closing_lines(record) if "recur" in line)
    assert (f"; {left} without a near duplicate remain, too few for a score of their own" in said) == (not known)
    assert bool(ScoreMatrix.from_records(tmp_path / "results").without_near_duplicates) == known
