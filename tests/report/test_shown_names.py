"""Names on the page: no path of a machine, and different models keep different names."""

from __future__ import annotations

import json
from pathlib import Path

from boards import write_run

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.report.page_data import page_data
from lm_harmony.report.shown_names import short_names


def test_a_local_path_is_shown_by_the_end_that_differs() -> None:
    names = ("/home/me/a/model", "/home/me/b/model", "/home/me/other", "lab/model", "other/other")
    assert short_names(names) == {
        "/home/me/a/model": "a/model",
        "/home/me/b/model": "b/model",
        "/home/me/other": "me/other",
        "lab/model": "lab/model",
        "other/other": "other/other",
    }
    assert short_names(("/only/one",)) == {"/only/one": "one"}


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
    assert any(sentence.startswith("noise ceiling, trained") for sentence in data["findings"])
