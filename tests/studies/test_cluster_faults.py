"""What ends a study on a Ray cluster, a signal or the loss of raylet or head, is one line; the study can be repeated."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from chaos import equal
from fork_server import forked_python
from live_results import is_written
from ray.cluster_utils import Cluster
from ray_nodes import NODE, QUICK, forked_ray_workers
from world import WITHOUT_PAUSE, write_world

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.studies.study import Study


@pytest.fixture
def new_cluster() -> Iterator[Callable[..., Cluster]]:
    """Return a function that starts a cluster with a head of one CPU and with the given options."""
    clusters: list[Cluster] = []

    def begin(**options: object) -> Cluster:
        head = {**NODE, **options, "include_dashboard": False, "no_monitor": True, "_system_config": QUICK}
        clusters.append(Cluster(initialize_head=True, head_node_args=head))
        return clusters[-1]

    yield begin
    ray.shutdown()
    for cluster in clusters:
        cluster.shutdown()


def start(file: Path, cluster: Cluster, log: Path) -> subprocess.Popen[bytes]:
    """Start a study on the cluster and wait until it has connected."""
    command = [forked_python(), "-c", WITHOUT_PAUSE, "study", str(file), "--ray", cluster.address]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    while " on a cluster with " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return process


def end(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a study has ended with status 1, and return its last line."""
    assert process.wait(timeout=300) == 1
    said = log.read_text()
    assert "Traceback" not in said and "raylet)" not in said  # negative control: Ray's own text begins with (raylet)
    return said.splitlines()[-1]


def test_a_signal_and_the_loss_of_the_raylet_or_the_head_end_a_study_with_one_line(
    new_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is then repeated on a cluster with a new head. Its matrix equals that of an undisturbed study."""
    file = write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml", "threes.yaml"], seeds=[0, 1, 2])
    cluster = new_cluster()
    process = start(file, cluster, tmp_path / "signal.txt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    *_, stopped, last = (tmp_path / "signal.txt").read_text().splitlines()
    assert stopped == "stopped by SIGTERM; 0 of 6 runs are finished. Repeat the command to continue."
    assert last == "lm-harmony: interrupted by SIGTERM."

    process = start(file, cluster, tmp_path / "raylet.txt")
    raylet = cluster.head_node.all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()
    last = end(process, tmp_path / "raylet.txt")
    assert re.match(r"lm-harmony: ray: the raylet of this machine at .* does not answer: .* Then repeat the study", last)

    cluster.add_node(**NODE)
    process = start(file, cluster, tmp_path / "head.txt")
    while not is_written(tmp_path / "results", "record.json"):
        assert process.poll() is None
        time.sleep(0.02)
    cluster.head_node.all_processes["gcs_server"][0].process.kill()
    last = end(process, tmp_path / "head.txt")
    assert re.match(r"lm-harmony: ray: the head of the cluster at .* does not answer: .* Then repeat the study", last)

    study = Study.read(file)
    before = {run.name: run.store.record() for run in study.status().finished}
    assert 0 < len(before) < 6
    status = study.run(ray=new_cluster(**forked_ray_workers(tmp_path)).address)
    assert len(status.finished) == 6 and not status.failed
    assert before.items() <= {run.name: run.store.record() for run in status.finished}.items()
    undisturbed = Study(replace(study.spec, results_dir=tmp_path / "undisturbed"))
    monkeypatch.setattr(sys, "executable", forked_python())  # not where Ray starts its processes
    undisturbed.run()
    assert equal(*(ScoreMatrix.from_records(one.spec.results_dir) for one in (study, undisturbed)))
