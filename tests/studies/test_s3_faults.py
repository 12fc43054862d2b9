"""S3 behind a proxy with faults: no record is lost or doubled, leases have one holder, retries end with a message."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import botocore.retryhandler
import fsspec.config
import pytest
from s3 import BUCKET, KEYS, client, keys, s3_server
from s3_proxy import CLIENT, FAULTS, FaultyProxy
from world import write_world

from lm_harmony.engine.training import alone
from lm_harmony.errors import LeaseHeld, StoreUnavailable
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.remote_lease import RemoteLeases
from lm_harmony.studies.messages import Outcome
from lm_harmony.studies.run_location import RunLocation, remote_of
from lm_harmony.studies.study import Study
from lm_harmony.studies.worker import RunExecutor

URL = f"s3://{BUCKET}/results"


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint_url:
        for name, value in {**KEYS, "AWS_MAX_ATTEMPTS": "3", "LM_HARMONY_CACHE_DIR": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        # Otherwise most of the time of these tests is the pauses of the client between its attempts.
        monkeypatch.setattr(botocore.retryhandler, "delay_exponential", lambda base, growth_factor, attempts: 0.02)
        monkeypatch.setattr(fsspec.config, "conf", {})
        fsspec.config.set_conf_env(fsspec.config.conf, CLIENT)
        remote_of.cache_clear()
        yield endpoint_url
        remote_of.cache_clear()


def through(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, cache: Path | None = None) -> RemoteSync:
    """Return results behind the proxy, with a working copy of their own, as on another machine."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    if cache is not None:
        monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(cache))
    remote = RemoteSync(URL)
    assert remote.folder and remote.filesystem
    return remote


def execute(executor: RunExecutor, run: RunLocation) -> Outcome:
    def fail_if_lost() -> None:
        raise AssertionError("the lease was lost")

    return alone(executor._execute)(run, None, fail_if_lost).outcome


def without_times(names: list[str]) -> list[str]:
    """Return names of files without the times in those of lm_eval's schema."""
    return [re.sub(r"results_[^/]+", "results", name) for name in names]


def test_a_run_loses_and_doubles_nothing(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = RunExecutor()
    (run,) = Study.read(write_world(tmp_path, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0])).runs
    assert execute(executor, run) == Outcome.FINISHED
    with FaultyProxy(endpoint, seed=0, rate=0.2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        remote = remote_of(URL)
        assert remote is not None
        behind = replace(run, results_dir=remote.folder, url=URL)
        executor = RunExecutor(executor._caches and replace(executor._caches, direct_scores=None))
        outcomes = [execute(executor, behind)]
        while outcomes[-1] == Outcome.STORE_UNAVAILABLE and len(outcomes) < 10:
            outcomes.append(execute(executor, behind))
    assert outcomes[-1] == Outcome.FINISHED
    assert len(proxy.counts) == len(FAULTS), proxy.counts  # negative control: each kind of fault happened
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(tmp_path / "elsewhere"))
    fresh = RemoteSync(URL)
    fresh.pull(behind.name)
    there, here = replace(behind, results_dir=fresh.folder).store, run.store
    assert there.epochs() == here.epochs()
    assert there.record() == here.record()
    assert not [key for key in keys(endpoint) if "/.leases/" in key or "/checkpoints/" in key]
    files = sorted(path.relative_to(here.folder).as_posix() for path in here.folder.rglob("*") if path.is_file())
    stored = sorted(name.removeprefix(f"{behind.name}/") for name in fresh.file_sizes(behind.name))
    assert without_times(stored) == without_times(files)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.startswith("late")])
def test_a_lost_answer_to_the_puts_of_a_lease_leaves_it_ours(endpoint: str, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with FaultyProxy(endpoint, faults=[fault]) as proxy:
        remote = through(proxy, monkeypatch)
        left = [0]

        def first_put(method: str, path: str) -> bool:
            left[0] -= method == "PUT"
            return method == "PUT" and left[0] == 0

        proxy.only, proxy.rate = first_put, 1.0
        left[0] = 1
        lease = RemoteLeases(remote).acquire("run")
        left[0] = 1
        assert lease.touch()
        lease.check()
        assert proxy.counts[fault] == 2
        left[0] = 1
        with pytest.raises(
            OSError, match="pre-conditions you specified did not hold"
        ):  # negative control: the same write without a look at what is there
            remote.filesystem.call_s3("put_object", Bucket=BUCKET, Key="results/raw", Body=b"ours", IfNoneMatch="*")
        assert client(endpoint).get_object(Bucket=BUCKET, Key="results/raw")["Body"].read() == b"ours"
        with pytest.raises(LeaseHeld):
            RemoteLeases(through(proxy, monkeypatch)).acquire("run")
        lease.release()
    assert keys(endpoint) == {"results/raw"}


def test_competing_machines_never_hold_a_lease_at_the_same_time(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [fault for fault in FAULTS if "timeout" not in fault]  # which would only take longer
    inside, together, held = set[int](), list[set[int]](), list[int]()
    with FaultyProxy(endpoint, seed=1, rate=0.15, faults=faults) as proxy:
        remotes = [through(proxy, monkeypatch, tmp_path / str(number)) for number in range(3)]

        def compete(number: int) -> None:
            for _ in range(6):
                try:
                    lease = RemoteLeases(remotes[number]).acquire("run")
                except (LeaseHeld, StoreUnavailable):
                    continue
                inside.add(number)
                time.sleep(0.02)
                together.append(set(inside))
                held.append(number)
                inside.remove(number)
                while True:
                    with suppress(StoreUnavailable):
                        lease.release()
                        break

        threads = [threading.Thread(target=compete, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert proxy.counts.total() > 5 and len(held) > 3
    assert all(len(holders) == 1 for holders in together)


@pytest.mark.parametrize("attempts", [5, 3], ids=["default", "AWS_MAX_ATTEMPTS=3"])
def test_a_store_that_never_answers_well_ends_with_a_message(
    attempts: int, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attempts == 5:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    with FaultyProxy(endpoint, rate=1.0, faults=["503"]) as proxy:
        remote = through(proxy, monkeypatch)
        with pytest.raises(StoreUnavailable, match=r"^results_dir: s3://harmony/results cannot be used: .*Unavailable") as error:
            remote.read("record.json")
        assert "\n" not in str(error.value)
        assert proxy.requests == attempts
        proxy.rate = 0.0
        assert remote.read("record.json") is None  # negative control
