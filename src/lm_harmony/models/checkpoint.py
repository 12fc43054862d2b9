"""Reads all weights of a checkpoint directly onto the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lm_harmony.errors import ModelError
from lm_harmony.models.checkpoint_checks import (
    damaged_file,
    one_line,
    refuse_encoder,
    refuse_misfit,
    refuse_non_finite,
    refuse_pickles,
)
from lm_harmony.models.device import allocatable_bytes, gib, is_out_of_memory, memory_error
from lm_harmony.models.device_map import balanced_map
from lm_harmony.models.folder_checks import USE_A_DECODER
from lm_harmony.models.quantization import loading_options


def read_weights(
    name: str,
    folder: Path,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    options: Mapping[str, Any],
    quantize: str | None = None,
    gpus: Mapping[int, int] | None = None,
) -> PreTrainedModel:
    """Read a causal language model onto ``device``, in evaluation mode.

    Args:
        name: hub id or folder.
        folder: local folder of its files.
        config: configuration of the model.
        dtype: type of the weights.
        device: device of the weights; no copy in host memory is made.
        options: revision and trust_remote_code, for ``from_pretrained``.
        quantize: format of the linear layers inside the blocks, "nf4" or "int8"; None: not quantized.
        gpus: GPUs that share the blocks, with their free bytes; None: all of the model is on ``device``.

    Raises:
        ModelError: an encoder; the weights are pickled, or do not fit into the memory of the device; a file cannot be read; a
            tensor is missing, unknown, of another size than the configuration says, or not finite; the weights cannot be
            quantized.
    """
    refuse_pickles(name, str(options.get("revision") or "main"))
    hollow = meta_module(name, config, trust_remote_code=bool(options.get("trust_remote_code")))
    refuse_encoder(name, hollow)
    needed = dtype.itemsize * sum(weight.numel() for weight in hollow.parameters())
    quantizing = loading_options(name, config, quantize, dtype)
    # The size of quantized weights is not that of the architecture.
    is_quantized = quantize is not None or getattr(config, "quantization_config", None) is not None
    if gpus is None and not is_quantized and needed > _free_for_weights(device, needed):
        raise _too_large(name, needed, dtype, device)
    places = {"": device} if gpus is None else balanced_map(name, hollow, gpus, dtype=dtype, quantize=quantize)
    try:
        module, report = _load(name, config=config, dtype=dtype, device_map=places, **options, **quantizing)
    except Exception as error:  # a damaged file raises an error of any kind
        if is_out_of_memory(error):
            raise _too_large(name, needed, dtype, device) from error
        fault = damaged_file(folder, error) or f"its weights cannot be read: {one_line(error)}. Fetch or save them again."
        raise ModelError(f"model {name}: {fault}") from error
    refuse_misfit(name, module, report)
    refuse_non_finite(name, module)
    return module


def _load(name: str, **options: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Return a model and the report of its loading. ``device_map`` names its device.

    Without it, the weights would be copied to host memory first, which needs room for the model there, once for each worker.
    Mismatched sizes are not ignored but reported: refuse_misfit names them.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
    )
    return loaded  # type: ignore[no-any-return]


def meta_module(name: str, config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """Return the modules of a model on the meta device, with shapes and without weights.

    Raises:
        ModelError: ``config`` describes no causal language model.
    """
    try:
        with torch.device("meta"):
            module: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever the modules make of a wrong number
        if "Unrecognized configuration class" in str(error):
            fault, remedy = "is no causal language model", USE_A_DECODER
        else:
            fault, remedy = f"cannot be built: {one_line(error)}", "Use the config.json that was saved with the weights"
        raise ModelError(f"model {name}: model_type = {config.model_type!r} in config.json {fault}. {remedy}.") from error
    return module


def _free_for_weights(device: torch.device, needed: int) -> int:
    """Return the bytes that weights can take, swap space included; if they are too few, an earlier model's are freed first."""
    free = allocatable_bytes(device)
    if free is not None and free < needed:
        clear_device_cache(garbage_collection=True)
        free = allocatable_bytes(device)
    return needed if free is None else free


def _too_large(name: str, needed: int, dtype: torch.dtype, device: torch.device) -> ModelError:
    kind = str(dtype).removeprefix("torch.")
    return memory_error(
        name,
        device,
        doing="loading it",
        needed=f"{gib(needed)} for its weights in {kind}",
        ways_out=("--dtype bfloat16 (half of that)",) if dtype == torch.float32 else (),
    )
