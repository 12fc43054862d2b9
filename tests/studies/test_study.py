"""A study finishes what it was asked, once, whatever is killed in between; what cannot be done is recorded, the rest goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from world import BENCHMARKS, MODELS, write_world

from lm_harmony.errors import StoreError
from lm_harmony.runs.record import RunRecord
from lm_harmony.studies.study import Study

KILLS = 20
HOOK = """\
import os, signal, sys
def audit(event, arguments):
    rows = str(arguments[0]) if event == "open" else ""
    if "fives" in rows and rows.endswith(".jsonl") and "lm_harmony.studies.worker" in sys.orig_argv:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
"""
"""A start-up file that kills a worker as soon as it opens the rows of one benchmark."""
STARTED: list[object] = []
"""Every process that this process has started."""
sys.addaudithook(lambda event, arguments: STARTED.append(arguments) if event == "subprocess.Popen" else None)


def scores(study: Study) -> Mapping[str, tuple[object, ...]]:
    """Return the score matrix and what it came from, to the last digit: losses, validations, chosen epoch, direct, trained."""
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
    study = Study.read(write_world(tmp_path_factory.mktemp("whole")))
    study.run()
    return study


def lines(study: Study) -> list[dict[str, object]]:
    path = study.spec.results_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_run_is_there_once(uninterrupted: Study) -> None:
    status = uninterrupted.status()
    assert len(status.finished) == len(MODELS) * len(BENCHMARKS) * 2 == 24
    assert not status.failed and not status.running and not status.waiting
    assert len(scores(uninterrupted)) == 24
    assert len({repr(score) for score in scores(uninterrupted).values()}) == 24
    assert len(list(uninterrupted.spec.results_dir.rglob("record.json"))) == 24


def test_the_base_is_loaded_once_a_model_and_the_direct_score_once_a_benchmark(uninterrupted: Study) -> None:
    """Eight runs on each model take one load; two seeds of twelve pairs share twelve direct scores."""
    loads = [event["loads"] for event in lines(uninterrupted) if event["event"] == "run_finished"]
    assert loads == [1] * 8 + [2] * 8 + [3] * 8
    assert len(list((uninterrupted.spec.results_dir / "direct").glob("*/direct.json"))) == 12
    shared = [file.read_bytes() for file in uninterrupted.spec.results_dir.glob("direct/*/samples_direct.jsonl")]
    assert len(shared) == 12
    # Every run has them too, so that two models can be compared question by question.
    assert all((run.store.folder / "samples_direct.jsonl").read_bytes() in shared for run in uninterrupted.runs)


def test_a_finished_study_does_nothing(uninterrupted: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.spec.results_dir.rglob("record.json")}
    events, started = lines(uninterrupted), len(STARTED)
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert len(STARTED) == started + 1  # negative control: a process that is started is noticed
    assert len(uninterrupted.run().finished) == 24
    assert len(STARTED) == started + 1, "a worker was started, though nothing was left to do"
    new = lines(uninterrupted)[len(events) :]
    assert [(event["event"], event.get("runs")) for event in new] == [("study_started", 0), ("study_ended", None)]
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.spec.results_dir.rglob("record.json")} == before


def processes_below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_killed_twenty_times_it_ends_as_if_nothing_had_happened(uninterrupted: Study, tmp_path: Path) -> None:
    """SIGKILL at random moments, to the whole study, to its coordinator alone, or to a worker alone; then once to the end."""
    study = Study.read(
        write_world(tmp_path, recipe={"epochs": 2, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}})
    )
    command = [sys.executable, "-m", "lm_harmony.cli", "study", str(tmp_path / "study.yaml"), "--workers", "2"]
    draw, killed, unfinished = random.Random(0), 0, 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while killed < KILLS:
        process = subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
        begun = time.monotonic()
        # The first kills strike while libraries load, the later ones while runs are carried out.
        while time.monotonic() - begun < 30 and not any((study.spec.results_dir).rglob(".*.lease")) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.6))
        victims = processes_below(process.pid)
        if process.poll() is None:
            unfinished += 1
        who = draw.choice(("all", "coordinator", "worker"))
        for victim in [psutil.Process(process.pid), *victims] if who == "all" and process.poll() is None else []:
            victim.kill()
        if who == "worker" and victims:
            draw.choice(victims).kill()
            time.sleep(0.3)
        killed += 1
        if process.poll() is None:
            process.kill()
        process.wait()
        for left in victims:  # a worker whose coordinator is gone ends by itself
            left.wait(timeout=120)
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
    carried = [path for path in study.spec.results_dir.rglob("results_*.json")]
    assert len(carried) == 24 * 2, "a run was carried out twice"  # the trained model's file and the base model's


def test_what_cannot_be_done_is_recorded_and_the_others_finish(tmp_path: Path) -> None:
    """A broken row, a model that is none, and a loss that is no number: three failures with causes, exit status 1."""
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
    done_in = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=done_in)
    assert done.returncode == 1, done.stderr
    assert "1 finished, 0 running, 5 failed, 0 waiting" in done.stdout
    study = Study.read(path)
    causes = {f"{Path(a.spec.model.name).name}/{Path(a.spec.benchmark.task).stem}": f for a, f in study.status().failed.items()}
    assert causes["llama/threes"].kind == "BenchmarkError" and "line 25" in causes["llama/threes"].cause
    assert causes["broken/parity"].kind == "ModelError"
    assert causes["gpt2/parity"].kind == "TrainingDiverged" and "step" in causes["gpt2/parity"].cause
    said = subprocess.run([*command[:3], "status", str(path)], capture_output=True, text=True, env=done_in)
    assert said.returncode == 1
    assert "TrainingDiverged" in said.stdout and "ModelError" in said.stdout
    # Mended, and asked to try again.
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]) + "\n")
    again = Study.read(path, only=["llama"])
    assert len(again.run(retry_failed=True).finished) == 2


def test_a_worker_that_keeps_dying_costs_its_run_three_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killer of one run strikes whenever that run begins; the others finish, and the failure names the signal and the log."""
    study = Study.read(write_world(tmp_path, models=["models/llama"], seeds=[0]))
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{hook}{os.pathsep}{before}")
    status = study.run()
    assert len(status.finished) == 3
    (failure,) = status.failed.values()
    assert failure.kind == "worker died" and failure.attempts == 3 and "signal 9" in failure.cause
    assert any("about to die" in line for line in failure.log_tail)
    monkeypatch.setenv("PYTHONPATH", before)
    assert len(study.run(retry_failed=True).finished) == 4


