"""Watches a Ray cluster while a call of Ray waits for its answer. Ray itself would wait for ever, or end this process.

The caller gets an error if the head of the cluster or the raylet of this machine is lost, or if no node is left for the call.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import ray

from lm_harmony.errors import StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""Seconds between two looks at the cluster. Ray ends this process 60 seconds after it has lost the head."""
NODE_SECONDS = 600.0
"""Seconds for which a run waits for a node that can execute it. An autoscaler may take minutes to replace a lost one."""
_LOST = threading.Event()
"""Set when the head of the cluster or the raylet of this machine did not answer."""


@atexit.register
def _end_without_ray() -> None:
    """End this process, with status 1, before the exit functions of Ray: without a head they wait for it, or crash."""
    if _LOST.is_set():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


class ClusterWatch:
    """What is known of the cluster that this process is connected to. Safe between threads."""

    def __init__(self) -> None:
        """Take the nodes of the cluster as they are now."""
        context, nodes = ray.get_runtime_context(), ray.nodes()  # type: ignore[no-untyped-call]
        own = next(node for node in nodes if node["NodeID"] == context.get_node_id())
        self._required = {
            "the head of the cluster": str(context.gcs_address),
            "the raylet of this machine": f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}",
        }
        self._alive = [node for node in nodes if node["Alive"]]
        self._lock, self._looked = threading.Lock(), time.monotonic()
        self._without_node: dict[str, float] = {}

    def answer(self, call: Callable[[], T], needs: Mapping[str, Any] | None = None) -> T:
        """Return the result of a call of Ray.

        Args:
            call: the call. If this method raises, the call is left behind in a thread that ends with the process.
            needs: what the call needs on one node, as options of an actor; None: nothing.

        Raises:
            StoreUnavailable: the head of the cluster or the raylet of this machine does not answer, or the cluster has had no
                node that meets the needs for NODE_SECONDS.
        """
        answer: Future[T] = Future()

        def make() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                answer.set_exception(error)

        self._require_connection()
        threading.Thread(target=make, daemon=True).start()
        while not wait([answer], timeout=LOOK_SECONDS).done:
            self._require_connection()
            if needs is not None:
                self._require_node(needs)
        if needs is not None:  # a node may have left, and the call be answered elsewhere, between two looks
            with suppress(StoreUnavailable):  # the call is answered, the next one raises
                self._nodes(0.0)
        return answer.result()

    def _require_connection(self) -> None:
        for what, address in self._required.items():
            try:
                check_reachable(address)
            except OSError as error:
                _LOST.set()
                raise StoreUnavailable(
                    f"ray: {what} at {address} does not answer: {error.strerror or error}. What was finished is complete. "
                    f"Start the cluster again, or leave out --ray."
                ) from error

    def _require_node(self, needs: Mapping[str, Any]) -> None:
        wanted = {"CPU": needs.get("num_cpus", 0), "GPU": needs.get("num_gpus", 0), "memory": needs.get("memory", 0)}
        wanted |= needs.get("resources", {})
        nodes, key, now = self._nodes(), str(sorted(wanted.items())), time.monotonic()
        with self._lock:
            if any(all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
                self._without_node.pop(key, None)
                return
            if key not in self._without_node:
                log.warning("ray: no node of the cluster can execute the waiting runs. Waiting for one.")
            waited = now - self._without_node.setdefault(key, now)
        if waited > NODE_SECONDS:
            raise StoreUnavailable(
                f"ray: the cluster has had no node for {waited:.0f} seconds that can execute the waiting runs. What was finished "
                f"is complete. Add a node."
            )

    def _nodes(self, seconds: float = LOOK_SECONDS) -> list[Mapping[str, Any]]:
        """Return the nodes of the cluster, and log which have left it. They are asked for if the last look is ``seconds`` ago."""
        with self._lock:
            if time.monotonic() - self._looked >= seconds:
                nodes: list[Any] = self.answer(ray.nodes)
                alive = [node for node in nodes if node["Alive"]]
                names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in self._alive}
                for left in names.keys() - {node["NodeID"] for node in alive}:
                    log.warning("ray: node %s has left. Its runs go on elsewhere after their last finished epoch.", names[left])
                self._alive, self._looked = alive, time.monotonic()
            return self._alive


def cluster_watch() -> ClusterWatch:
    """Return the one watch of the cluster that this process is connected to."""
    context = ray.get_runtime_context()
    return _watch(context.gcs_address, context.get_node_id())


@cache
def _watch(head: str, node: str) -> ClusterWatch:
    return ClusterWatch()


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at host:port. Ray itself would wait for minutes and then end this process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()
