"""A model and its tokenizer, from the hub or a folder: dtype, device, special tokens, longest input."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lm_harmony.errors import ModelError
from lm_harmony.models.adapter_weights import merge_adapter
from lm_harmony.models.checkpoint import meta_module, read_weights
from lm_harmony.models.checkpoint_checks import refuse_ambiguous_tokenizer, tokenizer_fault, tokenizer_files
from lm_harmony.models.device import Precision, configure_device, resolve_device
from lm_harmony.models.device_map import free_on_gpus
from lm_harmony.models.model_folder import AdapterBase
from lm_harmony.models.model_location import ModelLocation, locate_model, why_not
from lm_harmony.models.text import TextEncoder

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
"""Longest input in tokens if neither config nor tokenizer gives one (lm_eval's default)."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal language model with its tokenizer, ready for training and scoring."""

    name: str
    """Hub id, or path of a folder."""
    module: PreTrainedModel = field(repr=False)
    """PyTorch module in evaluation mode; it contains an attached adapter."""
    text: TextEncoder = field(repr=False)
    """Tokenizer with lm_eval's rules for special tokens."""
    max_length: int
    """Longest input in tokens."""
    revision: str | None = None
    """Commit of the weights on the hub; None: not known."""
    autocast: torch.dtype | None = None
    """Type in which matrix products are computed; None: the type of the weights."""
    quantize: str | None = None
    """Format of quantized weights: nf4 or int8; None: the weights are not quantized."""
    base: AdapterBase | None = None
    """Base model of an adapter on the hub, with its commit; None: the model is no adapter on the hub."""

    @property
    def precision(self) -> Precision:
        """The number formats of its weights and products, by name."""
        weights = str(self.module.dtype).removeprefix("torch.")
        autocast = None if self.autocast is None else str(self.autocast).removeprefix("torch.")
        if self.quantize is not None:
            return Precision(weights=self.quantize, autocast=autocast or weights)
        return Precision(weights=weights, autocast=autocast)

    def mixed_precision(self) -> AbstractContextManager[object]:
        """Return the block in which a forward pass is computed: ``torch.autocast`` where ``autocast`` is set, else nothing.

        Each forward pass enters its own block. Autocast keeps the weights that it has converted until the block ends, so a block
        over several optimizer steps would go on with the old ones. The backward pass stays outside, as PyTorch advises.
        """
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    @property
    def device(self) -> torch.device:
        """Device that holds the weights, or the first one of several, which takes the inputs."""
        return self.module.device

    @property
    def device_map(self) -> dict[str, str]:
        """Name of a module -> its device, if the weights are on several devices; else empty."""
        places: dict[str, Any] = getattr(self.module, "hf_device_map", {})
        named = {name: f"cuda:{place}" if isinstance(place, int) else str(place) for name, place in places.items()}
        return named if len(set(named.values())) > 1 else {}


def load_model(
    name: str,
    *,
    revision: str = "main",
    dtype: str = "float32",
    autocast: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    quantize: str | None = None,
    device_map: str | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    A PEFT adapter is merged into its base model. Its tokenizer is used if there is one beside it, else that of the base model.

    Args:
        name: hub id or folder of a model with config, safetensors and tokenizer, or of a PEFT adapter.
        revision: branch, tag or commit on the hub.
        dtype: type of the weights, "float32" or "bfloat16".
        autocast: type that matrix products are computed in, "bfloat16", or None for that of the weights.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (an accelerator if there is one).
        trust_remote_code: run the code that the repository brings.
        quantize: format of the linear layers inside the blocks, "nf4" or "int8"; None: not quantized.
        device_map: "auto" spreads the blocks over all GPUs; None: the whole model is on ``device``.

    Raises:
        MissingExtra: bitsandbytes, which quantizes, is not installed.
        ModelError: it does not exist, cannot be reached, needs its own code, is no causal language model, is an adapter that
            cannot be merged, is damaged, is not the model that its config.json describes, or does not fit into the memory of
            the device.
    """
    configure_device(place := resolve_device(device))
    found = locate_model(name, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer, base = load_text_encoder(found, trust_remote_code=trust_remote_code).tokenizer, found.base
    if base is not None and quantize is not None:
        raise ModelError(
            f"model {name}: quantize = {quantize}, but it is a PEFT adapter, which cannot be merged into quantized weights. "
            f"Merge it (merge_and_unload) and give the folder that save_pretrained wrote."
        )
    whole, revision = (name, revision) if base is None else (base.name, base.revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    types = {"dtype": getattr(torch, dtype), "quantize": quantize}
    gpus = None if device_map is None else free_on_gpus()
    module = read_weights(whole, found.folder, found.config, device=place, options=options, gpus=gpus, **types)
    if base is not None:
        module = merge_adapter(name, Path(found.place), module)
    model = replace(build_language_model(name, module, tokenizer, revision=found.commit), quantize=quantize, base=found.hub_base)
    return model if autocast is None else replace(model, autocast=getattr(torch, autocast))


def load_without_weights(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> LanguageModel:
    """Return a model on the meta device, with its tokenizer: shapes without weights; raises as ``load_model`` does."""
    found = locate_model(name, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer = load_text_encoder(found, trust_remote_code=trust_remote_code).tokenizer
    module = meta_module(name, found.config, trust_remote_code=trust_remote_code)
    return build_language_model(name, module, tokenizer, revision=found.commit)


def load_text_encoder(found: ModelLocation, *, trust_remote_code: bool) -> TextEncoder:
    """Load the tokenizer of a model; raises as ``load_model`` does. An adapter without one has that of its base model."""
    name, revision = found.place, found.revision
    if found.base is not None and not tokenizer_files(Path(name)):
        name, revision = found.base.name, found.base.revision
    refuse_ambiguous_tokenizer(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        if "tokenizer.model" in tokenizer_files(found.folder) and len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("it has no tokens but special ones")  # of an empty tokenizer.model
    except Exception as error:
        elsewhere = isinstance(error, OSError) and not Path(name).is_dir()  # the hub could not be reached
        raise ModelError(why_not(name, error) if elsewhere else tokenizer_fault(name, found.folder, error)) from error
    return TextEncoder(tokenizer, name=name)


def build_language_model(
    name: str, module: PreTrainedModel, tokenizer: Tokenizer, *, revision: str | None = None
) -> LanguageModel:
    """Return a ``LanguageModel`` from a loaded module and tokenizer.

    Raises:
        ModelError: the tokenizer has no end-of-text token, or ids beyond the model's embedding.
    """
    rows = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        _accept_added_tokens(name, tokenizer, rows)
    module.eval()
    text = TextEncoder(tokenizer, name=name, vocabulary=rows)
    return LanguageModel(
        name=name, module=module, text=text, max_length=longest_input(module.config, tokenizer), revision=revision
    )


def _accept_added_tokens(name: str, tokenizer: Tokenizer, rows: int) -> None:
    """Accept added tokens without an embedding, such as a [PAD] that was never trained; texts that hold them are refused.

    Raises:
        ModelError: other tokens have no embedding either.
    """
    added = [token for token, number in tokenizer.get_added_vocab().items() if number >= rows]
    if len(tokenizer) - len(added) > rows or tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"model {name}: the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows. Use the model's own tokenizer."
        )
    log.info("model %s: the added tokens %s have no embedding, so texts must not contain them.", name, " ".join(added))


def longest_input(config: PretrainedConfig, tokenizer: Tokenizer) -> int:
    """Return the longest input in tokens, by lm_eval's rule (``lm_eval.models.utils.resolve_max_length``)."""
    nested = getattr(config, "text_config", None) or config
    for attribute in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(nested, attribute, None)
        if value is not None:
            return int(value)
    # transformers writes a number above 10**29 where a tokenizer sets no limit.
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**29 else DEFAULT_MAX_LENGTH
