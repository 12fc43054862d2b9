"""Greedy decoding with continuous batching: a finished row leaves the batch at once and a waiting one takes its place.

The batch lives in a key-value cache that is padded on the left. When enough rows have left, the next contexts are computed
together and their cache is concatenated to that of the batch. Columns of the cache that hold only padding are cut off.

Shapes: B rows, T cached positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lm_harmony.engine.memory import halve_batch
from lm_harmony.models.loading import LanguageModel

REFILL = 0.5
"""Share of the batch that must be free before waiting rows enter. Each entry computes their contexts in one forward pass."""


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """A generated answer."""

    place: int
    """Index of the context that it answers."""
    written: tuple[int, ...]
    """Generated token ids, including the one that ended the answer."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows that are being generated."""

    places: tuple[int, ...]
    """Index of the context of each row."""
    written: tuple[tuple[int, ...], ...]
    """Generated token ids of each row; the last one is not in the cache yet."""
    cache: DynamicCache
    """Keys and values of all tokens before the last."""
    mask_BxT: torch.Tensor
    """1 where the cache holds a token of the row, 0 where it holds padding."""


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
    """Tell whether every layer of the model has a plain key-value cache, whose rows can be concatenated and dropped."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=module.config).layers)


def decode_greedily(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    is_finished: Callable[[Sequence[tuple[int, ...]]], list[bool]],
) -> Iterator[FinishedRow]:
    """Yield each context's answer as soon as it has ended, not in the order of the contexts.

    Args:
        model: a model for which ``supports_continuous_batching`` holds.
        contexts: token ids, none empty; sorted by length they need least padding.
        batch_size: largest number of rows; halved for the remaining contexts when memory runs out.
        max_new_tokens: longest answer in tokens.
        is_finished: generated token ids of each row -> whether it has ended.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    module, waiting = model.module, list(range(len(contexts)))[::-1]
    batch: _Batch | None = None
    while waiting or batch is not None:
        active = len(batch.places) if batch else 0
        entering = waiting[-(batch_size - active) :][::-1] if waiting and active <= batch_size * (1 - REFILL) else []
        try:
            computed, ids = _next_inputs(batch) if batch and not entering else _first_inputs(module, entering, contexts)
            # Positions of the inputs; a row's padding does not count.
            positions = (computed.mask_BxT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            masks = {"attention_mask": computed.mask_BxT, "position_ids": positions}
            output: Any = module(input_ids=ids, **masks, past_key_values=computed.cache, use_cache=True, logits_to_keep=1)
            computed = _with_next_tokens(computed, output.logits[:, -1])
            batch = _concatenated(batch, computed) if batch and entering else computed
        except (RuntimeError, MemoryError) as error:
            batch_size = halve_batch(batch_size, error)
            # Rows of the batch start from their contexts again, because the cache may be half changed.
            waiting += reversed(batch.places if batch else ())
            batch = None
            continue
        del waiting[len(waiting) - len(entering) :]
        ended = [
            done or len(written) >= max_new_tokens
            for done, written in zip(is_finished(batch.written), batch.written, strict=True)
        ]
        for place, written, done in zip(batch.places, batch.written, ended, strict=True):
            if done:
                yield FinishedRow(place=place, written=written)
        batch = _without_ended(batch, ended) if any(ended) else batch


def _first_inputs(
    module: PreTrainedModel, places: Sequence[int], contexts: Sequence[Sequence[int]]
) -> tuple[_Batch, torch.Tensor]:
    """Return an empty batch for some contexts, and the contexts as B x T ids padded on the left."""
    longest = max(len(contexts[place]) for place in places)
    padding = [longest - len(contexts[place]) for place in places]
    ids_BxT = torch.tensor(
        [[0] * pad + list(contexts[place]) for pad, place in zip(padding, places, strict=True)], device=module.device
    )
    mask_BxT = (torch.arange(longest)[None, :] >= torch.tensor(padding)[:, None]).long().to(module.device)
    cache = DynamicCache(config=module.config)
    return _Batch(places=tuple(places), written=((),) * len(places), cache=cache, mask_BxT=mask_BxT), ids_BxT


def _next_inputs(batch: _Batch) -> tuple[_Batch, torch.Tensor]:
    """Return the batch with a mask for one more token, and each row's last token as B x 1 ids."""
    ids_Bx1 = torch.tensor([[written[-1]] for written in batch.written], device=batch.mask_BxT.device)
    return replace(batch, mask_BxT=torch.cat([batch.mask_BxT, torch.ones_like(ids_Bx1)], dim=1)), ids_Bx1


def _with_next_tokens(batch: _Batch, logits_BxV: torch.Tensor) -> _Batch:
    """Append the most probable token to every row.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    tokens_B = logits_BxV.argmax(dim=-1)
    tokens: list[int] = tokens_B.tolist()
    try:
        check_finite(logits_BxV.gather(1, tokens_B[:, None])[:, 0], rows=len(tokens))
    except NonFiniteLogits as error:
        raise NonFiniteLogits(batch.places[error.place], error.value) from error
    return replace(batch, written=tuple((*before, token) for before, token in zip(batch.written, tokens, strict=True)))


def _concatenated(left: _Batch, right: _Batch) -> _Batch:
    """Concatenate two batches; the shorter cache is padded on the left."""
    longest = max(left.mask_BxT.shape[1], right.mask_BxT.shape[1])
    masks = []
    for batch in (left, right):
        missing = longest - batch.mask_BxT.shape[1]
        masks.append(torch.nn.functional.pad(batch.mask_BxT, (missing, 0)))
        for layer in _layers(batch.cache):
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, missing, 0))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, missing, 0))
    for ours, theirs in zip(_layers(left.cache), _layers(right.cache), strict=True):
        ours.keys = torch.cat([ours.keys, theirs.keys])
        ours.values = torch.cat([ours.values, theirs.values])
    return replace(left, places=left.places + right.places, written=left.written + right.written, mask_BxT=torch.cat(masks))


def _layers(cache: DynamicCache) -> list[Any]:
    """Return the cache's layers, which ``supports_continuous_batching`` has found to hold plain tensors."""
    return list(cache.layers)


def _without_ended(batch: _Batch, ended: Sequence[bool]) -> _Batch | None:
    """Drop the rows that ended, and the columns that hold only padding since then; None if no row is left."""
    kept = [row for row, done in enumerate(ended) if not done]
    if not kept:
        return None
    rows = torch.tensor(kept, device=batch.mask_BxT.device)
    mask_BxT = batch.mask_BxT[rows]
    first = int(mask_BxT.argmax(dim=1).min())
    for layer in _layers(batch.cache):
        kept_here = rows.to(layer.keys.device)  # the layers of a model may be on several devices
        layer.keys = layer.keys[kept_here, :, first:]
        layer.values = layer.values[kept_here, :, first:]
    return replace(
        batch,
        places=tuple(batch.places[row] for row in kept),
        written=tuple(batch.written[row] for row in kept),
        mask_BxT=mask_BxT[:, first:],
    )
