"""The queue of runs, the threads that pass runs to workers, and the log of events.

A worker goes on with the model that it has loaded.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_harmony.runs.lease import Leases
from lm_harmony.studies.messages import Outcome, RunResult, result_of
from lm_harmony.studies.run_location import RunLocation


class Worker(Protocol):
    """Something that executes runs one after another: a process of this machine or a Ray actor."""

    number: int
    """Number of the worker, from 0."""

    def execute(self, run: RunLocation, abandoned: str | None) -> RunResult:
        """Execute a run and return how it ended.

        Args:
            run: the run.
            abandoned: state of its lease if the coordinator found it free by watching it.
        """

    def stop(self) -> None:
        """End the worker's process at once. The next ``execute`` starts another one."""


class RunQueue:
    """The runs that wait, those that are executed now, and the results that nobody has handled yet. Safe between threads."""

    def __init__(self, runs: Iterable[RunLocation]) -> None:
        """Queue ``runs`` by model, in the order given."""
        self._waiting: dict[str, deque[RunLocation]] = defaultdict(deque)
        for run in runs:
            self._waiting[run.spec.model.name].append(run)
        self._loaded: dict[int, str] = {}
        self._results: deque[tuple[RunLocation, RunResult]] = deque()
        self._executing: list[RunLocation] = []
        self._not_before: dict[RunLocation, float] = {}
        self._closed = False
        self._changed = threading.Condition()

    def take(self, worker: int, before_waiting: Callable[[], None]) -> RunLocation | None:
        """Wait for a run and return it, or None when nothing is left or the queue was closed.

        The run is one of the model that the worker has loaded. If there is none, it is one of a model that no worker has loaded,
        or else of the model with most waiting runs.

        Args:
            worker: number of the worker that executes the run.
            before_waiting: called once before waiting, so that an idle worker can free its memory and its GPU.
        """
        prepared = False
        while True:
            with self._changed:
                if self._closed:
                    return None
                model = self._model_for(worker)
                if model is not None:
                    self._loaded[worker] = model
                    run = next(run for run in self._waiting[model] if self._is_due(run))
                    self._waiting[model].remove(run)
                    self._executing.append(run)
                    return run
                if not self._executing and not self._results and not any(self._waiting.values()):
                    return None
                self._loaded.pop(worker, None)
                if prepared:
                    self._changed.wait(self._seconds_until_due())
            if not prepared:
                before_waiting()
                prepared = True

    def _model_for(self, worker: int) -> str | None:
        due = {model: sum(map(self._is_due, runs)) for model, runs in self._waiting.items()}
        waiting = {model: count for model, count in due.items() if count}
        if self._loaded.get(worker) in waiting:
            return self._loaded[worker]
        not_loaded = [model for model in waiting if model not in self._loaded.values()]
        return max(not_loaded or waiting, key=lambda model: waiting[model], default=None)

    def _is_due(self, run: RunLocation) -> bool:
        return self._not_before.get(run, 0.0) <= time.monotonic()

    def _seconds_until_due(self) -> float | None:
        """Return the seconds until a waiting run may be taken that was put back for later; None if there is none."""
        moments = [self._not_before.get(run, 0.0) for runs in self._waiting.values() for run in runs]
        return max(0.01, min(moments) - time.monotonic()) if moments else None

    def report(self, run: RunLocation, result: RunResult) -> None:
        """Add the result of a run that ``take`` returned."""
        with self._changed:
            self._results.append((run, result))
            self._changed.notify_all()

    def put_back(self, run: RunLocation, *, after: float = 0.0) -> None:
        """Queue a run once more, as the next one of its model, to be taken in ``after`` seconds or later."""
        with self._changed:
            self._not_before[run] = time.monotonic() + after
            self._waiting[run.spec.model.name].appendleft(run)
            self._changed.notify_all()

    def results(self) -> Iterator[tuple[RunLocation, RunResult]]:
        """Yield results as they arrive, until no run waits and none is executed."""
        while True:
            with self._changed:
                while not self._results and (self._executing or any(self._waiting.values())):
                    self._changed.wait()
                if not self._results:
                    self._changed.notify_all()
                    return
                run, result = self._results[0]
            yield run, result
            with self._changed:  # removed only now, so that no worker leaves while the caller may still put the run back
                self._results.popleft()
                self._executing.remove(run)
                self._changed.notify_all()

    def running(self) -> list[RunLocation]:
        """Return the runs that are executed now."""
        with self._changed:
            ended = [run for run, _ in self._results]
            return [run for run in self._executing if run not in ended]

    def close(self) -> None:
        """Make every ``take`` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def execute_all(queue: RunQueue, workers: Sequence[Worker], leases: Leases) -> Iterator[tuple[RunLocation, RunResult]]:
    """Let ``workers`` execute the runs in ``queue``, and yield each result as it arrives, until no run is left.

    The caller may put a run back into the queue before it asks for the next result.

    Args:
        queue: the runs.
        workers: what executes them.
        leases: tells which runs other processes execute, so that no worker is started for them.
    """
    threads = [threading.Thread(target=_feed, args=(queue, worker, leases), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield from queue.results()
    finally:
        queue.close()
        stops = [threading.Thread(target=worker.stop) for worker in workers]  # each one may take seconds
        for stop in stops:
            stop.start()
        for thread in (*stops, *threads):
            thread.join()


def _feed(queue: RunQueue, worker: Worker, leases: Leases) -> None:
    while (run := queue.take(worker.number, worker.stop)) is not None:
        try:
            held = leases.working([run.name]).get(run.name)
            if held is None:
                result = worker.execute(run, leases.abandoned(run.name))
            else:
                result = RunResult(outcome=Outcome.HELD, cause=str(held.holder))
        except Exception as error:  # noqa: BLE001 - an error in this thread would leave the coordinator waiting for ever
            result = result_of(error)
        queue.report(run, result)


class EventLog:
    """Appends to <results>/events.jsonl, which other tools can follow. LM-Harmony itself never reads it."""

    def __init__(self, results_dir: Path) -> None:
        """Write below ``results_dir``."""
        self._path = results_dir / "events.jsonl"

    def add(self, event: str, **values: Any) -> None:
        """Append one line with the time in seconds since 1970, by one write call, so that two studies' lines do not mix."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False)
        with contextlib.suppress(OSError):  # if the disk is full, the runs report it
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
