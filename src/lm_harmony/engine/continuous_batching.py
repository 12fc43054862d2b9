"""Greedy decoding with continuous batching: a finished row leaves the batch at once and a waiting one takes its place.

The tokens that a decoding step generates are the input of the next one, so they stay on the device. The host reads them every few
steps. What a row has generated after its end is dropped then, so that answers do not depend on how often the host reads.

Shapes: B rows, N tokens of a packed row of contexts, V vocabulary, S steps since the host has read, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lm_harmony.engine.attention_function import attention_configs, packed_attention
from lm_harmony.engine.key_value_cache import ContextPass, KeyValueCache, TokenPass, past_key_values
from lm_harmony.engine.layout import context_layouts
from lm_harmony.engine.lm_head import lm_head_of
from lm_harmony.engine.memory import CPU_SCORING_TOKENS, halve_batch
from lm_harmony.engine.sequences import to_device
from lm_harmony.models.loading import LanguageModel

REFILL = 0.5
"""Share of the batch that must be free before waiting rows enter. Each entry computes their contexts in one forward pass."""
STEPS_PER_READ = 4
"""Decoding steps after which the host reads the tokens from a device whose kernels run while the host continues. It waits for the
device then. Each row generates up to three tokens after its end."""


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """A generated answer."""

    place: int
    """Index of the context that it answers."""
    written: tuple[int, ...]
    """Generated token ids, including the one that ended the answer."""


class NonFiniteLogits(ArithmeticError):
    """The largest logit of a row is NaN or infinite, so no token can be chosen."""

    def __init__(self, place: int, value: float) -> None:
        """Store the index of the context (``place``) and the ``value`` of its largest logit."""
        super().__init__(place, value)
        self.place, self.value = place, value


def check_finite(largest_B: torch.Tensor, *, rows: int) -> None:
    """Raise an error unless the largest logit of each row is finite (in a row that holds NaN, the largest is NaN).

    Args:
        largest_B: largest next-token logits, the same number of them for each of ``rows`` contexts.
        rows: number of contexts.

    Raises:
        NonFiniteLogits: a logit is not finite; ``place`` is the index of its context.
    """
    values = largest_B.tolist()
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise NonFiniteLogits(place * rows // len(values), value)


def supports_continuous_batching(module: PreTrainedModel) -> bool:
    """Tell whether every layer of the model caches the keys and values of all earlier tokens, or of those in a sliding window."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=module.config).layers)


