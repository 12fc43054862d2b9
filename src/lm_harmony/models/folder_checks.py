"""Refuses a folder whose config.json or weights cannot be those of a causal language model. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from lm_harmony.errors import ModelError

_ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Model types of transformers that no causal language model has."""
USE_A_DECODER = "Use a decoder such as Llama, Qwen or GPT-NeoX"
"""Remedy for a model that is no causal language model."""
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Files of which a whole model has one: its weights, or the index of their parts."""
_MOST_FILES = 4
"""Most names of files that a message lists."""


def refuse_no_decoder(folder: Path) -> None:
    """Raise for a folder whose config.json cannot be read, or is that of an encoder with a decoder, such as T5.

    Raises:
        ModelError: it is one of these.
    """
    file = folder / "config.json"
    if not file.is_file():  # an adapter
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {folder}: {file} cannot be used: it is not JSON ({error}). Take the one saved with the weights."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"model {folder}: {file} cannot be used: it holds no mapping. Take the one saved with the weights.")
    names = config.get("architectures")
    causal = isinstance(names, list) and any("CausalLM" in str(name) for name in names)
    if config.get("model_type") in _ENCODER_DECODERS or (config.get("is_encoder_decoder") is True and not causal):
        raise ModelError(
            f"model {folder}: model_type = {config.get('model_type')!r} in config.json is no causal language model. "
            f"{USE_A_DECODER}."
        )


def refuse_no_weights(name: str) -> None:
    """Raise for a folder of a whole model without safetensors: other weights are pickles, which can run code.

    Raises:
        ModelError: it has neither model.safetensors nor its index.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file() or any((folder / file).is_file() for file in SAFE_WEIGHTS):
        return
    raise no_safetensors(name)


def no_safetensors(name: str) -> ModelError:
    """Return the error for a model, on the hub or in a folder, that has no safetensors."""
    pickles = sorted(file.name for file in Path(name).glob("*.bin"))
    has = f"has {', '.join(pickles[:_MOST_FILES])} and no model.safetensors" if pickles else "has no model.safetensors"
    return ModelError(
        f"model {name}: it {has}. Other weights are pickles, which can run code, and are never loaded. Save it with "
        f"save_pretrained in a sandbox, or give the --revision of the hub that has safetensors (often refs/pr/<n>)."
    )
