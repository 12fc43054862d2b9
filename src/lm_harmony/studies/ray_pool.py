"""Workers on a Ray cluster: the same answers as local ones give, from processes that Ray places, and places again when lost.

Each worker is an actor with its share of GPUs and memory, so that the model it has loaded serves its next run. Results go to a
folder that every node sees, or behind a URL.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_harmony.errors import MissingExtra, UsageError
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.plan import estimated_memory
from lm_harmony.studies.run_location import RunLocation, remote_of
from lm_harmony.studies.worker import caches_for, execute

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtra("--ray needs Ray, which is not there. Run: pip install 'lm-harmony[ray]'") from error

log = logging.getLogger(__name__)

RETRIES = 3
"""How often Ray begins a run again whose node or process was lost, on another node if need be."""


class _Actor:
    """Lives in a process of the cluster."""

    def __init__(self, results_dir: str, url: str | None) -> None:
        remote = remote_of(url)  # a working copy is where this node's user has its cache
        self._results_dir, self._url = Path(results_dir) if remote is None else remote.folder, url
        self._caches = caches_for(self._results_dir, url)

    def execute(self, spec: str) -> dict[str, Any]:
        asked = RunLocation(spec=RunSpec.from_dict(json.loads(spec)), results_dir=self._results_dir, url=self._url)
        return execute(asked, self._caches)


class RayWorker:
    """One worker of the cluster, as ``crew.execute_all`` takes it."""

    def __init__(self, number: int, needs: dict[str, float]) -> None:
        """Describe worker ``number``; Ray starts it with its first run where ``needs`` (num_gpus, num_cpus, memory) are free."""
        self.number = number
        self._needs = needs
        self._actor: Any = None

    def execute(self, run: RunLocation) -> dict[str, Any]:
        """Hand over a run and wait for the answer; a worker that Ray could not save answers {"outcome": "died", ...}."""
        if self._actor is None:
            kind = ray.remote(_Actor).options(max_restarts=-1, max_task_retries=RETRIES, **self._needs)
            self._actor = kind.remote(str(run.results_dir), run.url)
        try:
            said: dict[str, Any] = ray.get(self._actor.execute.remote(json.dumps(run.spec.to_dict())))
        except RayError as error:
            self.stop()
            return {"outcome": "died", "cause": " ".join(str(error).split())[:500]}
        return said

    def stop(self) -> None:
        """End the process; what it finished is on disk."""
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


def ray_workers(address: str, runs: Sequence[RunLocation], most: int | None) -> list[RayWorker]:
    """Join the cluster and make one worker for each GPU (or each processor where there is none).

    Args:
        address: of the cluster's head, or "auto": the cluster that this machine belongs to.
        runs: what will be carried out; its largest model decides how much memory a worker asks for.
        most: no more workers than this.

    Raises:
        UsageError: there is no cluster at that address.
    """
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"ray: no cluster at {address!r}: {reason}. Start one with `ray start --head`, see docs.") from error
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(there.get("GPU", 0))
    needs: dict[str, float] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    memory = max((estimated_memory(spec) for spec in {one.spec.model: one.spec for one in runs}.values()), default=0)
    if memory and not gpus:
        needs["memory"] = memory
    count = min(gpus or int(there.get("CPU", 1)), len(runs), most or len(runs))
    log.info("%d workers on a cluster with %s", count, f"{gpus} GPUs" if gpus else f"{int(there.get('CPU', 1))} processors")
    return [RayWorker(number, needs) for number in range(max(1, count))]


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at host:port: Ray itself would wait for minutes, and then end this process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()
