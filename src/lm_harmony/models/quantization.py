"""Weights that bitsandbytes quantizes while a checkpoint is read, for adapters on a frozen base as in QLoRA.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314): 4-bit NormalFloat (nf4) with
double quantization, products in a wider type. int8: Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig

from lm_harmony.errors import MissingExtra, ModelError


def loading_options(name: str, config: PretrainedConfig, quantize: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that quantize the linear layers inside the blocks; empty without ``quantize``.

    Args:
        name: hub id or folder of the model, for messages.
        config: configuration of the model.
        quantize: "nf4", "int8" or None.
        dtype: type of the weights that are not quantized, and of products.

    Raises:
        MissingExtra: bitsandbytes is not installed.
        ModelError: bitsandbytes cannot be used here, or the checkpoint is quantized already.
    """
    if quantize is None:
        return {}
    refuse_quantization(quantize)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model {name}: quantize = {quantize}, but its checkpoint is quantized already (quantization_config in config.json). "
            f"Remove --quantize, or give the original checkpoint."
        )
    if quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def refuse_quantization(quantize: str) -> None:
    """Check that bitsandbytes can be used.

    Raises:
        MissingExtra: it is not installed.
        ModelError: it does not work with this build of PyTorch or on this machine.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingExtra(
            f"quantize = {quantize} needs bitsandbytes, which is not installed. Run: pip install 'lm-harmony[quantized]'"
        )
    try:
        import_module("bitsandbytes")  # loads native code
    except Exception as error:  # whatever a build without a fitting native library raises
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"quantize = {quantize} cannot be used here: bitsandbytes does not load ({reason}). Run: pip install -U "
            f"'lm-harmony[quantized]', or remove --quantize."
        ) from error
