"""Packed attention: each segment of a packed row attends to itself and to the row's shared prefix only.

The attention matrix of such a row is block-diagonal. The function is registered with transformers without a mask function, so
that no mask over the full row is made. A model's forward pass takes the row's ``PackedAttention`` as the keyword argument
``packed_row``, which transformers passes on through every layer to the attention function.

The segments are padded inside attention only: queries, keys and values are gathered into at most three groups of segments of
similar length, each group is one call of scaled_dot_product_attention, and the results are gathered back. So the number of
kernels depends neither on the number of segments nor on their lengths.

Shapes: N tokens of the row, H query heads, K key heads, D head size, G segments of a group, M tokens of its longest segment, P
tokens of the shared prefix, Q slots of all groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from lm_harmony.engine.layout import Integers, Layout
from lm_harmony.engine.length_groups import group_segments

NAME = "lm_harmony_packed"
"""Name of the attention function in transformers."""


class PackedAttention:
    """How the tokens of one packed row attend to each other: the groups, and the index tensors on the device of the model."""

    def __init__(self, layout: Layout) -> None:
        """Group the segments of ``layout``. Before the first layer, ``place`` must receive ``arrays`` on the device."""
        self.prefix = layout.prefix
        self.groups, slots_Q, back_N, ends_Q = group_segments(layout)
        in_order = len(slots_Q) == layout.tokens and bool((slots_Q == np.arange(layout.tokens)).all())
        self._gathers = not in_order
        self.arrays: tuple[Integers, ...] = (slots_Q, back_N, ends_Q, layout.positions_N[slots_Q])
        """Integer arrays that the model's device needs, to be copied together with the token ids."""
        self._masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor | None] = {}

    def place(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take ``arrays`` as tensors on the device of the model."""
        self._slots_Q, self._back_N, self._ends_Q, self._positions_Q = tensors

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        dropout: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Return 1 x N x H x D from the query 1 x H x N x D and the key and value 1 x K x N x D of a layer."""
        q, k, v = (self._padded(tensor) for tensor in (query, key, value))
        masks = self.masks(window, value.dtype)  # under autocast, the value has the type in which attention is computed
        parts, prefix_k, prefix_v = [], None, None
        for group_q, group_k, group_v, mask in zip(q, k, v, masks, strict=True):
            if prefix_k is not None and prefix_v is not None:
                copies = len(group_k)
                group_k = torch.cat([prefix_k.expand(copies, -1, -1, -1), group_k], dim=2)
                group_v = torch.cat([prefix_v.expand(copies, -1, -1, -1), group_v], dim=2)
            elif self.prefix:
                prefix_k, prefix_v = group_k, group_v
            if softcap is None:
                found = _attention(group_q, group_k, group_v, mask, scale=scale, dropout=dropout)
            else:
                found = _softcapped(group_q, group_k, group_v, mask, scale, softcap)
            parts.append(found.transpose(1, 2).flatten(0, 1))
        joined_QxHxD = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._gathers:
            joined_QxHxD = _FromSlots.apply(joined_QxHxD, self._back_N)  # type: ignore[no-untyped-call]
        return joined_QxHxD[None]

    def masks(self, window: int | None, dtype: torch.dtype) -> list[torch.Tensor | None]:
        """Return the mask of every group, see ``_mask``."""
        return [self._mask(index, window, dtype) for index in range(len(self.groups))]

    def _padded(self, tensor_1xHxNxD: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens of each group as G x H x M x D."""
        rows_NxHxD = tensor_1xHxNxD.squeeze(0).transpose(0, 1)
        if self._gathers:
            rows_NxHxD = _ToSlots.apply(rows_NxHxD, self._slots_Q, self._back_N)  # type: ignore[no-untyped-call]
        # split(), not slices: the backward pass of a slice fills a tensor as long as the row with zeros.
        sizes = [group.slots for group in self.groups]
        parts = (rows_NxHxD,) if len(sizes) == 1 else rows_NxHxD.split(sizes)
        return [
            part.unflatten(0, (group.segments, group.longest)).transpose(1, 2)
            for group, part in zip(self.groups, parts, strict=True)
        ]

    def _mask(self, index: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the mask G x 1 x M x (P + M) that is added to attention scores; None if attention is plain causal attention.

        It is made once for each type: PyTorch would convert a boolean mask into this one in every layer.
        """
        if not self.groups[index].masked(window):
            return None
        if (index, window, dtype) not in self._masks:
            attends = self._attends(index, window)
            added = torch.zeros(attends.shape, dtype=dtype, device=attends.device)
            self._masks[index, window, dtype] = added.masked_fill_(~attends, -torch.inf)[:, None]
        return self._masks[index, window, dtype]

    def _attends(self, index: int, window: int | None) -> torch.Tensor:
        """Return the boolean mask G x M x (P + M) of the tokens that each token attends to, computed on the device."""
        group, start = self.groups[index], sum(group.slots for group in self.groups[:index])
        shape, stop = (group.segments, group.longest), start + group.slots
        ends_GxM, positions_GxM = (all_Q[start:stop].view(shape) for all_Q in (self._ends_Q, self._positions_Q))
        slots_M = torch.arange(group.longest, device=ends_GxM.device)
        prefix = 0 if self.prefix and index == 0 else self.prefix
        attends = (slots_M[:, None] >= slots_M) & (slots_M[:, None] < ends_GxM[:, None, :])
        if prefix:
            attends = torch.cat([attends.new_ones(*shape, prefix), attends], dim=2)
        if window is not None and group.deepest >= window:
            keys_GxT = positions_GxM
            if prefix:
                keys_GxT = torch.cat([slots_M.new_ones(prefix).cumsum(0).expand(group.segments, -1) - 1, keys_GxT], dim=1)
            attends &= positions_GxM[:, :, None] - keys_GxT[:, None, :] < window
        return attends


class _ToSlots(torch.autograd.Function):
    """Gather tokens into padded slots. The gradient of padding is zero, so each token takes that of its own slot."""

    @staticmethod
    def forward(ctx: Any, rows_NxHxD: torch.Tensor, slots_Q: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        return rows_NxHxD.index_select(0, slots_Q)

    @staticmethod
    def backward(ctx: Any, grad_QxHxD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return grad_QxHxD.index_select(0, back_N), None, None


class _FromSlots(torch.autograd.Function):
    """Gather tokens back from padded slots. A copy, unlike the sum of PyTorch's own backward pass, is deterministic on a GPU."""

    @staticmethod
    def forward(ctx: Any, padded_QxHxD: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        ctx.slots = len(padded_QxHxD)
        return padded_QxHxD.index_select(0, back_N)

    @staticmethod
    def backward(ctx: Any, grad_NxHxD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (back_N,) = ctx.saved_tensors
        padded_QxHxD = grad_NxHxD.new_zeros(ctx.slots, *grad_NxHxD.shape[1:])
        return padded_QxHxD.index_copy_(0, back_N, grad_NxHxD), None


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, scale: float | None, dropout: float
) -> torch.Tensor:
    """Compute attention of a group with PyTorch's fused kernels."""
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type != "cpu" and (mask is not None or v.dtype.itemsize > 2):
        # On a GPU only the flash kernel supports grouped heads, and only without a mask and in half precision. Otherwise
        # PyTorch 2.11 to 2.13 would write the attention scores of all heads to memory.
        repeat, grouped = q.shape[1] // k.shape[1], False
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


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
    packed_row: PackedAttention,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute packed attention as transformers calls it; some architectures pass softcap and sliding_window.

    An architecture that does not pass keyword arguments on to its attention layers fails here, which the probe catches.
    """
    window, softcap = options.get("sliding_window"), options.get("softcap")
    found = packed_row.attend(query, key, value, scale=scaling, dropout=dropout, window=window, softcap=softcap)
    return found, None


AttentionInterface.register(NAME, _attend)
