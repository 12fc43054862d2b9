"""The weights of a checkpoint, read straight onto the device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lm_harmony.errors import ModelError
from lm_harmony.models.memory import free_bytes, gib, is_out_of_memory, memory_error

log = logging.getLogger(__name__)


def read_weights(
    name: str, config: PretrainedConfig, *, dtype: torch.dtype, device: torch.device, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Read a causal language model onto ``device``, in evaluation mode.

    Args:
        name: hub id or folder.
        config: its configuration.
        dtype: type of the weights.
        device: where they go, without a copy in host memory before.
        options: of ``from_pretrained``: revision, trust_remote_code.

    Raises:
        ModelError: the weights do not fit into the memory of the device.
        OSError, ValueError, KeyError, ImportError: transformers cannot read them.
    """
    hollow = _hollow(config, trust_remote_code=bool(options.get("trust_remote_code")))
    needed = dtype.itemsize * sum(weight.numel() for weight in hollow.parameters())
    # The size of a quantized checkpoint is not that of its architecture.
    if getattr(config, "quantization_config", None) is None and needed > _free_for_weights(device, needed):
        raise _too_large(name, needed, dtype, device)
    try:
        # Straight to the device: a copy in host memory first would need room for the model there, once for each worker.
        module: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, device_map={"": device}, **options
        )
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise _too_large(name, needed, dtype, device) from error
        raise
    return module


def _hollow(config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """Build the modules of a model on the meta device: every shape, no weight."""
    with torch.device("meta"):
        module: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    return module


def _free_for_weights(device: torch.device, needed: int) -> int:
    """Return the bytes that weights can take, counting swap space; what an earlier model left behind is freed where it matters."""
    if device.type not in ("cpu", "cuda", "mps"):
        return needed  # no way to ask
    swap = 0 if device.type == "cuda" else int(psutil.swap_memory().free)
    if free_bytes(device) + swap < needed:
        clear_device_cache(garbage_collection=True)
    return free_bytes(device) + swap


def _too_large(name: str, needed: int, dtype: torch.dtype, device: torch.device) -> ModelError:
    kind = str(dtype).removeprefix("torch.")
    return memory_error(
        name,
        device,
        doing="loading it",
        needed=f"{gib(needed)} for its weights in {kind}",
        ways_out=("--dtype bfloat16 (half of that)",) if dtype == torch.float32 else (),
    )
