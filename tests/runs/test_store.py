"""The folder of a run: refused names, full disks, remote copies, and files that are read back unchanged."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from fork_server import forked_python
from micro import write_micro
from tiny import write_tiny_model

import lm_harmony.errors
from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import HarmonyError, UsageError
from lm_harmony.runs.record import EpochRecord
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.store import RunStore


@pytest.mark.parametrize("name", ["", " ", "/abs", "..", "a/../../b", "~/x", "a\\..\\b"])
def test_a_run_name_outside_the_results_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="exp_name"):
        RunStore.at(tmp_path, name)


def test_a_nested_run_name_gives_a_nested_folder(tmp_path: Path) -> None:
    assert RunStore.at(tmp_path, "arc_easy/org/model").folder == tmp_path / "arc_easy" / "org" / "model"


def test_added_epochs_are_read_back_in_order(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    epochs = [
        EpochRecord(epoch=number, loss=1.0, validation={"m": 0.5}, tokens=1, seconds=1.0, validation_seconds=1.0)
        for number in (1, 2)
    ]
    for epoch in epochs:
        store.add_epoch(epoch)
    assert store.epochs() == tuple(epochs)


def test_every_error_can_be_pickled_and_derives_from_a_built_in_error() -> None:
    kinds = [kind for kind in vars(lm_harmony.errors).values() if isinstance(kind, type) and issubclass(kind, HarmonyError)]
    for kind in kinds:
        copy = pickle.loads(pickle.dumps(kind("what and the remedy")))
        assert type(copy) is kind and str(copy) == "what and the remedy"
        assert kind is HarmonyError or len(kind.__mro__) > 4


def test_after_a_full_disk_the_run_can_be_resumed(tmp_path: Path) -> None:
    """A file size limit of 20 kB simulates a full disk. The adapter is larger than the limit, the records are not."""
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    command = ["run", "--base_model", "model", "--task_name", "micro.yaml", "--data_dir", ".", "--device", "cpu"]
    command += ["--peft_config.target_modules", "all-linear", "--train_param.num_train_epochs", "2", "--exp_name", "one"]
    limited = textwrap.dedent("""
        import resource, sys
        from lm_harmony.cli.main import main
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(sys.argv[1:]))
    """)
    python, options = forked_python(), {"cwd": tmp_path, "capture_output": True, "text": True}
    limited_run = subprocess.run([python, "-c", limited, *command], check=False, **options)
    assert limited_run.returncode == 1, limited_run.stderr
    assert (
        "cannot be written" in limited_run.stderr
        and "--resume_from_checkpoint" in limited_run.stderr
        and "Traceback" not in limited_run.stderr
    )
    store = RunStore(tmp_path / "results" / "one")
    assert store.config() is not None and not store.is_finished()
    assert not list(store.folder.rglob("*.part"))
    again = subprocess.run([python, "-m", "lm_harmony.cli", *command, "--resume_from_checkpoint"], check=False, **options)
    assert again.returncode == 0, again.stderr
    assert json.loads((store.folder / "record.json").read_text())["chosen_epoch"] in (1, 2)


def test_a_record_that_changed_at_the_url_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated run replaces its record. The local copy of the earlier record must not be used any more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    at_url = tmp_path / "results" / "task" / "model" / "record.json"
    at_url.parent.mkdir(parents=True)
    at_url.write_text("1")
    os.utime(at_url, (time.time() - 60,) * 2)
    remote = RemoteSync(f"file://{tmp_path / 'results'}")
    local = remote.folder / "task" / "model" / "record.json"
    remote.pull_outcomes()
    pulled = local.stat().st_mtime_ns
    RemoteSync(remote.url).pull_outcomes()
    assert (local.read_text(), local.stat().st_mtime_ns) == ("1", pulled), "an unchanged record was downloaded again"
    at_url.write_text("2")
    os.utime(at_url, (time.time() + 60,) * 2)
    RemoteSync(remote.url).pull_outcomes()
    assert local.read_text() == "2"


def test_samples_are_read_back_unchanged(tmp_path: Path) -> None:
    samples = ({"doc_id": 0, "text": "one\u2028two\x85three\nfour"}, {"doc_id": 1, "text": "five\r\nsix"})
    store = RunStore(tmp_path)
    store.write_direct_score(Score(metrics={}, stderrs={}, documents=2, samples=samples))
    known = store.direct_score()
    assert known is not None and known.samples == samples
