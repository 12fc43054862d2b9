"""Output layer (LM head): log-probabilities of labels from hidden states, in chunks, so that few rows of logits exist at a time.

Shapes: U hidden states that predict, L labels (each belongs to one hidden state), C rows of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lm_harmony.engine.lm_head_blocks import HeadBlocks, PlainHead, scoring_logprobs
from lm_harmony.engine.lm_head_training import training_logprobs

LOGITS_ON_CPU, LOGITS_ON_GPU = 10_000_000, 120_000_000
"""Number of logits of a chunk: 40 MB on a CPU, 480 MB on a GPU. Each chunk reads all weights of the output layer."""


@dataclass(frozen=True)
class LMHead:
    """The output layer of a model, as its own forward pass applies it."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    """Hidden states C x D -> logits C x V."""
    vocabulary: int
    """Number of logits of a row."""
    trained: bool
    """Whether training changes its weights."""
    plain: PlainHead | None = None
    """The same as weights and factors, if it is one linear layer."""


def lm_head_of(module: PreTrainedModel) -> LMHead:
    """Return the output layer of ``module`` with its scaling and soft-capping."""
    output: torch.nn.Module = module.get_output_embeddings()
    config = module.config.get_text_config()
    divided = float(getattr(config, "logits_scaling", None) or 1.0)  # granite
    multiplied = float(getattr(config, "logit_scale", None) or 1.0)  # cohere
    softcap = getattr(config, "final_logit_softcapping", None)  # gemma

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = output(hidden) * (multiplied / divided) if multiplied != divided else output(hidden)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    weights = list(output.parameters())
    plain = PlainHead.of(output, scale=multiplied / divided, softcap=softcap)
    trained = any(weight.requires_grad for weight in weights)
    return LMHead(logits_of, vocabulary=len(weights[0]), trained=trained, plain=plain)


def lm_head_logprobs(
    head: LMHead,
    hidden_UxD: torch.Tensor,
    rows_L: torch.Tensor,
    labels_L: torch.Tensor,
    known_rows_L: npt.NDArray[np.int64],
    *,
    blocks: HeadBlocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each label, and whether it is the most probable token.

    Args:
        head: output layer of the model.
        hidden_UxD: hidden states that predict labels.
        rows_L: for each label the row of its hidden state, in ascending order.
        labels_L: token ids of the labels.
        known_rows_L: ``rows_L`` in host memory (reading it from the device would wait until the device has finished).
        blocks: compute blocks of the vocabulary for many rows instead of the whole vocabulary for few, if ``head`` is plain.
    """
    if blocks is not None and head.plain is not None:
        if not torch.is_grad_enabled() or not (hidden_UxD.requires_grad or head.trained):
            return scoring_logprobs(head.plain, blocks, hidden_UxD, rows_L, labels_L, known_rows_L)
        if len(known_rows_L) == len(hidden_UxD):
            return training_logprobs(head.plain, blocks, hidden_UxD, labels_L)
    if hidden_UxD.requires_grad and not head.trained:
        assert len(known_rows_L) == len(hidden_UxD), "in training, each hidden state predicts one label"
        logprobs_L, greedy_L = _FrozenHead.apply(hidden_UxD, head, labels_L)  # type: ignore[no-untyped-call]
        return logprobs_L, greedy_L
    found = []
    for start, stop in _chunks(head, hidden_UxD):
        low, high = np.searchsorted(known_rows_L, (start, stop))
        rows, chosen, targets = hidden_UxD[start:stop], rows_L[low:high] - start, labels_L[low:high]
        # The logits of a trained output layer are recomputed in the backward pass instead of kept.
        found.append(checkpoint(_chunk, head, rows, chosen, targets, use_reentrant=False, preserve_rng_state=False))
    return torch.cat([logprobs for logprobs, _ in found]), torch.cat([greedy for _, greedy in found])


def _chunk(
    head: LMHead, rows_CxD: torch.Tensor, chosen: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_CxV = head.logits(rows_CxD).float()
    logprobs = logits_CxV[chosen, targets] - logits_CxV.logsumexp(dim=-1)[chosen]
    return logprobs, logits_CxV.detach().argmax(dim=-1)[chosen] == targets


def _chunks(head: LMHead, hidden_UxD: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Return (start, stop) of chunks of nearly equal size, whose logits stay below the limit of the device."""
    rows = len(hidden_UxD)
    most = max(1, (LOGITS_ON_CPU if hidden_UxD.device.type == "cpu" else LOGITS_ON_GPU) // head.vocabulary)
    size = math.ceil(rows / math.ceil(rows / most))
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _logits_and_backward(head: LMHead, rows_CxD: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the logits C x V of some rows, and the function from the gradient by them to the gradient by the rows."""
    if head.plain is not None and head.plain.factor == 1 and head.plain.softcap is None:
        # Without autograd, whose bookkeeping takes as long as the products of a small model.
        return head.logits(rows_CxD), partial(torch.matmul, other=head.plain.weight_VxD)
    with torch.enable_grad():
        rows = rows_CxD.detach().requires_grad_()
        logits_CxV = head.logits(rows)
    return logits_CxV.detach(), lambda grad_CxV: torch.autograd.grad(logits_CxV, rows, grad_CxV)[0]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under an output layer that is not trained; the gradient is computed together with the logits.

    A label's log-probability depends only on its own hidden state, so its gradient can be computed before the loss is known. This
    keeps U x D numbers for the backward pass instead of U x V. The gradient by the logits (one at the label, minus the
    probabilities) overwrites the logits in place.
    """

    @staticmethod
    def forward(ctx: Any, hidden_UxD: torch.Tensor, head: LMHead, labels_U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the log-probability of each row's label and its gradient by the row."""
        logprobs, greedy, grads = [], [], []
        for start, stop in _chunks(head, hidden_UxD):
            labels_Cx1 = labels_U[start:stop, None]
            logits_CxV, gradient_by_rows = _logits_and_backward(head, hidden_UxD[start:stop])
            found_CxV = logits_CxV.float()
            top_Cx1 = found_CxV.amax(dim=-1, keepdim=True)
            chosen_Cx1 = found_CxV.gather(1, labels_Cx1) - top_Cx1
            sums_Cx1 = found_CxV.sub_(top_Cx1).exp_().sum(dim=-1, keepdim=True)
            logprobs.append((chosen_Cx1 - sums_Cx1.log())[:, 0])
            greedy.append((chosen_Cx1 == 0)[:, 0])
            found_CxV.div_(-sums_Cx1).scatter_add_(1, labels_Cx1, torch.ones_like(chosen_Cx1))
            grads.append(gradient_by_rows(found_CxV.to(logits_CxV.dtype)))
        ctx.save_for_backward(torch.cat(grads))
        result, flags = torch.cat(logprobs), torch.cat(greedy)
        ctx.mark_non_differentiable(flags)
        return result, flags

    @staticmethod
    def backward(ctx: Any, grad_L: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        """Scale the gradient of each row by the gradient of the loss by its label's log-probability."""
        (grads_UxD,) = ctx.saved_tensors
        return grad_L[:, None].to(grads_UxD.dtype) * grads_UxD, None, None
