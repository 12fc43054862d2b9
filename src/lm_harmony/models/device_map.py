"""Placement of one model on several GPUs: whole blocks on each, in their order.

accelerate chooses the placement and moves the activations from one GPU to the next, so the GPUs compute one after another.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import CustomDtype, get_balanced_memory
from transformers import PreTrainedModel

from lm_harmony.errors import ModelError
from lm_harmony.models.device import free_bytes, gib, memory_error

_STORED: Mapping[str, torch.dtype | CustomDtype] = {"int8": torch.int8, "nf4": CustomDtype.INT4}
"""Format of quantized weights -> the type of that size."""


def free_on_gpus() -> dict[int, int]:
    """Return the GPUs that ``--device_map auto`` uses, all that this process sees: number -> free bytes.

    Raises:
        ModelError: there are fewer than two.
    """
    count = torch.cuda.device_count()
    if count < 2:
        raise ModelError(
            f"device_map = auto needs at least two GPUs, and this process sees {count}. Remove --device_map, or run it where "
            f"CUDA_VISIBLE_DEVICES names several."
        )
    return {number: free_bytes(torch.device("cuda", number)) for number in range(count)}


def balanced_map(
    name: str, hollow: PreTrainedModel, free: Mapping[int, int], *, dtype: torch.dtype, quantize: str | None = None
) -> dict[str, int]:
    """Return which part of a model goes to which GPU, about as many bytes of weights to each: name of a module -> GPU.

    Args:
        name: hub id or folder of the model, for the message.
        hollow: its modules, on the meta device.
        free: number of each GPU -> its free bytes.
        dtype: type of the weights.
        quantize: format of the linear layers inside the blocks; None: not quantized.

    Raises:
        ModelError: the GPUs together do not hold the weights.
    """
    options = {"no_split_module_classes": list(hollow._no_split_modules or ()), "dtype": dtype}
    if quantize is not None:
        options |= {"dtype": _STORED[quantize], "special_dtypes": _not_quantized(hollow, dtype)}
    limits = get_balanced_memory(hollow, max_memory=dict(free), **options)
    placed = infer_auto_device_map(hollow, max_memory=limits, **options)
    if not set(placed.values()) <= set(free):  # accelerate would leave the rest in host memory or on disk
        raise memory_error(
            name,
            torch.device("cuda"),
            doing=f"placing its blocks on {len(free)} GPUs",
            needed=f"{gib(sum(one.numel() for one in hollow.parameters()) * dtype.itemsize)} before quantization, whole blocks",
            ways_out=("more GPUs",),
            free=sum(free.values()),
        )
    return {module: int(number) for module, number in placed.items()}


def _not_quantized(hollow: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the parameters that keep their type: all but the weights of linear layers inside the blocks."""
    output = hollow.get_output_embeddings()
    linear = {part for part in hollow.modules() if isinstance(part, torch.nn.Linear) and part is not output}
    return {name: dtype for name, _ in hollow.named_parameters() if hollow.get_submodule(name.rpartition(".")[0]) not in linear}
