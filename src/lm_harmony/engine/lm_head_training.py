"""Training through the output layer in blocks of the vocabulary (``lm_head_blocks``): log-probabilities and their gradients.

Shapes: U hidden states, each of which predicts one label, C rows of a chunk, B tokens of a block, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lm_harmony.engine.lm_head_blocks import HeadBlocks, PlainHead, row_chunks, without_autocast


def training_logprobs(
    head: PlainHead, blocks: HeadBlocks, hidden_UxD: torch.Tensor, labels_U: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each row's label, with gradients, and whether the label is the most probable token.

    Args:
        head: output layer; its weights get gradients if they are trained.
        blocks: how it is computed.
        hidden_UxD: hidden states.
        labels_U: token id of the label of each row.
    """
    logprobs_U, greedy_U = _Training.apply(  # type: ignore[no-untyped-call]
        hidden_UxD, head.weight_VxD, head.bias_V, head, blocks, labels_U
    )
    return logprobs_U, greedy_U


class _Training(torch.autograd.Function):
    """Log-probabilities of one label for each row; the gradient by the row is computed together with them.

    A label's log-probability depends only on its own hidden state, so its gradient can be computed before the loss is known. The
    gradient by trained weights needs that of the loss. The backward pass computes it with the logits of each block once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UxD: torch.Tensor,
        weight_VxD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: PlainHead,
        blocks: HeadBlocks,
        labels_U: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the log-probability of each row's label and its gradient by the row."""
        found = []
        with without_autocast(hidden_UxD):
            for start, stop, rows in row_chunks(head, blocks, hidden_UxD):
                labels_C = labels_U[start:stop]
                found.append(rows.scan(torch.arange(len(labels_C), device=labels_C.device), labels_C, gradients=True))
        kept = (hidden_UxD, torch.cat([chunk.logsumexp_C for chunk in found])) if any(ctx.needs_input_grad[1:3]) else ()
        ctx.save_for_backward(torch.cat([chunk.grad_CxD for chunk in found if chunk.grad_CxD is not None]), labels_U, *kept)
        ctx.head, ctx.blocks, ctx.dtype = head, blocks, hidden_UxD.dtype
        greedy_U = torch.cat([chunk.greedy_L for chunk in found])
        ctx.mark_non_differentiable(greedy_U)
        return torch.cat([chunk.logprobs_L for chunk in found]), greedy_U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_U: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradient of each row by the gradient of the loss by its label's log-probability."""
        grads_UxD, labels_U, *kept = ctx.saved_tensors
        to_hidden = (grad_U[:, None] * grads_UxD).to(ctx.dtype)
        to_weight = to_bias = None
        if kept:
            with without_autocast(grad_U):
                to_weight, to_bias = _weight_gradients(ctx.head, ctx.blocks, labels_U, grad_U, *kept)
        return to_hidden, to_weight, to_bias, None, None, None


def _weight_gradients(
    head: PlainHead,
    blocks: HeadBlocks,
    labels_U: torch.Tensor,
    grad_U: torch.Tensor,
    hidden_UxD: torch.Tensor,
    logsumexp_U: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients by weights V x D and bias V. Each block sums over all rows in float32 before it is rounded."""
    chunks = [(rows, slice(start, stop)) for start, stop, rows in row_chunks(head, blocks, hidden_UxD)]
    to_weight = torch.empty_like(head.weight_VxD)
    to_bias = None if head.bias_V is None else torch.empty_like(head.bias_V)
    for tokens in chunks[0][0].tokens:
        # No copy where the weights are float32 themselves.
        weight_BxD = to_weight[tokens].zero_().to(torch.float32)
        bias_B = torch.zeros_like(weight_BxD[:, 0])
        for rows, part in chunks:
            grad_CxB = rows.gradient_by_logits(tokens, labels_U[part], logsumexp_U[part], grad_U[part])
            weight_BxD.addmm_(grad_CxB.T, hidden_UxD[part].float())
            bias_B.add_(grad_CxB.sum(dim=0))
        to_weight[tokens].copy_(weight_BxD)
        if to_bias is not None:
            to_bias[tokens] = bias_B
    return to_weight, to_bias
