"""A lease has one holder at a time, and an abandoned lease can be taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm_harmony.studies.lease import FolderLeases, LeaseHeld


def fail_if_lost() -> None:
    raise AssertionError("the lease was lost")


def test_a_second_holder_is_refused_until_the_first_releases_the_lease(tmp_path: Path) -> None:
    leases = FolderLeases(tmp_path)
    with leases.hold("run", lost=fail_if_lost):
        assert leases.held(["run", "other"]) == {"run"}
        with pytest.raises(LeaseHeld), leases.hold("run", lost=fail_if_lost):
            pass
    assert leases.held(["run"]) == set()
    with leases.hold("run", lost=fail_if_lost):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_killed_process_is_free_immediately(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from lm_harmony.studies.lease import FolderLeases\n"
        f"with FolderLeases(Path({str(tmp_path)!r})).hold('run', lost=print): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / ".run.lease").is_file()
    assert FolderLeases(tmp_path).held(["run"]) == set()
    with FolderLeases(tmp_path).hold("run", lost=fail_if_lost):
        pass


def test_the_lease_of_another_machine_is_free_after_the_stale_time(tmp_path: Path) -> None:
    path = tmp_path / ".run.lease"
    path.write_text(json.dumps({"token": "x", "machine": "elsewhere/0", "pid": 1, "born": 0}))
    with pytest.raises(LeaseHeld), FolderLeases(tmp_path, stale=60).hold("run", lost=fail_if_lost):
        pass
    os.utime(path, (time.time() - 61, time.time() - 61))
    with FolderLeases(tmp_path, stale=60).hold("run", lost=fail_if_lost):
        pass


def test_a_holder_is_notified_when_its_lease_is_taken_over(tmp_path: Path) -> None:
    lost = threading.Event()
    with FolderLeases(tmp_path, beat=0.05).hold("run", lost=lost.set):
        path = tmp_path / ".run.lease"
        path.write_text(path.read_text().replace('"token": "', '"token": "other'))
        assert lost.wait(120)
    assert path.is_file(), "the other's lease was removed"


def _compete(results: Path, counts: Path, number: int) -> None:
    for turn in range(250):
        try:
            with FolderLeases(results).hold("run", lost=fail_if_lost):
                mark = counts / "inside"
                descriptor = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails if two processes hold the lease
                os.close(descriptor)
                time.sleep(0.001)
                mark.unlink()
                (counts / f"{number}-{turn}").touch()
        except LeaseHeld:
            time.sleep(0.001)


def test_four_competing_processes_never_hold_the_lease_at_the_same_time(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_compete, args=(tmp_path, counts, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(counts.iterdir())) > 20
