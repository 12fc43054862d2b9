"""The plain forward pass: sequences side by side, padded on the right; exact for every causal architecture.

Both training and scoring ask one question, ``padded_logprobs``: how probable is each label? A faster layout of the same sequences
answers the same question and can take this one's place.

Shapes: B sequences, T positions of the longest one, V vocabulary, L labels of all sequences one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.device import is_out_of_memory

Result = TypeVar("Result")
Forward = Callable[[PreTrainedModel, Sequence["TokenSequence"]], "LabelLogprobs"]
"""Runs a model over sequences and returns the log-probability of every label."""


@dataclass(frozen=True, kw_only=True)
class LabelLogprobs:
    """Log-probabilities of all labels of a batch."""

    logprobs_L: torch.Tensor
    """Natural logarithm of each label's probability, float32; carries gradients in training."""
    greedy_L: torch.Tensor
    """Whether the label is the most probable token there."""
    counts: tuple[int, ...]
    """Labels of each sequence, in order; they sum to L."""


def padded_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
    """Run ``module`` over ``sequences`` and return the log-probability of every label.

    Padding stands on the right, where causal attention cannot see it from a real token: no mask is needed (nor does lm_eval
    pass one). ``use_cache`` is off because a cache costs memory and serves nothing here.
    """
    longest = max(len(sequence.ids) for sequence in sequences) - 1
    ids: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    labels: list[int] = []
    for row, sequence in enumerate(sequences):
        fed = sequence.ids[:-1]
        ids += [*fed, *[0] * (longest - len(fed))]
        rows += [row] * len(sequence.labels)
        columns += range(sequence.first_label - 1, len(fed))
        labels += sequence.labels
    ids_BT, rows_L, columns_L, labels_L = on_device(next(module.parameters()).device, ids, rows, columns, labels)
    logits_BxTxV = module(input_ids=ids_BT.view(len(sequences), longest), use_cache=False).logits
    logits_LxV = logits_BxTxV[rows_L, columns_L].float()
    chosen_L = logits_LxV.gather(1, labels_L[:, None])[:, 0]
    return LabelLogprobs(
        logprobs_L=chosen_L - logits_LxV.logsumexp(dim=-1),
        greedy_L=logits_LxV.detach().argmax(dim=-1) == labels_L,
        counts=tuple(len(sequence.labels) for sequence in sequences),
    )


def on_device(device: torch.device, *arrays: npt.ArrayLike) -> list[torch.Tensor]:
    """Return integer arrays as tensors on ``device``, brought there in one copy that a GPU does not wait for."""
    integers = [np.asarray(array, dtype=np.int64) for array in arrays]
    together = torch.from_numpy(np.concatenate(integers))
    if device.type == "cuda":
        together = together.pin_memory()
    return list(torch.split(together.to(device, non_blocking=True), [array.size for array in integers]))


def halve_batch(size: int, error: Exception) -> int:
    """Return half of ``size`` if ``error`` says that memory ran out; else, or if there is nothing to halve, raise it.

    Raises:
        Exception: ``error`` itself.
    """
    if size == 1 or not (is_out_of_memory(error) or should_reduce_batch_size(error)):
        raise error
    clear_device_cache()
    return size // 2


def end_by_sequences(items: Sequence[TokenSequence], start: int, size: int) -> int:
    """Return where a batch of at most ``size`` sequences that begins at ``start`` ends."""
    return min(start + size, len(items))


def in_batches(
    items: Sequence[TokenSequence],
    size: int,
    run: Callable[[Sequence[TokenSequence]], Result],
    *,
    end_of_batch: Callable[[Sequence[TokenSequence], int, int], int] = end_by_sequences,
) -> Iterator[Result]:
    """Yield ``run`` over consecutive batches, halving their size for good when memory runs out.

    Args:
        items: what is computed, in order.
        size: largest batch, in the unit of ``end_of_batch``.
        run: computes a batch.
        end_of_batch: (items, start, size) -> end of the batch that begins at start; at least one item.
    """
    start = 0
    while start < len(items):
        end = end_of_batch(items, start, size)
        try:
            result = run(items[start:end])
        except (RuntimeError, MemoryError) as error:
            if end - start == 1:
                raise
            size = halve_batch(size, error)
            continue
        yield result
        start = end
