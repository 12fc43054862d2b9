"""The memory budget follows from the free memory."""

from __future__ import annotations

import psutil
import pytest
import torch
from tiny import tiny_module

from lm_harmony.engine import memory
from lm_harmony.engine.memory import memory_budget, recompute_pays
from lm_harmony.engine.onednn_linear import _layers
from lm_harmony.models.device import free_bytes


def test_little_free_memory_gives_small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    plenty = memory_budget(module)
    assert (plenty.training_tokens, plenty.scoring_tokens) == (memory.CPU_TRAINING_TOKENS, memory.CPU_SCORING_TOKENS)
    live = (12 * 32 + 5 * 64) * 4  # bytes that a token of this model keeps in one of its two layers
    for free, training, scoring in ((100 * live, 30, 60), (600 * live, 180, 360), (1, 1, 1)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        found = memory_budget(module)
        assert (found.training_tokens, found.scoring_tokens) == (training, scoring)


def test_activations_are_recomputed_only_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved-tensor hooks and oneDNN are used only on CPUs, because a GPU would wait for Python at every saved tensor."""
    monkeypatch.setattr(memory, "RECOMPUTE_BYTES", 0)
    wide = tiny_module(hidden_size=64, intermediate_size=128)
    assert recompute_pays(wide) and _layers(wide)  # the negative control
    assert not recompute_pays(wide.to("meta")) and not _layers(wide.to("meta"))


def test_free_memory_is_at_most_the_memory_of_this_machine() -> None:
    assert 1e8 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
