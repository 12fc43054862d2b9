"""Greedy decoding whose batch never idles: a finished row leaves, a waiting one enters.

The batch lives in a key-value cache padded on the left. When enough rows have left, waiting contexts are computed together and
joined to the cache; columns that hold padding only are cut off.

Shapes: B rows, T cached positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lm_harmony.engine.padded_forward import halve_batch
from lm_harmony.models.loading import LanguageModel

REFILL = 0.5
"""Waiting rows enter when this share of the batch is free: each entrance computes their contexts in one pass."""


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """A row that has ended."""

    place: int
    """Which context it answers."""
    written: tuple[int, ...]
    """The tokens that it wrote, the one that ended it included."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows being written."""

    places: tuple[int, ...]
    """Which context each row answers."""
    written: tuple[tuple[int, ...], ...]
    """What each row has written; its last token is not in the cache yet."""
    cache: DynamicCache
    """Keys and values of all tokens before the last."""
    mask_BxT: torch.Tensor
    """1 where the cache holds a token of the row, 0 where it holds padding."""


class NonFiniteLogits(ArithmeticError):
    """The largest logit of a row is NaN or infinite: no token can be chosen."""

    def __init__(self, place: int, value: float) -> None:
        """Name the context by its ``place`` and the ``value`` found."""
        super().__init__(place, value)
        self.place, self.value = place, value


def check_finite(largest_B: torch.Tensor, *, rows: int) -> None:
    """Look whether the largest logit of each row is finite; in a row that holds NaN it is NaN.

    Args:
        largest_B: largest next-token logits, the same number of rows for each of ``rows`` contexts.
        rows: number of contexts.

    Raises:
        NonFiniteLogits: it is not; ``place`` counts the contexts from 0.
    """
    values = largest_B.tolist()
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise NonFiniteLogits(place * rows // len(values), value)


def supports_continuous_batching(module: PreTrainedModel) -> bool:
    """Tell whether the model keeps a plain key-value cache, so that rows can be joined and dropped."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=module.config).layers)


def decode_greedily(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    is_finished: Callable[[Sequence[tuple[int, ...]]], list[bool]],
) -> Iterator[FinishedRow]:
    """Yield each context's answer as it ends, not in their order.

    Args:
        model: who writes; ``supports_continuous_batching`` must hold.
        contexts: token ids, none empty; best sorted by length.
        batch_size: most rows at once; halved for what is left when memory runs out.
        max_new_tokens: longest answer.
        is_finished: tells of each row's tokens whether it has ended.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    waiting = list(range(len(contexts)))[::-1]
    batch: _Batch | None = None
    while waiting or batch is not None:
        active, entering = len(batch.places) if batch else 0, list[int]()
        try:
            if waiting and active <= batch_size * (1 - REFILL):
                entering = waiting[-(batch_size - active) :][::-1]
                fresh = _begin(model.module, entering, contexts)
                del waiting[-len(entering) :]
                batch = fresh if batch is None else _join(batch, fresh)
            else:
                assert batch is not None
                batch = _next(model.module, batch)
        except (RuntimeError, MemoryError) as error:
            batch_size = halve_batch(batch_size, error)
            # The rows that were being written begin again: the cache may be half changed.
            waiting += reversed(batch.places if batch else ())
            batch = None
            continue
        except NonFiniteLogits as error:
            computed = entering if entering else batch.places if batch else ()
            raise NonFiniteLogits(computed[error.place], error.value) from error
        ended = [
            done or len(written) >= max_new_tokens
            for done, written in zip(is_finished(batch.written), batch.written, strict=True)
        ]
        for place, written, done in zip(batch.places, batch.written, ended, strict=True):
            if done:
                yield FinishedRow(place=place, written=written)
        batch = _without(batch, ended) if any(ended) else batch


def _begin(module: PreTrainedModel, places: Sequence[int], contexts: Sequence[Sequence[int]]) -> _Batch:
    """Compute contexts, padded on the left, and each one's first token."""
    longest = max(len(contexts[place]) for place in places)
    padding = [longest - len(contexts[place]) for place in places]
    ids_BxT = torch.tensor(
        [[0] * pad + list(contexts[place]) for pad, place in zip(padding, places, strict=True)], device=module.device
    )
    mask_BxT = (torch.arange(longest)[None, :] >= torch.tensor(padding)[:, None]).long().to(module.device)
    cache = DynamicCache(config=module.config)
    first = _argmax(module, ids_BxT, mask_BxT, cache)
    return _Batch(places=tuple(places), written=tuple((token,) for token in first), cache=cache, mask_BxT=mask_BxT)


def _next(module: PreTrainedModel, batch: _Batch) -> _Batch:
    """Write one more token in every row."""
    ids_Bx1 = torch.tensor([[written[-1]] for written in batch.written], device=module.device)
    mask_BxT = torch.cat([batch.mask_BxT, torch.ones_like(ids_Bx1)], dim=1)
    tokens = _argmax(module, ids_Bx1, mask_BxT, batch.cache)
    written = tuple((*before, token) for before, token in zip(batch.written, tokens, strict=True))
    return replace(batch, written=written, mask_BxT=mask_BxT)


def _argmax(module: PreTrainedModel, ids: torch.Tensor, mask_BxT: torch.Tensor, cache: DynamicCache) -> list[int]:
    positions = (mask_BxT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits_BxV = module(input_ids=ids, attention_mask=mask_BxT, position_ids=positions, **options).logits[:, -1]
    tokens_B = logits_BxV.argmax(dim=-1)
    tokens: list[int] = tokens_B.tolist()
    check_finite(logits_BxV.gather(1, tokens_B[:, None])[:, 0], rows=len(tokens))
    return tokens


def _join(left: _Batch, right: _Batch) -> _Batch:
    """Put two batches side by side, the shorter one's cache padded on the left."""
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
    """Return the layers' keys and values, which ``supports_continuous_batching`` has found to be plain tensors."""
    return list(cache.layers)


def _without(batch: _Batch, ended: Sequence[bool]) -> _Batch | None:
    """Drop the rows that ended, and the columns that hold padding only since then."""
    kept = [row for row, done in enumerate(ended) if not done]
    if not kept:
        return None
    rows = torch.tensor(kept, device=batch.mask_BxT.device)
    mask_BxT = batch.mask_BxT[rows]
    first = int(mask_BxT.argmax(dim=1).min())
    for layer in _layers(batch.cache):
        layer.keys = layer.keys[rows, :, first:]
        layer.values = layer.values[rows, :, first:]
    return replace(
        batch,
        places=tuple(batch.places[row] for row in kept),
        written=tuple(batch.written[row] for row in kept),
        mask_BxT=mask_BxT[:, first:],
    )
