"""A branch that moved on the hub is detected if there is a network and if files that a run reads have changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fork_server import forked_python
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


def test_weights_below_a_folder_count_if_there_is_an_index(tmp_path: Path) -> None:
    old_files, new_files = write_tiny_model(tmp_path / "before", "gpt_neox"), tmp_path / "after"
    (old_files / "shards").mkdir()
    (old_files / "model.safetensors").rename(old_files / "shards" / "model.safetensors")
    (old_files / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed": "shards/model.safetensors"}}))
    shutil.copytree(old_files, new_files)
    with (new_files / "shards" / "model.safetensors").open("ab") as opened:
        opened.write(b"1")
    with LoopbackHub(models={MODEL: old_files}) as hub:
        old = commit_of(hub)
    with LoopbackHub(models={MODEL: new_files}, earlier={MODEL: old_files}) as hub:
        assert HubRevisions(hub.endpoint).moved([source(old)]).keys() == {source(old)}


@pytest.mark.parametrize(
    ("file", "detected"),
    [
        ("README.md", False),
        ("config.json", True),
        ("chat_template.jinja", True),
        ("onnx/model.json", False),
        ("shards/model.safetensors", False),
    ],
)
def test_a_moved_branch_is_detected_if_a_file_that_is_read_changed(tmp_path: Path, file: str, detected: bool) -> None:
    old_files, new_files = write_tiny_model(tmp_path / "before", "gpt_neox"), tmp_path / "after"
    shutil.copytree(old_files, new_files)
    (new_files / file).parent.mkdir(exist_ok=True)
    with (new_files / file).open("a") as opened:
        opened.write("\n")
    with LoopbackHub(models={MODEL: old_files}) as hub:
        old = commit_of(hub)
        assert HubRevisions(hub.endpoint).moved([source(old)]) == {}
    with LoopbackHub(models={MODEL: new_files}, earlier={MODEL: old_files}) as hub:
        moved = HubRevisions(hub.endpoint).moved([source(old), source(commit_of(hub)), source(old, revision=old)])
        message = f"{MODEL} main moved from commit {old[:12]} to {commit_of(hub)[:12]} since"
        assert moved == ({source(old): message} if detected else {})
        check = HubRevisions(hub.endpoint)
        before = len(hub.requests)
        assert [check.moved([source(old)]) for _ in range(3)] == [moved] * 3
        assert len(hub.requests) - before == 2, "a repository was requested more than once"


HEADER = "configs: [{config_name: own, data_files: [{split: test, path: test.jsonl}]}]\nlicense: mit"


@pytest.mark.parametrize(
    ("card", "file", "detected"),
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
def test_of_a_dataset_card_only_fields_that_affect_the_rows_are_compared(
    card: str | None, file: str | None, detected: bool, tmp_path: Path
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
        assert bool(HubRevisions(hub.endpoint).moved([known])) == detected


def test_a_request_that_times_out_does_not_stop_the_check_of_other_repositories(hub: LoopbackHub) -> None:
    slow, moved = source("0" * 40, name="nobody/slow"), source("0" * 40)
    hub.slow.add("nobody/slow")
    check = HubRevisions(hub.endpoint)
    assert check.moved([slow]) == {}
    assert set(check.moved([slow, moved])) == {moved}
    gone = HubRevisions("http://127.0.0.1:1")
    assert gone.moved([slow]) == {}
    gone.endpoint = hub.endpoint
    assert gone.moved([moved]) == {}, "a request was sent after a failed connection"


def test_a_commit_that_no_longer_exists_on_the_hub_counts_as_moved(hub: LoopbackHub) -> None:
    gone = "0" * 40
    assert HubRevisions(hub.endpoint).moved([source(gone)])[source(gone)].startswith(f"{MODEL} main moved from commit 000000")
    found = HubRevisions(hub.endpoint).moved([source(gone, kind="rows", name="allenai/ai2_arc")])
    assert [message.split()[0] for message in found.values()] == ["allenai/ai2_arc"]


def test_without_an_answer_no_branch_counts_as_moved(hub: LoopbackHub) -> None:
    """A missing network, repository or branch is no error. Each repository gets one request."""
    assert HubRevisions("http://127.0.0.1:1").moved([source("0" * 40), source("1" * 40)]) == {}
    check, before = HubRevisions(hub.endpoint), len(hub.requests)
    gone = [source("0" * 40, name="nobody/nothing"), source("0" * 40, revision="gone")]
    assert [check.moved(gone) for _ in range(3)] == [{}] * 3
    assert len(hub.requests) - before == 2


def test_runs_are_waiting_again_after_main_moved_except_offline(tmp_path: Path) -> None:
    """A study on a model and rows of the hub, on the command line. Its records name both commits."""
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

    def output_of(hub: LoopbackHub, command: str, **environment: str) -> str:
        known = {**hub.environment(tmp_path / "cache"), "COLUMNS": "200", **environment}
        line = [forked_python(known), "-m", "lm_harmony.cli", command, str(tmp_path / "study.yaml")]
        done = subprocess.run(line, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = {"allenai/ai2_arc": tmp_path / "arc"}
    with LoopbackHub(models={MODEL: before}, datasets=data) as hub:
        assert "2 finished" in output_of(hub, "study")
        commits = {commit_of(hub), commit_of(hub, "allenai/ai2_arc", "datasets")}
        port = int(hub.endpoint.rpartition(":")[2])
    file, processed = sorted((tmp_path / "results").rglob("record.json"))
    for record in (file, processed):
        sources = json.loads(record.read_text())["sources"]
        assert {source["commit"] for source in sources if "path" not in source} == commits
    with LoopbackHub(models={MODEL: after}, datasets=data, earlier={MODEL: before}, port=port) as hub:
        output = output_of(hub, "status")
        assert "0 finished, 0 running, 0 failed, 2 waiting" in output and "main moved from commit" in output
        assert "2 finished" in output_of(hub, "status", HF_HUB_OFFLINE="1")
        assert "2 finished" in output_of(hub, "study")
        assert json.loads(file.read_text())["model_revision"] == commit_of(hub)
        assert "2 finished" in output_of(hub, "status")
