"""Packed attention: each segment of a packed row attends to itself and to the row's shared prefix only.

The attention matrix of such a row is block-diagonal. ``attention_function`` lets the layers of a model call it.

The segments are padded inside attention only: queries, keys and values are gathered into at most three groups of segments of
similar length, each group is one call of scaled_dot_product_attention, and the results are gathered back. So the number of
kernels depends neither on the number of segments nor on their lengths. A short row is one call with a mask, without gathers.

Shapes: N tokens of the row, H query heads, K key heads, D head size, G segments of a group, M tokens of its longest segment, P
tokens of the shared prefix, Q slots of all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np
import torch

from lm_harmony.engine.attention_kernels import (
    DEFAULT_KERNELS,
    AttentionKernels,
    as_groups,
    as_slots,
    attention,
    attention_with_sums,
    chain_attention,
    from_slots,
    merged_attention,
    softcapped_attention,
    to_slots,
    varlen_attention,
)
from lm_harmony.engine.layout import Integers, Layout
from lm_harmony.engine.length_groups import group_segments

_Groups = Sequence[torch.Tensor]
"""Queries, keys or values of each group, G x H x M x D."""


class PackedAttention:
    """How the tokens of one packed row attend to each other: the groups, and the index tensors on the device of the model."""

    def __init__(self, layout: Layout, kernels: AttentionKernels = DEFAULT_KERNELS, *, dropout: bool = False) -> None:
        """Group the segments of ``layout``. Before the first layer, ``place`` must receive ``arrays`` on the device."""
        self.prefix, self._kernels = layout.prefix, kernels
        self.groups, slots_Q, back_N, ends_Q = group_segments(layout, dropout=dropout)
        self._shapes = [(group.segments, group.longest) for group in self.groups]
        self._gathers = len(slots_Q) != layout.tokens or bool((slots_Q != np.arange(layout.tokens)).any())
        self._plain, self._longest = layout.prefix == 0 and bool(layout.chains.all()), int(layout.segment_sizes.max())
        bounds = np.append(layout.starts_S, layout.tokens)
        self.arrays: tuple[Integers, ...] = (slots_Q, back_N, ends_Q, layout.positions_N[slots_Q], bounds)
        """Integer arrays that the model's device needs, to be copied together with the token ids."""

    def place(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take ``arrays`` as tensors on the device of the model."""
        self._slots_Q, self._back_N, self._ends_Q, self._positions_Q, bounds = self._tensors = tensors
        self._bounds = bounds.int() if self._kernels.varlen else bounds
        self._masks: dict[tuple[int, int | None, torch.dtype, bool], torch.Tensor | None] = {}
        self._elsewhere: dict[torch.device, Self] = {}

    def on(self, device: torch.device) -> Self:
        """Return this row with its tensors on ``device``, where a layer computes; they are copied there once."""
        if self._slots_Q.device != device and device not in self._elsewhere:
            self._elsewhere[device] = copied = copy(self)
            copied.place([tensor.to(device, non_blocking=True) for tensor in self._tensors])
        return self._elsewhere.get(device, self)

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
        plain = self._plain and softcap is None and not dropout
        if self._kernels.varlen and plain:
            q_NxHxD, k_NxKxD, v_NxKxD = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
            inputs = q_NxHxD, k_NxKxD, v_NxKxD, self._bounds
            return varlen_attention(*inputs, longest=self._longest, window=window, scale=scale)[None]
        alike = query.dtype == value.dtype and query.shape[-1] == value.shape[-1]
        if plain and alike and query.device.type == "cpu" and self.groups[0].chains and not self._narrow(window):
            gathers = (self._slots_Q, self._back_N) if self._gathers else None
            return chain_attention(query, key, value, self._shapes, gathers, scale)[None]
        q, k, v = (self._padded(tensor) for tensor in (query, key, value))
        if self.prefix and self._kernels.merged_prefix and softcap is None and not self._narrow(window):
            parts = self._merged(q, k, v, scale)
        else:
            parts = self._masked(q, k, v, window, softcap, scale=scale, dropout=dropout)
        slots_QxHxD = as_slots(parts)
        return (from_slots(slots_QxHxD, self._back_N) if self._gathers else slots_QxHxD)[None]

    def _narrow(self, window: int | None) -> bool:
        """Tell whether a sliding window hides any token from another one of its segment."""
        return window is not None and any(group.deepest >= window for group in self.groups)

    def _masked(
        self,
        q: _Groups,
        k: _Groups,
        v: _Groups,
        window: int | None,
        softcap: float | None,
        *,
        scale: float | None,
        dropout: float,
    ) -> list[torch.Tensor]:
        """Return the attention of each group, with the keys of the shared prefix before those of each segment."""
        masks = self.masks(window, v[0].dtype)  # under autocast, the value has the type in which attention is computed
        parts = []
        for index, (group_q, group_k, group_v, mask) in enumerate(zip(q, k, v, masks, strict=True)):
            if self.prefix and index:
                group_k = torch.cat([k[0].expand(len(group_q), -1, -1, -1), group_k], dim=2)
                group_v = torch.cat([v[0].expand(len(group_q), -1, -1, -1), group_v], dim=2)
            if softcap is None:
                parts.append(attention(group_q, group_k, group_v, mask, scale=scale, dropout=dropout))
            else:
                parts.append(softcapped_attention(group_q, group_k, group_v, mask, scale=scale, softcap=softcap))
        return parts

    def _merged(self, q: _Groups, k: _Groups, v: _Groups, scale: float | None) -> list[torch.Tensor]:
        """Return the attention of each group from that to the shared prefix, which is not copied, and that to its segments."""
        parts = [attention(q[0], k[0], v[0], None, scale=scale, dropout=0.0)]
        masks = self.masks(None, v[0].dtype, prefix=False)
        for group_q, group_k, group_v, mask in zip(q[1:], k[1:], v[1:], masks[1:], strict=True):
            own, own_sums = attention_with_sums(group_q, group_k, group_v, mask, causal=mask is None, scale=scale)
            # All queries of the group are one segment here: heads x (segments x slots).
            as_one = group_q.transpose(0, 1).flatten(1, 2)[None]
            before, before_sums = attention_with_sums(as_one, k[0], v[0], None, causal=False, scale=scale)
            shape = own.shape[0], own.shape[2]
            before, before_sums = (part[0].unflatten(1, shape).transpose(0, 1) for part in (before, before_sums))
            parts.append(merged_attention(own, own_sums, before, before_sums))
        return parts

    def masks(self, window: int | None, dtype: torch.dtype, *, prefix: bool = True) -> list[torch.Tensor | None]:
        """Return for each group the mask G x 1 x M x (P + M) that is added to attention scores; None for plain causal attention.

        A mask is made once for each type: PyTorch would convert a boolean mask into this one in every layer.

        Args:
            window: sliding window in tokens, including the token itself; None for no window.
            dtype: type in which attention is computed.
            prefix: whether the keys of the shared prefix come before those of each segment.
        """
        for index, group in enumerate(self.groups):
            if (index, window, dtype, prefix) in self._masks:
                continue
            before = self.prefix if prefix and index else 0
            needed = bool(before) or not group.chains or (window is not None and group.deepest >= window)
            self._masks[index, window, dtype, prefix] = self._mask(index, window, dtype, before) if needed else None
        return [self._masks[index, window, dtype, prefix] for index in range(len(self.groups))]

    def _padded(self, tensor_1xHxNxD: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens of each group as G x H x M x D."""
        rows_NxHxD = tensor_1xHxNxD.squeeze(0).transpose(0, 1)
        if self._gathers:
            rows_NxHxD = to_slots(rows_NxHxD, self._slots_Q, self._back_N)
        return as_groups(rows_NxHxD, self._shapes)

    def _mask(self, index: int, window: int | None, dtype: torch.dtype, prefix: int) -> torch.Tensor:
        """Return the mask of one group, computed on the device."""
        attends = self._attends(index, window, prefix)
        # The kernels of a GPU need rows that begin at multiples of 16 bytes.
        width = -(-attends.shape[2] // 8) * 8
        added = torch.zeros(*attends.shape[:2], width, dtype=dtype, device=attends.device)[..., : attends.shape[2]]
        return added.masked_fill_(~attends, -torch.inf)[:, None]

    def _attends(self, index: int, window: int | None, prefix: int) -> torch.Tensor:
        """Return the boolean mask G x M x (P + M) of the tokens that each token attends to."""
        group, start = self.groups[index], sum(group.slots for group in self.groups[:index])
        shape, stop = (group.segments, group.longest), start + group.slots
        ends_GxM, positions_GxM = (all_Q[start:stop].view(shape) for all_Q in (self._ends_Q, self._positions_Q))
        slots_M = torch.arange(group.longest, device=ends_GxM.device)
        attends = (slots_M[:, None] >= slots_M) & (slots_M[:, None] < ends_GxM[:, None, :])
        if prefix:
            attends = torch.cat([attends.new_ones(*shape, prefix), attends], dim=2)
        if window is not None and group.deepest >= window:
            keys_GxT = positions_GxM
            if prefix:
                before_GxP = torch.arange(prefix, device=ends_GxM.device).expand(group.segments, -1)
                keys_GxT = torch.cat([before_GxP, keys_GxT], dim=1)
            attends &= positions_GxM[:, :, None] - keys_GxT[:, None, :] < window
        return attends
