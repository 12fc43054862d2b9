"""A model and its tokenizer, from the hub or a folder: dtype, device, special tokens, longest input."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from lm_harmony.errors import ModelError
from lm_harmony.models.text import TextEncoder

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
"""Tokens that a model takes when neither its config nor its tokenizer tells (lm_eval's default)."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal language model ready to be asked and taught."""

    name: str
    """Hub id or folder."""
    module: PreTrainedModel = field(repr=False)
    """The weights, in evaluation mode; an attached adapter lives inside it."""
    text: TextEncoder = field(repr=False)
    """Its tokenizer under lm_eval's rules."""
    max_length: int
    """Longest input in tokens."""
    revision: str | None = None
    """Commit of the weights on the hub, when known."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.device


def load_model(
    name: str,
    *,
    revision: str = "main",
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: hub id, or a folder with config, safetensors and tokenizer.
        revision: branch, tag or commit on the hub.
        dtype: "float32" or "bfloat16".
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (an accelerator if there is one).
        trust_remote_code: run the code that the repository brings.

    Raises:
        ModelError: it does not exist, cannot be reached, needs its own code, or is no causal language model.
    """
    place = resolve_device(device)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"model: the folder {name} holds no config.json. Give the folder that save_pretrained wrote.")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        module = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(_why_not(name, error)) from error
    commit = None if Path(name).is_dir() else extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
    return assemble(name, _moved(module, place), tokenizer, revision=commit)


def assemble(name: str, module: PreTrainedModel, tokenizer: Tokenizer, *, revision: str | None = None) -> LanguageModel:
    """Make a ``LanguageModel`` of loaded parts.

    Raises:
        ModelError: the tokenizer has no end-of-text token, or ids beyond the model's embedding.
    """
    rows = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        raise ModelError(
            f"model {name}: the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows. Use the model's own tokenizer."
        )
    module.eval()
    text = TextEncoder(tokenizer, name=name)
    return LanguageModel(
        name=name, module=module, text=text, max_length=longest_input(module.config, tokenizer), revision=revision
    )


def longest_input(config: PretrainedConfig, tokenizer: Tokenizer) -> int:
    """Return the longest input in tokens, by lm_eval's rule (``lm_eval.models.utils.resolve_max_length``)."""
    nested = getattr(config, "text_config", None) or config
    for attribute in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(nested, attribute, None)
        if value is not None:
            return int(value)
    # transformers writes a number above 10**29 where a tokenizer sets no limit.
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**29 else DEFAULT_MAX_LENGTH


def _moved(module: PreTrainedModel, place: torch.device) -> PreTrainedModel:
    torch.nn.Module.to(module, place)  # in place; transformers' own to() is typed as if it took no device
    return module


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into this machine's accelerator, or the processor where there is none.

    Raises:
        ModelError: the device does not exist here.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}. Use --device cpu or another one.") from error
    return place


def resolve_dtype(dtype: str, *, device: torch.device, adapter: bool) -> str:
    """Turn "auto" into bfloat16 on a GPU under an adapter, else float32.

    All weights are trained in float32: a step of 2e-5 is lost in the 8 bits of a bfloat16 weight.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if adapter and device.type == "cuda" else "float32"


def _why_not(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return f"model {name} needs code from its own repository. If you trust it, add --trust_remote_code."
    if len(reason) > 300:
        reason = reason[:300] + " ..."
    return f"model {name!r} cannot be loaded: {reason} Give a hub id that exists, or an existing model folder."
