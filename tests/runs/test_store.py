"""A run's folder: nothing is lost, nothing is half written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import write_run
from micro import write_micro
from tiny import write_tiny_model

import lm_harmony.errors
from lm_harmony.benchmarks.types import Score
from lm_harmony.cli.main import main
from lm_harmony.errors import DamagedFile, HarmonyError, NotCurrent, UsageError
from lm_harmony.runs.caches import DirectScoreCache
from lm_harmony.runs.conflicts import refuse_other_content, refuse_other_request
from lm_harmony.runs.record import EpochRecord, Failure
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
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
    with pytest.raises(UsageError, match="no run's"):
        RunStore(tmp_path / "run")._clear()
    assert (tmp_path / "run" / "thesis.tex").exists()


FOREIGN = [b"{", b"[]", b'{"format": 99}', b'{"format": 1}', b"\xff\xfe\x00", b"null", b"", b"3", b"a: [", b"[" * 100_000]
SPEC = RunSpec(model=ModelSpec(name="a"), benchmark=BenchmarkSpec(task="arc_easy"))


def go_on(store: RunStore) -> None:
    begun = store.config()
    assert begun is not None
    with contextlib.suppress(NotCurrent):  # what it was begun with is not at issue here
        refuse_other_request(store.folder, begun, SPEC)
    refuse_other_content(store.folder, begun, data="f", asked=None, sources=())


READERS: dict[str, Callable[[RunStore], object]] = {
    "record.json": RunStore.record,
    "config.yaml": go_on,
    "direct.json": RunStore.direct_score,
    "failure.json": RunStore.failure,
    "epochs.jsonl": RunStore.epochs,
    "samples_direct.jsonl": lambda store: store.samples("direct"),
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, content: bytes) -> None:
    """Whatever a file holds, one error in one line names it."""
    store = write_run(tmp_path, model="a", direct=0.5)
    store.write_direct_score(Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=3))
    store.write_failure(Failure(kind="ModelError", cause="no weights", attempts=1))
    store.add_epoch(store.record().epochs[0])
    store.write_samples("direct", [{"doc_id": 0}])
    READERS[name](store)  # negative control
    file = store.folder / name
    file.write_bytes(content + b"\n")
    if name == "samples_direct.jsonl" and content in (b"[]", b"null", b"3", *FOREIGN[2:4]):
        return  # JSON, and of what samples are made of nobody asks here
    with pytest.raises(DamagedFile) as found:
        READERS[name](store)
    told = str(found.value)
    assert told.startswith(f"{file} cannot be read: ") and "\n" not in told
    assert told.endswith(f"Restore the file, or remove {store.folder} and carry the run out again.")


@pytest.mark.parametrize("name", ["record.json", "config.yaml"])
def test_a_command_beside_a_damaged_file_ends_with_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--base_model", str(write_tiny_model(tmp_path / "model")), "--task_name", str(write_micro(tmp_path))]
    words += ["--data_dir", str(tmp_path), "--results_dir", str(tmp_path), "--exp_name", "one", "--resume_from_checkpoint"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / name).write_bytes(b"\xff\xfe\x00")
    assert main([*words, "--device", "cpu"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"one/{name} cannot be read: " in said
    assert "Restore the file" in said and "Traceback" not in said


def test_a_damaged_direct_score_that_runs_share_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = DirectScoreCache(tmp_path)
    score = Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=1, samples=({"doc_id": 0},))
    shared.put("0123", score)
    assert shared.get("0123") == score and not caplog.messages  # negative control
    for name in ("direct.json", "samples_direct.jsonl"):
        for content in FOREIGN[:2] if name == "direct.json" else FOREIGN[:1]:
            (tmp_path / "0123" / name).write_bytes(content + b"\n")
            caplog.clear()
            assert shared.get("0123") is None
            (told,) = caplog.messages
            assert told.startswith("the direct score is computed again: ") and f"{name} cannot be read" in told
        shared.put("0123", score)
        assert shared.get("0123") == score


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
