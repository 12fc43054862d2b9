"""Study: every model on every benchmark with every seed, executed by workers. Finished runs are not executed again."""

from __future__ import annotations

import fnmatch
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lm_harmony.benchmarks.foreign_code import check_task_code
from lm_harmony.errors import BenchmarkError, StoreError, StoreUnavailable, UsageError, check_integer, did_you_mean
from lm_harmony.runs.lease import Leases
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.remote_lease import leases_for
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import StudySpec, read_study
from lm_harmony.studies.event_log import EventLog
from lm_harmony.studies.hub_revisions import HubRevisions
from lm_harmony.studies.local_pool import default_workers, local_workers
from lm_harmony.studies.messages import Outcome, RunResult
from lm_harmony.studies.pool import RunQueue, Worker, execute_all
from lm_harmony.studies.run_location import RunLocation, clean_up_direct_scores, remote_of

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a run is tried whose worker dies, whose process raises an unexpected error, or whose results cannot be written."""
DAMAGED = "damaged record"
"""Failure kind of a run whose record cannot be read. The record may be all that is left of the run: it is never overwritten."""
HELD_PAUSE = 1.0
"""Seconds between two looks at a run that another process executes."""
STORE_PAUSE = 10.0
"""Seconds before a run is tried again whose results could not be written."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The runs of a study by their state. Each run is in exactly one of finished, failed, running and waiting."""

    finished: tuple[RunLocation, ...]
    """Runs with a complete and current record."""
    failed: Mapping[RunLocation, Failure]
    """Runs that failed and are not tried again, with the cause."""
    running: tuple[RunLocation, ...]
    """Runs that a process executes now."""
    waiting: tuple[RunLocation, ...]
    """Runs that are still to be executed."""
    changed: Mapping[RunLocation, str] = field(default_factory=dict)
    """Waiting runs that were finished before, with the file or commit that has changed since."""
    unverified: Mapping[RunLocation, str] = field(default_factory=dict)
    """Finished runs that cannot be checked for changes, with the reason."""
    holders: Mapping[RunLocation, str] = field(default_factory=dict)
    """Running runs, with the process that executes each one."""


