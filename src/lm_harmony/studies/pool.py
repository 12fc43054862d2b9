"""The queue of runs and the threads that feed it to workers. A worker that has loaded a model continues with that model."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from lm_harmony.studies.run_location import RunLocation

Answer = tuple[RunLocation, dict[str, Any]]


class RunQueue:
    """Runs that wait, runs that are being carried out, answers that nobody has looked at; safe between threads."""

    def __init__(self, runs: Iterable[RunLocation]) -> None:
        """RunQueue ``runs`` by model, in the order given."""
        self._waiting: dict[str, deque[RunLocation]] = defaultdict(deque)
        for run in runs:
            self._waiting[run.spec.model.name].append(run)
        self._loaded: dict[int, str] = {}
        self._answers: deque[Answer] = deque()
        self._busy: list[RunLocation] = []
        self._closed = False
        self._changed = threading.Condition()

    def take(self, worker: int, rest: Callable[[], None]) -> RunLocation | None:
        """Wait for a run for ``worker``: of the model it has loaded, else of one that nobody has, else of the longest line.

        Args:
            worker: who asks.
            rest: called before waiting, so that an idle worker holds no memory and no GPU that another may need.

        Returns:
            None when nothing is left, or the queue was closed.
        """
        rested = False
        while True:
            with self._changed:
                if self._closed:
                    return None
                model = self._model_for(worker)
                if model is not None:
                    self._loaded[worker] = model
                    run = self._waiting[model].popleft()
                    self._busy.append(run)
                    return run
                if not self._busy and not self._answers:
                    return None
                self._loaded.pop(worker, None)
                if rested:
                    self._changed.wait()
            if not rested:
                rest()
                rested = True

    def _model_for(self, worker: int) -> str | None:
        lines = {model: len(line) for model, line in self._waiting.items() if line}
        if self._loaded.get(worker) in lines:
            return self._loaded[worker]
        free = [model for model in lines if model not in self._loaded.values()]
        return max(free or lines, key=lambda model: lines[model], default=None)

    def report(self, run: RunLocation, said: dict[str, Any]) -> None:
        """Say how a run went."""
        with self._changed:
            self._answers.append((run, said))
            self._changed.notify_all()

    def put_back(self, run: RunLocation) -> None:
        """Let a run be tried again, first of its model."""
        with self._changed:
            self._waiting[run.spec.model.name].appendleft(run)
            self._changed.notify_all()

    def results(self) -> Iterator[Answer]:
        """Yield answers as they come, until nothing waits and nobody works."""
        while True:
            with self._changed:
                while not self._answers and (self._busy or any(self._waiting.values())):
                    self._changed.wait()
                if not self._answers:
                    self._changed.notify_all()
                    return
                run, said = self._answers[0]
            yield run, said
            with self._changed:  # only now, so that nobody goes home while the run may still be put back
                self._answers.popleft()
                self._busy.remove(run)
                self._changed.notify_all()

    def running(self) -> list[RunLocation]:
        """Return what is being carried out."""
        with self._changed:
            answered = [run for run, _ in self._answers]
            return [run for run in self._busy if run not in answered]

    def close(self) -> None:
        """Worker out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Worker(Protocol):
    """Anything that executes runs one after another: a local process or a Ray actor."""

    number: int
    """Number of the worker, from 0."""

    def execute(self, run: RunLocation) -> dict[str, Any]:
        """Carry out a run and say how it went."""

    def stop(self) -> None:
        """End at once."""


def execute_all(queue: RunQueue, workers: Sequence[Worker]) -> Iterator[tuple[RunLocation, dict[str, Any]]]:
    """Let ``workers`` carry out what is in ``queue``; yield each answer as it comes, until nothing is left.

    The caller decides what an answer means, and may put the run back into the queue before it asks for the next answer.
    """
    threads = [threading.Thread(target=_serve, args=(queue, worker), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield from queue.results()
    finally:
        queue.close()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()


def _serve(queue: RunQueue, worker: Worker) -> None:
    while (run := queue.take(worker.number, worker.stop)) is not None:
        queue.report(run, worker.execute(run))
