"""What a study has still to do, handed out so that a worker that has a model loaded goes on with that model."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm_harmony.studies.assignment import Assignment

Answer = tuple[Assignment, dict[str, Any]]


class Queue:
    """Runs that wait, runs that are being carried out, answers that nobody has looked at; safe between threads."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        """Queue ``assignments`` by model, in the order given."""
        self._waiting: dict[str, deque[Assignment]] = defaultdict(deque)
        for assignment in assignments:
            self._waiting[assignment.spec.model.name].append(assignment)
        self._loaded: dict[int, str] = {}
        self._answers: deque[Answer] = deque()
        self._busy: list[Assignment] = []
        self._closed = False
        self._changed = threading.Condition()

    def take(self, worker: int, rest: Callable[[], None]) -> Assignment | None:
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
                    assignment = self._waiting[model].popleft()
                    self._busy.append(assignment)
                    return assignment
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

    def answer(self, assignment: Assignment, said: dict[str, Any]) -> None:
        """Say how a run went."""
        with self._changed:
            self._answers.append((assignment, said))
            self._changed.notify_all()

    def put_back(self, assignment: Assignment) -> None:
        """Let a run be tried again, first of its model."""
        with self._changed:
            self._waiting[assignment.spec.model.name].appendleft(assignment)
            self._changed.notify_all()

    def answers(self) -> Iterator[Answer]:
        """Yield answers as they come, until nothing waits and nobody works."""
        while True:
            with self._changed:
                while not self._answers and (self._busy or any(self._waiting.values())):
                    self._changed.wait()
                if not self._answers:
                    self._changed.notify_all()
                    return
                assignment, said = self._answers[0]
            yield assignment, said
            with self._changed:  # only now, so that nobody goes home while the run may still be put back
                self._answers.popleft()
                self._busy.remove(assignment)
                self._changed.notify_all()

    def running(self) -> list[Assignment]:
        """Return what is being carried out."""
        with self._changed:
            answered = [assignment for assignment, _ in self._answers]
            return [assignment for assignment in self._busy if assignment not in answered]

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
