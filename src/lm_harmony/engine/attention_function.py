"""The attention function of packed rows that the layers of a model call.

It is registered with transformers without a mask function, so that no mask over the full row is made. A model's forward pass
takes the row's ``PackedAttention`` as the keyword argument ``packed_row``, which transformers passes on through every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from lm_harmony.engine.packed_attention import PackedAttention

NAME = "lm_harmony_packed"
"""Name of the attention function in transformers."""
# fmt: off
_KNOWN_OPTIONS = frozenset([
    "sliding_window", "softcap",  # packed attention follows these; the others change no attention
    "position_ids", "position_embeddings", "cache_position", "use_cache", "num_items_in_batch", "return_dict",
    "output_attentions", "output_hidden_states", "output_router_logits",
])
"""Keyword arguments that attention layers may pass to the attention function."""
# fmt: on


@contextmanager
def packed_attention(module: PreTrainedModel, configs: Sequence[PretrainedConfig] = ()) -> Iterator[None]:
    """Let ``module`` use packed attention inside the with-block; ``configs`` are its ``attention_configs`` if they are known.

    A training step stays inside until its backward pass has ended, because gradient checkpointing recomputes the layers there.
    """
    # If packed attention is on already, the search through all modules is skipped.
    configs = [] if module.config._attn_implementation == NAME else configs or attention_configs(module)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def attention_configs(module: PreTrainedModel) -> list[PretrainedConfig]:
    """Return the configurations that the attention layers of ``module`` read; a nested text model has its own."""
    found = {id(module.config): module.config}
    for part in module.modules():
        config = getattr(part, "config", None)
        if isinstance(config, PretrainedConfig):
            found.setdefault(id(config), config)
    return list(found.values())


def _attend(
    layer: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_row: PackedAttention,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute packed attention as transformers calls it; some architectures pass softcap and sliding_window.

    An architecture that does not pass keyword arguments on to its attention layers fails here, which the probe catches. So does a
    layer with its own mask, chosen keys or attention sinks, even if they change nothing in the probe's short texts.

    Raises:
        ValueError: a layer asks for something that packed attention does not follow.
    """
    others = [name for name, value in options.items() if value is not None and name not in _KNOWN_OPTIONS]
    if attention_mask is not None or others:
        what = ", ".join(others) or "attention_mask"
        raise ValueError(f"{type(layer).__name__} passes {what} to its attention, which packed rows do not follow")
    window, softcap = options.get("sliding_window"), options.get("softcap")
    found = packed_row.on(query.device).attend(query, key, value, scale=scaling, dropout=dropout, window=window, softcap=softcap)
    return found, None


AttentionInterface.register(NAME, _attend)
