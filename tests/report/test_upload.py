"""Scores and adapters on the hub: what a repository receives, from a process whose hub is a server on loopback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fork_server import forked_python
from hub import LoopbackHub, write_arc_dataset
from huggingface_hub import ModelCard, parse_eval_result_entries
from rows import ROWS
from tiny import write_tiny_model

from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.upgrades import upgrade_record

BASE = "EleutherAI/pythia-70m-deduped"


class Sender:
    """A folder with a finished run of a model of the hub on rows of the hub, and the hub."""

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.folder, self.hub = folder, hub

    def command(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.hub.environment(self.folder / "cache"), "OMP_NUM_THREADS": "1", **variables}
        python = forked_python(environment)
        return subprocess.run(
            [python, "-m", "lm_harmony.cli", *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    folder = tmp_path_factory.mktemp("sender")
    write_arc_dataset(folder / "arc", ROWS["arc_easy"])
    write_tiny_model(folder / "pythia", "gpt_neox")
    write_tiny_model(folder / "local", "gpt_neox")
    with LoopbackHub(models={BASE: folder / "pythia"}, datasets={"allenai/ai2_arc": folder / "arc"}) as hub:
        found = Sender(folder, hub)
        for model, results in ((BASE, "results"), ("./local", "other")):
            run = f"run --base_model {model} --task_name arc_easy --results_dir {results} --train_param.num_train_epochs 1"
            done = found.command(*run.split())
            assert done.returncode == 0, done.stderr
        yield found


def test_a_pull_request_has_the_scores_and_is_made_only_on_request(sender: Sender) -> None:
    before = len(sender.hub.commits)
    done = sender.command("export", "results", "--to", "hub")
    assert done.returncode == 0 and len(sender.hub.commits) == before  # negative control
    done = sender.command("export", "results", "--to", "hub", "--pull_request")
    assert done.returncode == 0, done.stderr
    (commit,) = sender.hub.commits[before:]
    assert (commit.repository, commit.is_pull_request) == (BASE, True)
    assert f"{BASE}: {sender.hub.endpoint}/{BASE}/discussions/1" in done.stdout
    entries = parse_eval_result_entries(yaml.safe_load(commit.files[".eval_results/arc_easy.yaml"]))
    assert len(entries) == 2 and any("train-before-test, LoRA r 8" in str(entry.notes) for entry in entries)
    assert "train-before-test" in commit.header["description"]


def test_an_adapter_is_uploaded_with_its_card_and_record_and_can_be_loaded(sender: Sender) -> None:
    before = len(sender.hub.commits)
    done = sender.command("export", "results", "--to", "hub", "--push_adapter", "lab/adapter", "--private")
    assert done.returncode == 0 and f"{sender.hub.endpoint}/lab/adapter" in done.stdout, done.stderr
    (commit,) = sender.hub.commits[before:]
    assert (commit.repository, commit.is_pull_request, commit.private) == ("lab/adapter", False, True)
    assert sorted(commit.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "lm_harmony_record.json"]
    record = RunRecord.from_dict(upgrade_record(json.loads(commit.files["lm_harmony_record.json"])) | {"format": 1})
    assert record.trained is not None and record.spec.model.name == BASE
    card = ModelCard(commit.files["README.md"].decode())
    assert card.data.base_model == BASE and card.data.library_name == "peft" and "More Information" not in card.text
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == record.trained.metrics
    assert f"| trained | acc,none | {record.trained.metrics['acc,none']:.4f} |" in card.text
    assert str(sender.folder).encode() not in b"".join(commit.files.values())
    run = "run --base_model lab/adapter --task_name arc_easy --results_dir again --train_param.num_train_epochs 1"
    done = sender.command(*run.split())
    assert done.returncode == 0, done.stderr
    again = json.loads(next((sender.folder / "again").rglob("record.json")).read_text())
    assert again["direct"]["metrics"] == dict(record.trained.metrics)  # the adapter on the hub is the trained model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export results --to csv --pull_request", "pull_request is for --to hub, and --to is csv"),
        ("export results --to hub --private", "private is for a new repository. Add --push_adapter"),
        ("export results --to hub --push_adapter nobody", "push_adapter: 'nobody' is no repository on the hub"),
        ("export results --to hub --push_adapter a/b/c", "push_adapter: 'a/b/c' is no repository on the hub"),
        ("export other --to hub --pull_request", "pull_request: 'local' is no repository on the hub"),
        ("export other --to hub --push_adapter lab/b", "the base model is the folder ./local, which nobody else can load"),
        ("export . --to hub --push_adapter lab/b", "runs lie below .. Name the folder of one run"),
        ("export results --to hub --push_adapter forbidden/b", "forbidden/b on the hub: "),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(words: str, message: str, sender: Sender) -> None:
    before = len(sender.hub.commits)
    done = sender.command(*words.split())
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(sender.hub.commits) == before


def test_an_adapter_that_was_not_tested_is_not_uploaded(sender: Sender) -> None:
    (weights,) = sender.folder.joinpath("results").rglob("adapter/adapter_model.safetensors")
    content, before = weights.read_bytes(), len(sender.hub.commits)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = sender.command("export", "results", "--to", "hub", "--push_adapter", "lab/d")
    weights.write_bytes(content)
    assert done.returncode == 1 and "adapter_model.safetensors differs from its checksum in epochs.jsonl" in done.stderr
    assert len(sender.hub.commits) == before


def test_a_hub_that_cannot_be_reached_is_named(sender: Sender) -> None:
    done = sender.command("export", "results", "--to", "hub", "--push_adapter", "lab/c", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "lab/c on the hub:" in done.stderr and "Check the network" in done.stderr
    assert "Traceback" not in done.stderr
