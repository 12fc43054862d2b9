"""Study: models x benchmarks x seeds, carried out on this machine; what was finished is never computed again."""

from __future__ import annotations

import fnmatch
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_harmony.errors import StoreError, UsageError, check_integer, did_you_mean
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import StudySpec, read_study
from lm_harmony.studies.events import EventLog
from lm_harmony.studies.hub_revisions import HubRevisions
from lm_harmony.studies.lease import held_remote_runs, is_held
from lm_harmony.studies.local_pool import default_workers, local_workers
from lm_harmony.studies.pool import RunQueue, Worker, execute_all
from lm_harmony.studies.run_location import RunLocation, record_failure, remote_of

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a run is begun before it is given up."""
DAMAGED = "damaged record"
"""Kind of the failure of a run whose record cannot be read: the file may be all that is left of it, so it stays."""
NO_ROOM_PAUSE = 10.0
"""Seconds before a run is tried again whose results could not be written."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where the runs of a study stand."""

    finished: tuple[RunLocation, ...]
    """Their record is there."""
    failed: Mapping[RunLocation, Failure]
    """They were given up, and why."""
    running: tuple[RunLocation, ...]
    """Someone works on them now."""
    waiting: tuple[RunLocation, ...]
    """All others."""
    changed: Mapping[RunLocation, str] = field(default_factory=dict)
    """Those of the waiting ones that were finished, and what they stand on that changed since."""
    unverified: Mapping[RunLocation, str] = field(default_factory=dict)
    """Those of the finished ones of which it cannot be told whether they are current, and why."""


