"""Key-value cache of the answers that are generated together, in memory that is allocated in advance, and attention over it.

Every answer (row) has a slot of the cache, and token i of the row has column i of the slot. Keys and values are written in place,
so a decoding step neither copies nor concatenates what the cache holds. The rows in use have the first slots. If a row leaves,
the last row takes its slot. If a row needs more columns than the slots have, all slots get more.

Contexts are computed as a packed row, without padding and with what they share computed once. Each pass after that computes one
token of each row. Both kinds of passes are given to the model as the keyword argument ``packed_row``, so they go through the same
attention function. Layers with a sliding window keep all columns too, and a mask hides those outside the window.

Shapes: B rows in use, T columns in use, N tokens of a packed row, L tokens of all contexts, K key heads, H query heads, D head
size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lm_harmony.engine.attention_kernels import attention, softcapped_attention
from lm_harmony.engine.layout import Layout
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.sequences import to_device

COLUMNS = 32
"""The number of columns of a slot is a multiple of this. When they are used up, the cache is copied once."""
ALIGNMENT = 8
"""Attention reads a multiple of this number of columns. For other numbers, the kernels of a GPU copy the mask in every layer."""


class KeyValueCache:
    """Keys and values of all layers of a model."""

    def __init__(self, module: PreTrainedModel, *, slots: int, longest: int) -> None:
        """Make an empty cache. Memory is allocated when the first contexts are computed.

        Args:
            module: the model.
            slots: largest number of rows.
            longest: largest number of tokens that a row may have.
        """
        self.windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=module.config).layers]
        """Sliding window of each layer in tokens; None for no window."""
        self.device, self.rows, self.columns = module.device, 0, 0
        self.current: ContextPass | TokenPass = TokenPass(torch.empty(0, dtype=torch.int64, device=self.device), columns=0)
        """Forward pass whose keys and values are written."""
        self._slots, self._longest = slots, math.ceil(longest / ALIGNMENT) * ALIGNMENT
        # Of each layer the keys and the values, each slots x K x columns x D: attention reads them head by head, and what a head
        # reads should be one piece of memory.
        self._stored: list[list[torch.Tensor]] = [[] for _ in self.windows]

    def add_contexts(self, layout: Layout) -> ContextPass:
        """Begin a pass over the contexts of new rows: the sequences of ``layout``, with each token as the source of a label."""
        self._reserve(max(layout.counts))
        self.current = ContextPass(layout, self.rows)
        self.rows += len(layout.counts)
        return self.current

    def add_tokens(self, lengths_B: torch.Tensor, longest: int) -> TokenPass:
        """Begin a pass over one new token of each row.

        Args:
            lengths_B: number of cached tokens of each row, on the device of the model; it is the column of the new token.
            longest: largest number of tokens of a row, with the new one.
        """
        self._reserve(longest)
        self.current = TokenPass(lengths_B, math.ceil(longest / ALIGNMENT) * ALIGNMENT)
        return self.current

    def _reserve(self, columns: int) -> None:
        """Make sure that each slot has so many columns. New ones of rows in use are zero, because NaN would spread from them."""
        if columns <= self.columns:
            return
        self.columns = min(math.ceil(columns / COLUMNS) * COLUMNS, self._longest)
        for stored in self._stored:
            for index, old in enumerate(stored):
                new = stored[index] = old.new_empty(self._slots, old.shape[1], self.columns, old.shape[3])
                new[: self.rows, :, : old.shape[2]] = old[: self.rows]
                new[: self.rows, :, old.shape[2] :] = 0

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Drop all other rows, and return the kept ones in the order of their new slots."""
        slots = range(len(kept))
        moved = [row for row in kept if row not in slots]
        free = [slot for slot in slots if slot not in set(kept)]
        if moved:
            moved_M, free_M = to_device(self.device, moved, free)
            for tensor in chain.from_iterable(self._stored):
                free_here, moved_here = free_M.to(tensor.device), moved_M.to(tensor.device)
                tensor.index_copy_(0, free_here, tensor.index_select(0, moved_here))
        self.rows = len(kept)
        taken = dict(zip(free, moved, strict=True))
        return [taken.get(slot, slot) for slot in slots]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the current pass in one layer, 1 x K x N x D of contexts or B x K x 1 x D of tokens.

        Returns:
            Keys and values that the tokens of the pass attend to: those of the packed row, or B x K x T x D.
        """
        if not self._stored[layer]:
            self._stored[layer] = [new.new_empty(self._slots, new.shape[1], self.columns, new.shape[3]) for new in (key, value)]
        current = self.current.on(key.device)
        if isinstance(current, TokenPass):
            current.window = self.windows[layer]
        keys, values = self._stored[layer]
        return current.write(keys, key), current.write(values, value)


def past_key_values(cache: KeyValueCache) -> Cache:
    """Return ``cache`` as transformers takes it. ``cache`` has no reference to it, so that memory is freed without a search."""
    return Cache(layers=[_CachedLayer(cache, layer) for layer in range(len(cache.windows))])


class _CachedLayer(DynamicLayer):
    """One layer of a ``KeyValueCache``."""

    def __init__(self, cache: KeyValueCache, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self._layer = cache, layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values, and return those to attend to."""
        return self._cache.write(self._layer, key_states, value_states)

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self._cache.current.columns


