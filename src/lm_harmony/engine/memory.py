"""How much fits: found from the memory that is free when a model has been loaded, not from the longest possible input."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from transformers import PreTrainedModel

from lm_harmony.models.device import free_bytes

SHARE = 0.6
"""Share of the free memory that one forward pass may take; estimates err, and a batch that does not fit is halved."""
CPU_TRAINING_TOKENS, CPU_SCORING_TOKENS, CPU_GENERATION_ROWS = 384, 512, 24
"""What a processor gains nothing beyond: its multipliers are busy, and more leaves its caches."""
GPU_TRAINING_TOKENS, GPU_SCORING_TOKENS, GPU_GENERATION_ROWS = 16_384, 32_768, 256
"""What a GPU gains nothing beyond."""

RECOMPUTE_BYTES = 32 * 2**20
"""Bytes of activations in one pass from which computing them again is worth its time on a CPU."""


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """The largest passes that fit and are worth it."""

    training_tokens: int = 1 << 30
    """Tokens of one packed forward and backward pass; a batch of more is cut between sequences."""
    scoring_tokens: int = CPU_SCORING_TOKENS
    """Tokens of one row of shared-context scoring."""
    generation_rows: int = CPU_GENERATION_ROWS
    """Answers written at once."""
    cache_tokens: int = 1 << 30
    """Tokens whose keys and values may be kept while answers are written."""


def memory_budget(module: PreTrainedModel) -> MemoryBudget:
    """Find the room that ``module`` leaves on its device: free memory over the bytes that a token takes."""
    config, on_cpu = module.config.get_text_config(), module.device.type == "cpu"
    layers, hidden, _ = _sizes(module)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    grouped = (getattr(config, "num_key_value_heads", None) or heads) * (getattr(config, "head_dim", None) or hidden // heads)
    width = module.dtype.itemsize
    budget = SHARE * free_bytes(module.device)
    training, scoring, rows = (
        (CPU_TRAINING_TOKENS, CPU_SCORING_TOKENS, CPU_GENERATION_ROWS)
        if on_cpu
        else (GPU_TRAINING_TOKENS, GPU_SCORING_TOKENS, GPU_GENERATION_ROWS)
    )
    return MemoryBudget(
        training_tokens=max(1, min(training, int(budget / training_bytes_per_token(module)))),
        scoring_tokens=max(1, min(scoring, int(budget / _live_bytes(module)))),
        generation_rows=rows,
        cache_tokens=max(1, int(budget / (2 * layers * int(grouped) * width))),
    )


def training_bytes_per_token(module: PreTrainedModel) -> int:
    """Return the bytes of activations that one token of a training pass is expected to take."""
    layers, hidden, _ = _sizes(module)
    live = _live_bytes(module)
    # Gradient checkpointing keeps the input of each layer, and all of the one layer that it computes again.
    return layers * hidden * module.dtype.itemsize + live if checkpoints_layers(module) else layers * live


def _live_bytes(module: PreTrainedModel) -> int:
    """Return the bytes of a token within one layer.

    Of each layer training keeps some twelve tensors as wide as the model and five as wide as its inner layer; scoring holds
    about as many of one layer at a time; a cache keeps keys and values.
    """
    _, hidden, inner = _sizes(module)
    return (12 * hidden + 5 * inner) * module.dtype.itemsize


def recompute_pays(module: PreTrainedModel) -> bool:
    """Tell whether training should compute activations again rather than keep them (see ``recompute``).

    On a CPU, where it costs little time, and where the activations of one pass take more than ``RECOMPUTE_BYTES``; never under
    gradient checkpointing, which computes whole layers again, nor on a GPU, which would wait for Python at every saved tensor.
    """
    layers, _, inner = _sizes(module)
    saved = CPU_TRAINING_TOKENS * layers * inner * module.dtype.itemsize
    return module.device.type == "cpu" and not checkpoints_layers(module) and saved > RECOMPUTE_BYTES


def checkpoints_layers(module: PreTrainedModel) -> bool:
    """Tell whether gradient checkpointing is on: each layer keeps its input alone and is computed again in the backward pass."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _sizes(module: PreTrainedModel) -> tuple[int, int, int]:
    """Return (layers, width of the model, width of a layer's inner part)."""
    config = module.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or 1)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return int(getattr(config, "num_hidden_layers", None) or 1), hidden, inner


def release_freed_memory() -> None:
    """Return to the system what this process has freed: glibc keeps it, and what comes next finds only part of it useful."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
