"""Results on S3: records equal those in a folder, finished epochs survive a lost machine, and leases are exclusive."""

from __future__ import annotations

import json
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
from fork_server import INTERPRETER, forked_python
from s3 import BUCKET, KEYS, client, keys, s3_server
from world import write_world

from lm_harmony.errors import LeaseHeld, LeaseLost, StoreError, UsageError
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.remote_lease import RemoteLeases
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.run_location import remote_of
from lm_harmony.studies.study import Study

URL = f"s3://{BUCKET}/results"
SMALL = {"models": ["models/llama"], "benchmarks": ["parity.yaml", "threes.yaml"], "seeds": [0]}


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint_url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint_url, "LM_HARMONY_CACHE_DIR": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "executable", forked_python())
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
    program = [INTERPRETER, "-m", "lm_harmony.cli", "study", str(file)]
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
    (run,) = Study.read(file).runs
    (lease,) = [key for key in keys(endpoint) if f"/.leases/{run.name}/" in key]
    left = client(endpoint).get_object(Bucket=BUCKET, Key=lease)["Body"].read()
    elsewhere = json.dumps({**json.loads(left), "machine": "another"}).encode()
    client(endpoint).put_object(Bucket=BUCKET, Key=lease, Body=elsewhere)
    assert RemoteLeases(RemoteSync(URL)).working([run.name])  # negative control: nobody knows whether it still works
    client(endpoint).put_object(Bucket=BUCKET, Key=lease, Body=left)
    assert not RemoteLeases(RemoteSync(URL)).working([run.name])  # its process has ended on this machine: free at once
    status = Study.read(file).run()
    assert len(status.finished) == 1
    after = client(endpoint).get_object(Bucket=BUCKET, Key=lines)["Body"].read()
    assert after.startswith(before), "a finished epoch was computed again"


def test_the_lease_of_a_run_has_one_holder(endpoint: str) -> None:
    remote, run, lost = RemoteSync(URL), "task/model/seed0", threading.Event()
    clock = [0.0]
    later = RemoteLeases(remote, stale=60, clock=lambda: clock[0])
    with RemoteLeases(remote, beat=0.05).hold(run, lost=lost.set):
        assert set(later.working([run, "task/model/seed1"])) == {run}
        with pytest.raises(LeaseHeld, match=rf"executed by process {os.getpid()} on "):
            later.acquire(run)
        clock[0] = 61
        while later.abandoned(run):  # negative control: it is touched
            later.working([run])
        with pytest.raises(LeaseHeld):
            later.acquire(run)
    assert not keys(endpoint) and not lost.is_set()
    first = RemoteLeases(remote).acquire(run)  # never touches it
    later.working([run])
    clock[0] = 200
    second = later.acquire(run)
    assert not first.touch()
    with pytest.raises(LeaseLost):
        first.check()
    with pytest.raises(LeaseLost), first.writing():  # the working copy, which processes of one machine share
        pass
    first.release()
    second.check()
    second.release()
    third = RemoteLeases(remote).acquire(run)  # has the number of the first
    with pytest.raises(LeaseLost):
        first.check()
    third.release()
    assert later.working([run]) == {} and not keys(endpoint)


def test_a_file_that_marks_what_is_complete_replaces_only_the_version_that_was_seen(endpoint: str) -> None:
    """A holder may be suspended between the check of its lease and its write. The store compares the ETag."""
    one, two = RemoteSync(URL), RemoteSync(URL)
    store = RunStore(one.folder / "run", one)
    store.folder.mkdir(parents=True)
    two_sent = threading.Event()

    def suspended() -> None:
        if not two_sent.is_set():
            two_sent.set()
            two.put("run/failure.json", b"of the second process", etag=None)

    (store.folder / "failure.json").write_text("late")
    with pytest.raises(LeaseLost, match=r"failure\.json was written by another process"):
        one.push("run", suspended)
    assert two.read("run/failure.json") == "of the second process"
    one.pull("run")
    (store.folder / "failure.json").write_text("after it was seen")
    one.push("run")
    assert two.read("run/failure.json") == "after it was seen"


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
