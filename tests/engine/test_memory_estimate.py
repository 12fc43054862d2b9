"""The estimate of a run's memory: components by hand, and activations compared with what autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_module, tiny_tokenizer

from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.forward import packed_logprobs
from lm_harmony.engine.memory_estimate import (
    PROCESS_BYTES,
    TOKENIZER_BYTES,
    MemorySettings,
    block_bytes,
    estimate_memory,
    runs_that_fit,
    weight_bytes,
    with_checkpointing,
)
from lm_harmony.engine.model_size import ModelSize, model_size
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.device import Precision
from lm_harmony.models.loading import LanguageModel, build_language_model
from lm_harmony.recipe import Recipe

SIZE = ModelSize(
    parameters=1_000_000,
    computing=800_000,
    output=100_000,
    trained=10_000,
    layers=4,
    adapted=8,
    query_width=64,
    key_width=32,
    hidden=64,
    inner=256,
    vocabulary=1_000,
    linear=700_000,
    norms=128,
    adapted_inputs=512,
)
SETTINGS = MemorySettings(recipe=Recipe(), precision=Precision(weights="float32"))
FULL = replace(SETTINGS, recipe=Recipe(lora=None))


def test_weights_gradients_and_moments_equal_the_values_computed_by_hand() -> None:
    found = estimate_memory(SIZE, SETTINGS, tokens=100)
    assert (found.process, found.weights, found.adapter) == (PROCESS_BYTES["cpu"] + TOKENIZER_BYTES * 1_000, 4_000_000, 40_000)
    assert (found.gradients, found.optimizer) == (40_000, 80_000)
    assert found.logits == 100 * 1_000 * 4
    whole = estimate_memory(replace(SIZE, trained=1_000_000), FULL, tokens=100)
    assert (whole.adapter, whole.gradients, whole.optimizer) == (0, 4_000_000, 8_000_000)
    step = whole.gradients + whole.activations + whole.logits
    assert whole.total == whole.process + whole.weights + whole.optimizer + max(step, whole.saving, whole.cache)
    assert estimate_memory(SIZE, replace(FULL, recipe=Recipe(lora=None, optimizer="sgd")), tokens=100).optimizer == 0


def test_quantized_weights_take_fewer_bytes_in_linear_layers_only() -> None:
    assert weight_bytes(SIZE, replace(SETTINGS, recipe=Recipe(quantize="int8"))) == 700_000 + 300_000 * 4
    assert weight_bytes(SIZE, replace(SETTINGS, recipe=Recipe(quantize="nf4"))) == int(700_000 * 4.127 / 8) + 300_000 * 4
    assert weight_bytes(SIZE, SETTINGS) == 4_000_000  # the negative control


def test_half_precision_checkpointing_and_shorter_rows_need_less() -> None:
    plain = estimate_memory(SIZE, SETTINGS, tokens=1_000).total
    for other, tokens in ((with_checkpointing(SETTINGS), 1_000), (SETTINGS, 500)):
        assert estimate_memory(SIZE, other, tokens=tokens).total < plain
    half = replace(SETTINGS, precision=Precision(weights="bfloat16"))
    assert estimate_memory(SIZE, half, tokens=1_000).total < plain
    assert estimate_memory(SIZE, replace(SETTINGS, padded=True), tokens=1_000).total > plain


def test_the_first_run_counts_among_the_runs_that_fit() -> None:
    assert runs_that_fit(total=100, process=60, free=40) == 1
    assert runs_that_fit(total=100, process=60, free=39) == 0
    assert runs_that_fit(total=100, process=60, free=140) == 2


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_the_activations_of_a_block_are_those_that_autograd_keeps(architecture: str, lora: bool) -> None:
    """Two depths of one model are compared, so that only what each further block keeps is counted."""
    recipe = Recipe() if lora else Recipe(lora=None)
    tokens, kept = 60, {}
    for layers in (2, 4):
        module = tiny_module(architecture, hidden_size=64, intermediate_size=256, num_hidden_layers=layers)
        model = build_language_model("deep", module, tiny_tokenizer())
        size = model_size(model, recipe)
        kept[layers] = kept_bytes(model, recipe, tokens)
    expected = block_bytes(size, replace(SETTINGS, recipe=recipe, device_type="without recomputation")) * tokens
    assert (kept[4] - kept[2]) / 2 == pytest.approx(expected, rel=0.2)


def kept_bytes(model: LanguageModel, recipe: Recipe, tokens: int) -> int:
    """Return the bytes of all tensors that one training pass keeps for its backward pass, without the model's own weights."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept: list[torch.Tensor] = []
    sequence = TokenSequence(ids=tuple(5 + place % 200 for place in range(tokens + 1)), first_label=1)
    with trainable(model, recipe, seed=0) as trainee:
        trainee.module.train()
        trainee.dropout.set_step(0, 1, [tokens])
        own = {weight.untyped_storage().data_ptr() for weight in trainee.module.parameters()}
        with packed_attention(model.module), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            packed_logprobs(model.module, [sequence])
    return sum(size for place, size in storages.items() if place not in own)
