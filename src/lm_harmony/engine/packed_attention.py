"""Attention inside the segments of one long row: a trunk that all see, then trees that see the trunk and themselves.

Registered with transformers as an attention function without a mask function, so that no mask over the whole row is ever made.
Shapes: N tokens of the row, H query heads, K key heads, D head size; S tokens of a segment, P of the trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from lm_harmony.engine.padded_forward import on_device
from lm_harmony.engine.prefix_tree import PackedRow, PrefixTree

NAME = "lm_harmony_segments"


class AttentionBlock:
    """A tree's place in the row, and who sees whom in it; or that of several chains of one length, which take one call."""

    def __init__(self, tree: PrefixTree, *, start: int, prefix_tokens: int, device: torch.device) -> None:
        """Place ``tree`` at ``start`` behind a trunk of ``trunk`` tokens."""
        self.start, self.size, self.prefix_tokens, self.copies = start, len(tree.ids), prefix_tokens, 1
        self.is_chain = tree.is_chain
        self._tree, self._device = tree, device
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = {}

    @property
    def stop(self) -> int:
        """Where the next segment starts."""
        return self.start + self.copies * self.size

    def takes(self, tree: PrefixTree) -> bool:
        """Take ``tree`` in, which follows in the row, if it is a chain as long as this one and neither follows a trunk."""
        alike = self.is_chain and self.prefix_tokens == 0 and len(tree.ids) == self.size and tree.is_chain
        self.copies += alike
        return alike

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return what is added to the attention scores, S x (P + S): 0 where a token sees another, else -inf; None: plain causal.

        It is made once and in the type of the values: PyTorch would turn a mask of booleans into this one in every layer.

        Args:
            window: sliding window in tokens counted by depth, the token itself included; None: no window.
            dtype: type that attention computes in.
        """
        if (window, dtype) not in self._masks:
            sees = self._sees(window)
            added = None if sees is None else torch.zeros(sees.shape, dtype=dtype, device=self._device)
            self._masks[window, dtype] = None if added is None or sees is None else added.masked_fill_(~sees, -torch.inf)
        return self._masks[window, dtype]

    def _sees(self, window: int | None) -> torch.Tensor | None:
        """Return which of the trunk's and the segment's tokens each token of the segment sees; None: plain causal attention.

        Everything is computed on the device, so that a training step copies nothing but its token ids.
        """
        size, device = self.size, self._device
        narrow = window is not None and max(self._tree.depths) >= window
        if self.is_chain and self.prefix_tokens == 0 and not narrow:
            return None
        place_S = torch.arange(size, device=device)
        sees_SxS = place_S[None, :] <= place_S[:, None]
        depth_S = place_S + self.prefix_tokens
        if not self.is_chain:
            # A token's descendants follow it without a gap: it is seen by those up to the end of its subtree.
            ends_S, depth_S = on_device(device, self._tree.subtree_ends(), self._tree.depths)
            sees_SxS &= place_S[:, None] < ends_S[None, :]
        sees = torch.cat([sees_SxS.new_ones(size, self.prefix_tokens), sees_SxS], dim=1)
        if narrow and window is not None:
            there = torch.cat([torch.arange(self.prefix_tokens, device=device), depth_S])
            sees &= depth_S[:, None] - there[None, :] < window
        return sees


def blocks_of_row(row: PackedRow, device: torch.device) -> list[AttentionBlock]:
    """Place the trunk (as a segment of its own) and the trees of ``row``."""
    placed, start = [], 0
    if row.shared_prefix:
        size = len(row.shared_prefix)
        trunk = PrefixTree(ids=row.shared_prefix, depths=tuple(range(size)), parents=tuple(range(-1, size - 1)))
        placed.append(AttentionBlock(trunk, start=0, prefix_tokens=0, device=device))
        start = size
    for tree in row.trees:
        if row.shared_prefix or not placed or not placed[-1].takes(tree):
            placed.append(AttentionBlock(tree, start=start, prefix_tokens=len(row.shared_prefix), device=device))
        start += len(tree.ids)
    return placed


@contextmanager
def packed_attention(module: PreTrainedModel) -> Iterator[None]:
    """Let ``module`` attend inside the segments that its forward pass is given as ``segments``, for the length of a block.

    A training step stays inside until its backward pass has ended: gradient checkpointing computes the layers once more there.
    """
    # Inside such a block already: a search through all modules is saved.
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
    """Return the configurations that the attention layers of ``module`` read (a nested text model has its own)."""
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
    softcap: float | None = None,
    sliding_window: int | None = None,
    *,
    segments: Sequence[AttentionBlock],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each segment; query is 1 x H x N x D, key and value 1 x K x N x D, the result 1 x N x H x D.

    An architecture that does not hand the segments on to its attention layers fails here, in the probe.
    """
    parts = []
    # split(), not slices: the backward pass of a slice fills a tensor as long as the row with zeros.
    sizes = [segment.stop - segment.start for segment in segments]
    pieces = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    trunk_k = trunk_v = None
    for segment, q, k, v in zip(segments, *pieces, strict=True):
        if segment.copies > 1:
            q, k, v = (tensor[0].unflatten(1, (segment.copies, segment.size)).transpose(0, 1) for tensor in (q, k, v))
        if segment.prefix_tokens and trunk_k is not None and trunk_v is not None:
            k, v = torch.cat([trunk_k, k], dim=2), torch.cat([trunk_v, v], dim=2)
        elif trunk_k is None:
            trunk_k, trunk_v = k, v
        mask = segment.mask(sliding_window, v.dtype)  # under autocast v has the type that attention computes in
        if softcap is not None:
            parts.append(_as_row(_softcapped(q, k, v, mask, scaling, softcap)))
            continue
        grouped = k.shape[1] != q.shape[1]
        if grouped and q.device.type != "cpu" and (mask is not None or v.dtype.itemsize > 2):
            # On a GPU only the flash kernel takes grouped heads. It takes no mask, and half precision alone: for all else PyTorch
            # 2.11 to 2.13 would compute every score of every head in memory.
            repeat, grouped = q.shape[1] // k.shape[1], False
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        parts.append(_as_row(found))
    return torch.cat(parts, dim=1), None


def _as_row(found_CxHxSxD: torch.Tensor) -> torch.Tensor:
    """Lay what C copies of a segment found one after another: 1 x CS x H x D."""
    return found_CxHxSxD.transpose(1, 2).flatten(0, 1)[None]


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, softcap: float
) -> torch.Tensor:
    """Attend with scores squashed into (-softcap, softcap), which no fused kernel does (gemma2)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        mask = scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    weights = (scores + mask).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, _attend)
