"""Whatever happens to a worker or to the results folder ends as a run's outcome or as the study's one line, never in waiting."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from boards import write_run
from world import WITHOUT_PAUSE

from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.studies import local_pool
from lm_harmony.studies.local_pool import WorkerProcess
from lm_harmony.studies.messages import Outcome, RunResult
from lm_harmony.studies.pool import RunQueue, execute_all
from lm_harmony.studies.run_location import RunLocation, clean_up_direct_scores


def location(folder: Path) -> RunLocation:
    spec = RunSpec(model=ModelSpec(name="nobody/nothing"), benchmark=BenchmarkSpec(task="arc_easy"))
    return RunLocation(spec=spec, results_dir=folder)


def test_a_stop_that_python_drops_ends_the_wait_for_results(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_pool_faults import location
from lm_harmony.stop_signals import exit_status, stop_on_signals
from lm_harmony.studies.pool import RunQueue

class WithDel:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # Python calls the handler here
            pass

stop_on_signals()
queue = RunQueue([location(Path({str(tmp_path)!r}))])
try:
    WithDel()
    print("dropped", flush=True)
    next(queue.results())
except KeyboardInterrupt:
    sys.exit(exit_status())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("dropped\n", 130), done.stderr


def outcome_of(folder: Path) -> tuple[Outcome, str]:
    """Return how the only run of a queue ends on one worker."""
    run = location(folder)
    worker = WorkerProcess(0, folder / "workers", {})
    ((same, result),) = execute_all(RunQueue([run]), [worker], run.leases)
    assert same == run
    return result.outcome, str(result.cause)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_a_worker_that_cannot_be_started_for_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def popen(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_pool.subprocess, "Popen", popen)
    outcome, cause = outcome_of(tmp_path)
    assert outcome == Outcome.STORE_UNAVAILABLE and os.strerror(number) in cause and "\n" not in cause


REPLIES = {
    "words": "echo hello",
    "other fields": "echo '{\"a\": 1}'",
    "not UTF-8": "printf '\\377\\376\\n'",
    "deep": "head -c 100000 /dev/zero | tr '\\\\0' '['; echo",
    "nothing": "exit 3",
}


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_that_is_none_ends_the_run_and_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    program = tmp_path / "worker.sh"
    program.write_text(f"#!/bin/sh\nread request\n{REPLIES[reply]}\nread more\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    outcome, cause = outcome_of(tmp_path)
    expected = "the worker ended with status 3" if reply == "nothing" else "the worker's answer cannot be read"
    assert outcome == Outcome.DIED and expected in cause and "\n" not in cause


class StartedLate:
    """A worker whose process starts after the first stop. Only the second one ends it."""

    def __init__(self, number: int) -> None:
        self.number, self.executing, self.stops, self.ended = number, threading.Event(), threading.Semaphore(0), False

    def rank(self, run: RunLocation) -> int:
        return 0

    def execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        if self.number == 1:
            return RunResult(outcome=Outcome.FINISHED)
        self.executing.set()
        self.stops.acquire()
        self.ended = self.stops.acquire(timeout=30)
        return RunResult(outcome=Outcome.DIED, cause="stopped")

    def stop(self) -> None:
        self.stops.release()


def test_a_worker_that_starts_while_the_study_is_stopped_is_stopped_too(tmp_path: Path) -> None:
    runs = [replace(location(tmp_path), spec=replace(location(tmp_path).spec, model=ModelSpec(name=name))) for name in "ab"]
    late, other = StartedLate(0), StartedLate(1)
    results = execute_all(RunQueue(runs), [late, other], runs[0].leases)
    next(results)
    late.executing.wait()
    results.close()  # as after Ctrl-C
    assert late.ended


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder that is a file system of its own, with 40 inodes."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=40,size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("this user may not mount file systems")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    for number in range(100):
        (folder / f"filler{number}").touch()


def without_inodes(folder: Path) -> str:
    with pytest.raises(OSError, match="No space left on device"):
        fill(folder)
    return "No space left on device"


def read_only(folder: Path) -> str:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return "cannot be written"


@pytest.mark.parametrize("spoil", [without_inodes, read_only])
def test_a_study_whose_results_cannot_be_written_ends_with_one_line(mounted: Path, tmp_path: Path, spoil: object) -> None:
    study = {"models": ["nobody/nothing"], "benchmarks": ["arc_easy"], "results_dir": str(mounted / "results")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (mounted / "results").mkdir()
    cause = spoil(mounted)  # type: ignore[operator]
    command = [sys.executable, "-c", WITHOUT_PAUSE, "study", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("lm-harmony: ") and cause in last and str(mounted) in last, done.stderr
    assert "Traceback" not in done.stderr and "Thread-" not in done.stderr


def test_left_overs_of_a_finished_run_are_removed_at_the_next_scan(tmp_path: Path) -> None:
    run = location(tmp_path)
    write_run(tmp_path, model="other")
    folder = run.store.folder
    (folder / "checkpoints" / "epoch-1" / "weights").mkdir(parents=True)
    (folder / "config.yaml").touch()
    left = [
        folder / "checkpoints" / "epoch-1" / "optimizer.safetensors",
        folder / "checkpoints" / "epoch-1" / "weights" / "adapter_model.safetensors",
        folder / ".record.json.0123.part",
    ]
    for path in left:
        path.touch()
    (folder / "checkpoints" / "notes.txt").touch()
    with run.leases.hold(run.name, lost=lambda: None):
        run.clean_up()
        assert all(path.exists() for path in left)  # negative control: another process works there
    run.clean_up()
    assert not any(path.exists() for path in left)
    assert (folder / "config.yaml").exists() and (folder / "checkpoints" / "notes.txt").exists()


def test_left_overs_of_shared_direct_scores_are_removed_at_the_next_scan(tmp_path: Path) -> None:
    folder, leases = tmp_path / "direct" / "llama-0123", location(tmp_path).leases
    folder.mkdir(parents=True)
    left = folder / ".samples_direct.jsonl.0123.part"
    for path in (left, folder / "direct.json", folder / "samples_direct.jsonl"):
        path.touch()
    with leases.hold("direct/llama-0123", lost=lambda: None):
        clean_up_direct_scores(tmp_path, leases)
        assert left.exists()  # negative control: another process works there
    clean_up_direct_scores(tmp_path, leases)
    assert {path.name for path in folder.iterdir()} == {"direct.json", "samples_direct.jsonl"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".mine.part").touch()
    (tmp_path / "direct" / "link").symlink_to(tmp_path / "elsewhere")
    clean_up_direct_scores(tmp_path, leases)
    assert (tmp_path / "elsewhere" / ".mine.part").exists()
