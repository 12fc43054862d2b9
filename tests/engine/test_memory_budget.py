"""How much fits is found from what is free."""

from __future__ import annotations

import psutil
import pytest
import torch
from tiny import tiny_module

from lm_harmony.engine import memory as room
from lm_harmony.engine.memory import memory_budget, recompute_pays
from lm_harmony.engine.onednn_linear import _layers
from lm_harmony.models.device import free_bytes


def test_scarce_memory_makes_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    plenty = memory_budget(module)
    assert (plenty.training_tokens, plenty.scoring_tokens) == (room.CPU_TRAINING_TOKENS, room.CPU_SCORING_TOKENS)
    live = (12 * 32 + 5 * 64) * 4  # bytes that a token of this model keeps in one of its two layers
    for free, training, scoring in ((100 * live, 30, 60), (600 * live, 180, 360), (1, 1, 1)):
        monkeypatch.setattr(room, "free_bytes", lambda _, free=free: free)
        found = memory_budget(module)
        assert (found.training_tokens, found.scoring_tokens) == (training, scoring)


def test_only_a_processor_computes_activations_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved-tensor hooks and oneDNN are for CPUs: a GPU would wait for Python at every saved tensor."""
    monkeypatch.setattr(room, "RECOMPUTE_BYTES", 0)
    wide = tiny_module(hidden_size=64, intermediate_size=128)
    assert recompute_pays(wide) and _layers(wide)  # the negative control
    assert not recompute_pays(wide.to("meta")) and not _layers(wide.to("meta"))


def test_free_memory_is_this_machines() -> None:
    assert 1e8 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
