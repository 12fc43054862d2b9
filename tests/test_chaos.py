"""The checks of ``python -m tests.chaos`` find what is lost, doubled or different."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from boards import write_run
from chaos import damage, doubled, equal

from lm_harmony.analysis.matrix import ScoreMatrix


def test_an_epoch_that_is_there_twice_is_found() -> None:
    lines = ['{"epoch": 1}', '{"epoch": 2}', '{"epo', '{"epoch": 3}']
    assert doubled("\n".join(lines)) == 0
    assert doubled("\n".join([*lines, lines[-1]])) == 1
    assert doubled("\n".join([*lines, lines[0]])) == 1


def test_a_matrix_with_another_score_or_without_one_is_different(tmp_path: Path) -> None:
    for model in ("a", "b"):
        write_run(tmp_path / "one", model=model)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    one, other = (ScoreMatrix.from_records(tmp_path / name) for name in ("one", "other"))
    assert equal(one, other)
    other.trained.values.iloc[0, 0] += 1e-15
    assert not equal(one, other)
    shutil.rmtree(next((tmp_path / "other").rglob("record.json")).parent)
    assert not equal(one, ScoreMatrix.from_records(tmp_path / "other"))


def test_only_files_of_unfinished_runs_are_damaged(tmp_path: Path) -> None:
    for name in ("finished", "unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("text of the file")
    (tmp_path / "finished" / "record.json").touch()
    draw = random.Random(0)
    assert damage(tmp_path, draw)
    assert (tmp_path / "finished" / "config.yaml").read_text() == "text of the file"
    changed = tmp_path / "unfinished" / "config.yaml"
    assert not changed.exists() or changed.read_text() != "text of the file"
    changed.unlink(missing_ok=True)
    assert not damage(tmp_path, draw)
