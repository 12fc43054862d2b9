"""Workers on a Ray cluster. Ray places them on nodes, and starts them again on another node when one is lost.

Each worker is an actor with its share of GPUs and memory. It keeps its loaded model for its next run. The results are in a
folder that every node sees, or behind a URL.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

from lm_harmony.errors import MissingExtra, UsageError
from lm_harmony.studies.messages import Outcome, RunRequest, RunResult
from lm_harmony.studies.plan import estimated_memory
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.worker import RunExecutor

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtra("--ray needs Ray, which is not installed. Run: pip install 'lm-harmony[ray]'") from error

log = logging.getLogger(__name__)

RETRIES = 3
"""How often Ray starts a run again whose node or process was lost, if need be on another node."""


class RayWorker:
    """A worker that is an actor of the cluster."""

    def __init__(self, number: int, needs: dict[str, float]) -> None:
        """Describe the worker. Its first run starts it on a node where ``needs`` (num_gpus, num_cpus, memory) are free."""
        self.number = number
        self._needs = needs
        self._actor: Any = None

    def execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        """Advance runs until one ends, and return how it ended; the outcome is DIED if Ray could not restart the actor."""
        if self._actor is None:
            actor = ray.remote(RunExecutor).options(max_restarts=-1, max_task_retries=RETRIES, **self._needs)
            self._actor = actor.remote()
        try:
            answer: str = ray.get(self._actor.answer.remote(RunRequest.of(runs, abandoned).model_dump_json()))
        except RayError as error:
            self.stop()
            return RunResult(outcome=Outcome.DIED, cause=" ".join(str(error).split())[:500])
        return RunResult.model_validate_json(answer)

    def stop(self) -> None:
        """End the actor at once. What it finished is stored."""
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


def ray_workers(address: str, runs: Sequence[RunLocation], limit: int | None) -> list[RayWorker]:
    """Connect to the cluster and return one worker for each GPU, or for each CPU where there is no GPU.

    Args:
        address: host:port of the cluster's head, or "auto" for the cluster that this machine belongs to.
        runs: the runs that will be executed; the one that needs most memory decides how much a worker asks for.
        limit: largest number of workers; None for no limit.

    Raises:
        UsageError: there is no cluster at that address.
    """
    if not ray.is_initialized():
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"ray: no cluster at {address!r}: {reason}. Start one with `ray start --head`, see docs.") from error
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    needs: dict[str, float] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    memory = max((estimated_memory(spec) for spec in {run.spec.model: run.spec for run in runs}.values()), default=0)
    if memory and not gpus:
        needs["memory"] = memory
    count = min(gpus or cpus, len(runs), limit or len(runs))
    log.info("%d workers on a cluster with %s", count, f"{gpus} GPUs" if gpus else f"{cpus} processors")
    return [RayWorker(number, needs) for number in range(max(1, count))]


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at host:port. Ray itself would wait for minutes and then end this process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()
