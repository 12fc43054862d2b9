"""``lm-harmony place MODEL --until``: its plan, its stops, continuing after an interruption, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fork_server import forked_python
from live_results import is_written
from rows import ROWS
from test_cli import status_of
from tiny import write_tiny_model

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.recipe import Recipe
from lm_harmony.runs.published_settings import differences_from_published, published_training_rows
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec

pytestmark = pytest.mark.usefixtures("forked_workers")
TASKS = ("arc_easy", "arc_challenge", "openbookqa")
FAST = ["--data_dir", "data", "--device", "cpu", "--hardware", "h100", "--train_param.num_train_epochs", "1"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Make a folder with a tiny model and the rows of three benchmarks; arc_challenge has those of arc_easy."""
    write_tiny_model(tmp_path / "model")
    for task in TASKS:
        rows = ROWS["arc_easy" if task == "arc_challenge" else task]
        (tmp_path / "data" / task).mkdir(parents=True)
        for split, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / "data" / task / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_benchmarks_run_until_none_is_left_and_a_repetition_runs_nothing(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(*words: str, status: int = 0) -> str:
        assert status_of("place", "model", *words, *FAST) == status
        return capsys.readouterr().out

    monkeypatch.chdir(world)
    planned = place("--until", "10", "--dry_run")
    assert "Planned order" in planned and all(task in planned for task in TASKS) and "mnli" not in planned
    assert not (world / "results").exists()
    (world / "data" / "openbookqa" / "test.jsonl").write_text("{", encoding="utf-8")  # after it was priced: its run fails
    done = place("--hours", "50", status=1)
    positions = re.findall(r"^model after (.*): rank \d+ \(\d+ to \d+, (\d+) places wide\) among 61 .*", done, re.MULTILINE)
    assert {len(tasks.split(", ")) for tasks, _ in positions} == {1, 2} and "stopped: no benchmark is left to run" in done
    assert all(int(width) > 10 for _, width in positions)  # two test questions say little
    assert done.count("next: ") == 3 and "│ data/openbookqa/test.jsonl line 1, column 2: not JSON" in done
    assert done.count("NOT COMPARABLE") == 2 + len(positions)  # before the plan, after each benchmark, and with the place
    assert re.search(r"^model is \d+\w\w of 62, \d+\w\w to \d+\w\w \(95% interval\)", done, re.MULTILINE)
    assert "epochs 1 instead of 5" in done and "The ranks below are therefore not the model's place" in done
    records = {path: path.stat().st_mtime_ns for path in (world / "results").rglob("record.json")}
    again = place("--hours", "50", status=1)
    assert "left out, because its run failed: openbookqa: data/openbookqa/test.jsonl line 1" in again
    assert len(records) == 2 and "stopped: no benchmark is left to run" in again and "next:" not in again
    assert records == {path: path.stat().st_mtime_ns for path in (world / "results").rglob("record.json")}
    wide = place("--until", "61")
    assert "done: the interval of the rank is at most 61 places wide" in wide and "Planned order" not in wide


def test_a_placement_that_was_interrupted_continues(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(world / "data" / "openbookqa")
    words = ["place", "model", "--hours", "50", *FAST[:-1], "40"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [forked_python(environment), "-m", "lm_harmony.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=world, env=environment)
    while not is_written(world / "results", "epochs.jsonl"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Repeat the command to continue." in errors and "Traceback" not in errors, errors
    (begun,) = (path.parent for path in (world / "results").rglob("epochs.jsonl"))
    first = (begun / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < len(first) < 40 and not (begun / "record.json").exists()  # it was in the middle of a run
    monkeypatch.chdir(world)
    assert status_of(*words) == 0
    assert capfd.readouterr().out.count("1 finished") == 2
    kept = (begun / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 40 and kept[: len(first)] == first  # no epoch was computed twice


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["place", "--until", "10"], "the model is missing. Give its name or folder first"),
        (["place", "model", "--until", "0"], "until must be from 1 to 61, got 0."),
        (["place", "model", "--until", "62"], "until must be from 1 to 61, got 62."),
        (["place", "model", "--hours", "0"], "hours must be a positive number, got 0.0."),
        (["place", "model", "--until", "9", "--workers", "0"], "workers must be at least 1, got 0."),
        (["place", "model", "--until", "9", "--suggest", "2"], "suggest has no effect with --until or --hours."),
        (["place", "published", "--data_dir", "data"], "data_dir has an effect only with --until or --hours."),
        (["place", "model", "--until", "9", "--hardware", "h1000"], "hardware: no data for 'h1000'. Did you mean 'h100'"),
        (["place", "model", "--until", "9", "--data_dir", "."], "data_dir = . has no folder of a published benchmark, such as"),
        (["place", "model", "--until", "9", "--data_dir", "empty"], "no benchmark of the published board can be run. empty"),
        (["place", "no/model", "--until", "9", *FAST], "no benchmark of the published board can be run. "),
        (["place", "model", "--hours", "1e-9", *FAST], "hours = 1e-09 is too few: the shortest benchmark that is left, "),
    ],
)
def test_bad_input_is_one_line_before_any_run(
    world: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "empty" / "arc_easy").mkdir(parents=True)
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert status_of(*words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (world / "results").exists()


def test_what_differs_from_the_published_runs_is_named() -> None:
    def differences(rows: int, **recipe: object) -> tuple[str, ...]:
        spec = RunSpec(model=ModelSpec(name="m"), benchmark=BenchmarkSpec(task="arc_easy"), recipe=Recipe(**recipe))
        return differences_from_published(spec, rows)

    assert differences(2_251) == differences(2_200) == differences(2_251, dtype="float32") == ()
    assert differences(64) == ("64 training rows instead of 2,251",)
    assert differences(2_251, learning_rate=1e-4) == ("learning_rate 0.0001 instead of 2e-05",)
    assert published_training_rows("rte") == 1_992  # four fifths: RTE has no test labels, so that validation is cut from train
    assert published_training_rows("mnli") == 50_000
    assert all(0 < published_training_rows(task) <= 50_000 for task in BENCHMARKS)
