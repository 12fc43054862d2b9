"""No sequence of acquiring, touching, suspending, expiring, writing and jumps of clocks lets two processes write one run."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from s3 import BUCKET, KEYS, keys, s3_server

from lm_harmony.errors import LeaseHeld, LeaseLost
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.lease import Lease, Leases
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.remote_lease import RemoteLeases

STALE = 60.0
PROCESSES = st.integers(0, 2)


class LeaseMachine(RuleBasedStateMachine):
    """Three processes that compete for one run. The test tells their clocks, and who touches its lease."""

    remote = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lease-"))
        self.now = [0.0] * 3
        self.leases: list[Leases] = [self.make(number) for number in range(3)]
        self.held: dict[int, Lease] = {}
        self.newest: int | None = None  # the last process that acquired the lease, the only one that may write

    def make(self, number: int) -> Leases:
        def clock() -> float:
            return self.now[number]

        if not self.remote:
            return FolderLeases(self.folder, stale=STALE, clock=clock)
        return RemoteLeases(RemoteSync(f"file://{self.folder}"), stale=STALE, clock=clock)

    @rule(process=PROCESSES, abandoned_for=st.none() | PROCESSES)
    def acquire(self, process: int, abandoned_for: int | None) -> None:
        """Try to take the lease; the state that another process found abandoned may be handed over."""
        if process in self.held:
            return
        abandoned = None if abandoned_for is None else self.leases[abandoned_for].abandoned("run")
        with suppress(LeaseHeld):
            self.held[process] = self.leases[process].acquire("run", abandoned)
            self.newest = process

    @rule(process=PROCESSES)
    def look(self, process: int) -> None:
        self.leases[process].working(["run"])

    @rule(process=PROCESSES)
    def touch(self, process: int) -> None:
        """Touch the lease; the loser of a lease leaves it. Who is never touched here is suspended."""
        if process in self.held and not self.held[process].touch():
            assert process != self.newest, "the holder lost its lease without a successor"
            del self.held[process]

    @rule(process=PROCESSES, taken_over=st.booleans())
    def watch(self, process: int, taken_over: bool) -> None:
        """Watch the lease for so long that it is free if nobody touches it, and perhaps take it over."""
        self.look(process)
        self.wait(process, 61.0)
        if taken_over:
            self.acquire(process, None)

    @rule(process=PROCESSES, seconds=st.sampled_from([1.0, 30.0, 61.0, 600.0]))
    def wait(self, process: int, seconds: float) -> None:
        """Time passes for one process, and none for the others."""
        self.now[process] += seconds

    @precondition(lambda self: not self.remote and (self.folder / ".run.lease").exists())
    @rule(hours=st.integers(-48, 48))
    def clock_of_the_file_system_jumps(self, hours: int) -> None:
        path = self.folder / ".run.lease"
        os.utime(path, (path.stat().st_mtime + hours * 3600,) * 2)

    @rule(process=PROCESSES)
    def write(self, process: int) -> None:
        if process not in self.held:
            return
        lease = self.held[process]
        try:
            with lease.writing():
                lease.check()
        except LeaseLost:
            assert process != self.newest, "the holder cannot write"
            return
        assert process == self.newest, f"process {process} writes, but {self.newest} has taken the lease over"

    @rule(process=PROCESSES)
    def release(self, process: int) -> None:
        if process in self.held:
            self.held.pop(process).release()
            if process == self.newest:
                self.newest = None


class RemoteLeaseMachine(LeaseMachine):
    """The same with lease objects behind a URL."""

    remote = True


class S3LeaseMachine(RemoteLeaseMachine):
    """The same with lease objects on S3, which the store compares itself."""

    results: RemoteSync

    def __init__(self) -> None:
        shutil.rmtree(self.results.folder, ignore_errors=True)
        for name in self.results.file_sizes():
            self.results.remove(name)
        super().__init__()

    def make(self, number: int) -> Leases:
        def clock() -> float:
            return self.now[number]

        return RemoteLeases(self.results, stale=STALE, clock=clock)


class Unfenced(LeaseMachine):
    """Negative control: leases whose writes are not checked."""

    @rule(process=PROCESSES)
    def write(self, process: int) -> None:
        assert process not in self.held or process == self.newest, "two processes write"


def search(machine: type[LeaseMachine], examples: int) -> None:
    """Try ``examples`` random sequences of 40 steps."""
    suppressed = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    options: dict[str, Any] = {"deadline": None, "suppress_health_check": suppressed, "database": None}
    if issubclass(machine, Unfenced):
        options |= {"phases": [Phase.generate], "derandomize": True}
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40, **options))


def test_no_two_processes_write_in_a_folder() -> None:
    search(LeaseMachine, 80)
    with pytest.raises(AssertionError, match="two processes write"):  # negative control: writes that are not checked
        search(Unfenced, 200)


def test_no_two_processes_write_behind_a_url() -> None:
    search(RemoteLeaseMachine, 20)


def test_no_two_processes_write_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, "LM_HARMONY_CACHE_DIR": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(S3LeaseMachine, "results", RemoteSync(f"s3://{BUCKET}/results"), raising=False)
        search(S3LeaseMachine, 3)
        suspend_and_write(S3LeaseMachine())
        assert any("/.leases/" in key for key in keys(endpoint))  # the leases were on S3
        with pytest.raises(AssertionError, match="two processes write"):  # negative control: writes that are not checked
            suspend_and_write(type("Unfenced", (Unfenced, S3LeaseMachine), {})())


@pytest.mark.parametrize("machine", [LeaseMachine, RemoteLeaseMachine])
def test_a_holder_that_was_suspended_cannot_write(machine: type[LeaseMachine]) -> None:
    suspend_and_write(machine())
    with pytest.raises(AssertionError, match="two processes write"):  # negative control: writes that are not checked
        suspend_and_write(type("Unfenced", (Unfenced, machine), {})())


def suspend_and_write(machine: LeaseMachine) -> None:
    """Let process 1 take over the lease of process 0, which then writes."""
    machine.acquire(process=0, abandoned_for=None)
    machine.watch(process=1, taken_over=True)
    assert machine.newest == 1, "the lease was not taken over"
    machine.write(process=1)
    machine.write(process=0)
