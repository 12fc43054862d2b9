"""A release must not change these by accident: numbers of a fixed study, its boards, flags, file names and formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import golden_study
import pytest
from golden_study import GOLDEN, boards, command, differences, file_names, flags, formats, kernels, records, write_study

KERNELS = 1e-4
"""Largest relative difference of a number computed with other kernels than those of the golden files."""
SUMS = 1e-14
"""Largest relative difference of a standard error on Python 3.12 and newer. lm_eval computes it with ``sum()``, which rounds less
there than on the Python 3.11 of the golden files."""
LIBRARIES = 1e-9
"""Largest relative difference of a number on a board, which NumPy and SciPy compute from equal records."""


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    command("study", str(write_study(folder)))
    return folder


def test_the_records_of_the_study_equal_the_golden_files(study: Path) -> None:
    """Equal to the last digit with the same kernels, and within a tolerance on another processor."""
    allowed = 0.0 if kernels() == golden("kernels") else KERNELS
    made, known = records(study), golden("records")
    found = list(differences(made, known, allowed=allowed))
    assert [line for line in found if ".stderrs." not in line or sys.version_info < (3, 12)] == []
    assert list(differences(made, known, allowed=max(allowed, SUMS))) == []


def test_files_and_formats_equal_the_golden_files(study: Path) -> None:
    assert file_names(study) == golden("files")
    assert formats(study) == golden("formats")


def test_the_boards_of_earlier_records_equal_the_golden_files(tmp_path: Path) -> None:
    """The records are files of format 1, as written by the golden run."""
    made = boards(GOLDEN / "runs", tmp_path)
    kept = {path.relative_to(GOLDEN / "boards").as_posix(): path.read_text("utf-8") for path in (GOLDEN / "boards").rglob("*.*")}
    assert sorted(made) == sorted(kept)
    assert list(differences(made, {name: kept[name] for name in made}, allowed=LIBRARIES)) == []


def test_the_flags_of_every_command_equal_the_golden_file() -> None:
    assert flags() == golden("flags")


def test_a_changed_digit_is_detected() -> None:
    known = golden("records")
    changed = json.loads(json.dumps(known))
    name = next(name for name in changed if name.startswith("fives/llama/seed0"))
    run = changed[name]
    metric = run["metric"]
    run["trained"]["metrics"][metric] += 0.01
    for allowed in (0.0, KERNELS):
        assert [line.split(":")[0] for line in differences(changed, known, allowed=allowed)] == [
            f".{name}.trained.metrics.{metric}"
        ]
    assert golden_study.kernels().split()[1] in ("DEFAULT", "AVX2", "AVX512", "NEON", "SVE256")
