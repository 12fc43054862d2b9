"""A branch on the hub that moved is noticed, where there is a network and where the move changes what is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import LoopbackHub
from tiny import write_tiny_model

from lm_harmony.runs.sources import Source
from lm_harmony.studies.hub_revisions import HubRevisions

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
        assert HubRevisions(hub.endpoint).moved([source(old)]) == {}
    with LoopbackHub(models={MODEL: after}, earlier={MODEL: before}) as hub:
        moved = HubRevisions(hub.endpoint).moved([source(old), source(commit_of(hub)), source(old, revision=old)])
        said = f"{MODEL} main moved from commit {old[:12]} to {commit_of(hub)[:12]} since"
        assert moved == ({source(old): said} if counts else {})
        check = HubRevisions(hub.endpoint)
        asked = len(hub.requests)
        assert [check.moved([source(old)]) for _ in range(3)] == [moved] * 3
        assert len(hub.requests) - asked == 2, "each repository is asked about once"


HEADER = "configs: [{config_name: own, data_files: [{split: test, path: test.jsonl}]}]\nlicense: mit"


@pytest.mark.parametrize(
    ("card", "file", "counts"),
    [
        (f"---\n{HEADER}\n---\n# Another text\n", None, False),
        (f"---\n{HEADER.replace('mit', 'other')}\n---\n# A text\n", None, False),
        (f"---\n{HEADER.replace('split: test', 'split: train')}\n---\n# A text\n", None, True),
        (f"---\n{HEADER}\ndataset_info: {{features: [{{name: a, dtype: string}}]}}\n---\n# A text\n", None, True),
        ("---\nconfigs: [\n---\n# A header that is no YAML\n", None, True),
        (None, None, True),
        (f"---\n{HEADER}\n---\n# Another text\n", "test.jsonl", True),
    ],
    ids=["text", "license", "configs", "dataset_info", "broken header", "no card", "rows"],
)
def test_of_a_data_sets_card_only_what_decides_its_rows_counts(
    card: str | None, file: str | None, counts: bool, tmp_path: Path
) -> None:
    before, after, name = tmp_path / "before", tmp_path / "after", "nobody/rows"
    before.mkdir()
    (before / "README.md").write_text(f"---\n{HEADER}\n---\n# A text\n")
    (before / "test.jsonl").write_text("{}\n")
    shutil.copytree(before, after)
    (after / "README.md").unlink() if card is None else (after / "README.md").write_text(card)
    if file is not None:
        (after / file).write_text("{}\n{}\n")
    with LoopbackHub(datasets={name: before}) as hub:
        known = source(commit_of(hub, name, "datasets"), kind="rows", name=name)
    with LoopbackHub(datasets={name: after}, earlier={name: before}) as hub:
        assert bool(HubRevisions(hub.endpoint).moved([known])) == counts


def test_a_repository_that_is_not_answered_for_in_time_leaves_the_others_checked(hub: LoopbackHub) -> None:
    slow, moved = source("0" * 40, name="nobody/slow"), source("0" * 40)
    hub.slow.add("nobody/slow")
    check = HubRevisions(hub.endpoint)
    assert check.moved([slow]) == {}
    assert set(check.moved([slow, moved])) == {moved}
    gone = HubRevisions("http://127.0.0.1:1")
    assert gone.moved([slow]) == {}
    gone.endpoint = hub.endpoint
    assert gone.moved([moved]) == {}, "where there is no connection nothing more is asked"


def test_a_commit_that_the_hub_has_lost_has_moved(hub: LoopbackHub) -> None:
    gone = "0" * 40
    assert HubRevisions(hub.endpoint).moved([source(gone)])[source(gone)].startswith(f"{MODEL} main moved from commit 000000")
    found = HubRevisions(hub.endpoint).moved([source(gone, kind="rows", name="allenai/ai2_arc")])
    assert [said.split()[0] for said in found.values()] == ["allenai/ai2_arc"]


def test_without_an_answer_nothing_has_moved(hub: LoopbackHub) -> None:
    """No network, a repository that is gone, a branch that is gone: no error, and one request for each repository."""
    assert HubRevisions("http://127.0.0.1:1").moved([source("0" * 40), source("1" * 40)]) == {}
    check, before = HubRevisions(hub.endpoint), len(hub.requests)
    gone = [source("0" * 40, name="nobody/nothing"), source("0" * 40, revision="gone")]
    assert [check.moved(gone) for _ in range(3)] == [{}] * 3
    assert len(hub.requests) - before == 2


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