def decode_greedily(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    is_finished: Callable[[Sequence[int]], bool],
    context_tokens: int = CPU_SCORING_TOKENS,
    steps_per_read: int | None = None,
) -> Iterator[FinishedRow]:
    """Yield each context's answer as soon as it has ended, not in the order of the contexts.

    Args:
        model: a model for which ``supports_continuous_batching`` holds, and whose packed forward passes are exact.
        contexts: token ids, none empty. Answers begin in this order.
        batch_size: largest number of rows; halved for the remaining contexts when memory runs out.
        max_new_tokens: longest answer in tokens.
        is_finished: the tokens that a row has generated so far -> whether its answer ends with the last one.
        context_tokens: about so many tokens of contexts are computed in one forward pass.
        steps_per_read: decoding steps after which the host reads the tokens; None for one on a CPU, else ``STEPS_PER_READ``.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    module, waiting = model.module, list(range(len(contexts)))[::-1]
    body = getattr(module, module.base_model_prefix)
    steps = steps_per_read or (1 if module.device.type == "cpu" else STEPS_PER_READ)
    longest, configs = max(map(len, contexts)) + max_new_tokens, attention_configs(module)
    batch = _Batch(module, min(batch_size, len(contexts)), longest, max_new_tokens, is_finished)
    while waiting or batch.rows:
        free = batch_size - len(batch.rows)
        entering = [waiting.pop() for _ in range(min(free, len(waiting)))] if free >= batch_size * REFILL else []
        try:
            with packed_attention(module, configs):
                for inputs in batch.enter(entering, contexts, context_tokens):
                    batch.first_tokens(body(**inputs).last_hidden_state)
                ended = batch.read_first_tokens() if entering else []
                while not ended:
                    for inputs in batch.steps(steps):
                        batch.advance(body(**inputs).last_hidden_state)
                    ended = batch.read_steps()
        except (RuntimeError, MemoryError, NonFiniteLogits) as error:
            # NaN spreads between contexts of a packed row. One at a time, the error names the context that has it.
            spread = isinstance(error, NonFiniteLogits) and entering and len(batch.rows) > 1
            # Rows of the batch start from their contexts again, because the cache may be half changed.
            waiting += [row.place for row in reversed(batch.rows)]
            batch_size = 1 if spread else halve_batch(batch_size, error)
            batch = _Batch(module, min(batch_size, len(waiting)), longest, max_new_tokens, is_finished)
            continue
        yield from ended


@dataclass(kw_only=True)
class _Row:
    """An answer that is being generated."""

    place: int
    """Index of its context."""
    context: int
    """Number of tokens of its context."""
    written: list[int] = field(default_factory=list)
    """Generated token ids; the last one is not in the cache yet."""
    ended: bool = False
    """Whether the answer has ended."""


class _Batch:
    """Rows that are generated together, in the order of their slots in the cache."""

    def __init__(
        self, module: PreTrainedModel, slots: int, longest: int, max_new_tokens: int, is_finished: Callable[[Sequence[int]], bool]
    ) -> None:
        self.rows: list[_Row] = []
        self._head = lm_head_of(module)
        self._cache, self._device = KeyValueCache(module, slots=slots, longest=longest), module.device
        self._past_key_values = past_key_values(self._cache)
        self._limit, self._is_finished = max_new_tokens, is_finished
        # The next input of each row, and its position, which is the number of tokens in the cache.
        self._tokens_B = torch.empty(0, dtype=torch.int64, device=self._device)
        self._lengths_B = self._tokens_B
        # Of the contexts of a pass: their lengths, and the place of the last token of each one in the packed row.
        self._entering_B = self._last_B = self._tokens_B
        # Tokens and their logits that were not read yet, of each step or of each pass over contexts.
        self._tokens_SxB: list[torch.Tensor] = []
        self._largest_SxB: list[torch.Tensor] = []

    def enter(self, places: Sequence[int], contexts: Sequence[Sequence[int]], tokens: int) -> Iterator[dict[str, Any]]:
        """Add rows, and yield the inputs of forward passes of about so many tokens over their contexts (``first_tokens``)."""
        passes = context_layouts([contexts[place] for place in places], tokens)
        # The rows are added before the first pass, so that none is lost when memory runs out.
        entering = [places[index] for indices, _ in passes for index in indices]
        self.rows += [_Row(place=place, context=len(contexts[place])) for place in entering]
        for _, layout in passes:
            cache_pass, last_B = self._cache.add_contexts(layout), layout.sources_L[np.cumsum(layout.counts) - 1]
            arrays = layout.ids_N, layout.positions_N, layout.counts, last_B, *cache_pass.arrays
            ids_N, positions_N, self._entering_B, self._last_B, *placed = to_device(self._device, *arrays)
            cache_pass.place(placed)
            yield self._inputs(ids_N[None], positions_N[None], cache_pass)

    def first_tokens(self, hidden_1xNxD: torch.Tensor) -> None:
        """Choose the first token of each row whose context was computed, from the hidden states of the pass."""
        tokens_B, largest_B = self._most_probable(hidden_1xNxD[0, self._last_B.to(hidden_1xNxD.device)])
        self._tokens_B = torch.cat([self._tokens_B, tokens_B])
        self._lengths_B = torch.cat([self._lengths_B, self._entering_B])
        self._tokens_SxB.append(tokens_B)
        self._largest_SxB.append(largest_B)

    def read_first_tokens(self) -> list[FinishedRow]:
        """Read the first tokens of all rows that entered; return the answers that have ended."""
        tokens_B, largest_B = torch.cat(self._tokens_SxB), torch.cat(self._largest_SxB)
        self._tokens_SxB, self._largest_SxB = [], []
        return self._read([tokens_B], [largest_B], len(self.rows) - len(tokens_B))

    def steps(self, steps: int) -> Iterator[dict[str, Any]]:
        """Yield the inputs of up to ``steps`` forward passes, each of which generates a token in each row (``advance``)."""
        longest = max(row.context + len(row.written) for row in self.rows)
        # No step goes beyond the longest allowed answer, because the model may have no position for it.
        steps = min(steps, self._limit - max(len(row.written) for row in self.rows))
        for step in range(steps):
            cache_pass = self._cache.add_tokens(self._lengths_B, longest + step)
            yield self._inputs(self._tokens_B[:, None], self._lengths_B[:, None], cache_pass)

    def advance(self, hidden_Bx1xD: torch.Tensor) -> None:
        """Choose the next token of each row from its hidden state."""
        self._tokens_B, largest_B = self._most_probable(hidden_Bx1xD.squeeze(1))
        self._lengths_B = self._lengths_B + 1
        self._tokens_SxB.append(self._tokens_B)
        self._largest_SxB.append(largest_B)

    def read_steps(self) -> list[FinishedRow]:
        """Read the tokens of the last steps; return the answers that have ended."""
        tokens_SxB, self._tokens_SxB = self._tokens_SxB, []
        largest_SxB, self._largest_SxB = self._largest_SxB, []
        return self._read(tokens_SxB, largest_SxB, 0)

    def _inputs(self, ids: torch.Tensor, positions: torch.Tensor, cache_pass: ContextPass | TokenPass) -> dict[str, Any]:
        """Return the arguments of a forward pass of the model's body; ids and positions are 1 x N of contexts or B x 1."""
        cache = {"past_key_values": self._past_key_values, "use_cache": True, "packed_row": cache_pass}
        return {"input_ids": ids, "position_ids": positions, **cache}

    def _most_probable(self, hidden_BxD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable next token of each row, the first of equally probable ones, and its logit."""
        largest_B, tokens_B = self._head.logits(hidden_BxD).max(dim=-1)
        return tokens_B.to(self._device), largest_B.to(self._device)  # the output layer may be on another device

    def _read(self, tokens_SxB: list[torch.Tensor], largest_SxB: list[torch.Tensor], first: int) -> list[FinishedRow]:
        """Read the tokens of the rows from number ``first`` on, and drop the rows that have ended; return their answers.

        Raises:
            NonFiniteLogits: a logit is NaN or infinite.
        """
        # Tokens and logits travel in one copy: the bits of the logits as integers.
        bits = [largest_B.float().view(torch.int32).long() for largest_B in largest_SxB]
        tokens, values = torch.stack([*tokens_SxB, *bits]).cpu().numpy().reshape(2, len(bits), -1)
        logits, ended = values.astype(np.int32).view(np.float32), []
        for step_tokens, step_logits in zip(tokens.tolist(), logits.tolist(), strict=True):
            for row, token, logit in zip(self.rows[first:], step_tokens, step_logits, strict=True):
                if row.ended:
                    continue
                if not math.isfinite(logit):
                    raise NonFiniteLogits(row.place, logit)
                row.written.append(token)
                if len(row.written) >= self._limit or self._is_finished(row.written):
                    row.ended = True
                    ended.append(FinishedRow(place=row.place, written=tuple(row.written)))
        if ended:
            order = self._cache.keep([index for index, row in enumerate(self.rows) if not row.ended])
            self.rows = [self.rows[index] for index in order]
            (order_B,) = to_device(self._device, order)
            self._tokens_B, self._lengths_B = self._tokens_B[order_B], self._lengths_B[order_B]
        return ended
