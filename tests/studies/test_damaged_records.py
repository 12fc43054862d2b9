"""A record that cannot be read is shown as a failure in ``status``. Other runs are not affected, and the file is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from boards import write_run

from lm_harmony.cli.main import main
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.messages import Outcome
from lm_harmony.studies.study import Study
from lm_harmony.studies.worker import RunExecutor


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Write a study of three finished runs, truncate one record, and return the path of the study file."""
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({"models": ["a/a", "b/b", "c/c"], "benchmarks": ["arc_easy"], "direct": False}), encoding="utf-8"
    )
    for run in Study.read(path).runs:
        write_run(tmp_path / "results", model=run.spec.model.name, name=run.name, sources=None)
    file = record_of(path)
    file.write_text(file.read_text(encoding="utf-8")[:100], encoding="utf-8")
    return path


def record_of(path: Path, model: str = "b/b") -> Path:
    (run,) = (run for run in Study.read(path).runs if run.spec.model.name == model)
    return run.store.folder / "record.json"


def test_status_shows_file_and_cause_and_counts_the_other_runs(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.read(damaged)
    status = study.status()
    assert [run.spec.model.name for run in status.finished] == ["a/a", "c/c"] and not status.waiting and not status.running
    ((run, failure),) = status.failed.items()
    assert run.spec.model.name == "b/b" and failure.kind == "damaged record"
    assert failure.cause.startswith(f"{record_of(damaged)} cannot be read: it is not JSON: ")
    assert f"remove {record_of(damaged).parent} and carry the run out again" in failure.cause
    assert [record.spec.model.name for record in study.records()] == ["a/a", "c/c"]
    assert main(["status", str(damaged)]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "2 finished, 0 running, 1 failed, 0 waiting" in output and "damaged record:" in output and "not JSON" in output
    assert main(["study", str(damaged), "--dry_run"]) == 0
    assert capsys.readouterr().out.count("finished ") == 2


def test_retry_failed_does_not_overwrite_a_damaged_record(damaged: Path) -> None:
    """The file may contain the only results of the run, or be written by a newer version. The user has to decide."""
    before = record_of(damaged).read_bytes()
    assert len(Study.read(damaged).run(retry_failed=True).failed) == 1
    assert record_of(damaged).read_bytes() == before
    for file in record_of(damaged).parent.iterdir():
        file.unlink()
    status = Study.read(damaged).status()
    assert len(status.waiting) == 1 and not status.failed


def test_a_worker_does_not_overwrite_a_damaged_record(damaged: Path) -> None:
    """The study may assign a run whose lease another study held before. The worker keeps its record."""
    study, file = Study.read(damaged), record_of(damaged)
    before = file.read_bytes()
    runs = {run.spec.model.name: run for run in study.runs}
    executor = RunExecutor()
    result = executor.execute(runs["b/b"])
    assert (result.outcome, result.kind) == (Outcome.FAILED, "DamagedFile")
    assert f"{file} cannot be read" in str(result.cause)
    assert file.read_bytes() == before and not (file.parent / "failure.json").exists()
    assert executor.execute(runs["a/a"]).outcome == Outcome.FINISHED  # negative control


def test_undamaged_records_are_no_failures(damaged: Path) -> None:
    """Negative control."""
    results = damaged.parent / "results"
    write_run(results, model="b/b", name=record_of(damaged).parent.relative_to(results).as_posix(), sources=None)
    status = Study.read(damaged).status()
    assert len(status.finished) == 3 and not status.failed


def test_a_damaged_failure_file_is_shown_and_its_run_can_be_retried(damaged: Path) -> None:
    store = RunStore(record_of(damaged).parent)
    (store.folder / "record.json").unlink()
    (store.folder / "failure.json").write_text("{", encoding="utf-8")
    ((_, failure),) = Study.read(damaged).status().failed.items()
    assert failure.kind == "damaged failure.json" and "failure.json cannot be read" in failure.cause
    store.remove_failure()
    assert len(Study.read(damaged).status().waiting) == 1


def test_a_record_of_another_run_does_not_count_and_is_not_overwritten(damaged: Path) -> None:
    """A folder that was copied or renamed by hand would give one run the score of another."""
    path, results = damaged, damaged.parent / "results"
    path.write_text(path.read_text(encoding="utf-8") + "seeds: [0, 1]\n", encoding="utf-8")
    first, second = (run for run in Study.read(path).runs if run.spec.model.name == "a/a")
    write_run(results, model="a/a", name=first.name)
    assert first not in Study.read(path).status().failed, "negative control"
    first.store.folder.rename(second.store.folder)
    cause = Study.read(path).status().failed[second].cause
    assert cause == f"{second.store.folder / 'record.json'} is the record of another run: seed was 0, is 1. Move the folder away."
    result = RunExecutor().execute(second)
    assert result.outcome == Outcome.FAILED and result.cause == cause
    assert second.store.record().spec.seed == 0
    for model in ("a/b", "b/b"):
        write_run(results, model=model, name=first.name)
        assert "model.name was b, is a" in Study.read(path).status().failed[first].cause
