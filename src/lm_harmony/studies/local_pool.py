"""Workers on this machine: processes that are started when they are first needed and replaced after they died."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm_harmony.errors import counted
from lm_harmony.redaction import without_secrets
from lm_harmony.studies.messages import LEASE_LOST, MemoryRequest, MemoryResult, Outcome, RunRequest, RunResult
from lm_harmony.studies.pool import stop_all
from lm_harmony.studies.run_location import RunLocation

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Seconds that a worker has to release its lease. Slurm and cloud machines allow 30 in all."""
TAIL = 20
"""How many lines at the end of a dead worker's log are kept in failure.json."""


class WorkerDied(Exception):
    """The worker process ended before it answered; the message says with which status or signal."""

    def __init__(self, status: int) -> None:
        """Take the exit status of the process; a negative one is that of a signal."""
        super().__init__(_how_it_ended(status))
        self.status = status


class WorkerProcess:
    """A worker in a process of this machine, ``python -m lm_harmony.studies``."""

    def __init__(self, number: int, log_folder: Path, environment: Mapping[str, str]) -> None:
        """Describe the worker; its process is started by its first request.

        Args:
            number: number of the worker, from 0.
            log_folder: folder of its log file.
            environment: variables that give it its share of the GPUs and threads.
        """
        self.number, self.log = number, log_folder / f"{os.getpid()}-{number}.log"
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        """Advance runs until one ends, and return how it ended; the outcome is DIED if the process ended before it answered.

        Raises:
            OSError: the process or its log file cannot be created.
        """
        try:
            return RunResult.model_validate_json(self._ask(RunRequest.of(runs, abandoned)))
        except ValueError as error:  # neither JSON nor UTF-8, or JSON with other fields
            self.stop()
            cause = f"the worker's answer cannot be read: {str(error).splitlines()[-1].strip()}"
            return RunResult(outcome=Outcome.DIED, cause=cause, log_tail=self._log_tail())
        except WorkerDied as error:
            if error.status == LEASE_LOST:
                return RunResult(outcome=Outcome.HELD, cause="another process, which has taken it over")
            return RunResult(outcome=Outcome.DIED, cause=str(error), log_tail=self._log_tail())

    def rank(self, run: RunLocation) -> int | None:
        """Return 0: every run is tried on this machine, and one that does not fit says so itself."""
        return 0

    def runs_that_fit(self, runs: Sequence[RunLocation], others: Sequence[int]) -> int:
        """Return how many runs like the largest of ``runs`` the free memory of this worker's device holds at once.

        Args:
            runs: the runs.
            others: process ids of the other workers that will execute them.
        """
        try:
            return MemoryResult.model_validate_json(self._ask(MemoryRequest.of(runs, others))).runs_that_fit
        except (WorkerDied, ValueError, OSError):
            return len(runs)  # the first run will report why the process ended

    def _ask(self, request: RunRequest | MemoryRequest) -> str:
        """Send a request to the process and return its answer.

        Raises:
            WorkerDied: the process ended before it answered.
        """
        process = self._process or self.start()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.model_dump_json() + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._process = None
            raise WorkerDied(process.wait())
        return line

    def stop(self) -> None:
        """End the process: after its current operation, so that it releases its lease, or after STOP_SECONDS at once."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start(self) -> subprocess.Popen[str]:
        """Start the process, which takes seconds to import its libraries, without waiting for it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lm_harmony.studies"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",  # also in the locale C
                env={**os.environ, **self._environment},
            )
        return self._process

    def _log_tail(self) -> tuple[str, ...]:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        return tuple(map(without_secrets, lines))  # a library may have printed past the log


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the worker ended with status {status}"
    return f"the worker was ended by signal {-status}" + (" (killed; out of memory?)" if status == -9 else "")


def default_workers() -> int:
    """Return the number of GPUs, or 1 if there is none."""
    return max(1, len(_gpus()))


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def local_workers(count: int, runs: Sequence[RunLocation]) -> list[WorkerProcess]:
    """Return at most ``count`` workers that share the GPUs or CPU threads; fewer if memory does not hold as many runs at once.

    Args:
        count: number of workers that are wanted.
        runs: the runs that they will execute; the one that needs most memory decides how many fit.
    """
    if runs[0].spec.execution.device_map is not None:  # an option of the study, which all its runs share
        if count > 1:
            log.warning("1 worker instead of %d: with device_map = auto a run takes all GPUs.", count)
        return [WorkerProcess(0, runs[0].results_dir / "workers", {})]
    workers = _make_workers(count, runs[0].results_dir)
    if count == 1:
        return workers
    others = [worker.start().pid for worker in workers[1:]]  # they import their libraries while the first one counts
    fitting = max(1, workers[0].runs_that_fit(runs, others)) * max(1, len(_gpus()))
    if fitting >= count:
        return workers
    found = counted(fitting, "worker"), count
    log.warning("%s instead of %d: the free memory holds no more runs like the largest at once.", *found)
    stop_all(workers)
    return _make_workers(fitting, runs[0].results_dir)


def _make_workers(count: int, results_dir: Path) -> list[WorkerProcess]:
    gpus, threads = _gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = []
    for number in range(count):
        share = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        if count > 1:
            share |= {"OMP_NUM_THREADS": str(max(1, threads // count)), "TOKENIZERS_PARALLELISM": "false"}
        workers.append(WorkerProcess(number, results_dir / "workers", share))
    return workers
