"""Attention inside the segments of one long row: a trunk that all see, then trees that see the trunk and themselves.

Registered with transformers as an attention function without a mask function, so that no mask over the whole row is ever made.
Shapes: N tokens of the row, H query heads, K key heads, D head size; S tokens of a segment, P of the trunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from lm_harmony.engine.trees import Row, Tree

NAME = "lm_harmony_segments"


class Segment:
    """One tree's place in the row, and who sees whom in it."""

    def __init__(self, tree: Tree, *, start: int, trunk: int, device: torch.device) -> None:
        """Place ``tree`` at ``start`` behind a trunk of ``trunk`` tokens."""
        self.start, self.stop, self.trunk = start, start + len(tree.ids), trunk
        self._tree, self._device = tree, device
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return what each token of the segment sees, S x (P + S), True = sees; None: plain causal attention.

        Args:
            window: sliding window in tokens counted by depth, the token itself included; None: no window.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> torch.Tensor | None:
        depths = self._tree.depths
        narrow = window is not None and max(depths) >= window
        if self._tree.is_chain and self.trunk == 0 and not narrow:
            return None
        size = len(depths)
        own_SxS = torch.zeros(size, size, dtype=torch.bool)
        for node, parent in enumerate(self._tree.parents):  # parents stand before their children
            if parent >= 0:
                own_SxS[node] = own_SxS[parent]
            own_SxS[node, node] = True
        sees = torch.cat([torch.ones(size, self.trunk, dtype=torch.bool), own_SxS], dim=1)
        if narrow and window is not None:
            here = torch.tensor(depths)
            there = torch.cat([torch.arange(self.trunk), here])
            sees &= here[:, None] - there[None, :] < window
        return sees.to(self._device)


_segments: ContextVar[list[Segment] | None] = ContextVar("segments", default=None)


def segments_of(row: Row, device: torch.device) -> list[Segment]:
    """Place the trunk (as a segment of its own) and the trees of ``row``."""
    placed, start = [], 0
    if row.trunk:
        size = len(row.trunk)
        trunk = Tree(ids=row.trunk, depths=tuple(range(size)), parents=tuple(range(-1, size - 1)))
        placed.append(Segment(trunk, start=0, trunk=0, device=device))
        start = size
    for tree in row.trees:
        placed.append(Segment(tree, start=start, trunk=len(row.trunk), device=device))
        start += len(tree.ids)
    return placed


@contextmanager
def attention_in(module: PreTrainedModel, segments: list[Segment]) -> Iterator[None]:
    """Let ``module`` attend inside ``segments`` for the length of a block."""
    configs = _configs(module)
    before = [config._attn_implementation for config in configs]
    token = _segments.set(segments)
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        _segments.reset(token)
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each segment; query is 1 x H x N x D, key and value 1 x K x N x D, the result 1 x N x H x D."""
    segments = _segments.get()
    assert segments is not None, "segment attention outside attention_in()"
    parts = []
    # split(), not slices: the backward pass of a slice fills a tensor as long as the row with zeros.
    sizes = [segment.stop - segment.start for segment in segments]
    pieces = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    trunk_k = trunk_v = None
    for segment, q, k, v in zip(segments, *pieces, strict=True):
        if segment.trunk and trunk_k is not None and trunk_v is not None:
            k, v = torch.cat([trunk_k, k], dim=2), torch.cat([trunk_v, v], dim=2)
        elif trunk_k is None:
            trunk_k, trunk_v = k, v
        mask = segment.mask(sliding_window)
        if softcap is not None:
            parts.append(_softcapped(q, k, v, mask, scaling, softcap))
            continue
        grouped = k.shape[1] != q.shape[1]
        parts.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, softcap: float
) -> torch.Tensor:
    """Attend with scores squashed into (-softcap, softcap), which no fused kernel does (gemma2)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    sees = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril() if mask is None else mask
    weights = scores.masked_fill(~sees, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, _attend)
