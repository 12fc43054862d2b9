"""The real hub clients work against the loopback hub as they do against the real one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import forked_python
from hub import LoopbackHub, write_arc_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

ARC = "allenai/ai2_arc"
PYTHIA = "EleutherAI/pythia-70m-deduped"
SENTENCE = "The ferry left at dawn, and nobody minded the rain."
ROWS = {
    split: [
        {
            "id": f"{split}-{number}",
            "question": f"Which of these floats on the {split} lake at {number} o'clock — and why?",
            "choices": {"text": ["a brick", "a cork", "Zoë's anvil"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number],
        }
        for number in range(3)
    ]
    for split in ("train", "validation", "test")
}
# One process for all clients, because importing them takes seconds.
CLIENTS = f"""
import json, torch
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

def name_of_error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        return type(error).__name__

loaded = load_dataset({ARC!r}, "ARC-Easy")
model, tokenizer = AutoModelForCausalLM.from_pretrained({PYTHIA!r}), AutoTokenizer.from_pretrained({PYTHIA!r})
ids = tokenizer({SENTENCE!r}).input_ids
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits
api = HfApi()
print(json.dumps({{
    "rows": {{split: rows.to_list() for split, rows in loaded.items()}},
    "class": type(model).__name__,
    "ids": ids,
    "logits": logits.tolist(),
    "files": sorted(api.list_repo_files({ARC!r}, repo_type="dataset")),
    "tree": [entry.path for entry in api.list_repo_tree({ARC!r}, repo_type="dataset")],
    "some": [entry.path for entry in api.get_paths_info({ARC!r}, ["ARC-Easy", "nothing"], repo_type="dataset")],
    "snapshot": snapshot_download({PYTHIA!r}),
    "unknown model": name_of_error(api.model_info, "nobody/nothing"),
    "unknown dataset": name_of_error(load_dataset, "nobody/nothing"),
    "unknown file": name_of_error(hf_hub_download, {PYTHIA!r}, "nothing.json"),
    "unknown revision": name_of_error(api.model_info, {PYTHIA!r}, revision="refs/pr/1"),
}}))
"""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running hub and the folder of the model that it serves."""

    hub: LoopbackHub
    model: Path


def write_model(folder: Path) -> None:
    """Write a GPT-NeoX model of two layers and its byte-level BPE tokenizer as ``save_pretrained`` does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([SENTENCE, "Nobody on the ferry owned a cork."], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=280, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    write_arc_dataset(folder / "arc", ROWS)
    write_model(folder / "model")
    with LoopbackHub(models={PYTHIA: folder / "model"}, datasets={ARC: folder / "arc"}) as hub:
        yield Served(hub=hub, model=folder / "model")


@pytest.fixture(scope="module")
def got(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the clients received from the hub in a separate process."""
    environment = served.hub.environment(tmp_path_factory.mktemp("home") / "cache")
    command = [forked_python(environment), "-c", CLIENTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def send(hub: LoopbackHub, method: str, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_load_dataset_returns_the_served_rows(got: dict[str, Any]) -> None:
    assert got["rows"] == ROWS
    assert got["files"] == ["ARC-Easy/" + f"{split}-00000-of-00001.parquet" for split in sorted(ROWS)] + ["README.md"]
    assert got["tree"] == ["ARC-Easy", "README.md"]
    assert got["some"] == ["ARC-Easy"]


def test_from_pretrained_returns_the_served_model_and_tokenizer(got: dict[str, Any], served: Served) -> None:
    assert got["class"] == "GPTNeoXForCausalLM"
    assert got["ids"] == PreTrainedTokenizerFast.from_pretrained(served.model)(SENTENCE).input_ids
    with torch.no_grad():
        logits = GPTNeoXForCausalLM.from_pretrained(served.model)(torch.tensor([got["ids"]])).logits
    torch.testing.assert_close(torch.tensor(got["logits"]), logits)
    assert {path.name: path.read_bytes() for path in Path(got["snapshot"]).iterdir()} == {
        path.name: path.read_bytes() for path in served.model.iterdir()
    }


def test_unknown_names_raise_the_clients_own_errors(got: dict[str, Any]) -> None:
    assert got["unknown model"] == "RepositoryNotFoundError"
    assert got["unknown dataset"] == "DatasetNotFoundError"
    assert got["unknown file"] == "RemoteEntryNotFoundError"
    assert got["unknown revision"] == "RevisionNotFoundError"


@pytest.mark.usefixtures("got")
def test_the_log_holds_the_method_and_path_of_every_request(served: Served) -> None:
    assert f"HEAD /datasets/{ARC}/resolve/main/README.md" in served.hub.requests
    assert f"GET /api/models/{PYTHIA}/revision/refs/pr/1" in served.hub.requests
    assert any(request.endswith("/model.safetensors") for request in served.hub.requests)


def test_the_environment_uses_only_this_hub(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_DATASETS_CACHE", "https_proxy")
    for name in (*foreign, "HF_ENDPOINT", "UNRELATED"):
        monkeypatch.setenv(name, "1")
    environment = served.hub.environment(tmp_path)
    assert environment.keys().isdisjoint(foreign)
    assert environment["HF_ENDPOINT"] == served.hub.endpoint
    assert environment["UNRELATED"] == "1"


@pytest.mark.parametrize(
    ("byte_range", "status", "part"),
    [
        ("bytes=2-5", 206, slice(2, 6)),
        ("bytes=7-", 206, slice(7, None)),
        ("bytes=-4", 206, slice(-4, None)),
        ("bytes=3-999999", 206, slice(3, None)),
        ("bytes=999999-", 416, slice(0, 0)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_range_selects_bytes_of_the_file(served: Served, byte_range: str, status: int, part: slice) -> None:
    content = (served.model / "config.json").read_bytes()
    response, body = send(served.hub, "GET", f"/{PYTHIA}/resolve/main/config.json", Range=byte_range)
    assert (response.status, body) == (status, content[part])


def test_head_returns_length_etag_and_commit_without_a_body(served: Served) -> None:
    response, body = send(served.hub, "HEAD", f"/{PYTHIA}/resolve/main/config.json")
    assert body == b""
    assert int(response.headers["Content-Length"]) == (served.model / "config.json").stat().st_size
    assert len(response.headers["ETag"].strip('"')) == len(response.headers["X-Repo-Commit"]) == 40
