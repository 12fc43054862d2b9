"""A study on a Ray cluster that loses a node, and a run that needs the node with the large card."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from world import write_world

from lm_harmony.errors import UsageError
from lm_harmony.studies.messages import Outcome
from lm_harmony.studies.ray_pool import RayWorker, nodes_for
from lm_harmony.studies.study import Study


def test_the_error_names_a_cluster_that_does_not_exist(tmp_path: Path) -> None:
    study = Study.read(write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0]))
    with pytest.raises(UsageError, match=r"no cluster at '127\.0\.0\.1:1'"):
        study.run(ray="127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a Ray cluster with a head node that has no CPUs. This process stays connected to it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_study_that_loses_a_node_gives_the_same_records(cluster: Cluster, tmp_path: Path) -> None:
    """Both nodes execute runs. One node is killed during a run. The records equal those of a study without Ray."""
    nodes = [cluster.add_node(num_cpus=1, memory=4 << 30) for _ in range(2)]
    local = Study.read(write_world(tmp_path / "local", models=["models/llama", "models/gpt2"]))
    local.run()
    study = Study.read(write_world(tmp_path / "ray", models=["models/llama", "models/gpt2"]))
    lost = list[float]()

    def kill_one() -> None:
        while not any(study.spec.results_dir.rglob("record.json")) or len(list(study.spec.results_dir.rglob(".*.lease"))) < 2:
            time.sleep(0.01)
        cluster.remove_node(nodes[1], allow_graceful=False)
        lost.append(time.monotonic())

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    status = study.run(ray=cluster.address)
    killer.join(timeout=60)
    assert lost, "no node was lost"
    assert len(status.finished) == 16 and not status.failed
    expected = {(Path(r.spec.model.name).name, r.benchmark, r.spec.seed): r for r in local.records()}
    for record in study.records():
        same = expected[Path(record.spec.model.name).name, record.benchmark, record.spec.seed]
        assert (record.epochs, record.direct, record.trained) == (same.epochs, same.direct, same.trained)
    assert len(list(study.spec.results_dir.rglob("record.json"))) == 16


def test_a_large_run_goes_to_the_node_with_the_large_card(cluster: Cluster, tmp_path: Path) -> None:
    """Two nodes declare a card each. Rows of 500,000 tokens would need more than the 1 GB of the small one."""
    options = {"num_cpus": 1, "num_gpus": 1, "memory": 4 << 30}
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
