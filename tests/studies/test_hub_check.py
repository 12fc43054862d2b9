"""A branch on the hub that moved is noticed, where there is a network and where the move changes what is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub import LoopbackHub
from tiny import write_tiny_model

from lm_harmony.runs.sources import Source
from lm_harmony.studies.hub_check import HubCheck

MODEL = "EleutherAI/pythia-70m-deduped"
PROCESSED = """\
task: processed
dataset_path: allenai/ai2_arc
dataset_name: ARC-Easy
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
process_docs: !function utils.process
doc_to_text: "{{asked}}"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def source(commit: str, *, kind: str = "model", name: str = MODEL, revision: str = "main") -> Source:
    return Source(kind=kind, name=name, revision=revision, commit=commit)  # type: ignore[arg-type]


def commit_of(hub: LoopbackHub, name: str = MODEL, kind: str = "models") -> str:
    return hub._server.repositories[kind, name].commit


@pytest.mark.parametrize(
    ("file", "counts"), [("README.md", False), ("config.json", True), ("chat_template.jinja", True), ("onnx/model.json", False)]
)
def test_a_branch_that_moved_is_noticed_where_what_is_read_changed(tmp_path: Path, file: str, counts: bool) -> None:
    before, after = write_tiny_model(tmp_path / "before", "gpt_neox"), tmp_path / "after"
    shutil.copytree(before, after)
    (after / file).parent.mkdir(exist_ok=True)
    with (after / file).open("a") as opened:
        opened.write("\n")
    with LoopbackHub(models={MODEL: before}) as hub:
        old = commit_of(hub)
        assert HubCheck(hub.endpoint).moved([source(old)]) == {}
    with LoopbackHub(models={MODEL: after}, earlier={MODEL: before}) as hub:
        moved = HubCheck(hub.endpoint).moved([source(old), source(commit_of(hub)), source(old, revision=old)])
        said = f"{MODEL} main moved from commit {old[:12]} to {commit_of(hub)[:12]} since"
        assert moved == ({source(old): said} if counts else {})
        check = HubCheck(hub.endpoint)
        asked = len(hub.requests)
        assert [check.moved([source(old)]) for _ in range(3)] == [moved] * 3
        assert len(hub.requests) - asked == 2, "each repository is asked about once"


def test_a_commit_that_the_hub_has_lost_has_moved(hub: LoopbackHub) -> None:
    gone = "0" * 40
    assert HubCheck(hub.endpoint).moved([source(gone)])[source(gone)].startswith(f"{MODEL} main moved from commit 000000")
    found = HubCheck(hub.endpoint).moved([source(gone, kind="rows", name="allenai/ai2_arc")])
    assert [said.split()[0] for said in found.values()] == ["allenai/ai2_arc"]


def test_without_an_answer_nothing_has_moved(hub: LoopbackHub) -> None:
    """No network, a repository that is gone, a branch that is gone: no surprise, and no wait."""
    started = time.monotonic()
    assert HubCheck("http://127.0.0.1:1").moved([source("0" * 40), source("1" * 40)]) == {}
    assert HubCheck(hub.endpoint).moved([source("0" * 40, name="nobody/nothing"), source("0" * 40, revision="gone")]) == {}
    assert time.monotonic() - started < 5


def test_a_study_waits_again_where_main_moved_and_not_offline(tmp_path: Path) -> None:
    """One study on a model and rows of the hub, by the command line: its record names both commits."""
    from hub import write_arc_dataset
    from rows import ROWS

    write_arc_dataset(tmp_path / "arc", ROWS["arc_easy"])
    before, after = write_tiny_model(tmp_path / "before", "gpt_neox"), write_tiny_model(tmp_path / "after", "gpt_neox", seed=1)
    (tmp_path / "utils.py").write_text("def process(rows):\n    return rows.map(lambda row: {**row, 'asked': row['question']})\n")
    (tmp_path / "processed.yaml").write_text(PROCESSED)
    study = {
        "models": [MODEL],
        "benchmarks": ["arc_easy", "processed.yaml"],
        "recipe": {"epochs": 1},
        "execution": {"device": "cpu"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))

    def told(hub: LoopbackHub, command: str, **environment: str) -> str:
        line = [sys.executable, "-m", "lm_harmony.cli", command, str(tmp_path / "study.yaml")]
        known = {**hub.environment(tmp_path / "cache"), "COLUMNS": "200", **environment}
        done = subprocess.run(line, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = {"allenai/ai2_arc": tmp_path / "arc"}
    with LoopbackHub(models={MODEL: before}, datasets=data) as hub:
        assert "2 finished" in told(hub, "study")
        commits = {commit_of(hub), commit_of(hub, "allenai/ai2_arc", "datasets")}
    file, processed = sorted((tmp_path / "results").rglob("record.json"))
    for record in (file, processed):
        sources = json.loads(record.read_text())["sources"]
        assert {source["commit"] for source in sources if "path" not in source} == commits
    with LoopbackHub(models={MODEL: after}, datasets=data, earlier={MODEL: before}) as hub:
        said = told(hub, "status")
        assert "0 finished, 0 running, 0 failed, 2 waiting" in said and "main moved from commit" in said
        assert "2 finished" in told(hub, "status", HF_HUB_OFFLINE="1")
        assert "2 finished" in told(hub, "study")
        assert json.loads(file.read_text())["model_revision"] == commit_of(hub)
        assert "2 finished" in told(hub, "status")
