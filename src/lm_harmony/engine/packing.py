"""The fast forward pass: one row without padding, attention inside segments, the head only where something is predicted.

It answers the same question as ``forward.label_logprobs`` for the architectures that the probe finds it exact on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lm_harmony.engine.forward import LabelLogprobs
from lm_harmony.engine.head import head_logprobs, head_of
from lm_harmony.engine.products import fast_products
from lm_harmony.engine.segments import attention_in, segments_of
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.thrift import thrifty
from lm_harmony.engine.trees import Row, chain_row, shared_row


def packed_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
    """Return the log-probability of every label, each sequence computed by itself: for training."""
    return _row_logprobs(module, chain_row(sequences))


def shared_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
    """Return the log-probability of every label, each shared beginning computed once: for scoring."""
    return _row_logprobs(module, shared_row(sequences))


@fast_products()
def _row_logprobs(module: PreTrainedModel, row: Row) -> LabelLogprobs:
    device = next(module.parameters()).device
    ids_N = torch.tensor([*row.trunk, *(token for tree in row.trees for token in tree.ids)], device=device)
    positions_N = torch.tensor([*range(len(row.trunk)), *(depth for tree in row.trees for depth in tree.depths)], device=device)
    labels = [label for labels in row.labels for label in labels]
    sources_L = torch.tensor([label.source for label in labels], device=device)
    tokens_L = torch.tensor([label.token for label in labels], device=device)
    body = getattr(module, module.base_model_prefix)
    with attention_in(module, segments_of(row, device)), thrifty():
        # use_cache must be off: with a cache transformers would prepare masks for a row that goes on.
        hidden_NxD = body(input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False).last_hidden_state[0]
    sources_U, rows_L = sources_L.unique(return_inverse=True)
    order_L = rows_L.argsort(stable=True)
    logprobs_L, greedy_L = head_logprobs(head_of(module), hidden_NxD[sources_U], rows_L[order_L], tokens_L[order_L])
    back_L = order_L.argsort()
    return LabelLogprobs(
        logprobs_L=logprobs_L[back_L], greedy_L=greedy_L[back_L], counts=tuple(len(labels) for labels in row.labels)
    )
