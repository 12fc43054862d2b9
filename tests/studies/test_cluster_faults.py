"""What ends a study on a Ray cluster, a signal or the loss of the head, is one line; the study can be repeated."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from fork_server import forked_python
from ray.cluster_utils import Cluster
from world import write_world


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 4 << 30, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def start(file: Path, cluster: Cluster, log: Path) -> subprocess.Popen[bytes]:
    """Start a study on the cluster and wait until it has connected."""
    command = [forked_python(), "-m", "lm_harmony.cli", "study", str(file), "--ray", cluster.address]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    while "workers on a cluster" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return process


def test_a_signal_and_the_loss_of_the_head_end_a_study_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    file = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0])
    process = start(file, cluster, tmp_path / "signal.txt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    *_, stopped, last = (tmp_path / "signal.txt").read_text().splitlines()
    assert stopped == "stopped by SIGTERM; 0 of 1 runs are finished. Repeat the command to continue."
    assert last == "lm-harmony: interrupted by SIGTERM."

    process = start(file, cluster, tmp_path / "head.txt")
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    assert process.wait(timeout=300) == 1
    said = (tmp_path / "head.txt").read_text()
    assert re.match(
        r"lm-harmony: ray: the head of the cluster at .* does not answer: .* Then repeat the study", said.splitlines()[-1]
    )
    assert "Traceback" not in said
