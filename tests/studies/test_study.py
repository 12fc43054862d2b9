"""A study executes each run once, even if processes are killed. Failed runs are recorded, and the other runs continue."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from fork_server import INTERPRETER
from live_results import is_written
from world import BENCHMARKS, MODELS, let_task_kill_workers, write_world

from lm_harmony.errors import StoreError
from lm_harmony.runs.file_values import without_check
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.record import RunRecord
from lm_harmony.studies.study import HELD_PAUSE, Study

pytestmark = pytest.mark.usefixtures("forked_workers")
KILLS, REAL = 20, 5
"""Number of times that a study is killed, and the first of them, in which its processes are not forked."""
STARTED: list[object] = []
"""Arguments of every subprocess that this process has started."""
sys.addaudithook(lambda event, arguments: STARTED.append(arguments) if event == "subprocess.Popen" else None)


def scores(study: Study) -> Mapping[str, tuple[object, ...]]:
    """Return losses, validation scores, chosen epoch, direct score and trained score of every run, without rounding."""
    return {
        f"{Path(record.spec.model.name).name}/{record.benchmark}/{record.spec.seed}": (
            [(epoch.loss, epoch.validation) for epoch in record.epochs],
            record.chosen_epoch,
            record.direct,
            record.trained,
        )
        for record in study.records()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study.read(write_world(tmp_path_factory.mktemp("uninterrupted")))
    study.run()
    return study


def events_of(study: Study) -> list[dict[str, object]]:
    path = study.spec.results_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_run_is_finished_once(uninterrupted: Study) -> None:
    status = uninterrupted.status()
    assert len(status.finished) == len(MODELS) * len(BENCHMARKS) * 2 == 24
    assert not status.failed and not status.running and not status.waiting
    assert len(scores(uninterrupted)) == 24
    assert len({repr(score) for score in scores(uninterrupted).values()}) == 24
    assert len(list(uninterrupted.spec.results_dir.rglob("record.json"))) == 24


def test_a_worker_loads_each_model_once_and_computes_each_direct_score_once(uninterrupted: Study) -> None:
    """Eight runs on a model need one load. Twelve pairs of model and benchmark with two seeds need twelve direct scores."""
    loads = [event["loads"] for event in events_of(uninterrupted) if event["event"] == "run_finished"]
    assert loads == [1] * 8 + [2] * 8 + [3] * 8
    assert len(list((uninterrupted.spec.results_dir / "direct").glob("*/direct.json"))) == 12
    shared = [file.read_bytes() for file in uninterrupted.spec.results_dir.glob("direct/*/samples_direct.jsonl")]
    assert len(shared) == 12
    # Every run has a copy of these samples, so models can be compared question by question.
    assert all((run.store.folder / "samples_direct.jsonl").read_bytes() in shared for run in uninterrupted.runs)


def test_a_finished_study_starts_no_worker_and_changes_no_record(uninterrupted: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.spec.results_dir.rglob("record.json")}
    events, started = events_of(uninterrupted), len(STARTED)
    subprocess.run([INTERPRETER, "-c", ""], check=True)
    assert len(STARTED) == started + 1  # negative control: a started process is counted
    assert len(uninterrupted.run().finished) == 24
    assert len(STARTED) == started + 1, "a worker was started although every run was finished"
    new = events_of(uninterrupted)[len(events) :]
    assert [(event["event"], event.get("runs")) for event in new] == [("study_started", 0), ("study_ended", None)]
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.spec.results_dir.rglob("record.json")} == before


def test_waiting_for_a_run_that_another_process_executes_starts_no_worker(tmp_path: Path) -> None:
    """The study looks at its lease every second. Starting a worker for each look would cost ten seconds of CPU time."""
    study = Study.read(write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0]))
    before, started = len(STARTED), list[int]()
    with ExitStack() as holding:

        def release() -> None:
            started.append(len(STARTED))
            holding.close()

        holding.enter_context(FolderLeases(study.spec.results_dir).hold(study.runs[0].name, lost=lambda: None))
        threading.Timer(2.5 * HELD_PAUSE, release).start()
        assert len(study.run(workers=1).finished) == 1
    assert started == [before]
    assert len(STARTED) == before + 1  # negative control: the run itself needs a worker
    waited = [event["event"] for event in events_of(study)]
    assert waited == ["study_started", "run_held", "run_finished", "study_ended"]


def worker_processes() -> list[psutil.Process]:
    """Return the workers of all studies that this process has started, or the programs that stand for forked workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # includes zombies
            found += [process] if process.cmdline()[-2:] == ["-m", "lm_harmony.studies"] else []
    return found


def wait_until_ended(process: psutil.Process) -> None:
    """Wait until a process has ended, but not until the first process of the machine has collected its exit status."""
    deadline = time.monotonic() + 120
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, process
            time.sleep(0.01)


