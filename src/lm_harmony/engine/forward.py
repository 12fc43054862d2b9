"""Forward passes: token sequences -> log-probability of every label. Training and scoring both go through this one interface.

``padded_logprobs`` pads each sequence on the right, which is exact for every causal architecture. ``packed_logprobs`` puts the
sequences into one row without padding and keeps them apart in the attention layers. ``prefix_tree_logprobs`` is the same with
every shared beginning computed once. ``backends`` decides which of them a model uses.

Shapes: B sequences, T positions of the longest one, N tokens of a packed row, U positions that predict, V vocabulary, D hidden
size, L labels of all sequences one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.attention_kernels import DEFAULT_KERNELS, AttentionKernels
from lm_harmony.engine.layout import Layout, concatenated_layout, prefix_tree_layout
from lm_harmony.engine.lm_head import lm_head_logprobs, lm_head_of
from lm_harmony.engine.lm_head_blocks import HeadBlocks
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.recompute import recompute_activations
from lm_harmony.engine.sequences import TokenSequence, to_device


@dataclass(frozen=True, kw_only=True)
class LabelLogprobs:
    """Log-probabilities of all labels of a batch."""

    logprobs_L: torch.Tensor
    """Natural logarithm of each label's probability, float32; carries gradients in training."""
    greedy_L: torch.Tensor
    """Whether the label is the most probable token there."""
    counts: tuple[int, ...]
    """Labels of each sequence, in order; they sum to L."""


Forward = Callable[[PreTrainedModel, Sequence[TokenSequence]], LabelLogprobs]
"""Runs a model over sequences and returns the log-probability of every label."""


def padded_logprobs(module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
    """Run ``module`` over right-padded ``sequences`` and return the log-probability of every label.

    No attention mask is needed: under causal attention no token sees the padding to its right (lm_eval passes none either).
    ``use_cache`` is off, because a cache would take memory and is not used.
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
    ids_BT, rows_L, columns_L, labels_L = to_device(next(module.parameters()).device, ids, rows, columns, labels)
    logits_BxTxV = module(input_ids=ids_BT.view(len(sequences), longest), use_cache=False).logits
    logits_LxV = logits_BxTxV[rows_L, columns_L].float()
    chosen_L = logits_LxV.gather(1, labels_L[:, None])[:, 0]
    return LabelLogprobs(
        logprobs_L=chosen_L - logits_LxV.logsumexp(dim=-1),
        greedy_L=logits_LxV.detach().argmax(dim=-1) == labels_L,
        counts=tuple(len(sequence.labels) for sequence in sequences),
    )


def packed_logprobs(
    module: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    *,
    arrange: Callable[[Sequence[TokenSequence]], Layout] = concatenated_layout,
    recompute: bool = False,
    kernels: AttentionKernels = DEFAULT_KERNELS,
    head_blocks: HeadBlocks | None = None,
) -> LabelLogprobs:
    """Run ``module`` over one row without padding and return the log-probability of every label.

    Args:
        module: a model whose attention layers pass keyword arguments on to the attention function.
        sequences: the sequences of one forward pass.
        arrange: sequences -> layout of the row. The default shares nothing, as training needs (each copy has its own dropout).
        recompute: keep fewer activations for the backward pass, see ``recompute.recompute_activations``.
        kernels: which kernels compute attention.
        head_blocks: how the output layer is computed in blocks of the vocabulary; None: in chunks of few rows.
    """
    layout, device = arrange(sequences), next(module.parameters()).device
    attention = PackedAttention(layout, kernels, dropout=module.training and _has_attention_dropout(module))
    # The output layer computes each position once and takes the labels in the order of their positions.
    order_L = layout.sources_L.argsort(kind="stable")
    sources_U, rows_L = np.unique(layout.sources_L[order_L], return_inverse=True)
    head = (sources_U, layout.labels_L[order_L], rows_L, order_L.argsort())
    ids_N, positions_N, chosen_U, labels_L, head_rows_L, back_L, *indices = to_device(
        device, layout.ids_N, layout.positions_N, *head, *attention.arrays
    )
    attention.place(indices)
    body = getattr(module, module.base_model_prefix)
    with packed_attention(module), recompute_activations() if recompute else nullcontext():
        # use_cache must be off: with a cache, transformers would prepare masks for a row that is continued later.
        hidden_NxD = body(
            input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False, packed_row=attention
        ).last_hidden_state.squeeze(0)
    # The layers of a model may be on several devices: the last one computes hidden states, and the output layer may be elsewhere.
    last = next(module.get_output_embeddings().parameters()).device
    # In training often every position predicts, and the labels are in order: then nothing is gathered.
    hidden_UxD = (hidden_NxD if len(sources_U) == layout.tokens else hidden_NxD[chosen_U.to(hidden_NxD.device)]).to(last)
    logprobs_L, greedy_L = lm_head_logprobs(
        lm_head_of(module), hidden_UxD, head_rows_L.to(last), labels_L.to(last), rows_L, blocks=head_blocks
    )
    logprobs_L, greedy_L = logprobs_L.to(device), greedy_L.to(device)
    if (np.diff(order_L) != 1).any():
        logprobs_L, greedy_L = logprobs_L[back_L], greedy_L[back_L]
    return LabelLogprobs(logprobs_L=logprobs_L, greedy_L=greedy_L, counts=layout.counts)


def _has_attention_dropout(module: PreTrainedModel) -> bool:
    """Tell whether the attention of a model has dropout in training (GPT-2, GPT-Neo)."""
    return any(getattr(module.config, name, 0) for name in ("attention_dropout", "attn_pdrop"))


prefix_tree_logprobs = partial(packed_logprobs, arrange=prefix_tree_layout)
"""``packed_logprobs`` with every shared beginning computed once, for scoring."""
