"""The fast forward pass: one row without padding, attention inside segments, the head only where something is predicted.

It answers the same question as ``forward.padded_logprobs`` for the architectures that the probe finds it exact on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
from transformers import PreTrainedModel

from lm_harmony.engine.lm_head import lm_head_logprobs, lm_head_of
from lm_harmony.engine.packed_attention import blocks_of_row, packed_attention
from lm_harmony.engine.padded_forward import LabelLogprobs, on_device
from lm_harmony.engine.prefix_tree import PackedRow, concatenated_row, prefix_tree_row
from lm_harmony.engine.recompute import recompute_activations
from lm_harmony.engine.sequences import TokenSequence


def packed_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence], *, recompute: bool = False) -> LabelLogprobs:
    """Return the log-probability of every label, each sequence computed by itself: for training.

    Args:
        module: the model.
        sequences: what it reads.
        recompute: keep less for the backward pass, see ``recompute.recompute_activations``.
    """
    return _row_logprobs(module, concatenated_row(sequences), recompute=recompute)


def prefix_tree_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
    """Return the log-probability of every label, each shared beginning computed once: for scoring."""
    return _row_logprobs(module, prefix_tree_row(sequences))


def _row_logprobs(module: PreTrainedModel, row: PackedRow, *, recompute: bool = False) -> LabelLogprobs:
    device = next(module.parameters()).device
    labels = [label for labels in row.labels for label in labels]
    sources_L = np.array([label.source for label in labels])
    # The head computes each row once, and takes its labels in the order of their rows.
    order_L = sources_L.argsort(kind="stable")
    sources_U, rows_L = np.unique(sources_L[order_L], return_inverse=True)
    ids_N, positions_N, chosen_U, tokens_L, head_rows_L, back_L = on_device(
        device,
        [*row.shared_prefix, *(token for tree in row.trees for token in tree.ids)],
        [*range(len(row.shared_prefix)), *(depth for tree in row.trees for depth in tree.depths)],
        sources_U,
        np.array([label.token for label in labels])[order_L],
        rows_L,
        order_L.argsort(),
    )
    body = getattr(module, module.base_model_prefix)
    segments = blocks_of_row(row, device)
    with packed_attention(module), recompute_activations() if recompute else nullcontext():
        # use_cache must be off: with a cache transformers would prepare masks for a row that goes on.
        hidden_NxD = body(
            input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False, segments=segments
        ).last_hidden_state[0]
    logprobs_L, greedy_L = lm_head_logprobs(lm_head_of(module), hidden_NxD[chosen_U], head_rows_L, tokens_L, rows_L)
    return LabelLogprobs(
        logprobs_L=logprobs_L[back_L], greedy_L=greedy_L[back_L], counts=tuple(len(labels) for labels in row.labels)
    )
