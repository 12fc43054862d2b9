"""Workers on a Ray cluster. Ray places them on nodes, and starts them again on another node when one is lost.

Each worker is an actor that asks for a GPU, or for a part of one, and for host memory, as much as its model needs. It keeps its
loaded model for its next run. The results are in a folder that every node sees, or behind a URL.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from lm_harmony.errors import MissingExtra, StoreUnavailable, UsageError, counted
from lm_harmony.redaction import without_secrets
from lm_harmony.studies.cluster_nodes import NodeKind, kinds_of_nodes, refuse_too_large
from lm_harmony.studies.messages import Outcome, RunRequest, RunResult
from lm_harmony.studies.ray_executor import RayExecutor
from lm_harmony.studies.run_location import RunLocation

try:
    import ray
    from ray.exceptions import RayError

    from lm_harmony.studies.cluster_watch import check_reachable, cluster_watch
except ImportError as error:
    raise MissingExtra("--ray needs Ray, which is not installed. Run: pip install 'lm-harmony[ray]'") from error

log = logging.getLogger(__name__)

RETRIES = 3
"""How often Ray starts a run again whose node or process was lost, if need be on another node."""


class RayWorker:
    """A worker that is an actor of the cluster."""

    def __init__(self, number: int, node: NodeKind, kinds: Sequence[NodeKind]) -> None:
        """Describe the worker. Its first run starts it on a node of the kind ``node``, one of the ``kinds`` of the cluster."""
        self.number, self.node = number, node
        self._kinds = kinds
        self._needs: dict[str, Any] = {}
        self._actor: Any = None

    def rank(self, run: RunLocation) -> int | None:
        """Return on how many kinds of nodes the run does not fit, so that large nodes take large runs first.

        None: it does not fit on the node of this worker.
        """
        if not self.node.holds(run):
            return None
        return sum(not kind.holds(run) for kind in self._kinds)

    def execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        """Advance runs until one ends, and return how it ended; the outcome is DIED if Ray could not restart the actor.

        Raises:
            StoreUnavailable: the cluster is lost, or has no node left for the runs (``ClusterWatch.answer``).
        """
        try:
            return cluster_watch().answer(partial(self._execute, runs, abandoned), self.node.needs(runs[0]))
        except StoreUnavailable:
            self.stop()
            raise

    def _execute(self, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunResult:
        needs = self.node.needs(runs[0])
        if needs != self._needs:
            self.stop()
        try:
            if self._actor is None:
                actor = ray.remote(RayExecutor).options(max_restarts=-1, max_task_retries=RETRIES, **needs)
                self._actor, self._needs = actor.remote(), needs
            answer: str = ray.get(self._actor.answer.remote(RunRequest.of(runs, abandoned).model_dump_json()))
        except RayError as error:
            self.stop()
            return RunResult(outcome=Outcome.DIED, cause=without_secrets(" ".join(str(error).split()))[:500])
        return RunResult.model_validate_json(answer)

    def stop(self) -> None:
        """End the actor at once. What it finished is stored."""
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            with suppress(StoreUnavailable):  # without a head, Ray ends the actor later by itself
                cluster_watch().answer(partial(ray.kill, actor))


def ray_workers(address: str, runs: Sequence[RunLocation], limit: int | None) -> list[RayWorker]:
    """Connect to the cluster and return one worker for each GPU or part of one, or for each CPU where there is no GPU.

    Args:
        address: host:port of the cluster's head, or "auto" for the cluster that this machine belongs to.
        runs: the runs that will be executed.
        limit: largest number of workers; None for no limit. The nodes with most memory come first, because every run fits there.

    Raises:
        UsageError: there is no cluster at that address, or a model fits on none of its nodes.
    """
    kinds = nodes_for(address, runs)
    nodes = [kind for kind in kinds for _ in range(kind.workers(runs))]
    count = max(1, min(len(nodes), len(runs), limit or len(runs)))
    log.info("%s on a cluster with %s", counted(count, "worker"), ", ".join(str(kind) for kind in kinds))
    return [RayWorker(number, node, kinds) for number, node in enumerate(nodes[:count])]


def nodes_for(address: str, runs: Sequence[RunLocation]) -> list[NodeKind]:
    """Connect to the cluster and return its kinds of nodes, those with most memory first.

    Raises:
        UsageError: there is no cluster at that address, or a model fits on none of its nodes.
    """
    if not ray.is_initialized():
        try:
            check_reachable(address)
            ray._private.worker._worker_logs_enabled = False  # dozens of lines of Ray's log where ClusterWatch logs one
            with _signal_handlers_kept():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"ray: no cluster at {address!r}: {reason}. Start one with `ray start --head`, see docs.") from error
    cluster_watch()  # knows the nodes from now on
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    kinds = kinds_of_nodes(node["Resources"] for node in nodes if node["Alive"])
    refuse_too_large(kinds, runs)
    return kinds


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Set the signal handlers again that ``ray.init`` replaces. Its own end the process without releasing leases."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in kept.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)
