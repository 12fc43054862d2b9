"""A run's folder: nothing is lost, nothing is half written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from micro import write_micro
from tiny import write_tiny_model

import lm_harmony.errors
from lm_harmony.errors import HarmonyError, UsageError
from lm_harmony.runs.record import EpochRecord
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.store import RunStore


@pytest.mark.parametrize("name", ["", " ", "/abs", "..", "a/../../b", "~/x", "a\\..\\b"])
def test_a_name_that_leaves_the_results_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="exp_name"):
        RunStore.at(tmp_path, name)


def test_a_nested_name_is_a_nested_folder(tmp_path: Path) -> None:
    assert RunStore.at(tmp_path, "arc_easy/org/model").folder == tmp_path / "arc_easy" / "org" / "model"


def test_overwrite_spares_folders_that_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match="files that no run writes"):
        RunStore(tmp_path / "run")._clear()
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_epochs_are_appended_whole(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    epochs = [
        EpochRecord(epoch=number, loss=1.0, validation={"m": 0.5}, tokens=1, seconds=1.0, validation_seconds=1.0)
        for number in (1, 2)
    ]
    for epoch in epochs:
        store.add_epoch(epoch)
    assert store.epochs() == tuple(epochs)


def test_every_error_survives_pickling_and_is_a_standard_one() -> None:
    kinds = [kind for kind in vars(lm_harmony.errors).values() if isinstance(kind, type) and issubclass(kind, HarmonyError)]
    for kind in kinds:
        copy = pickle.loads(pickle.dumps(kind("what and the remedy")))
        assert type(copy) is kind and str(copy) == "what and the remedy"
        assert kind is HarmonyError or len(kind.__mro__) > 4


def test_a_full_disk_leaves_what_was_finished_and_the_run_goes_on(tmp_path: Path) -> None:
    """A process that may not write files above 20 kB stands for a full disk: its adapter is larger, its records are not."""
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    command = ["run", "--base_model", "model", "--task_name", "micro.yaml", "--data_dir", ".", "--device", "cpu"]
    command += ["--peft_config.target_modules", "all-linear", "--train_param.num_train_epochs", "2"]
    limited = textwrap.dedent("""
        import resource, sys
        from lm_harmony.cli.main import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(sys.argv[1:]))
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run(
        [sys.executable, "-c", limited, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1, full.stderr
    assert "cannot be written" in full.stderr and "--resume_from_checkpoint" in full.stderr and "Traceback" not in full.stderr
    store = RunStore(tmp_path / "results" / "micro" / "model")
    assert store.config() is not None and not store.is_finished()
    assert not list(store.folder.rglob("*.part"))
    again = subprocess.run(
        [sys.executable, "-m", "lm_harmony.cli", *command, "--resume_from_checkpoint"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads((store.folder / "record.json").read_text())["chosen_epoch"] in (1, 2)


def test_a_record_that_was_written_again_behind_a_url_is_pulled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was carried out again replaces its record: a working copy of the earlier one must not stand for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = tmp_path / "results" / "task" / "model" / "record.json"
    there.parent.mkdir(parents=True)
    there.write_text("1")
    os.utime(there, (time.time() - 60,) * 2)
    remote = RemoteSync(f"file://{tmp_path / 'results'}")
    here = remote.folder / "task" / "model" / "record.json"
    remote.pull_outcomes()
    pulled = here.stat().st_mtime_ns
    RemoteSync(remote.url).pull_outcomes()
    assert (here.read_text(), here.stat().st_mtime_ns) == ("1", pulled), "a record that stayed is not pulled twice"
    there.write_text("2")
    os.utime(there, (time.time() + 60,) * 2)
    RemoteSync(remote.url).pull_outcomes()
    assert here.read_text() == "2"


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    samples = ({"doc_id": 0, "text": "one\u2028two\x85three\nfour"}, {"doc_id": 1, "text": "five\r\nsix"})
    store = RunStore(tmp_path)
    assert store.samples("direct") == ()
    store.write_samples("direct", samples)
    assert store.samples("direct") == samples
