"""Log-probabilities from hidden states, in chunks: the vocabulary is never held for more than a few rows.

Shapes: U rows that predict, each row once; L labels, each of one row; D hidden size; V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS_ON_CPU, LOGITS_ON_GPU = 10_000_000, 120_000_000
"""Logits that exist at once: 40 MB on a processor, 480 MB on a GPU; each chunk reads the whole output layer again."""


@dataclass(frozen=True)
class LMHead:
    """Hidden states -> logits, as the model's own forward computes them."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    """C x D -> C x V."""
    vocabulary: int
    """Number of logits of a row."""
    trained: bool
    """Whether its weights are trained too."""


def lm_head_of(module: PreTrainedModel) -> LMHead:
    """Return the output layer of ``module`` with its scaling and soft capping."""
    output: Callable[[torch.Tensor], torch.Tensor] = module.get_output_embeddings()
    config = module.config.get_text_config()
    divided = float(getattr(config, "logits_scaling", None) or 1.0)  # granite
    multiplied = float(getattr(config, "logit_scale", None) or 1.0)  # cohere
    softcap = getattr(config, "final_logit_softcapping", None)  # gemma

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        logits = output(hidden) * (multiplied / divided) if multiplied != divided else output(hidden)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    weights = list(module.get_output_embeddings().parameters())
    return LMHead(logits_of, vocabulary=len(weights[0]), trained=any(weight.requires_grad for weight in weights))


def lm_head_logprobs(
    head: LMHead, hidden_UxD: torch.Tensor, rows_L: torch.Tensor, labels_L: torch.Tensor, known_rows_L: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (log-probability, greedy?) of each label.

    Args:
        head: hidden states -> logits.
        hidden_UxD: one row for each place that predicts.
        rows_L: for each label its row, ascending.
        labels_L: the labels.
        known_rows_L: ``rows_L`` in host memory: reading it from the device would wait for all that was asked of the device.
    """
    if hidden_UxD.requires_grad and not head.trained:
        assert len(known_rows_L) == len(hidden_UxD), "a trained row predicts one label"
        logprobs_L, greedy_L = _FrozenHead.apply(hidden_UxD, head, labels_L)  # type: ignore[no-untyped-call]
        return logprobs_L, greedy_L
    found = []
    for start, stop in _chunks(head, hidden_UxD):
        low, high = np.searchsorted(known_rows_L, (start, stop))
        rows, chosen, targets = hidden_UxD[start:stop], rows_L[low:high] - start, labels_L[low:high]
        # A trained head's logits are computed again in the backward pass rather than kept.
        found.append(checkpoint(_chunk, head, rows, chosen, targets, use_reentrant=False, preserve_rng_state=False))
    return torch.cat([logprobs for logprobs, _ in found]), torch.cat([greedy for _, greedy in found])


def _chunk(
    head: LMHead, rows_CxD: torch.Tensor, chosen: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_CxV = head.logits(rows_CxD).float()
    logprobs = logits_CxV[chosen, targets] - logits_CxV.logsumexp(dim=-1)[chosen]
    return logprobs, logits_CxV.detach().argmax(dim=-1)[chosen] == targets


def _chunks(head: LMHead, hidden_UxD: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Cut the rows into chunks (start, stop), sized by the vocabulary and alike."""
    rows = len(hidden_UxD)
    most = max(1, (LOGITS_ON_CPU if hidden_UxD.device.type == "cpu" else LOGITS_ON_GPU) // head.vocabulary)
    size = math.ceil(rows / math.ceil(rows / most))
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a head that is not trained: the gradient of each row is computed with its logits and kept.

    A label's log-probability depends on its own row of hidden states only, so its gradient can be had before the loss is known;
    what is kept is U x D numbers instead of U x V. The gradient by the logits (one at the label, minus every probability) is
    written over the logits themselves.
    """

    @staticmethod
    def forward(ctx: Any, hidden_UxD: torch.Tensor, head: LMHead, labels_U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-probabilities and, for each row (one label each), their gradient."""
        logprobs, greedy, grads = [], [], []
        for start, stop in _chunks(head, hidden_UxD):
            targets = labels_U[start:stop]
            with torch.enable_grad():
                rows = hidden_UxD[start:stop].detach().requires_grad_()
                logits_CxV = head.logits(rows)
            found_CxV = logits_CxV.detach().float()
            top_C, most_C = found_CxV.max(dim=-1)
            labels_Cx1 = targets[:, None]
            chosen_C = found_CxV.gather(1, labels_Cx1)[:, 0] - top_C
            sums_C = found_CxV.sub_(top_C[:, None]).exp_().sum(dim=-1)
            logprobs.append(chosen_C - sums_C.log())
            greedy.append(most_C == targets)
            found_CxV.div_(-sums_C[:, None]).scatter_add_(1, labels_Cx1, torch.ones_like(labels_Cx1, dtype=torch.float32))
            grads.append(torch.autograd.grad(logits_CxV, rows, found_CxV.to(logits_CxV.dtype))[0])
        ctx.save_for_backward(torch.cat(grads))
        result, flags = torch.cat(logprobs), torch.cat(greedy)
        ctx.mark_non_differentiable(flags)
        return result, flags

    @staticmethod
    def backward(ctx: Any, grad_L: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        """Scale each row's gradient by what the loss says of its label."""
        (grads_UxD,) = ctx.saved_tensors
        return grad_L[:, None].to(grads_UxD.dtype) * grads_UxD, None, None
