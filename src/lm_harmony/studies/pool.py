"""Local worker processes: started, fed, watched and replaced.

What a study has still to do, handed out so that a worker that has a model loaded goes on with that model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_harmony.studies.run_location import RunLocation

log = logging.getLogger(__name__)

TAIL = 20
"""Lines of a dead worker's log that its run's failure keeps."""


class Worker:
    """One worker process; started when it is first needed, and again after it died."""

    def __init__(self, number: int, log_folder: Path, environment: Mapping[str, str]) -> None:
        """Describe worker ``number``: where it logs, and its share of GPUs and threads as environment variables."""
        self.number, self.log = number, log_folder / f"{os.getpid()}-{number}.log"
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def carry_out(self, assignment: RunLocation) -> dict[str, Any]:
        """Hand over a run and wait for the answer; a worker that dies answers {"outcome": "died", ...}."""
        return self._ask({"spec": assignment.spec.to_dict(), "results_dir": str(assignment.results_dir), "url": assignment.url})

    def fitting(self, assignments: Sequence[RunLocation]) -> int:
        """Return how many runs like the largest of ``assignments`` the memory of this worker's device holds at once."""
        said = self._ask({"fitting": [assignment.spec.to_dict() for assignment in assignments]})
        return int(said.get("fitting", len(assignments)))  # one that died will say why with its first run

    def _ask(self, words: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process = None
        return {"outcome": "died", "cause": _how_it_ended(process.wait()), "log_tail": self._tail()}

    def stop(self) -> None:
        """End the process, whatever it does: what it finished is on disk."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lm_harmony.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self._environment},
            )
        return self._process

    def _tail(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the worker ended with status {status}"
    return f"the worker was ended by signal {-status}" + (" (killed; out of memory?)" if status == -9 else "")


class Hand(Protocol):
    """Whoever carries out runs, one after another."""

    number: int

    def carry_out(self, assignment: RunLocation) -> dict[str, Any]:
        """Carry out a run and say how it went."""

    def stop(self) -> None:
        """End at once."""


def work_through(queue: Queue, workers: Sequence[Hand]) -> Iterator[tuple[RunLocation, dict[str, Any]]]:
    """Let ``workers`` carry out what is in ``queue``; yield each answer as it comes, until nothing is left.

    The caller decides what an answer means, and may put the run back into the queue before it asks for the next answer.
    """
    threads = [threading.Thread(target=_serve, args=(queue, worker), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield from queue.answers()
    finally:
        queue.close()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()


def _serve(queue: Queue, worker: Hand) -> None:
    while (assignment := queue.take(worker.number, worker.stop)) is not None:
        queue.answer(assignment, worker.carry_out(assignment))


def default_workers() -> int:
    """Return one for each GPU, or one."""
    return max(1, len(_gpus()))


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def local_workers(count: int, assignments: Sequence[RunLocation]) -> list[Worker]:
    """Make at most ``count`` workers, as many as have room at once, each with its share of the GPUs or the processor's threads.

    Args:
        count: workers that are wanted.
        assignments: what they will carry out; the largest model among them decides how many have room.
    """
    workers = _shares(count, assignments[0].results_dir)
    if count == 1:
        return workers
    fitting = max(1, workers[0].fitting(assignments)) * max(1, len(_gpus()))
    if fitting >= count:
        return workers
    log.warning("%d workers instead of %d: no more runs like the largest fit into the free memory at once.", fitting, count)
    workers[0].stop()
    return _shares(fitting, assignments[0].results_dir)


def _shares(count: int, results_dir: Path) -> list[Worker]:
    gpus, threads = _gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = []
    for number in range(count):
        share = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        if count > 1:
            share |= {"OMP_NUM_THREADS": str(max(1, threads // count)), "TOKENIZERS_PARALLELISM": "false"}
        workers.append(Worker(number, results_dir / "workers", share))
    return workers


Answer = tuple[RunLocation, dict[str, Any]]


class Queue:
    """Runs that wait, runs that are being carried out, answers that nobody has looked at; safe between threads."""

    def __init__(self, assignments: Iterable[RunLocation]) -> None:
        """Queue ``assignments`` by model, in the order given."""
        self._waiting: dict[str, deque[RunLocation]] = defaultdict(deque)
        for assignment in assignments:
            self._waiting[assignment.spec.model.name].append(assignment)
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

    def answer(self, assignment: RunLocation, said: dict[str, Any]) -> None:
        """Say how a run went."""
        with self._changed:
            self._answers.append((assignment, said))
            self._changed.notify_all()

    def put_back(self, assignment: RunLocation) -> None:
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

    def running(self) -> list[RunLocation]:
        """Return what is being carried out."""
        with self._changed:
            answered = [assignment for assignment, _ in self._answers]
            return [assignment for assignment in self._busy if assignment not in answered]

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
