"""A text in a CSV file is no formula for a spreadsheet, numbers stay numbers, and the file is read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from boards import matrix_of

from lm_harmony.analysis.load_tables import csv_text
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.report.report_folder import write_tables

FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["plain", "a=b", "'quoted'", "", -1.5, -2, None, True])
def test_other_cells_stay_as_they_are(cell: object) -> None:
    assert csv_text(cell) is cell


def test_no_table_of_a_report_has_a_formula_and_scores_are_read_back(tmp_path: Path) -> None:
    names = [name for name in FORMULAS if name.strip() == name]
    scores = [[-0.5 + 0.1 * model * (task + 1) for task in range(4)] for model in range(len(names))]
    matrix = matrix_of(pd.DataFrame(scores, index=names, columns=["=task", "-task", "plain", "@task"]), stderr=0.01)
    written = write_tables(analyze_matrix(matrix), tmp_path)
    cells = []
    for path in (path for path in written if path.suffix == ".csv"):
        with path.open(newline="", encoding="utf-8") as file:
            cells += [cell for line in csv.reader(file) for cell in line]
    texts = [cell for cell in cells if not is_number(cell)]
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {f"'{name}" for name in names} <= set(texts)  # negative control: the names are in the tables
    assert any(cell.startswith("-") for cell in cells if is_number(cell))  # a negative number is one
    again = ScoreMatrix.from_csv(tmp_path / "tables" / "scores.csv")
    assert set(again.model_names) == set(names)
    assert {benchmark.task for benchmark in again.benchmarks} == {"=task", "-task", "plain", "@task"}


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
