"""Paths of real rows and of a real model, both optional, and a folder without permissions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
"""<task>/{train,validation,test}.jsonl of real benchmarks, beside the project."""
REFERENCE = ROOT.parent / "shared" / "reference"
"""published_leaderboard.csv and paper_results.json, beside the project."""
MODEL = Path(os.environ.get("LM_HARMONY_REAL_MODEL", ROOT / "models" / "SmolLM2-135M-Instruct"))
"""Folder of SmolLM2-135M-Instruct."""

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real benchmark rows in ../shared/data")
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference results in ../shared/reference")


@contextmanager
def without_permissions(folder: Path, mode: int = 0) -> Iterator[None]:
    """Give ``folder`` the permissions ``mode``. Root may do everything, so it becomes another user meanwhile."""
    folder.chmod(mode)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o755)
