"""Paths of real rows and of a real model, for the tests that use them. Both are optional."""

from __future__ import annotations

import os
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