@dataclass(frozen=True)
class Study:
    """A study and its results. Everything it knows is read from the run folders, so several processes can share a study."""

    spec: StudySpec
    """The content of the study file."""
    only: tuple[str, ...] = field(default=(), kw_only=True)
    """Glob patterns (*, ?); only runs whose name matches one of them are part of the study. Empty: every run."""
    skip: tuple[str, ...] = field(default=(), kw_only=True)
    """Glob patterns; runs whose name matches one of them are left out."""

    @cached_property
    def _leases(self) -> Leases:
        """The leases of all runs, by an object that remembers since when it has watched each one."""
        return leases_for(self.spec.results_dir, remote_of(self.spec.results_url))

    _hub: HubRevisions = field(default_factory=HubRevisions, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, path: Path | str, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Study:
        """Read a study file.

        Raises:
            UsageError: the file cannot be read, or names something that does not exist.
        """
        return cls(read_study(Path(path)), only=tuple(only), skip=tuple(skip))

    @cached_property
    def runs(self) -> tuple[RunLocation, ...]:
        """Every run of the study, whether finished or not.

        Raises:
            UsageError: a pattern matches no run, or all patterns together leave no run.
        """
        asked = [RunLocation(spec=spec, results_dir=self.spec.results_dir, url=self.spec.results_url) for spec in self.spec.runs]
        names = [run.name for run in asked]
        _check_patterns("only", self.only, names)
        _check_patterns("skip", self.skip, names)
        chosen = [run for run in asked if not self.only or _matches(run.name, self.only)]
        chosen = [run for run in chosen if not _matches(run.name, self.skip)]
        if asked and not chosen:
            raise UsageError(f"--only and --skip leave none of the {len(asked)} runs. Remove one of the patterns.")
        return tuple(chosen)

    def status(self) -> Status:
        """Read the state of every run from its folder. The hub is asked once whether the sources of finished runs have moved.

        Raises:
            StoreError: results behind a URL cannot be reached.
        """
        remote = remote_of(self.spec.results_url)
        if remote is not None:
            remote.pull_outcomes()
        check = SourceCheck()
        states = {run: run.state(check) for run in self.runs}
        moved = self._hub.moved(source for state in states.values() if state.finished for source in state.sources)
        states = {run: state.unless_moved(moved) for run, state in states.items()}
        unfinished = [run.name for run, state in states.items() if not state.finished]
        held = self._leases.working(unfinished)
        finished, failed, running, waiting = [], {}, [], []
        changed, unverified, holders = {}, {}, {}
        for run, state in states.items():
            if state.finished:
                finished.append(run)
                if state.reason:
                    unverified[run] = state.reason
            elif run.name in held:
                running.append(run)
                holders[run] = str(held[run.name].holder)
            elif not state.readable:
                failed[run] = Failure(kind=DAMAGED, cause=str(state.reason), attempts=1)
            elif (failure := _failure(run.store)) is not None:
                failed[run] = failure
            else:
                waiting.append(run)
                if state.reason:
                    changed[run] = state.reason
        ended = {"finished": tuple(finished), "running": tuple(running), "waiting": tuple(waiting)}
        return Status(**ended, failed=failed, changed=changed, unverified=unverified, holders=holders)

    def records(self) -> tuple[RunRecord, ...]:
        """Return the records of all finished runs. ``status`` reports those that cannot be read."""
        return tuple(run.store.record() for run in self.status().finished)

    def run(
        self, *, workers: int | None = None, ray: str | None = None, retry_failed: bool = False, joint: int | None = None
    ) -> Status:
        """Execute the runs that are not finished, and return the status afterwards.

        Args:
            workers: number of worker processes; None: one for each GPU, or one (on a cluster: one for each GPU or CPU).
            ray: address of a Ray cluster's head, or "auto"; None: this machine.
            retry_failed: execute failed runs again.
            joint: largest number of runs of a model that one worker trains jointly; None: what the study file says.

        Raises:
            UsageError: there is no such cluster, or the number of workers or of joint runs is below 1.
            MissingExtra: Ray is not installed.
            StoreUnavailable: the results cannot be written. What was finished is kept, and a later call goes on.
        """
        for _ in self.advance(workers=workers, ray=ray, retry_failed=retry_failed, joint=joint):
            pass
        return self.status()

    def advance(
        self, *, workers: int | None = None, ray: str | None = None, retry_failed: bool = False, joint: int | None = None
    ) -> Iterator[RunQueue]:
        """Execute the runs that are not finished as ``run`` does; yield the queue at the start and whenever a run has ended."""
        if workers is not None:
            check_integer("workers", workers, 1)
        now = self.status()
        retried = [run for run, failure in now.failed.items() if retry_failed and failure.kind != DAMAGED]
        for run in retried:
            run.remove_failure()
        for run in now.finished:
            run.clean_up()
        clean_up_direct_scores(self.spec.results_dir, self._leases)
        unfinished = [*now.waiting, *now.running, *retried]
        queue, attempts = RunQueue(unfinished, joint=self.spec.joint if joint is None else joint), Counter[str]()
        events = EventLog(self.spec.results_dir)
        events.add("study_started", runs=len(unfinished), finished=len(now.finished))
        benchmarks = (run.spec.benchmark for run in unfinished)
        for task, path in dict.fromkeys((task, one.include_path) for one in benchmarks for task, _ in one.tasks):
            with suppress(BenchmarkError):  # fails its own runs only
                check_task_code(task, include_path=path, allowed=True)  # names the code in the log
        yield queue
        pool = _make_workers(unfinished, workers, ray) if unfinished else []
        held: dict[RunLocation, str] = {}
        for run, result in execute_all(queue, pool, self._leases):
            if result.outcome == Outcome.HELD:
                queue.put_back(run, after=HELD_PAUSE)
                if held.get(run) == result.cause:  # looked at once more
                    continue
                held[run] = str(result.cause)
                log.info("%s: waiting for %s", run.name, result.cause)
            events.add(f"run_{result.outcome}", run=run.name, **result.details())
            if result.outcome not in (Outcome.FINISHED, Outcome.FAILED, Outcome.HELD):
                attempts[run.name] += 1
                _retry_or_fail(queue, run, result, attempts[run.name])
            yield queue
        events.add("study_ended")


def _make_workers(runs: Sequence[RunLocation], workers: int | None, ray: str | None) -> Sequence[Worker]:
    if ray is None:
        return local_workers(min(workers or default_workers(), len(runs)), runs)
    from lm_harmony.studies.ray_pool import ray_workers  # Ray is an optional dependency

    return ray_workers(ray, runs, workers)


def _retry_or_fail(queue: RunQueue, run: RunLocation, result: RunResult, attempts: int) -> None:
    """Put a run back into the queue, or write its failure after ATTEMPTS attempts.

    Raises:
        StoreUnavailable: the results could not be written at the last attempt either, so that the study cannot go on.
    """
    cause = str(result.cause)
    log.warning("%s: %s (attempt %d of %d)", run.name, cause, attempts, ATTEMPTS)
    if attempts < ATTEMPTS:
        unavailable = result.outcome == Outcome.STORE_UNAVAILABLE
        queue.put_back(run, after=STORE_PAUSE if unavailable else 0.0, alone=not unavailable)
    elif result.outcome == Outcome.STORE_UNAVAILABLE:
        raise StoreUnavailable(f"{cause} Then repeat the study: it continues where it stopped.")
    else:
        kind = result.kind or "worker died"
        run.write_failure_as_coordinator(kind=kind, cause=cause, attempts=attempts, log_tail=result.log_tail or ())


def _failure(store: RunStore) -> Failure | None:
    try:
        return store.failure()
    except StoreError as error:
        return Failure(kind="damaged failure.json", cause=str(error), attempts=1)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def _check_patterns(flag: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches no run, because a typing mistake would execute every run or none."""
    for pattern in patterns:
        if not any(_matches(name, (pattern,)) for name in names):
            parts = list(dict.fromkeys(part for name in names for part in name.split("/")[:-1]))
            known = f"The runs are of {', '.join(parts[:12])}{', ...' if len(parts) > 12 else ''}."
            near = did_you_mean(pattern.strip("*"), [*parts, *names])
            raise UsageError(f"--{flag}: {pattern!r} matches none of the {len(names)} runs.{near} {known}")
