"""Recomputed activations give bit-identical gradients and use less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch.autograd.graph import saved_tensors_hooks

from lm_harmony.engine import forward as forward_passes
from lm_harmony.engine import recompute
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.forward import packed_logprobs
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.recipe import Lora, Recipe

SEQUENCES = [TokenSequence(ids=tuple(range(5, 5 + length)), first_label=1, row=length) for length in (9, 14, 6)]


def gradients(architecture: str, monkeypatch: pytest.MonkeyPatch, keep: Callable[[torch.Tensor], Any]) -> dict[str, torch.Tensor]:
    """Return the gradients of one step with dropout. Every saved tensor is passed through ``keep``."""
    monkeypatch.setattr(forward_passes, "recompute_activations", lambda: saved_tensors_hooks(keep, recompute._give))
    recipe = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.3))
    with trainable(tiny_model(architecture), recipe, seed=0) as trainee:
        trainee.module.train()
        trainee.dropout.set_step(0, 1, [len(one.ids) - 1 for one in SEQUENCES])
        for name, weight in trainee.trained_parameters().items():
            if "lora_B" in name:  # initially zero, which would make the gradient of lora_A zero
                weight.data.fill_(0.01)
        packed_logprobs(trainee.model.module, SEQUENCES, recompute=True).logprobs_L.sum().backward()
        return {name: weight.grad.clone() for name, weight in trainee.trained_parameters().items() if weight.grad is not None}


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
def test_recompute_gives_bit_identical_gradients_and_saves_memory(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_bytes: dict[str, dict[int, int]] = {"all": {}, "recomputed": {}}

    def counted(side: str, kept: Any) -> Any:
        if isinstance(kept, torch.Tensor):
            saved_bytes[side][kept.untyped_storage().data_ptr()] = kept.untyped_storage().nbytes()
        return kept

    expected = gradients(architecture, monkeypatch, lambda tensor: counted("all", tensor))
    recomputed = gradients(architecture, monkeypatch, lambda tensor: counted("recomputed", recompute._keep(tensor)))
    assert expected.keys() == recomputed.keys() and any(grad.abs().max() > 0 for grad in expected.values())
    assert all(torch.equal(expected[name], recomputed[name]) for name in expected)
    assert sum(saved_bytes["recomputed"].values()) < 0.95 * sum(saved_bytes["all"].values())


def test_a_wrongly_recomputed_tensor_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients("llama", monkeypatch, lambda tensor: tensor)
    monkeypatch.setattr(recompute, "silu", lambda x: 1.001 * torch.nn.functional.silu(x))
    wrong = gradients("llama", monkeypatch, recompute._keep)
    assert not all(torch.equal(expected[name], wrong[name]) for name in expected)
