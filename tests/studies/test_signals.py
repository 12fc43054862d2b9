"""SIGTERM and SIGHUP stop a study as Ctrl-C does: leases are released, no process is left, and the exit status tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fork_server import forked_python
from live_results import is_written
from world import write_world


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_coordinator_releases_the_leases_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    recipe = {"epochs": 400, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}}
    path = write_world(tmp_path, models=["models/llama"], recipe=recipe, direct=False)
    command = [sys.executable, "-m", "lm_harmony.cli", "study", str(path)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not is_written(tmp_path / "results", "epochs.jsonl"):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers and list((tmp_path / "results").rglob(".*.lease"))  # negative control
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert f"stopped by {signal.Signals(number).name}; 0 of 8 runs are finished. Repeat the command to continue." in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "results").rglob(".*.lease")), "a lease was not released"
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_waits_for_a_request_ends_when_its_coordinator_has_ended() -> None:
    """The status shows that the main thread was woken. Otherwise it would be 0 after ten seconds, without the line."""
    ended = subprocess.run(
        [forked_python(), "-m", "lm_harmony.studies"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in ended.stderr and "Traceback" not in ended.stderr
