"""Scores, agreement and ranks by the number of training rows, and the number from which on ranks are settled."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from boards import write_run

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.training_rows import _settled, data_curve
from lm_harmony.cli.main import main
from lm_harmony.errors import UsageError

TASKS = ("arc_easy", "sciq", "piqa")
ORDERS = {5: "dcba", 50: "bacd", 500: "abcd", 5000: "abcd"}
"""max_num_train -> models from the best to the worst, on all benchmarks."""


def write_world(folder: Path, *, left_out: tuple[int, str, str] | None = None) -> Path:
    """Write the runs of four models on three benchmarks; ``left_out`` is one run that is missing."""
    for rows, order in ORDERS.items():
        for place, model in enumerate(order):
            for number, task in enumerate(TASKS):
                if (rows, model, task) != left_out:
                    score, direct = 0.9 - 0.1 * place - 0.01 * number, 0.5 - 0.05 * "cabd".index(model)
                    name = f"{rows}/{task}/{model}"
                    write_run(folder, model=model, task=task, trained=score, direct=direct, rows=rows, name=name)
    return folder


def test_the_curve_is_that_of_the_matrix_of_each_number(tmp_path: Path) -> None:
    found = data_curve(write_world(tmp_path))
    assert list(found.table.index) == [0, *ORDERS] and list(found.table["rows"]) == [0, 5, 10, 10, 10]
    assert list(found.table["tau"]) == pytest.approx([1 / 3, -1, 2 / 3, 1, 1])
    assert list(found.table["largest_change"]) == [2, 3, 1, 0, 0] and list(found.table["seconds"]) == [0, 12, 12, 12, 12]
    assert list(found.table["mean_tau"]) == pytest.approx([1] * 5)
    for rows in ORDERS:
        matrix = ScoreMatrix.from_records(tmp_path, max_num_train=rows)
        assert list(components(matrix).pc1.sort_values(ascending=False).index) == list(ORDERS[rows])
        assert list(found.scores.loc[rows]) == pytest.approx(list(matrix.trained.values.mean()))
    assert found.settled == 500 and found.saved_rows == 0 and found.saved_seconds == 0
    loose = data_curve(tmp_path, threshold=0.6)
    assert loose.settled == 50 and data_curve(tmp_path, threshold=-1).settled == 5
    assert data_curve(tmp_path, threshold=-1).saved_rows == pytest.approx(0.5)


def test_ranks_are_settled_only_if_they_stay_so() -> None:
    """A tau that falls again is not settled; the largest number always is."""
    found = pd.Series
    assert _settled(found({1: 0.99, 2: 0.5, 3: 0.99, 4: 1.0}), 0.95) == 3
    assert _settled(found({1: 0.1, 2: float("nan"), 4: 1.0}), 0.95) == 4
    assert _settled(found({1: 0.99, 2: 0.97, 4: 1.0}), 0.95) == 1


def test_only_models_and_benchmarks_of_all_numbers_are_compared(tmp_path: Path) -> None:
    found = data_curve(write_world(tmp_path, left_out=(50, "d", "sciq")))
    kept = set(found.basis.models), set(found.basis.benchmarks)
    assert kept in ((set("abc"), set(TASKS)), (set("abcd"), {"arc_easy", "piqa"}))
    assert {*found.basis.dropped_models, *found.basis.dropped_benchmarks} in ({"d"}, {"sciq"})


def test_ranks_are_not_known_where_all_models_have_one_score(tmp_path: Path) -> None:
    """The models guess with five rows: the tau is missing, and the other numbers are as before."""
    for store in list((write_world(tmp_path) / "5" / "piqa").iterdir()):
        write_run(tmp_path, model=store.name, task="piqa", trained=0.5, direct=0.5, rows=5, name=f"5/piqa/{store.name}")
    found = data_curve(tmp_path)
    assert pd.isna(found.table["tau"][5]) and pd.isna(found.table["largest_change"][5]) and found.settled == 500


def test_a_record_that_cannot_be_read_is_noted(tmp_path: Path) -> None:
    (write_world(tmp_path) / "50" / "piqa" / "a" / "record.json").write_text("{", encoding="utf-8")
    found = data_curve(tmp_path)
    assert any("50/piqa/a/record.json" in note for note in found.notes) and not data_curve(write_world(tmp_path / "new")).notes


def test_boards_do_not_mix_numbers_of_training_rows(tmp_path: Path) -> None:
    """Without a number the folder is refused; with a number that no run has, too."""
    write_world(tmp_path)
    with pytest.raises(UsageError, match=r"was run with different settings: benchmark.caps"):
        record_rows(tmp_path)
    with pytest.raises(UsageError, match="no finished run"):
        record_rows(tmp_path, max_num_train=7)


def test_a_folder_with_one_number_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    with pytest.raises(UsageError, match=r"values of max_num_train: 50000. Several are needed. Run a study"):
        data_curve(tmp_path)


def test_the_command_prints_the_table_and_draws_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(tmp_path / "results")
    assert main(["rows", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    assert "settled from 500 rows on" in printed and "4 models x 3 benchmarks" in printed
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"training_rows.pdf", "training_rows.png"}
    assert main(["rows", str(tmp_path / "results"), "--format", "csv"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("max_num_train,rows,seconds,mean tau,tau with most,largest change,") and len(lines) == 5
    assert main(["rows", str(tmp_path / "results"), "--tau", "2"]) == 1
    assert "tau must be in [-1, 1]" in capsys.readouterr().err
