"""A lease has one holder at a time, an abandoned lease can be taken over, and its former holder can write nothing more."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lm_harmony.errors import LeaseHeld, LeaseLost
from lm_harmony.runs.files import new_file, new_folder, write_atomically
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.lease import Holder
from lm_harmony.runs.record import Failure
from lm_harmony.runs.store import RunStore


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail_if_lost() -> None:
    raise AssertionError("the lease was lost")


def write_holder(path: Path, **changes: object) -> None:
    """Write the lease of a process on another machine."""
    values = {"token": "x", "host": "node7", "machine": "elsewhere", "pid": 1, "born": 0, **changes}
    path.write_text(json.dumps(values))


def test_a_second_holder_is_refused_until_the_first_releases_the_lease(tmp_path: Path) -> None:
    leases = FolderLeases(tmp_path)
    with leases.hold("task/model/run", lost=fail_if_lost):
        assert set(leases.working(["task/model/run", "other"])) == {"task/model/run"}
        expected = rf"task/model/run is executed by process {os.getpid()} on "
        with pytest.raises(LeaseHeld, match=expected), leases.hold("task/model/run", lost=fail_if_lost):
            pass
    assert leases.working(["task/model/run"]) == {}
    with leases.hold("task/model/run", lost=fail_if_lost):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_killed_process_is_free_immediately(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from lm_harmony.runs.folder_lease import FolderLeases\n"
        f"with FolderLeases(Path({str(tmp_path)!r})).hold('run', lost=print): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / ".run.lease").is_file()
    assert FolderLeases(tmp_path).working(["run"]) == {}
    with FolderLeases(tmp_path).hold("run", lost=fail_if_lost):
        pass


def test_a_killed_process_whose_parent_has_not_waited_for_it_is_ended(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = replace(Holder.this_process(), pid=zombie.pid, born=psutil.Process(zombie.pid).create_time())
    assert holder.process_status() not in (None, "ended")  # negative control
    zombie.kill()
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert holder.process_status() == "ended"
    zombie.wait()
    assert holder.process_status() == "ended"


@pytest.mark.parametrize("hours", [-2, 0, 2])
def test_the_lease_of_another_machine_is_free_after_it_was_watched_for_the_stale_time(tmp_path: Path, hours: float) -> None:
    """The clock of the file system may differ from ours by hours in both directions."""
    path, clock = tmp_path / ".run.lease", Clock()
    write_holder(path)
    os.utime(path, (time.time() + hours * 3600,) * 2)
    leases = FolderLeases(tmp_path, stale=60, clock=clock)
    for seconds in (0, 30, 29.9):
        clock.now += seconds
        assert str(leases.working(["run"])["run"].holder) == "process 1 on node7"
        assert leases.abandoned("run") is None
        with pytest.raises(LeaseHeld, match="process 1 on node7"), leases.hold("run", lost=fail_if_lost):
            pass
    os.utime(path, (time.time() + hours * 3600 + 1,) * 2)  # a touch
    clock.now += 59
    assert leases.working(["run"])
    clock.now += 59
    assert leases.working(["run"])
    clock.now += 2
    assert not leases.working(["run"])
    abandoned = leases.abandoned("run")
    with pytest.raises(LeaseHeld), FolderLeases(tmp_path).hold("run", lost=fail_if_lost):  # a worker has not watched it
        pass
    with FolderLeases(tmp_path).hold("run", lost=fail_if_lost, abandoned=abandoned):  # unless its coordinator has
        pass


def test_a_process_id_of_another_namespace_means_nothing(tmp_path: Path) -> None:
    """Containers share the host's name and boot. The holder's process id does not exist in the second container."""
    path, here = tmp_path / ".run.lease", Holder.this_process()
    write_holder(path, host=here.host, machine=here.machine, pid=2**30)
    assert not FolderLeases(tmp_path).working(["run"])  # negative control: the same namespace
    assert os.readlink("/proc/self/ns/pid") in here.machine
    write_holder(path, host=here.host, machine=here.machine.replace("pid:[", "pid:[1"), pid=2**30)
    assert FolderLeases(tmp_path).working(["run"])


def test_a_process_in_another_pid_namespace_is_not_taken_for_dead(tmp_path: Path) -> None:
    """A real namespace: its process 1 is alive, and is unknown by that id here."""
    code = (
        "import time; from pathlib import Path; from lm_harmony.runs.folder_lease import FolderLeases\n"
        f"with FolderLeases(Path({str(tmp_path)!r})).hold('run', lost=print): time.sleep(600)"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("making a namespace needs rights that this user lacks")
    process = subprocess.Popen([*unshare, sys.executable, "-c", code])
    try:
        while not (tmp_path / ".run.lease").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert json.loads((tmp_path / ".run.lease").read_text())["pid"] < 10
        with pytest.raises(LeaseHeld), FolderLeases(tmp_path).hold("run", lost=fail_if_lost):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_holder_is_notified_when_its_lease_is_taken_over(tmp_path: Path) -> None:
    lost = threading.Event()
    with FolderLeases(tmp_path, beat=0.05).hold("run", lost=lost.set):
        path = tmp_path / ".run.lease"
        path.write_text(path.read_text().replace('"token": "', '"token": "other'))
        assert lost.wait(120)
    assert path.is_file(), "the other's lease was removed"


HOLD = """\
import sys; from pathlib import Path
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.record import Failure
from lm_harmony.runs.store import RunStore
results = Path(sys.argv[1])
with FolderLeases(results, beat=0.05).hold("run", lost=lambda: None) as lease:
    store = RunStore(results / "run", lease=lease)
    store.write_failure(Failure(kind="first", cause="", attempts=1))
    print("held", flush=True)
    input()
    try:
        store.write_failure(Failure(kind="too late", cause="", attempts=1))
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def test_a_suspended_process_loses_its_lease_and_cannot_write_when_it_wakes(tmp_path: Path) -> None:
    """SIGSTOP on this machine: the process exists, but does not touch its lease any more."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "held\n"
    waited = list[str]()
    leases = FolderLeases(tmp_path, stale=0.5, beat=0.05)
    with pytest.raises(LeaseHeld), leases.hold_patiently("run", lost=fail_if_lost, waiting=waited.append):
        pass
    assert waited == []  # negative control: it works, so there is nothing to wait for
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    with leases.hold_patiently("run", lost=fail_if_lost, waiting=waited.append) as lease:
        assert waited == [f"process {process.pid} on {os.uname().nodename}"]
        store = RunStore(tmp_path / "run", lease=lease)
        store.write_failure(Failure(kind="second", cause="", attempts=1))
        process.stdin.write("\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        assert "LeaseLost" in process.stdout.readline()
        failure = store.failure()
        assert failure is not None and failure.kind == "second"
        process.wait()
        store.write_failure(Failure(kind="third", cause="", attempts=1))  # its end did not remove our lease


def write_text(folder: Path, guard: Callable[[], object]) -> None:
    write_atomically(folder / "file", "late", guard)  # type: ignore[arg-type]


def write_file(folder: Path, guard: Callable[[], object]) -> None:
    with new_file(folder / "file", guard) as scratch:  # type: ignore[arg-type]
        scratch.touch()


def write_folder(folder: Path, guard: Callable[[], object]) -> None:
    with new_folder(folder / "folder", guard):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("write", [write_text, write_file, write_folder])
def test_every_kind_of_write_is_refused_without_the_lease_and_leaves_no_scratch_file(
    tmp_path: Path, write: Callable[[Path, object], None]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FolderLeases(tmp_path, beat=600).hold("run", lost=fail_if_lost) as lease:
        write(folder, lease.writing)  # negative control
        assert len(list(folder.iterdir())) == 1
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        write_holder(tmp_path / ".run.lease")
        with pytest.raises(LeaseLost, match="was taken over by process 1 on node7"):
            write(folder, lease.writing)
    assert not list(folder.iterdir())


def test_a_lease_is_not_taken_over_while_its_holder_writes(tmp_path: Path) -> None:
    """Between the check of the token and the write, the holder may be suspended."""
    clock = Clock()
    late = FolderLeases(tmp_path, stale=60, clock=clock)
    first = FolderLeases(tmp_path).acquire("run")
    assert late.working(["run"])
    clock.now += 61
    with first.writing():
        with pytest.raises(LeaseHeld, match="writes at this moment"):
            late.acquire("run")
        (tmp_path / "written").touch()
    second = late.acquire("run")
    with pytest.raises(LeaseLost), first.writing():
        raise AssertionError("two processes write")
    first.release()
    with second.writing():
        pass
    second.release()


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
    context = multiprocessing.get_context("forkserver")  # a process with threads must not fork
    processes = [context.Process(target=_compete, args=(tmp_path, counts, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(counts.iterdir())) > 20


def _write_often(path: Path, text: str) -> None:
    for _ in range(150):
        write_atomically(path, text)


def test_two_processes_write_one_path_without_an_error(tmp_path: Path) -> None:
    """Before, both used one scratch name, and one of them failed in a third of all writes."""
    context = multiprocessing.get_context("forkserver")  # a process with threads must not fork
    texts = ["a" * 5000, "b" * 9000]
    processes = [context.Process(target=_write_often, args=(tmp_path / "file", text)) for text in texts]
    threads = [threading.Thread(target=_write_often, args=(tmp_path / "threads", text)) for text in texts]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "file").read_text() in texts and (tmp_path / "threads").read_text() in texts
    assert not list(tmp_path.glob(".*"))
