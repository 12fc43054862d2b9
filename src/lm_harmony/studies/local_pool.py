"""Workers on this machine: processes that are started when they are first needed and replaced after they died."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_harmony.studies.run_location import RunLocation

log = logging.getLogger(__name__)

TAIL = 20
"""Number of last lines of a dead worker's log that are kept in the failure of its run."""


class WorkerProcess:
    """One worker process; started when it is first needed, and again after it died."""

    def __init__(self, number: int, log_folder: Path, environment: Mapping[str, str]) -> None:
        """Describe worker ``number``: where it logs, and its share of GPUs and threads as environment variables."""
        self.number, self.log = number, log_folder / f"{os.getpid()}-{number}.log"
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def execute(self, run: RunLocation) -> dict[str, Any]:
        """Worker over a run and wait for the answer; a worker that dies answers {"outcome": "died", ...}."""
        return self._ask({"spec": run.spec.to_dict(), "results_dir": str(run.results_dir), "url": run.url})

    def fitting(self, runs: Sequence[RunLocation]) -> int:
        """Return how many runs like the largest of ``runs`` the memory of this worker's device holds at once."""
        said = self._ask({"fitting": [run.spec.to_dict() for run in runs]})
        return int(said.get("fitting", len(runs)))  # one that died will say why with its first run

    def _ask(self, words: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return dict(json.loads(line))
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


def default_workers() -> int:
    """Return one for each GPU, or one."""
    return max(1, len(_gpus()))


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def local_workers(count: int, runs: Sequence[RunLocation]) -> list[WorkerProcess]:
    """Make at most ``count`` workers, as many as have room at once, each with its share of the GPUs or the processor's threads.

    Args:
        count: workers that are wanted.
        runs: what they will carry out; the largest model among them decides how many have room.
    """
    workers = _shares(count, runs[0].results_dir)
    if count == 1:
        return workers
    fitting = max(1, workers[0].fitting(runs)) * max(1, len(_gpus()))
    if fitting >= count:
        return workers
    log.warning("%d workers instead of %d: no more runs like the largest fit into the free memory at once.", fitting, count)
    workers[0].stop()
    return _shares(fitting, runs[0].results_dir)


def _shares(count: int, results_dir: Path) -> list[WorkerProcess]:
    gpus, threads = _gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = []
    for number in range(count):
        share = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        if count > 1:
            share |= {"OMP_NUM_THREADS": str(max(1, threads // count)), "TOKENIZERS_PARALLELISM": "false"}
        workers.append(WorkerProcess(number, results_dir / "workers", share))
    return workers