class ContextPass(PackedAttention):
    """A forward pass over the contexts of new rows as a packed row, whose keys and values are copied into their slots."""

    def __init__(self, layout: Layout, first: int) -> None:
        """Describe the pass over ``layout``; ``first`` is the slot of its first context."""
        super().__init__(layout)
        self.columns = max(layout.counts)
        self._rows = slice(first, first + len(layout.counts))
        slots_L = np.repeat(np.arange(self._rows.start, self._rows.stop), layout.counts)
        self.arrays = (*self.arrays, layout.sources_L, slots_L, layout.positions_N[layout.sources_L])

    def place(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take ``arrays`` as tensors on the device of the model."""
        *own, self._sources_L, self._slots_L, self._columns_L = tensors
        super().place(own)
        self._tensors = tensors

    def write(self, cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write the ``new`` keys or values of a layer, 1 x K x N x D, and return them: contexts attend to themselves only."""
        # NaN would spread from masked columns too: a slot may hold that of new memory, or of tokens after the end of a row.
        cached[self._rows] = 0
        cached[self._slots_L, :, self._columns_L] = new[0].transpose(0, 1)[self._sources_L]
        return new


class TokenPass:
    """A forward pass over one new token of each row, whose keys and values are written into the cache, and their attention."""

    def __init__(self, lengths_B: torch.Tensor, columns: int) -> None:
        """Describe the pass.

        Args:
            lengths_B: column of each row's new token.
            columns: number of columns that the pass reads, T.
        """
        self.columns = columns
        self.window: int | None = None
        """Sliding window of the layer that is computed, by the model's configuration."""
        self._lengths_B = lengths_B
        # For each number of key heads the places of the new tokens if all columns of the cache are joined one after another.
        self._places: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}
        self._elsewhere: dict[torch.device, TokenPass] = {}

    def on(self, device: torch.device) -> TokenPass:
        """Return this pass with its tensors on ``device``, where a layer computes; they are copied there once."""
        if device != self._lengths_B.device and device not in self._elsewhere:
            self._elsewhere[device] = TokenPass(self._lengths_B.to(device, non_blocking=True), self.columns)
        return self._elsewhere.get(device, self)

    def write(self, cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write the ``new`` keys or values of a layer, B x K x 1 x D; return those to attend to, B x K x T x D."""
        heads, columns = cached.shape[1:3]
        if heads not in self._places:
            firsts_BK = torch.arange(0, len(new) * heads * columns, columns, device=new.device)
            self._places[heads] = (firsts_BK.view(-1, heads) + self._lengths_B[:, None]).flatten()
        cached.flatten(0, 2).index_copy_(0, self._places[heads], new.flatten(0, 2))
        return cached[: len(new), :, : self.columns]

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
        """Return B x 1 x H x D from the query B x H x 1 x D and the keys and values that ``write`` returned.

        Raises:
            ValueError: ``window`` is not that of the model's configuration, so another kind of attention is expected.
        """
        if window != self.window:
            raise ValueError(f"sliding_window = {window} of an attention layer differs from its cache's ({self.window})")
        mask, heads = self._mask(window, value.dtype), query.shape[1]
        if heads != key.shape[1]:
            # Query heads that share a key head become its queries, so that keys and values are not repeated.
            query = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        if softcap is None:
            found = attention(query, key, value, mask, scale=scale, dropout=dropout)
        else:
            found = softcapped_attention(query, key, value, mask, scale=scale, softcap=softcap)
        return found.transpose(1, 2) if found.shape[1] == heads else found.reshape(len(query), 1, heads, -1)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask that is added to attention scores, B x 1 x 1 x T, made once for all layers with the same window."""
        if (window, dtype) not in self._masks:
            # The new token attends to itself and to all earlier ones of its row.
            own, columns_T = self._lengths_B[:, None, None, None], torch.arange(self.columns, device=self._lengths_B.device)
            hidden = columns_T > own if window is None else (columns_T > own) | (columns_T <= own - window)
            shown = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window, dtype] = shown.masked_fill_(hidden, -torch.inf)
        return self._masks[window, dtype]