def test_a_direct_score_asked_for_later_is_added_without_training_again(tmp_path: Path) -> None:
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


def test_a_changed_recipe_is_a_new_run_and_a_changed_row_is_not(tmp_path: Path) -> None:
    """A request names a run's folder; what it is made from does not, nor does the place of the whole study."""
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


def test_what_changed_waits_again_with_its_reason_and_is_carried_out_in_its_place(tmp_path: Path) -> None:
    """One study, and after each change of a file the command line tells; a restored file makes the run current again."""
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml", "threes.yaml"], seeds=[0])
    study = Study.read(path)
    study.run()

    def told(*words: str) -> str:
        command = [sys.executable, "-m", "lm_harmony.cli", *words]
        said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=True)
        return said.stdout

    assert study.status().changed == {} and len(study.status().finished) == 2
    task = tmp_path / "parity.yaml"
    before = task.read_text()
    task.write_text(before.replace("number {{number}} is", "number {{number}}: "))
    said = told("status", str(path))
    assert "1 finished, 0 running, 0 failed, 1 waiting" in said and "parity.yaml changed since" in said
    task.write_text(before)
    assert study.status().changed == {}
    task.write_text(before.replace("number {{number}} is", "number {{number}}: "))
    assert "(parity.yaml changed since)" in told("study", str(path), "--dry-run")
    old = study.runs[0].store.record()
    assert len(study.run().finished) == 2
    new = study.runs[0].store.record()
    assert new.request_fingerprint != old.request_fingerprint and new.epochs[0].loss != old.epochs[0].loss
    assert len(list(study.spec.results_dir.rglob("record.json"))) == 2
    assert study.status().changed == {}


def test_a_record_made_before_sources_were_recorded_is_finished_with_a_note(tmp_path: Path) -> None:
    """Such a record lies in a folder that was named by content; it is found, counts, and says what it cannot say."""
    path = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0], direct=False)
    study = Study.read(path)
    study.run()
    (run,) = study.runs
    record = json.loads((run.store.folder / "record.json").read_text())
    del record["sources"], record["asked"]
    (run.store.folder / "record.json").write_text(json.dumps(record))
    run.store.folder.rename(run.store.folder.with_name("seed0-0123456789abcdef"))
    status = Study.read(path).status()
    assert [run.name.rpartition("/")[2] for run in status.finished] == ["seed0-0123456789abcdef"]
    assert list(status.unverified.values()) == ["made before sources were recorded"]
    # What it lacks cannot be added to it: it is carried out again.
    path.write_text(path.read_text().replace("direct: false", "direct: true"))
    later = Study.read(path)
    assert list(later.status().changed.values()) == ["made before sources were recorded"]
    assert later.run().unverified == {}
    assert [run.store.record().sources is not None for run in later.status().finished] == [True]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_world(tmp_path, models=["models/llama"])
    process = subprocess.Popen(
        [sys.executable, "-m", "lm_harmony.cli", "study", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any((tmp_path / "results").rglob(".*.lease")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "runs are finished. Repeat the command to continue." in said
    assert Study.read(path).run().failed == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_every_finished_record_and_the_study_goes_on_when_there_is_room(
    uninterrupted: Study, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_harmony.studies.study.STORE_PAUSE", 0.1)
    study = Study.read(write_world(tmp_path, results_dir=str(small_disk / "results")))
    with pytest.raises(StoreError, match=r"No space left on device.*repeat the study"):
        study.run()
    kept = scores(study)
    assert 0 < len(kept) < 24
    assert kept == {name: score for name, score in scores(uninterrupted).items() if name in kept}
    assert not study.status().failed
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert len(study.run().finished) == 24
    assert scores(study) == scores(uninterrupted)
