"""Names on the page: no path of a machine, and different models keep different names."""

from __future__ import annotations

import json
from pathlib import Path

from boards import write_run

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.report.page_data import page_data
from lm_harmony.report.report_folder import summary_lines
from lm_harmony.report.shown_names import short_names, with_short_names, without_local_paths


def test_a_local_path_is_shown_by_its_end_and_by_its_folder_where_two_are_alike() -> None:
    names = ("/home/me/a/model", "/home/me/b/model", "/home/me/c/other", "lab/model", "c/other", "../x/tiny", "./models/small")
    assert short_names(names) == {
        "/home/me/a/model": "model (a)",
        "/home/me/b/model": "model (b)",
        "/home/me/c/other": "other (me/c)",
        "lab/model": "lab/model",
        "c/other": "c/other",
        "../x/tiny": "tiny",
        "./models/small": "small",
    }
    assert short_names(("/only/one",)) == {"/only/one": "one"}


def test_a_path_that_begins_another_one_is_not_taken_for_it() -> None:
    names = short_names(("/m/a/model", "/m/b/model", "/m/a/model-2", "lab/model"))
    text = "the rank of /m/a/model-2 changes by 1, that of /m/a/model by 2, that of lab/model by 3"
    assert with_short_names(text, names) == "the rank of model-2 changes by 1, that of model (a) by 2, that of lab/model by 3"


def test_the_summary_of_an_analysis_names_folders_by_their_ends(tmp_path: Path) -> None:
    for number in range(4):
        for task in ("sst2", "mnli", "boolq"):
            write_run(tmp_path, model=f"/home/me/models/m{number}", task=task, trained=0.4 + number / 10, direct=0.3)
    lines = summary_lines(analyze_matrix(ScoreMatrix.read(tmp_path)))
    assert any("the rank of m" in line for line in lines) and "/home/me" not in "\n".join(lines)


def test_no_local_path_is_in_the_page(tmp_path: Path) -> None:
    for number in range(4):
        for task in ("arc_easy", "mnli", "boolq"):
            metric = "acc_norm,none" if task == "arc_easy" else "acc,none"
            write_run(
                tmp_path, model=f"/home/me/models/m{number}", task=task, trained=0.4 + number / 10, direct=0.3, metric=metric
            )
    data = page_data(ScoreMatrix.read(tmp_path))
    assert [model["name"] for model in data["models"]] == ["m0", "m1", "m2", "m3"]
    assert "/home/me" not in json.dumps(data) and str(tmp_path) not in json.dumps(data)
    assert set(data["ceilings"]) == {"direct", "trained"}


def test_paths_in_causes_and_notes_lose_their_folders() -> None:
    cause = "ModelError: model /home/me/models/m: /home/me/x/config.json is missing, see https://a.b/c/d and 1/2"
    row = ScoreRow(model="/home/me/models/m", benchmark="mnli", preparation="trained", value=None, cause=cause)
    other = ScoreRow(model="lab/a", benchmark="mnli", preparation="trained", value=0.5)
    matrix = ScoreMatrix.from_rows(
        ScoreRows(source="../here/scores.csv", rows=(row, other), notes=("left out: ~/runs/r/record.json",))
    )
    cleaned = without_local_paths(matrix)
    assert cleaned.causes["m", "mnli", "trained"] == "ModelError: model m: config.json is missing, see https://a.b/c/d and 1/2"
    assert (cleaned.source, cleaned.notes) == ("scores.csv", ("left out: record.json",))