def test_a_study_that_is_killed_twenty_times_gives_the_same_scores(uninterrupted: Study, tmp_path: Path) -> None:
    """SIGKILL at random times to all processes, to the coordinator or to a worker. At last the study runs to its end."""
    study = Study.read(
        write_world(tmp_path, recipe={"epochs": 2, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}})
    )
    words = ["-m", "lm_harmony.cli", "study", str(tmp_path / "study.yaml"), "--workers", "2"]
    draw, killed, unfinished = random.Random(0), 0, 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while killed < KILLS:
        real = killed < REAL
        process = subprocess.Popen([INTERPRETER if real else sys.executable, *words], start_new_session=real, **quiet)  # type: ignore[call-overload]
        begun = time.monotonic()
        # The first kills happen while libraries load, the later ones while runs are executed.
        while killed >= REAL - 1 and time.monotonic() - begun < 30 and process.poll() is None:
            if is_written(study.spec.results_dir, ".*.lease") if real else worker_processes():
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.6 if real else 1.0))
        victims = worker_processes()
        if process.poll() is None:
            unfinished += 1
        target = draw.choice(("all", "coordinator", "worker"))
        for victim in [psutil.Process(process.pid), *victims] if target == "all" and process.poll() is None else []:
            victim.kill()
        if target == "worker" and victims:
            draw.choice(victims).kill()
            time.sleep(0.3)
        killed += 1
        if process.poll() is None:
            process.kill()
        process.wait()
        for left in {*victims, *worker_processes()}:  # a worker exits when its coordinator is gone
            wait_until_ended(left)
    assert unfinished > KILLS // 2
    assert study.run(workers=2).failed == {}
    print(f"survived {killed} kills, {unfinished} of them in the middle of the study")
    assert scores(study) == scores(uninterrupted)
    assert len(list(study.spec.results_dir.rglob("record.json"))) == 24
    assert not list(study.spec.results_dir.rglob("*.part"))
    assert not list(study.spec.results_dir.rglob("checkpoints"))


def test_two_studies_on_one_folder_share_the_work(uninterrupted: Study, tmp_path: Path) -> None:
    study = Study.read(write_world(tmp_path))
    command = [sys.executable, "-m", "lm_harmony.cli", "study", str(tmp_path / "study.yaml")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=1800) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert scores(study) == scores(uninterrupted)
    results = [path for path in study.spec.results_dir.rglob("results_*.json")]
    assert len(results) == 24 * 2, "a run was executed twice"  # one file of the trained model and one of the base model


def test_failed_runs_are_recorded_and_the_other_runs_finish(tmp_path: Path) -> None:
    """An invalid row, an invalid model and a loss of nan are recorded with their causes. The exit status is 1."""
    path = write_world(
        tmp_path,
        models=["models/llama", "models/broken", {"name": "models/gpt2", "recipe": {"learning_rate": 1e30}}],
        benchmarks=["parity.yaml", "threes.yaml"],
        seeds=[0],
    )
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{}")
    rows = tmp_path / "data" / "threes" / "train.jsonl"
    rows.write_text(rows.read_text() + '{"number": "x"}\n')
    command = [sys.executable, "-m", "lm_harmony.cli", "study", str(path)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 1, done.stderr
    assert "1 finished, 0 running, 5 failed, 0 waiting" in done.stdout
    study = Study.read(path)
    causes = {f"{Path(a.spec.model.name).name}/{Path(a.spec.benchmark.task).stem}": f for a, f in study.status().failed.items()}
    assert causes["llama/threes"].kind == "BenchmarkError" and "line 25" in causes["llama/threes"].cause
    assert causes["broken/parity"].kind == "ModelError"
    assert causes["gpt2/parity"].kind == "TrainingDiverged" and "step" in causes["gpt2/parity"].cause
    shown = subprocess.run([INTERPRETER, *command[1:3], "status", str(path)], capture_output=True, text=True, env=environment)
    assert shown.returncode == 1
    assert all(failure.cause[:12] in shown.stdout for failure in causes.values())
    assert "TrainingDiverged" not in shown.stdout and "ModelError" not in shown.stdout
    # After the row is corrected, the failed runs are retried.
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]) + "\n")
    again = Study.read(path, only=["llama"])
    assert len(again.run(retry_failed=True).finished) == 2


def test_a_run_whose_worker_always_dies_fails_after_three_attempts(tmp_path: Path) -> None:
    """Every worker of one run is killed. The other runs finish, and the failure contains the signal and the log."""
    study = Study.read(write_world(tmp_path, models=["models/llama"], seeds=[0]))
    before = let_task_kill_workers(tmp_path / "fives.yaml")
    status = study.run()
    assert len(status.finished) == 3
    (failure,) = status.failed.values()
    assert failure.kind == "worker died" and failure.attempts == 3 and "signal 9" in failure.cause
    assert any("about to die" in line for line in failure.log_tail)
    (tmp_path / "fives.yaml").write_text(before)
    assert len(study.run(retry_failed=True).finished) == 4


