"""The queue of runs, and the threads that pass runs to workers. A worker goes on with the model that it has loaded."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

from lm_harmony.errors import UsageError, check_integer
from lm_harmony.recipe import shared_adapter
from lm_harmony.runs.lease import Leases
from lm_harmony.stop_signals import raise_if_stopped
from lm_harmony.studies.messages import Outcome, RunResult, result_of
from lm_harmony.studies.run_location import RunLocation


class Worker(Protocol):
    """Something that executes runs one after another: a process of this machine or a Ray actor."""

    number: int
    """Number of the worker, from 0."""

    def execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        """Advance runs until one of them ends, and return how it ended. The outcome DIED is that of all of them.

        Args:
            runs: the runs, those in progress included.
            abandoned: for each run, the state of its lease if the coordinator found it free by watching it.
        """

    def rank(self, run: RunLocation) -> int | None:
        """Return how much this worker is needed for ``run``, the largest number first; None if the run does not fit on it."""

    def stop(self) -> None:
        """End the worker's process at once. The next ``execute`` starts another one."""


class RunQueue:
    """The runs that wait, those that are executed now, and the results that nobody has handled yet. Safe between threads."""

    def __init__(self, runs: Iterable[RunLocation], *, joint: int = 1) -> None:
        """Queue ``runs`` by model, in the order given; a worker executes at most ``joint`` of them at once.

        ``workers`` is the number of workers, among which few waiting runs are divided. UsageError: ``joint`` is below 1, or above
        it for runs whose model is on several GPUs.
        """
        check_integer("joint", joint, 1)
        self._joint, self.workers = joint, 1
        self._alone: set[RunLocation] = set()
        self._waiting: dict[str, deque[RunLocation]] = defaultdict(deque)
        for run in runs:
            if joint > 1 and run.spec.execution.device_map is not None:
                raise UsageError(f"joint = {joint} does not support device_map = auto. Remove one of them.")
            self._waiting[run.spec.model.name].append(run)
        self._loaded: dict[int, str] = {}
        self._results: deque[tuple[RunLocation, RunResult]] = deque()
        self._executing: list[RunLocation] = []
        self._not_before: dict[RunLocation, float] = {}
        self._closed = False
        self._changed = threading.Condition()

    def take(
        self,
        worker: int,
        running: Sequence[RunLocation],
        before_waiting: Callable[[], None],
        rank: Callable[[RunLocation], int | None] = lambda _: 0,
    ) -> list[RunLocation] | None:
        """Return runs that can be trained jointly with those that the worker executes; wait for one if it executes none.

        The first run is one of the model that the worker has loaded. If there is none, it is one of a model that no worker has
        loaded, or else of the model with the largest ``rank`` and, among equal ones, with most waiting runs.

        Args:
            worker: number of the worker that executes the runs.
            running: runs that it executes already.
            before_waiting: called once before waiting, so that an idle worker can free its memory and its GPU.
            rank: ``Worker.rank`` of this worker.

        Returns:
            The runs, or None when nothing is left or the queue was closed.
        """
        prepared = False
        while True:
            with self._changed:
                if self._closed:
                    return None
                if running:
                    return self._take_partners(running)
                model = self._model_for(worker, rank)
                if model is not None:
                    self._loaded[worker] = model
                    due = sum(self._is_due(run) for runs in self._waiting.values() for run in runs)
                    fitting = (run for run in self._waiting[model] if self._is_due(run) and rank(run) is not None)
                    first = self._remove(next(fitting))
                    return [first, *self._take_partners([first], -(-due // self.workers))]
                if not self._executing and not self._results and not any(self._waiting.values()):
                    return None
                self._loaded.pop(worker, None)
                if prepared:
                    self._changed.wait(self._seconds_until_due())
            if not prepared:
                before_waiting()
                prepared = True

    def _take_partners(self, running: Sequence[RunLocation], most: int | None = None) -> list[RunLocation]:
        """Take waiting runs that can be trained jointly with ``running``, until they are ``most`` or ``joint`` together."""
        shared, waiting = self._shared_by(running[0]), self._waiting[running[0].spec.model.name]
        free = (self._joint if most is None else min(most, self._joint)) - len(running)
        if shared is None or free <= 0:
            return []
        partners = [run for run in waiting if self._is_due(run) and self._shared_by(run) == shared]
        return [self._remove(run) for run in partners[:free]]

    def _shared_by(self, run: RunLocation) -> Hashable | None:
        """Return what runs that are trained jointly have in common, or None for a run that is executed alone."""
        adapter = None if run in self._alone else shared_adapter(run.spec.recipe)
        return adapter and (run.spec.model, adapter, run.spec.recipe.dtype, run.spec.recipe.quantize, run.spec.execution)

    def _remove(self, run: RunLocation) -> RunLocation:
        """Move a run from those that wait to those that are executed."""
        self._waiting[run.spec.model.name].remove(run)
        self._executing.append(run)
        return run

    def _model_for(self, worker: int, rank: Callable[[RunLocation], int | None]) -> str | None:
        waiting: dict[str, tuple[int, int]] = {}
        for model, runs in self._waiting.items():
            ranks = [place for run in runs if self._is_due(run) and (place := rank(run)) is not None]
            if ranks:
                waiting[model] = max(ranks), len(ranks)
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

    def put_back(self, run: RunLocation, *, after: float = 0.0, alone: bool = False) -> None:
        """Queue a run once more, as the next one of its model.

        Args:
            run: the run.
            after: seconds before which it is not taken.
            alone: execute it alone from now on, because it may have ended a worker that executed several runs.
        """
        with self._changed:
            self._alone |= {run} if alone else set()
            self._not_before[run] = time.monotonic() + after
            self._waiting[run.spec.model.name].appendleft(run)
            self._changed.notify_all()

    def results(self) -> Iterator[tuple[RunLocation, RunResult]]:
        """Yield results as they arrive, until no run waits and none is executed."""
        while True:
            with self._changed:
                while not self._results and (self._executing or any(self._waiting.values())):
                    raise_if_stopped()
                    self._changed.wait(1.0)  # seconds until a signal is noticed whose exception Python dropped
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
    queue.workers = len(workers)
    threads = [threading.Thread(target=_feed, args=(queue, worker, leases), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield from queue.results()
    finally:
        queue.close()
        stop_all(workers)
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.5)
            stop_all(workers)  # once more, because a thread may have started its worker while the others were stopped


def stop_all(workers: Sequence[Worker]) -> None:
    """Stop all workers at the same time, because each one may take seconds."""
    stops = [threading.Thread(target=worker.stop) for worker in workers]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join()


def _feed(queue: RunQueue, worker: Worker, leases: Leases) -> None:
    running: list[RunLocation] = []
    while (taken := queue.take(worker.number, running, worker.stop, worker.rank)) is not None:
        running += taken
        try:
            held = leases.working([run.name for run in taken])
            results = {
                run: RunResult(outcome=Outcome.HELD, cause=str(held[run.name].holder)) for run in taken if run.name in held
            }
            going = [run for run in running if run not in results]
            if going:
                result = worker.execute(going, [leases.abandoned(run.name) for run in going])
                ended = going if result.outcome == Outcome.DIED else [going[result.place]]
                results |= dict.fromkeys(ended, result)
        except Exception as error:  # noqa: BLE001 - an error in this thread would leave the coordinator waiting for ever
            results = dict.fromkeys(running, result_of(error))
        for run, result in results.items():
            running.remove(run)
            queue.report(run, result)
