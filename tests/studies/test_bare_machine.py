"""A run works on a machine that offers little: locale C, no home folder that can be written, no room for temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from micro import write_micro
from tiny import write_tiny_model

BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HUB_OFFLINE": "1"}
HOMES = ("HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "LM_HARMONY_CACHE_DIR")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a file system without room and without inodes."""
    folder = tmp_path / "full"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2,size=4k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("this user may not mount file systems")
    (folder / "filler").touch()
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_finishes_without_a_home_and_without_temporary_files(tmp_path: Path, full: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):  # negative control
        (full / "more").touch()
    write_tiny_model(tmp_path / "model")
    task = write_micro(tmp_path)
    words = ["run", "--base_model", "model", "--task_name", task, "--data_dir", ".", "--train_param.num_train_epochs", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in HOMES}
    done = subprocess.run(
        [sys.executable, "-m", "lm_harmony.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, **BARE, "HOME": str(full), "TMPDIR": str(full)},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len([*(tmp_path / "results").rglob("record.json")]) == 1
    assert [path.name for path in full.iterdir()] == ["filler"]
