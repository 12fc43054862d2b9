"""If a file of a model or benchmark cannot be read, the runs that need it fail at the first attempt. Other runs finish."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from micro import write_micro
from shared import without_permissions
from tiny import write_tiny_model
from world import write_world

from lm_harmony.errors import BenchmarkError, ModelError
from lm_harmony.runs.sources import model_sources, task_sources
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec
from lm_harmony.studies.study import Study
from lm_harmony.studies.worker import RunExecutor

UNREADABLE = Path("/proc/self/mem")
"""A regular file according to stat, but even root cannot read its first byte."""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason=f"needs {UNREADABLE}")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Write two models and two benchmarks. One model and one benchmark have a file that cannot be read."""
    models, benchmarks = ["models/llama", "models/gpt2"], ["parity.yaml", "threes.yaml"]
    path = write_world(tmp_path, models=models, benchmarks=benchmarks, seeds=[0], direct=False)
    for file in (tmp_path / "models" / "gpt2" / "vocab.json", tmp_path / "data" / "threes" / "test.jsonl"):
        file.unlink(missing_ok=True)
        file.symlink_to(UNREADABLE)
    return Study.read(path)


def test_an_unreadable_file_fails_the_runs_that_need_it(study: Study) -> None:
    executor = RunExecutor()
    results = {(Path(run.spec.model.name).name, Path(run.spec.benchmark.task).stem): executor.execute(run) for run in study.runs}
    kinds = {run: (str(result.outcome), result.kind) for run, result in results.items()}
    assert kinds == {
        ("llama", "parity"): ("finished", None),  # negative control
        ("llama", "threes"): ("failed", "BenchmarkError"),
        ("gpt2", "parity"): ("failed", "ModelError"),
        ("gpt2", "threes"): ("failed", "BenchmarkError"),
    }
    assert "mem cannot be read: Input/output error. Make it readable" in str(results["gpt2", "parity"].cause)
    status = study.status()
    assert len(status.finished) == 1 and len(status.failed) == 3
    assert all(failure.attempts == 1 for failure in status.failed.values())


def test_the_error_names_a_folder_without_read_permission(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    task = write_micro(folder)
    write_tiny_model(folder / "model")
    model, benchmark = ModelSpec(name=str(folder / "model")), BenchmarkSpec(task=str(task), data_dir=folder)
    assert model_sources(model) and len(task_sources(benchmark)) == 4  # negative control
    with without_permissions(folder):
        with pytest.raises(ModelError, match=r"model cannot be read: Permission denied\. Make it readable"):
            model_sources(model)
        with pytest.raises(BenchmarkError, match=r"cannot be read: .*Permission denied"):
            task_sources(benchmark)
