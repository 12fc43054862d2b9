"""A study on a Ray cluster that loses nodes, and runs that need a node which is large enough or is there at all."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from fork_server import forked_python
from ray._private.node import Node
from ray._private.state import actors
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_nodes import NODE, QUICK, forked_ray_workers
from world import write_world

from lm_harmony.errors import StoreUnavailable, UsageError
from lm_harmony.studies import cluster_watch
from lm_harmony.studies.cluster_nodes import NodeKind
from lm_harmony.studies.messages import Outcome
from lm_harmony.studies.ray_pool import RayWorker, nodes_for
from lm_harmony.studies.study import Study

STORE_BYTES = 80 << 20
"""Size of the object store of a node; Ray allows no less than 75 MB."""
NO_DISK = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0}
"""Options of a cluster whose object stores do not continue on the disk when they are full."""


def test_the_error_names_a_cluster_that_does_not_exist(tmp_path: Path) -> None:
    study = Study.read(write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0]))
    with pytest.raises(UsageError, match=r"no cluster at '127\.0\.0\.1:1'"):
        study.run(ray="127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a Ray cluster with a head node that has no CPUs. This process stays connected to it. Object stores use no disk."""
    options = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, "_system_config": {**QUICK, **NO_DISK}}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "object_store_memory": STORE_BYTES})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def fill_store(node: Node) -> ray.ObjectRef:
    """Leave no room in the object store of a node for an object of half its size, as long as the result is kept."""
    placed = ray.remote(num_cpus=0, max_retries=0)(lambda size: bytes(size)).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    )
    filler = placed.remote(STORE_BYTES * 3 // 4)
    ray.wait([filler], fetch_local=False)
    with pytest.raises(RayError, match="full"):
        ray.get(placed.remote(STORE_BYTES // 2))
    return filler


def drain(cluster: Cluster, node: Node) -> None:
    """Ask the cluster to give no more work to a node, as `ray drain-node` does."""
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = GcsClient(address=cluster.address).drain_node(node.node_id, reason, "reclaimed", 0)
    assert accepted, refusal


def test_a_study_that_loses_nodes_gives_the_same_records(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The object stores are full, one raylet is killed and one node is drained while runs are executed."""
    options = {**NODE, **forked_ray_workers(tmp_path), "object_store_memory": STORE_BYTES}
    nodes = {node.node_id: node for node in [cluster.add_node(**options) for _ in range(3)]}
    local = Study.read(write_world(tmp_path / "local", models=["models/llama", "models/gpt2"], seeds=[0]))
    with pytest.MonkeyPatch.context() as patch:  # not where Ray starts its processes
        patch.setattr(sys, "executable", forked_python())
        local.run()
    study = Study.read(write_world(tmp_path / "ray", models=["models/llama", "models/gpt2"], seeds=[0]))
    nodes_for(cluster.address, study.runs)
    fillers = [fill_store(node) for node in nodes.values()]
    lost = list[str]()

    def finished() -> int:
        return len(list(study.spec.results_dir.rglob("record.json")))

    def node_of_a_run() -> Node:
        before = finished()
        while finished() <= before:  # so that the worker of the last node that was lost has been replaced
            time.sleep(0.01)
        used = {actor["Address"]["NodeID"] for actor in actors().values() if actor["State"] == "ALIVE"}
        lost.append(min(used & nodes.keys()))
        return nodes.pop(lost[-1])

    def lose_nodes() -> None:
        raylet = node_of_a_run().all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()
        node = node_of_a_run()
        drain(cluster, node)
        cluster.remove_node(node)

    killer = threading.Thread(target=lose_nodes, daemon=True)
    killer.start()
    status = study.run(ray=cluster.address, workers=2)
    killer.join(timeout=60)
    assert len(lost) == 2 and fillers, "no node was lost while runs were executed"
    assert len(status.finished) == 8 and not status.failed
    expected = {(Path(r.spec.model.name).name, r.benchmark, r.spec.seed): r for r in local.records()}
    for record in study.records():
        same = expected[Path(record.spec.model.name).name, record.benchmark, record.spec.seed]
        assert (record.epochs, record.direct, record.trained) == (same.epochs, same.direct, same.trained)
    assert finished() == 8
    assert {line.split()[3] for line in caplog.messages if "has left" in line} == {f"({node[:8]})" for node in lost}


def test_a_run_for_which_no_node_is_left_ends_with_one_line(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster_watch, "NODE_SECONDS", 0.0)
    monkeypatch.setattr(cluster_watch, "LOOK_SECONDS", 0.2)
    (run,) = Study.read(write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0])).runs
    kinds = [NodeKind(resource=None, gpus=1, cpus=0, memory=4e9)]  # of a node with a GPU that has left the cluster
    nodes_for(cluster.address, [run])
    worker = RayWorker(0, kinds[0], kinds)
    with pytest.raises(StoreUnavailable, match=r"ray: the cluster has had no node for \d+ seconds that can execute") as error:
        worker.execute([run], [None])
    assert "\n" not in str(error.value)
    assert caplog.messages.count("ray: no node of the cluster can execute the waiting runs. Waiting for one.") == 1


def test_a_large_run_goes_to_the_node_with_the_large_card(cluster: Cluster, tmp_path: Path) -> None:
    """Two nodes declare a card each. Rows of 500,000 tokens would need more than the 1 GB of the small one."""
    options = {**NODE, **forked_ray_workers(tmp_path), "num_gpus": 1}
    nodes = {name: cluster.add_node(resources={name: 1}, **options) for name in ("gpu_gb_1", "gpu_gb_9")}
    models = ["models/llama", {"name": "models/gpt2", "recipe": {"max_length": 500_000}}]
    study = Study.read(write_world(tmp_path, models=models, benchmarks=["parity.yaml"], seeds=[0]))
    small, large = study.runs
    kinds = nodes_for(cluster.address, study.runs)
    assert [kind.resource for kind in kinds] == ["gpu_gb_9", "gpu_gb_1"]
    with_large_card, with_small_card = (RayWorker(number, kind, kinds) for number, kind in enumerate(kinds))
    assert with_small_card.rank(large) is None and with_small_card.rank(small) == 0  # small runs may go to either
    assert with_large_card.rank(large) == 1
    try:
        result = with_large_card.execute([large], [None])
        assert result.outcome == Outcome.FINISHED and large.store.record().trained is not None
        [actor] = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
        assert actor["Address"]["NodeID"] == nodes["gpu_gb_9"].node_id != nodes["gpu_gb_1"].node_id
    finally:
        with_large_card.stop()
