"""Rows of a group whose tasks read two revisions of one data set on the hub."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import yaml
from boards import write_run
from hub import LoopbackHub
from huggingface_hub import HfApi
from task_files import PARITY, numbers, write_rows

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.runs.sources import Source, changed_between

PROGRAM = """
import sys
from pathlib import Path
from lm_harmony.benchmarks.auxiliary import open_tasks
from lm_harmony.runs.setup import _with_commits
from lm_harmony.runs.sources import task_sources
from lm_harmony.runs.spec import BenchmarkSpec

asked = BenchmarkSpec(task="both", include_path=Path(sys.argv[1]))
for one in _with_commits(task_sources(asked), open_tasks(asked.tasks, asked.include_path, None)):
    if one.path is None:
        print("source", one.name, one.revision, one.commit)
"""
NOW = (
    Source(kind="rows", name="a/rows", revision="v1", commit="1" * 40),
    Source(kind="rows", name="a/rows", revision="main", commit="2" * 40),
)


def test_each_revision_of_a_data_set_has_its_own_commit(tmp_path: Path) -> None:
    for name, more in (("before", 0), ("after", 1)):
        write_rows(tmp_path / name, {split: numbers(8, more) for split in ("train", "validation", "test")})
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    with LoopbackHub(datasets={"a/rows": tmp_path / "before"}) as old:
        before = HfApi(endpoint=old.endpoint).dataset_info("a/rows").sha
    group = {"group": "both", "task": ["old", "new"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tasks / "both.yaml").write_text(yaml.safe_dump(group))
    for name, options in (("old", {"revision": before}), ("new", {})):
        splits = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
        config = {**PARITY, **splits, "task": name, "dataset_path": "a/rows", "dataset_kwargs": options}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(config))
    with LoopbackHub(datasets={"a/rows": tmp_path / "after"}, earlier={"a/rows": tmp_path / "before"}) as hub:
        after = HfApi(endpoint=hub.endpoint).dataset_info("a/rows").sha
        words = [sys.executable, "-c", PROGRAM, str(tasks)]
        done = subprocess.run(words, env=hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("source ")]
    assert found == [f"source a/rows {before} {before}", f"source a/rows main {after}"]
    assert before != after


def test_commits_are_compared_by_revision() -> None:
    assert changed_between(NOW, NOW) is None and changed_between(NOW, NOW[::-1]) is None
    for place in (0, 1):
        moved = [replace(one, commit="3" * 40) if number == place else one for number, one in enumerate(NOW)]
        assert changed_between(NOW, moved) == f"a/rows moved from commit {str(place + 1) * 12} to {'3' * 12} since"
    one_more = replace(NOW[1], commit="4" * 40)  # the branch moved between the loading of two tasks
    assert changed_between((*NOW, one_more), (*NOW, one_more)) is None
    assert changed_between(NOW[:1], [replace(NOW[0], revision="main")]) is None  # the same commit by another name


def test_a_board_does_not_take_two_revisions_of_one_run_for_a_difference_between_runs(tmp_path: Path) -> None:
    for model in ("m", "n"):
        write_run(tmp_path, model=model, sources=NOW)
    assert not any("same files" in note for note in ScoreMatrix.from_records(tmp_path).notes)
    write_run(tmp_path, model="o", sources=(NOW[0], replace(NOW[1], commit="3" * 40)))
    assert any("same files" in note for note in ScoreMatrix.from_records(tmp_path).notes)
