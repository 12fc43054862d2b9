"""Results on S3: records equal those in a folder, finished epochs survive a lost machine, and leases are exclusive."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import BUCKET, KEYS, client, keys, s3_server
from world import write_world

from lm_harmony.errors import StoreError, UsageError
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.studies.lease import LeaseHeld
from lm_harmony.studies.remote_lease import RemoteLeases
from lm_harmony.studies.run_location import remote_of
from lm_harmony.studies.study import Study

URL = f"s3://{BUCKET}/results"
SMALL = {"models": ["models/llama"], "benchmarks": ["parity.yaml", "threes.yaml"], "seeds": [0]}


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint_url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint_url, "LM_HARMONY_CACHE_DIR": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        remote_of.cache_clear()  # removes the connection to the server of the previous test
        yield endpoint_url


def test_the_working_copy_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "general"))
    monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(tmp_path / "own"))
    assert RemoteSync(URL).folder.parent == tmp_path / "own"
    assert RemoteSync(f"{URL}2").folder != RemoteSync(URL).folder
    monkeypatch.delenv("LM_HARMONY_CACHE_DIR")
    assert RemoteSync(URL).folder.parent == tmp_path / "general" / "lm-harmony"


def test_a_study_on_s3_gives_the_same_records_as_in_a_folder(endpoint: str, tmp_path: Path) -> None:
    local = Study.read(write_world(tmp_path / "local", **SMALL))
    local.run()
    file = write_world(tmp_path / "remote", **SMALL, results_dir=URL)
    status = Study.read(file).run()
    assert len(status.finished) == 2
    records = [key for key in keys(endpoint) if key.endswith("record.json") and "/direct/" not in key]
    assert len(records) == 2
    assert not any("/.leases/" in key or "/checkpoints/" in key for key in keys(endpoint)), "leases or checkpoints were left"

    shutil.rmtree(tmp_path / "cache")  # as on another machine
    elsewhere = Study.read(file)
    assert not elsewhere.status().waiting
    scores = {record.spec.benchmark.task.rpartition("/")[2]: record.trained for record in local.records()}
    assert {record.spec.benchmark.task.rpartition("/")[2]: record.trained for record in elsewhere.records()} == scores


def test_finished_epochs_survive_a_machine_that_is_lost_with_its_disk(endpoint: str, tmp_path: Path) -> None:
    recipe = {"epochs": 6, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}}
    file = write_world(tmp_path, **{**SMALL, "benchmarks": ["parity.yaml"], "recipe": recipe}, results_dir=URL)
    program = [sys.executable, "-m", "lm_harmony.cli", "study", str(file)]
    process = subprocess.Popen(program, env=dict(os.environ), start_new_session=True, stderr=subprocess.DEVNULL)
    for _ in range(1_200):
        if any(key.endswith("epochs.jsonl") for key in keys(endpoint)):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (lines,) = [key for key in keys(endpoint) if key.endswith("epochs.jsonl")]
    before = client(endpoint).get_object(Bucket=BUCKET, Key=lines)["Body"].read()
    assert before, "no epoch was finished"
    shutil.rmtree(tmp_path / "cache")
    for key in [key for key in keys(endpoint) if "/.leases/" in key]:  # they would be stale after two minutes
        client(endpoint).delete_object(Bucket=BUCKET, Key=key)
    status = Study.read(file).run()
    assert len(status.finished) == 1
    after = client(endpoint).get_object(Bucket=BUCKET, Key=lines)["Body"].read()
    assert after.startswith(before), "a finished epoch was computed again"


def test_the_lease_of_a_run_has_one_holder(endpoint: str) -> None:
    remote, run, lost = RemoteSync(URL), "task/model/seed0", threading.Event()
    leases = RemoteLeases(remote)
    with RemoteLeases(remote, beat=0.05).hold(run, lost=lost.set):
        assert leases.held([run, "task/model/seed1"]) == {run}
        with pytest.raises(LeaseHeld), leases.hold(run, lost=lost.set):
            pass
        time.sleep(1.1)  # S3 stores times in whole seconds
        with RemoteLeases(remote, stale=-1.0).hold(run, lost=lost.set):  # every lease counts as abandoned
            assert lost.wait(60), "the first holder was not notified that it lost the lease"
    assert leases.held([run]) == set()
    assert not keys(endpoint)


def test_one_of_six_competing_threads_gets_the_lease(endpoint: str) -> None:
    holders: list[int] = []
    failed: list[Exception] = []
    start, end = threading.Barrier(6, timeout=60), threading.Barrier(6, timeout=60)

    def compete(number: int) -> None:
        remote = RemoteSync(URL)
        start.wait()
        try:
            with RemoteLeases(remote).hold("run", lost=lambda: None):
                holders.append(number)
                end.wait()
        except LeaseHeld:
            end.wait()
        except (StoreError, threading.BrokenBarrierError) as error:
            failed.append(error)
            end.abort()  # otherwise the other threads would wait for their timeout

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(holders) == 1


def test_a_folder_that_is_filled_while_it_is_listed_is_not_returned_as_a_file(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteSync(URL)
    listing = remote.filesystem._lsdir

    async def list_then_write(*arguments: Any, **options: Any) -> Any:
        found = await listing(*arguments, **options)
        client(endpoint).put_object(Bucket=BUCKET, Key="results/.leases/run/1", Body=b"held")
        return found

    monkeypatch.setattr(remote.filesystem, "_lsdir", list_then_write)
    assert remote.file_sizes(".leases/run") == {}
    monkeypatch.undo()
    assert list(remote.file_sizes(".leases/run")) == [".leases/run/1"]


def test_the_error_names_a_store_that_cannot_be_reached(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="s3://nowhere/results"):
        Study.read(write_world(tmp_path, **SMALL, results_dir="s3://nowhere/results")).status()
    with pytest.raises(UsageError, match="gopher"):
        RemoteSync("gopher://nowhere").filesystem  # noqa: B018
