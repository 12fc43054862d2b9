"""Direct scores with examples before the questions are read, shown and written apart from those without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page_boards import small_board

from lm_harmony.analysis.leaderboard import own_board, published_with_new_models
from lm_harmony.analysis.load_lm_eval import lm_eval_rows
from lm_harmony.analysis.logit_scale import logit_matrix
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.paired import compare
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.cli.main import main
from lm_harmony.errors import UsageError
from lm_harmony.report.figures import write_figures
from lm_harmony.report.report_folder import write_tables
from lm_harmony.report.shown_names import without_local_paths

PLAIN, BOARD = small_board(), small_board(few_shot=(25, 5))


def test_preparations_are_in_the_order_of_their_examples() -> None:
    assert PLAIN.preparations == ("direct", "trained") and not PLAIN.has("direct_5shot")
    assert BOARD.preparations == ("direct", "direct_5shot", "direct_25shot", "trained")
    for name in ("direct", "trained"):
        pd.testing.assert_frame_equal(BOARD.scores(name).values, PLAIN.scores(name).values)
    assert BOARD.scores("direct_5shot").values.loc["local/mine", "mnli"] != BOARD.direct.values.loc["local/mine", "mnli"]
    assert BOARD.gaps() == PLAIN.gaps()
    part = BOARD.subset(["local/mine"], ["mnli"])
    assert part.preparations == BOARD.preparations and part.scores("direct_5shot").values.shape == (1, 1)
    assert logit_matrix(BOARD).scores("direct_5shot").values.loc["local/mine", "mnli"] < 0
    assert without_local_paths(BOARD).preparations == BOARD.preparations
    joined = published_with_new_models(BOARD)
    assert joined.scores("direct_25shot").values.loc["local/mine", "mnli"] > 0
    assert joined.scores("direct_25shot").values.notna().sum().sum() == 4 * len(BOARD.models)


def test_a_table_of_scores_keeps_them_apart(tmp_path: Path) -> None:
    written = write_tables(analyze_matrix(BOARD), tmp_path)
    again = ScoreMatrix.read(tmp_path / "tables" / "scores.csv")
    assert again.preparations == BOARD.preparations
    for name in BOARD.preparations:
        values = again.scores(name).values.loc[list(BOARD.model_names), list(BOARD.benchmark_names)]
        np.testing.assert_allclose(values, BOARD.scores(name).values, atol=1e-9)
    names = {path.name for path in written}
    assert {"leaderboard_direct_5shot.csv", "tau_direct_25shot.csv", "tau_direct.csv"} <= names
    board = ScoreMatrix.read(tmp_path / "tables" / "leaderboard_direct_5shot.csv")
    assert board.has("direct_5shot") and not board.has("direct")
    figures = write_figures(analyze_matrix(BOARD), tmp_path / "figures", pair=None)
    assert {path.stem for path in figures} >= {"bump_direct_5shot", "scree", "tau"}


def test_boards_rank_one_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, direct = own_board(BOARD, "direct_5shot"), own_board(BOARD, "direct")
    assert few.preparation == "direct_5shot" and [row.pc1 for row in few.rows] != [row.pc1 for row in direct.rows]
    assert "direct_5shot" in few.reference
    write_tables(analyze_matrix(BOARD), tmp_path)
    scores = str(tmp_path / "tables" / "scores.csv")
    assert main(["leaderboard", scores, "--preparation", "direct_5shot", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[9] == "direct_5shot"
    for given, message in (
        ("direct_3shot", "has no direct_3shot scores. Ask for the trained or direct_25shot or direct_5shot or direct scores"),
        ("5", "preparation must be trained, direct, or one such as direct_5shot, got '5'"),
    ):
        assert main(["leaderboard", scores, "--preparation", given]) != 0
        assert message in " ".join(capsys.readouterr().err.split())


def test_two_models_are_compared_on_each_of_them() -> None:
    found = compare(BOARD, *BOARD.model_names[:2])
    assert {test.preparation for test in found.tests} == set(BOARD.preparations)
    plain = compare(PLAIN, *PLAIN.model_names[:2])
    assert [test for test in found.tests if "shot" not in test.preparation] == list(plain.tests)


@pytest.mark.parametrize(("shots", "preparation"), [(0, "direct"), (5, "direct_5shot"), (None, "direct")])
def test_results_of_lm_eval_have_the_number_of_their_examples(shots: int | None, preparation: str, tmp_path: Path) -> None:
    values = {
        "results": {"mnli": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        "n-samples": {"mnli": {"original": 9, "effective": 9}},
        "config": {"model_args": {"pretrained": "some/model"}},
        **({} if shots is None else {"n-shot": {"mnli": shots}}),
    }
    (tmp_path / "results_2026-01-01T00-00-00.json").write_text(json.dumps(values), encoding="utf-8")
    [row] = lm_eval_rows(tmp_path, {})
    assert row.preparation == preparation


@pytest.mark.parametrize("name", ["direct_0shot", "direct_05shot", "direct_shot", "direct-5shot", "Direct"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"model,benchmark,preparation,score\na,mnli,{name},0.5\n", encoding="utf-8")
    with pytest.raises(UsageError, match="preparation must be direct, direct_<k>shot such as direct_5shot, or trained"):
        ScoreMatrix.read(path)