def test_a_direct_score_that_is_requested_later_is_added_without_training_again(tmp_path: Path) -> None:
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0], direct=False)
    first = Study.read(path)
    first.run()
    (before,) = first.records()
    path.write_text(path.read_text().replace("direct: false", "direct: true"))
    later = Study.read(path)
    later.run()
    (after,) = later.records()
    assert before.direct is None and after.direct is not None
    assert after.environment == before.environment and after.trained == before.trained
    assert isinstance(after, RunRecord)


def test_the_run_name_depends_on_the_recipe_and_not_on_rows_or_folder(tmp_path: Path) -> None:
    """The folder of a run is named after its request. The content of source files and the study's folder do not matter."""
    path = write_world(tmp_path / "one", models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0])

    def name() -> str:
        (run,) = Study.read(path).runs
        return run.name

    before = name()
    rows = tmp_path / "one" / "data" / "parity" / "train.jsonl"
    rows.write_text(rows.read_text().replace('"label": 1', '"label": 0', 1))
    assert name() == before
    (tmp_path / "one").rename(tmp_path / "two")
    path = tmp_path / "two" / "study.yaml"
    assert name() == before
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    assert name() != before


def test_a_run_whose_files_changed_is_waiting_again_and_replaces_its_record(tmp_path: Path) -> None:
    """The command line names the changed file. If the file is restored, the run is current again."""
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml", "threes.yaml"], seeds=[0])
    study = Study.read(path)
    study.run()

    def output_of(*words: str) -> str:
        command = [sys.executable, "-m", "lm_harmony.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=True)
        return done.stdout

    assert study.status().changed == {} and len(study.status().finished) == 2
    task = tmp_path / "parity.yaml"
    before = task.read_text()
    task.write_text(before.replace("number {{number}} is", "number {{number}}: "))
    output = output_of("status", str(path))
    assert "1 finished, 0 running, 0 failed, 1 waiting" in output and "parity.yaml changed since" in output
    task.write_text(before)
    assert study.status().changed == {}
    task.write_text(before.replace("number {{number}} is", "number {{number}}: "))
    assert "(parity.yaml changed since)" in output_of("study", str(path), "--dry-run")
    old = study.runs[0].store.record()
    assert len(study.run().finished) == 2
    new = study.runs[0].store.record()
    assert new.request_fingerprint != old.request_fingerprint and new.epochs[0].loss != old.epochs[0].loss
    assert len(list(study.spec.results_dir.rglob("record.json"))) == 2
    assert study.status().changed == {}


def test_runs_wait_again_if_the_study_no_longer_names_the_folder_of_their_rows(tmp_path: Path) -> None:
    """Without data_dir the rows are those of a data set on the hub, which may differ."""
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0], direct=False)
    study = Study.read(path)
    study.run()
    path.write_text(path.read_text().replace("data_dir: data\n", ""))
    later = Study.read(path).status()
    assert not later.finished
    assert list(later.changed.values()) == [f"the rows were read from data_dir = {tmp_path / 'data'}, which is not given now"]


def test_a_record_without_sources_counts_as_finished_but_unverified(tmp_path: Path) -> None:
    """Earlier versions named the folder by content. The record is found, counts as finished and is listed as unverified."""
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0], direct=False)
    study = Study.read(path)
    study.run()
    (run,) = study.runs
    record = without_check(json.loads((run.store.folder / "record.json").read_text()))
    del record["sources"], record["asked"]
    (run.store.folder / "record.json").write_text(json.dumps(record))
    run.store.folder.rename(run.store.folder.with_name("seed0-0123456789abcdef"))
    status = Study.read(path).status()
    assert [run.name.rpartition("/")[2] for run in status.finished] == ["seed0-0123456789abcdef"]
    assert list(status.unverified.values()) == ["made before sources were recorded"]
    # A direct score cannot be added to such a record, so the run is executed again.
    path.write_text(path.read_text().replace("direct: false", "direct: true"))
    later = Study.read(path)
    assert list(later.status().changed.values()) == ["made before sources were recorded"]
    assert later.run().unverified == {}
    assert [run.store.record().sources is not None for run in later.status().finished] == [True]


def test_ctrl_c_prints_how_to_continue(tmp_path: Path) -> None:
    path = write_world(tmp_path, models=["models/llama"])
    process = subprocess.Popen(
        [INTERPRETER, "-m", "lm_harmony.cli", "study", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not is_written(tmp_path / "results", ".*.lease") and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "runs are finished. Repeat the command to continue." in errors
    assert Study.read(path).run().failed == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_finished_records_and_the_study_continues_after_space_is_freed(
    uninterrupted: Study, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_harmony.studies.study.STORE_PAUSE", 0.1)
    study = Study.read(write_world(tmp_path, results_dir=str(small_disk / "results")))
    with pytest.raises(StoreError, match=r"No space left on device.*repeat the study"):
        study.run()
    finished = scores(study)
    assert 0 < len(finished) < 24
    assert finished == {name: score for name, score in scores(uninterrupted).items() if name in finished}
    assert not study.status().failed
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert len(study.run().finished) == 24
    assert scores(study) == scores(uninterrupted)