@dataclass(frozen=True)
class Study:
    """A study and its results."""

    spec: StudySpec
    """What is asked."""
    only: tuple[str, ...] = field(default=(), kw_only=True)
    """Glob patterns (*, ?); only runs whose name matches one of them are taken. Empty: every run."""
    skip: tuple[str, ...] = field(default=(), kw_only=True)
    """Glob patterns; runs whose name matches one of them are left out."""

    _hub: HubRevisions = field(default_factory=HubRevisions, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, path: Path | str, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Study:
        """Read a study file.

        Raises:
            UsageError: the file asks for something that does not exist or contradicts itself.
        """
        return cls(read_study(Path(path)), only=tuple(only), skip=tuple(skip))

    @cached_property
    def runs(self) -> tuple[RunLocation, ...]:
        """Return every run that is asked for, whether finished or not.

        Raises:
            UsageError: a pattern matches no run, or all patterns together leave none.
        """
        found = [RunLocation(spec=spec, results_dir=self.spec.results_dir, url=self.spec.results_url) for spec in self.spec.runs]
        names = [run.name for run in found]
        _refuse_unmatched("only", self.only, names)
        _refuse_unmatched("skip", self.skip, names)
        kept = tuple(run for run in found if (not self.only or _fits(run.name, self.only)) and not _fits(run.name, self.skip))
        if found and not kept:
            raise UsageError(f"--only and --skip leave none of the {len(found)} runs. Loosen one of them.")
        return kept

    def status(self) -> Status:
        """Look into every run's folder, and once ask the hub whether what finished runs read from it has moved.

        Raises:
            StoreError: results behind a URL cannot be reached.
        """
        remote = remote_of(self.spec.results_url)
        if remote is not None:
            remote.pull_outcomes()
        held = None if remote is None else held_remote_runs(remote)
        finished, failed, running, waiting = [], {}, [], []
        changed, unverified, check = {}, {}, SourceCheck()
        states = {run: run.state(check) for run in self.runs}
        moved = self._hub.moved(source for one in states.values() if one.finished for source in one.sources)
        for run, found in states.items():
            store, state = run.store, found.unless_moved(moved)
            if state.finished:
                finished.append(run)
                if state.reason:
                    unverified[run] = state.reason
            elif is_held(store.folder) if held is None else run.name in held:
                running.append(run)
            elif not state.readable:
                failed[run] = Failure(kind=DAMAGED, cause=str(state.reason), attempts=1)
            elif (failure := _failure(store)) is not None:
                failed[run] = failure
            else:
                waiting.append(run)
                if state.reason:
                    changed[run] = state.reason
        ended = {"finished": tuple(finished), "running": tuple(running), "waiting": tuple(waiting)}
        return Status(**ended, failed=failed, changed=changed, unverified=unverified)

    def records(self) -> tuple[RunRecord, ...]:
        """Read the records of all finished runs that are current; of one that cannot be read, ``status`` tells."""
        return tuple(run.store.record() for run in self.status().finished)

    def run(self, *, workers: int | None = None, ray: str | None = None, retry_failed: bool = False) -> Status:
        """Carry out what remains, and return how it stands then.

        Args:
            workers: processes; None: one for each GPU, or one (on a cluster: one for each processor).
            ray: address of a Ray cluster's head, or "auto"; None: this machine.
            retry_failed: try again what was given up.

        Raises:
            UsageError: there is no such cluster, or the number of workers is below 1.
            MissingExtra: Ray is not installed.
            StoreError: the results cannot be written; what was finished is kept, and a later run goes on.
        """
        for _ in self.advance(workers=workers, ray=ray, retry_failed=retry_failed):
            pass
        return self.status()

    def advance(self, *, workers: int | None = None, ray: str | None = None, retry_failed: bool = False) -> Iterator[RunQueue]:
        """Carry out what remains, yielding whenever a run has ended; arguments and errors as ``run``."""
        if workers is not None:
            check_integer("workers", workers, 1)
        now = self.status()
        retried: list[RunLocation] = []
        if retry_failed:
            retried = [run for run, failure in now.failed.items() if failure.kind != DAMAGED]
            for run in retried:
                run.store.remove_failure()
        left = [*now.waiting, *now.running, *retried]
        queue, attempts = RunQueue(left), Counter[str]()
        events = EventLog(self.spec.results_dir)
        events.add("study_started", runs=len(left), finished=len(now.finished))
        yield queue
        pool = self._workers(left, workers, ray) if left else []
        for run, said in execute_all(queue, pool):
            outcome = said.pop("outcome")
            events.add(f"run_{outcome.replace(' ', '_')}", run=run.name, **said)
            if outcome == "held":
                queue.put_back(run)
            elif outcome in ("died", "surprised", "no room"):
                attempts[run.name] += 1
                self._try_again(queue, run, outcome, said, attempts[run.name])
            yield queue
        events.add("study_ended")

    def _workers(self, left: Sequence[RunLocation], workers: int | None, ray: str | None) -> Sequence[Worker]:
        if ray is None:
            return local_workers(min(workers or default_workers(), len(left)), left)
        from lm_harmony.studies.ray_pool import ray_workers  # Ray is an extra

        return ray_workers(ray, left, workers)

    def _try_again(self, queue: RunQueue, run: RunLocation, outcome: str, said: dict[str, Any], attempts: int) -> None:
        """Put a run back, or give it up after too many attempts; a full disk ends the study instead."""
        log.warning("%s: %s (attempt %d of %d)", run.name, said["cause"], attempts, ATTEMPTS)
        if attempts < ATTEMPTS:
            if outcome == "no room":
                time.sleep(NO_ROOM_PAUSE)
            queue.put_back(run)
        elif outcome == "no room":
            raise StoreError(f"{said['cause']} Then repeat the study: it goes on where it stopped.")
        else:
            kind = said.get("kind", "worker died")
            record_failure(run, kind=kind, cause=said["cause"], attempts=attempts, log_tail=said.get("log_tail", ()))


def _failure(store: RunStore) -> Failure | None:
    try:
        return store.failure()
    except StoreError as error:
        return Failure(kind="damaged failure.json", cause=str(error), attempts=1)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def _refuse_unmatched(flag: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches no run: a typing mistake would run everything, or nothing, without a word."""
    for pattern in patterns:
        if not any(_fits(name, (pattern,)) for name in names):
            parts = list(dict.fromkeys(part for name in names for part in name.split("/")[:-1]))
            known = f"The runs are of {', '.join(parts[:12])}{', ...' if len(parts) > 12 else ''}."
            near = did_you_mean(pattern.strip("*"), [*parts, *names])
            raise UsageError(f"--{flag}: {pattern!r} matches none of the {len(names)} runs.{near} {known}")
