"""Log-probabilities from hidden states, in chunks: the vocabulary is never held for more than a few rows.

Shapes: U rows that predict, each row once; L labels, each of one row; D hidden size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

CHUNK = 128
"""Rows whose logits exist at once (measured best on a processor with a vocabulary of 49,152)."""

Head = Callable[[torch.Tensor], torch.Tensor]


def head_of(module: PreTrainedModel) -> Head:
    """Return hidden states -> logits as the model's own forward computes them, scaling and soft capping included."""
    output: torch.nn.Module = module.get_output_embeddings()
    config = module.config.get_text_config()
    divided = float(getattr(config, "logits_scaling", None) or 1.0)  # granite
    multiplied = float(getattr(config, "logit_scale", None) or 1.0)  # cohere
    softcap = getattr(config, "final_logit_softcapping", None)  # gemma

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = output(hidden) * (multiplied / divided) if multiplied != divided else output(hidden)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return head


def head_logprobs(
    head: Head, hidden_UxD: torch.Tensor, rows_L: torch.Tensor, labels_L: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (log-probability, greedy?) of each label.

    Args:
        head: hidden states -> logits.
        hidden_UxD: one row for each place that predicts.
        rows_L: for each label its row, ascending.
        labels_L: the labels.
    """
    if hidden_UxD.requires_grad:
        logprobs_L, greedy_L = _FrozenHead.apply(hidden_UxD, head, rows_L, labels_L)
        return logprobs_L, greedy_L
    logprobs, greedy = [], []
    for start, chosen, targets in _chunks(hidden_UxD, rows_L, labels_L):
        logits_CxV = head(hidden_UxD[start : start + CHUNK]).float()
        logprobs.append(logits_CxV[chosen, targets] - logits_CxV.logsumexp(dim=-1)[chosen])
        greedy.append(logits_CxV.argmax(dim=-1)[chosen] == targets)
    return torch.cat(logprobs), torch.cat(greedy)


def _chunks(hidden_UxD: torch.Tensor, rows_L: torch.Tensor, labels_L: torch.Tensor) -> Any:
    """Yield (first row, row of each label within the chunk, labels) for chunks of CHUNK rows."""
    starts = range(0, len(hidden_UxD), CHUNK)
    cuts = torch.searchsorted(rows_L, torch.tensor([*starts, len(hidden_UxD)], device=rows_L.device)).tolist()
    for start, low, high in zip(starts, cuts, cuts[1:], strict=False):
        yield start, rows_L[low:high] - start, labels_L[low:high]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a head that is not trained: the gradient of each row is computed with its logits and kept.

    A label's log-probability depends on its own row of hidden states only, so its gradient can be had before the loss is known;
    what is kept is U x D numbers instead of U x V.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_UxD: torch.Tensor, head: Head, rows_L: torch.Tensor, labels_L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-probabilities and, for each row (one label each), their gradient."""
        logprobs, greedy, grads = [], [], []
        for start, chosen, targets in _chunks(hidden_UxD, rows_L, labels_L):
            with torch.enable_grad():
                rows = hidden_UxD[start : start + CHUNK].detach().requires_grad_()
                logits_CxV = head(rows).float()
                found = logits_CxV[chosen, targets] - logits_CxV.logsumexp(dim=-1)[chosen]
                grads.append(torch.autograd.grad(found.sum(), rows)[0])
            logprobs.append(found.detach())
            greedy.append(logits_CxV.detach().argmax(dim=-1)[chosen] == targets)
        ctx.save_for_backward(torch.cat(grads))
        result, flags = torch.cat(logprobs), torch.cat(greedy)
        ctx.mark_non_differentiable(flags)
        return result, flags

    @staticmethod
    def backward(ctx: Any, grad_L: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None]:
        """Scale each row's gradient by what the loss says of its label."""
        (grads_UxD,) = ctx.saved_tensors
        return grad_L[:, None].to(grads_UxD.dtype) * grads_UxD, None, None, None
