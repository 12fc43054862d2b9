"""One model on several devices: the same scores and weights as on one, a balanced placement, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from tiny import tiny_model, tiny_module, write_tiny_model

from lm_harmony import evaluate
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import ModelError, UsageError
from lm_harmony.models.device_map import balanced_map
from lm_harmony.models.loading import LanguageModel, load_model
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.studies.pool import RunQueue
from lm_harmony.studies.run_location import RunLocation

PLACES = {
    **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0"), "cpu"),
    **dict.fromkeys(("model.layers.1.self_attn", "model.layers.1.input_layernorm"), "cpu"),
    **dict.fromkeys(("model.layers.1.post_attention_layernorm", "model.layers.1.mlp"), "disk"),
}
"""Placement of a two-layer llama. accelerate reads the MLP of its second block from disk in every pass."""
RECIPE = Recipe(epochs=2, batch_size=2, learning_rate=1e-2)
SEQUENCES = [TokenSequence(ids=tuple(range(5, 5 + size)), first_label=1, row=size) for size in (9, 14, 6, 11, 7)]


def spread(folder: Path) -> LanguageModel:
    """Return a model with a part of its weights on disk."""
    model = tiny_model()
    dispatch_model(model.module, PLACES, offload_dir=folder, main_device="cpu")
    return model


def trained(model: LanguageModel) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train an adapter on packed rows; return the losses of its epochs and its weights."""
    backend = choose_backend(model)
    assert backend.packed
    with trainable(model, RECIPE, seed=0) as trainee:
        losses = [epoch.loss for epoch in fine_tune(trainee, SEQUENCES, RECIPE, seed=0, micro_batch=2, backend=backend)]
        return losses, {name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()}


def test_a_model_that_is_partly_on_disk_trains_the_same_adapter_on_packed_rows(tmp_path: Path) -> None:
    model = spread(tmp_path)
    assert any(weight.is_meta for weight in model.module.parameters())  # else the test would show nothing
    (losses, weights), (expected, same) = trained(model), trained(tiny_model())
    assert losses == expected
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in same)


def test_a_model_says_on_which_devices_it_is_and_one_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    model = spread(tmp_path)
    assert model.device_map == PLACES and tiny_model().device_map == {}
    model.module.hf_device_map = {"model": 0, "lm_head": 1}
    assert model.device_map == {"model": "cuda:0", "lm_head": "cuda:1"}
    with pytest.raises(UsageError, match="has weights on disk or in host memory"):
        evaluate((model.module, model.text.tokenizer), "rte")


def test_blocks_are_placed_in_their_order_with_about_as_many_bytes_on_each_gpu() -> None:
    with torch.device("meta"):
        hollow = tiny_module(num_hidden_layers=6, vocab_size=32)
    places = balanced_map("m", hollow, {0: 10**6, 1: 10**6}, dtype=torch.float32)
    blocks = [places[f"model.layers.{number}"] for number in range(6)]
    assert blocks == sorted(blocks) and 2 <= blocks.count(0) <= 4 and set(places.values()) == {0, 1}
    with pytest.raises(ModelError, match=r"model m: out of memory on cuda while placing its blocks on 2 GPUs: .*more GPUs"):
        balanced_map("m", hollow, {0: 40_000, 1: 40_000}, dtype=torch.float32)


def test_what_cannot_be_combined_with_a_device_map_is_refused_in_one_line() -> None:
    run = {"model": ModelSpec(name="m"), "benchmark": BenchmarkSpec(task="rte")}
    for refused, message in (
        (lambda: Execution(device_map="balanced"), "device_map must be auto or left out, got 'balanced'"),
        (lambda: Execution(device_map="auto", device="cuda:1"), "device = cuda:1 contradicts device_map = auto"),
        (lambda: Execution(device_map="auto", engine="compiled"), "engine = compiled does not support device_map"),
        (
            lambda: RunSpec(**run, recipe=Recipe(lora=None), execution=Execution(device_map="auto")),
            "device_map = auto trains adapters only, and the recipe trains all weights",
        ),
    ):
        with pytest.raises(UsageError, match=message) as found:
            refused()
        assert "\n" not in str(found.value)
    spec = RunSpec(**run, recipe=Recipe(lora=Lora()), execution=Execution(device_map="auto"))
    location = RunLocation(spec=spec, results_dir=Path("results"))
    with pytest.raises(UsageError, match="joint = 2 does not support device_map = auto"):
        RunQueue([location], joint=2)
    RunQueue([location], joint=1)
    assert spec.to_dict()["execution"]["device_map"] == "auto"  # type: ignore[index]
    plain = replace(spec, execution=Execution()).to_dict()
    assert "device_map" not in plain["execution"]  # type: ignore[operator]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="this machine has several GPUs")
def test_a_machine_without_a_second_gpu_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"device_map = auto needs at least two GPUs, and this process sees [01]\."):
        load_model(str(folder), device_map="auto")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has fewer than two GPUs")
def test_a_model_on_two_gpus_trains_the_same_adapter(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    model = load_model(str(folder), device_map="auto")
    assert len(set(model.device_map.values())) == torch.cuda.device_count()
    (losses, weights), (expected, same) = trained(model), trained(load_model(str(folder), device="cuda:0"))
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.cpu(), same[name].cpu(), rtol=1e-3, atol=1e-5)
