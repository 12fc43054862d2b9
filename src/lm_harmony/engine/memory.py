"""Memory of training and scoring: how many tokens fit into a forward pass, and what happens when memory runs out.

``memory_budget`` sizes the passes from the memory that is free after a model has been loaded. Where the estimate is too high,
``halve_batch`` makes the next attempt smaller. ``release_freed_memory`` returns freed memory to the operating system. The error
message for a model that does not fit even then is built by ``lm_harmony.runs.memory_errors``.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from lm_harmony.models.device import free_bytes, is_out_of_memory

SHARE = 0.6
"""Share of the free memory that one forward pass may take. Estimates can be too low, and a batch that does not fit is halved."""
CPU_TRAINING_TOKENS, CPU_SCORING_TOKENS, CPU_GENERATION_ROWS = 384, 512, 24
"""Largest passes on a CPU. More tokens gain no speed: all cores are busy, and larger tensors do not fit into the caches."""
GPU_TRAINING_TOKENS, GPU_SCORING_TOKENS, GPU_GENERATION_ROWS = 16_384, 32_768, 256
"""Largest passes on a GPU. More tokens gain no speed."""

RECOMPUTE_BYTES = 32 * 2**20
"""Bytes of activations in one pass from which recomputing them is worth its time on a CPU."""


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """The largest forward passes that fit into memory and still gain speed."""

    training_tokens: int = 1 << 30
    """Tokens of one packed forward and backward pass. A larger batch is split between sequences."""
    scoring_tokens: int = CPU_SCORING_TOKENS
    """Tokens of one packed row in scoring, and of contexts in generation, without a beginning that all texts of the row share."""
    generation_rows: int = CPU_GENERATION_ROWS
    """Rows (answers) of one batch in generation."""
    cache_tokens: int = 1 << 30
    """Tokens whose keys and values may be cached in generation."""


def memory_budget(module: PreTrainedModel) -> MemoryBudget:
    """Return the budget that ``module`` leaves on its device: free memory divided by the bytes that a token takes."""
    config, on_cpu = module.config.get_text_config(), module.device.type == "cpu"
    layers, hidden, _ = _sizes(module)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    grouped = (getattr(config, "num_key_value_heads", None) or heads) * (getattr(config, "head_dim", None) or hidden // heads)
    width = module.dtype.itemsize
    available = SHARE * free_bytes(module.device)
    training, scoring, rows = (
        (CPU_TRAINING_TOKENS, CPU_SCORING_TOKENS, CPU_GENERATION_ROWS)
        if on_cpu
        else (GPU_TRAINING_TOKENS, GPU_SCORING_TOKENS, GPU_GENERATION_ROWS)
    )
    return MemoryBudget(
        training_tokens=max(1, min(training, int(available / training_bytes_per_token(module)))),
        scoring_tokens=max(1, min(scoring, int(available / _layer_bytes_per_token(module)))),
        generation_rows=rows,
        cache_tokens=max(1, int(available / (2 * layers * int(grouped) * width))),
    )


def training_bytes_per_token(module: PreTrainedModel) -> int:
    """Return the estimated bytes of activations that one token of a training pass takes."""
    layers, hidden, _ = _sizes(module)
    layer = _layer_bytes_per_token(module)
    # Gradient checkpointing keeps the input of each layer, and all activations of the one layer that it recomputes.
    return layers * hidden * module.dtype.itemsize + layer if uses_gradient_checkpointing(module) else layers * layer


def _layer_bytes_per_token(module: PreTrainedModel) -> int:
    """Return the estimated bytes of activations that one token takes in one layer.

    Training keeps about twelve tensors of the hidden size and five of the intermediate size for each layer. Scoring holds about
    as many of one layer at a time.
    """
    _, hidden, inner = _sizes(module)
    return (12 * hidden + 5 * inner) * module.dtype.itemsize


def recompute_pays(module: PreTrainedModel) -> bool:
    """Tell whether training should recompute activations (see ``recompute``) instead of keeping them.

    It should on a CPU, where recomputing takes little time, if the activations of one pass take more than ``RECOMPUTE_BYTES``. It
    should not under gradient checkpointing, which recomputes whole layers, nor on a GPU, which would wait for Python at every
    saved tensor.
    """
    layers, _, inner = _sizes(module)
    saved = CPU_TRAINING_TOKENS * layers * inner * module.dtype.itemsize
    return module.device.type == "cpu" and not uses_gradient_checkpointing(module) and saved > RECOMPUTE_BYTES


def uses_gradient_checkpointing(module: PreTrainedModel) -> bool:
    """Tell whether gradient checkpointing is on: each layer keeps only its input and is recomputed in the backward pass."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _sizes(module: PreTrainedModel) -> tuple[int, int, int]:
    """Return (number of layers, hidden size, intermediate size)."""
    config = module.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or 1)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return int(getattr(config, "num_hidden_layers", None) or 1), hidden, inner


def halve_batch(size: int, error: Exception) -> int:
    """Return half of ``size`` if ``error`` is an out-of-memory error, and empty the device's cache for the next attempt.

    Raises:
        Exception: ``error`` itself, if it is another error or if ``size`` is 1.
    """
    if size == 1 or not (is_out_of_memory(error) or should_reduce_batch_size(error)):
        raise error
    clear_device_cache()
    return size // 2


def release_freed_memory() -> None:
    """Return memory that this process has freed to the operating system.

    glibc keeps freed blocks. They are fragmented, so later allocations cannot reuse all of them and the process grows.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)
