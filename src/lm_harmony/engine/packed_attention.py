"""Packed attention: each sequence or prefix tree of a packed row attends to itself and to the row's shared prefix only.

The attention matrix of such a row is block-diagonal, and each block is computed by itself. The function is registered with
transformers without a mask function, so that no mask over the full row is made. A model's forward pass takes the blocks as the
keyword argument ``attention_blocks``, which transformers passes on through every layer to the attention function.

Shapes: N tokens of the row, H query heads, K key heads, D head size, S tokens of a block, P tokens of the shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from lm_harmony.engine.prefix_tree import PackedRow, PrefixTree
from lm_harmony.engine.sequences import to_device

NAME = "lm_harmony_packed"
"""Name of the attention function in transformers."""


class AttentionBlock:
    """The part of a packed row that attends to itself: one tree, or several sequences of equal length that share one call."""

    def __init__(self, tree: PrefixTree, *, start: int, prefix_tokens: int, device: torch.device) -> None:
        """Place ``tree`` at position ``start`` of a row that begins with ``prefix_tokens`` shared tokens."""
        self.start, self.size, self.prefix_tokens, self.copies = start, len(tree.ids), prefix_tokens, 1
        self.is_chain = tree.is_chain
        self._tree, self._device = tree, device
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = {}

    @property
    def stop(self) -> int:
        """Position of the row where the next block starts."""
        return self.start + self.copies * self.size

    def add(self, tree: PrefixTree) -> bool:
        """Add the row's next tree if both are single sequences of equal length without a prefix; return whether it was added."""
        equal = self.is_chain and self.prefix_tokens == 0 and len(tree.ids) == self.size and tree.is_chain
        self.copies += equal
        return equal

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the additive attention mask S x (P + S): 0 where a token attends to another, else -inf; None if plain causal.

        It is made once for each type: PyTorch would convert a boolean mask into this one in every layer.

        Args:
            window: sliding window in tokens, including the token itself; None for no window.
            dtype: type in which attention is computed.
        """
        if (window, dtype) not in self._masks:
            attends = self._attends(window)
            added = None if attends is None else torch.zeros(attends.shape, dtype=dtype, device=self._device)
            self._masks[window, dtype] = None if added is None or attends is None else added.masked_fill_(~attends, -torch.inf)
        return self._masks[window, dtype]

    def _attends(self, window: int | None) -> torch.Tensor | None:
        """Return the boolean mask S x (P + S) of the tokens that each token attends to; None for plain causal attention.

        It is computed on the device, so that a training step copies only its token ids.
        """
        size, device = self.size, self._device
        narrow = window is not None and max(self._tree.depths) >= window
        if self.is_chain and self.prefix_tokens == 0 and not narrow:
            return None
        index_S = torch.arange(size, device=device)
        attends_SxS = index_S[None, :] <= index_S[:, None]
        depth_S = index_S + self.prefix_tokens
        if not self.is_chain:
            # A token's descendants follow it without a gap, so the tokens up to the end of its subtree attend to it.
            ends_S, depth_S = to_device(device, self._tree.subtree_ends(), self._tree.depths)
            attends_SxS &= index_S[:, None] < ends_S[None, :]
        attends = torch.cat([attends_SxS.new_ones(size, self.prefix_tokens), attends_SxS], dim=1)
        if narrow and window is not None:
            key_depth = torch.cat([torch.arange(self.prefix_tokens, device=device), depth_S])
            attends &= depth_S[:, None] - key_depth[None, :] < window
        return attends


def blocks_of_row(row: PackedRow, device: torch.device) -> list[AttentionBlock]:
    """Return the blocks of ``row`` in order; the shared prefix is a block of its own."""
    placed, start = [], 0
    if row.shared_prefix:
        size = len(row.shared_prefix)
        prefix = PrefixTree(ids=row.shared_prefix, depths=tuple(range(size)), parents=tuple(range(-1, size - 1)))
        placed.append(AttentionBlock(prefix, start=0, prefix_tokens=0, device=device))
        start = size
    for tree in row.trees:
        if row.shared_prefix or not placed or not placed[-1].add(tree):
            placed.append(AttentionBlock(tree, start=start, prefix_tokens=len(row.shared_prefix), device=device))
        start += len(tree.ids)
    return placed


@contextmanager
def packed_attention(module: PreTrainedModel) -> Iterator[None]:
    """Let ``module`` use packed attention inside the with-block.

    A training step stays inside until its backward pass has ended, because gradient checkpointing recomputes the layers there.
    """
    # If packed attention is on already, the search through all modules is skipped.
    configs = [] if module.config._attn_implementation == NAME else _configs(module)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def _configs(module: PreTrainedModel) -> list[PretrainedConfig]:
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
    attention_blocks: Sequence[AttentionBlock],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention block by block: query is 1 x H x N x D, key and value 1 x K x N x D, the result 1 x N x H x D.

    The options that some architectures pass are softcap and sliding_window. An architecture that does not pass keyword arguments
    on to its attention layers fails here, which the probe catches.
    """
    softcap: float | None = options.get("softcap")
    parts = []
    # split(), not slices: the backward pass of a slice fills a tensor as long as the row with zeros.
    sizes = [block.stop - block.start for block in attention_blocks]
    pieces = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    prefix_k = prefix_v = None
    for block, q, k, v in zip(attention_blocks, *pieces, strict=True):
        if block.copies > 1:
            q, k, v = (tensor[0].unflatten(1, (block.copies, block.size)).transpose(0, 1) for tensor in (q, k, v))
        if block.prefix_tokens and prefix_k is not None and prefix_v is not None:
            k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)
        elif prefix_k is None:
            prefix_k, prefix_v = k, v
        mask = block.mask(options.get("sliding_window"), v.dtype)  # under autocast, v has the type in which attention is computed
        if softcap is not None:
            parts.append(_as_row(_softcapped(q, k, v, mask, scaling, softcap)))
            continue
        grouped = k.shape[1] != q.shape[1]
        if grouped and q.device.type != "cpu" and (mask is not None or v.dtype.itemsize > 2):
            # On a GPU only the flash kernel supports grouped heads, and only without a mask and in half precision. Otherwise
            # PyTorch 2.11 to 2.13 would write the attention scores of all heads to memory.
            repeat, grouped = q.shape[1] // k.shape[1], False
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        parts.append(_as_row(found))
    return torch.cat(parts, dim=1), None


def _as_row(found_CxHxSxD: torch.Tensor) -> torch.Tensor:
    """Put the results of C copies of a block one after another: C x H x S x D -> 1 x CS x H x D."""
    return found_CxHxSxD.transpose(1, 2).flatten(0, 1)[None]


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, softcap: float
) -> torch.Tensor:
    """Compute attention with scores soft-capped to (-softcap, softcap), which no fused kernel supports (gemma2)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        mask = scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    weights = (scores + mask).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, _attend)
