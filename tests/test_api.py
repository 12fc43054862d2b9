"""The public names as a Python program uses them: typed, lazy, and with the same numbers as the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from micro import TASK, write_micro
from peft import PeftModel
from tiny import tiny_model, tiny_module, tiny_tokenizer, write_tiny_model

import lm_harmony
from lm_harmony import Caps, HarmonyError, Lora, Recipe, RunRecord, ScoreMatrix, evaluate, fine_tune, load_model
from lm_harmony.runs.spec import BenchmarkSpec

RECIPE = Recipe(epochs=2, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))
CONFIG: dict[str, Any] = yaml.safe_load(TASK)
ONLY_TRAIN = {"validation_split": None, "test_split": None}
TEXTS = [(f"number {number} is", " even" if number % 2 else " odd") for number in range(16)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_micro(folder)
    write_tiny_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def rows(world: Path) -> DatasetDict:
    splits = ("train", "validation", "test")
    lines = {split: (world / "micro" / f"{split}.jsonl").read_text().splitlines() for split in splits}
    return DatasetDict({split: Dataset.from_list([json.loads(line) for line in lines[split]]) for split in splits})


@pytest.fixture(scope="module")
def from_files(world: Path) -> RunRecord:
    """Return the record of the same run with all inputs given as files."""
    return evaluate(world / "model", BenchmarkSpec(task=str(world / "micro.yaml"), data_dir=world), RECIPE)


def observable(module: torch.nn.Module) -> dict[str, Any]:
    """Return all state of a model that a caller can observe: weights, gradients, modes, hooks, attributes and configuration."""
    state: dict[str, Any] = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    for name, weight in module.named_parameters():
        state[f"{name} gradient"] = (weight.requires_grad, None if weight.grad is None else weight.grad.tolist())
    for name, part in module.named_modules():
        hooks = {key: len(value) for key, value in vars(part).items() if key.endswith("hooks")}
        state[f"part {name}"] = (type(part), part.training, hooks, sorted(vars(part)))
    return {**state, "config": module.config.to_dict(), "generation": module.generation_config.to_dict()}  # type: ignore[union-attr, operator]


def test_a_change_of_the_model_is_detected() -> None:
    """Negative control of the tests below."""
    module = tiny_module()
    before = observable(module)
    module.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert observable(module) != before
    assert observable(tiny_module()) == before
    for change in (
        lambda one: one.train(),
        lambda one: one.lm_head.requires_grad_(False),
        lambda one: one.lm_head.weight.data.add_(1),
    ):
        module = tiny_module()
        change(module)
        assert observable(module) != before


@pytest.mark.parametrize(("architecture", "lora"), [("llama", True), ("gpt2", True), ("llama", False)])
def test_a_loaded_model_scores_as_from_its_folder_and_stays_unchanged(
    world: Path, rows: DatasetDict, from_files: RunRecord, architecture: str, lora: bool
) -> None:
    module, tokenizer = tiny_module(architecture), tiny_tokenizer()
    module.train()
    module.get_input_embeddings().weight.grad = torch.ones_like(module.get_input_embeddings().weight)
    next(module.parameters()).requires_grad_(False)
    before = observable(module)
    record = evaluate((module, tokenizer), (rows, CONFIG), RECIPE if lora else replace(RECIPE, lora=None, learning_rate=1e-3))
    assert observable(module) == before
    assert record.spec.model.name.startswith("in-memory/")
    assert [len(score.samples) for score in (record.direct, record.trained) if score] == [12, 12]
    if architecture == "llama" and lora:
        assert (record.direct, record.trained) == (from_files.direct, from_files.trained)
        assert record.epochs == from_files.epochs and record.data == from_files.data


def test_the_training_changes_scores(from_files: RunRecord) -> None:
    assert from_files.direct and from_files.trained
    assert from_files.epochs[-1].loss < from_files.epochs[0].loss
    assert [dict(one) for one in from_files.direct.samples] != [dict(one) for one in from_files.trained.samples]


def test_without_a_results_folder_no_files_remain(rows: DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    record = evaluate(tiny_model(), (rows, CONFIG), replace(RECIPE, epochs=1), caps=Caps(train=8, test=4), direct=False)
    assert record.direct is None and record.trained is not None and record.trained.documents == 4 and record.data.train == 8
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_finished_run_is_returned_and_can_be_read_by_a_board(rows: DatasetDict, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    first = evaluate(tiny_model(), (rows, CONFIG), recipe, results_dir=tmp_path, direct=False)
    (file,) = tmp_path.rglob("record.json")
    written = file.stat().st_mtime_ns
    assert evaluate(tiny_model(), (rows, CONFIG), recipe, results_dir=tmp_path, direct=False) == first
    assert file.stat().st_mtime_ns == written
    both = evaluate(tiny_model(), (rows, CONFIG), recipe, results_dir=tmp_path)
    assert both.direct is not None and both.trained == first.trained and not both.direct_fewshot
    examples = evaluate(tiny_model(), (rows, CONFIG), recipe, results_dir=tmp_path, direct=(0, 2))
    assert examples.direct == both.direct and examples.direct_fewshot[2].samples != both.direct.samples
    with pytest.raises(HarmonyError, match="direct_fewshot = 2 is given twice"):
        evaluate(tiny_model(), (rows, CONFIG), recipe, results_dir=tmp_path, direct=(2, 2))
    other = evaluate(tiny_model(seed=1), (rows, CONFIG), recipe, results_dir=tmp_path)
    assert other.spec.model.name != first.spec.model.name
    assert len(ScoreMatrix.read(tmp_path).models) == 2


def test_models_have_equal_names_if_and_only_if_their_weights_are_equal(rows: DatasetDict) -> None:
    names = []
    for change in (0.0, 0.0, 1e-7):
        module = tiny_module()
        module.lm_head.weight.data.view(-1)[0] += change  # type: ignore[union-attr, operator, index]
        record = evaluate((module, tiny_tokenizer()), (rows, CONFIG), replace(RECIPE, epochs=1), direct=False, caps=Caps(train=8))
        names.append(record.spec.model.name)
        (source,) = (one for one in record.sources or () if one.kind == "model")
        assert source.sha256 is not None and names[-1].endswith(source.sha256[:12])
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model = int is not supported (allowed: a name, a folder"),
        ({"model": tiny_module()}, "Give (model, tokenizer)"),
        ({"model": (torch.nn.Linear(2, 2), tiny_tokenizer())}, "model = Linear is not supported"),
        ({"recipe": Recipe(dtype="bfloat16")}, "dtype = 'bfloat16': the loaded model is float32"),
        ({"device": "cuda"}, "device = 'cuda': the loaded model is on cpu"),
        ({"config": {"task": "a/b"}}, "task = 'a/b' is no name"),
        (
            {"config": {"test_split": "tset"}},
            "test_split = 'tset': the rows have no such split (they have: train,",
        ),
        ({"config": {"doc_to_text": len}}, "configuration of task micro"),
        (
            {"rows": {"train": [{"number": {1}}]}, "config": ONLY_TRAIN},
            "rows, split 'train', row 0: Object of type set",
        ),
        ({"rows": {"train": [{"number": 1, "label": 0}]}, "config": ONLY_TRAIN}, "it has neither a validation nor a test split"),
        ({"metric": "acc_norn,none"}, "Did you mean 'acc_norm,none'"),
        ({"benchmark": "arc_eazy"}, "Did you mean 'arc_easy'"),
    ],
)
def test_unusable_arguments_are_refused_in_one_line(change: dict[str, Any], message: str, rows: DatasetDict) -> None:
    config, given = {**CONFIG, **change.pop("config", {})}, change.pop("rows", rows)
    arguments = {"model": (tiny_module(), tiny_tokenizer()), "benchmark": (given, config), "recipe": RECIPE, **change}
    with pytest.raises(HarmonyError) as caught:
        evaluate(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fine_tune_yields_epochs_and_writes_adapters(world: Path, tmp_path: Path) -> None:
    model = load_model(str(world / "model"), device="cpu")
    before = observable(model.module)
    ids = torch.tensor([[5, 6, 7]])
    logits, losses = [], []
    for epoch in fine_tune(model, TEXTS, replace(RECIPE, epochs=3), output_dir=tmp_path):
        with torch.no_grad():
            logits.append(model.module(input_ids=ids).logits)
        losses.append(epoch.loss)
    assert len(losses) == 3 and losses[2] < losses[0] and not torch.equal(logits[0], logits[2])
    assert observable(model.module) == before
    adapted = PeftModel.from_pretrained(tiny_module(), str(tmp_path / "epoch-3")).eval()
    with torch.no_grad():
        assert torch.allclose(adapted(input_ids=ids).logits, logits[2], atol=1e-5)


def test_fine_tune_without_lora_trains_the_given_model() -> None:
    module = tiny_module()
    before = module.lm_head.weight.detach().clone()  # type: ignore[union-attr, operator]
    recipe = Recipe(epochs=1, lora=None, learning_rate=1e-3)
    assert [epoch.number for epoch in fine_tune((module, tiny_tokenizer()), TEXTS, recipe)] == [1]
    assert not torch.equal(module.lm_head.weight, before)  # type: ignore[union-attr, arg-type]


def test_the_import_does_not_load_torch_and_every_name_is_found() -> None:
    code = (
        "import sys, lm_harmony; assert set(lm_harmony.__all__) <= set(dir(lm_harmony));"
        "heavy = [name for name in ('torch', 'transformers', 'numpy', 'pandas') if name in sys.modules]; assert not heavy, heavy;"
        "assert all(getattr(lm_harmony, name).__name__ == name for name in lm_harmony.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        _ = lm_harmony.evalute  # type: ignore[attr-defined]
