"""Log-probabilities of labels from hidden states in blocks of the vocabulary, with a running log-sum-exp.

An output layer with a large vocabulary computes many logits for each row. Chunks of few rows bound their memory, but a matrix
product of few rows is slow. Here a chunk has many rows and a block has few tokens. Each row keeps the largest logit m so far and
the sum of exp(logit - m), which is scaled down when m grows (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867). The
gradient by the row is accumulated the same way (flash attention, arXiv 2205.14135), so that nothing of the size rows x vocabulary
is kept. All sums and products are float32, also where weights are bfloat16.

Shapes: U hidden states that predict, L labels, C rows of a chunk, B tokens of a block, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lm_harmony.engine.onednn_linear import forward_is_replaced, onednn_product

BLOCK_LOGITS = 2_500_000
"""Number of logits of a chunk and a block: 10 MB, which stay in the caches between the operations on them."""
SMALLEST_BLOCK = 1_024
"""Tokens of a block below which the products become slow. More rows than fit beside it are computed in several chunks."""
SMALLEST_VOCABULARY = 32_000
"""Number of tokens from which blocks are tried. Below, a chunk of the whole vocabulary has more than 300 rows, so that nothing is
gained, and the last digits of results do not depend on a probe of time."""
COPIED_WEIGHTS = 10_000_000
"""Number of weights of a block that are converted to float32: 40 MB, if that allows for ``SMALLEST_BLOCK`` tokens."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights whose products may be computed in float32."""


@dataclass(frozen=True, kw_only=True)
class PlainHead:
    """An output layer that is one linear layer: logits = cap(scale (W h + b)), with cap(x) = c tanh(x / c) or cap(x) = x."""

    weight_VxD: torch.Tensor
    """Weights W of the layer."""
    bias_V: torch.Tensor | None = None
    """Bias b of the layer; None: it has none."""
    scale: float = 1.0
    """Factor of the logits before soft-capping."""
    softcap: float | None = None
    """Largest absolute logit c (Gemma 2, arXiv 2408.00118, section 2); None: no soft-capping."""

    @classmethod
    def of(cls, layer: torch.nn.Module, *, scale: float, softcap: float | None) -> PlainHead | None:
        """Return the output layer, or None where its weights are quantized, offloaded or wrapped, or its class is another one."""
        if type(layer) is not torch.nn.Linear or type(layer.weight) is not torch.nn.Parameter or forward_is_replaced(layer):
            return None
        hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        if hooked or layer.weight.device.type == "meta" or layer.weight.dtype not in _DTYPES:
            return None
        return cls(weight_VxD=layer.weight, bias_V=layer.bias, scale=scale, softcap=softcap)

    @property
    def factor(self) -> float:
        """What W h + b is multiplied by before the tanh of soft-capping, or at all."""
        return self.scale / (self.softcap or 1.0)


@dataclass(frozen=True, kw_only=True)
class HeadBlocks:
    """How an output layer is computed in blocks of its vocabulary."""

    forward_onednn: bool = False
    """Whether oneDNN computes the logits."""
    backward_onednn: bool = False
    """Whether oneDNN computes the gradient by the hidden states."""
    logits: int = BLOCK_LOGITS
    """Number of logits of a chunk and a block; more if ``smallest_block`` tokens of one row have more."""
    smallest_block: int = SMALLEST_BLOCK
    """Smallest number of tokens of a block."""

    def __str__(self) -> str:
        names = ("onednn" if chosen else "mm" for chosen in (self.forward_onednn, self.backward_onednn))
        return "blocks of the vocabulary: forward {}, backward {}".format(*names)

    def sizes(self, rows: int, vocabulary: int, *, copied: int = 0) -> tuple[int, int]:
        """Return (rows of a chunk, tokens of a block): as many rows as possible, and nearly equal chunks and blocks.

        Args:
            rows: number of hidden states.
            vocabulary: number of tokens.
            copied: hidden size if the weights of a block are converted to float32, else 0.
        """
        most = self.logits // rows if not copied else min(self.logits // rows, COPIED_WEIGHTS // copied)
        most = min(vocabulary, max(self.smallest_block, most))
        block = math.ceil(vocabulary / math.ceil(vocabulary / most))
        chunks = math.ceil(rows / max(1, self.logits // block))
        return math.ceil(rows / chunks), block

    def product(self, x_CxD: torch.Tensor, weight_BxD: torch.Tensor) -> torch.Tensor:
        """Return x W^T: C x B."""
        return onednn_product(x_CxD, weight_BxD) if self.forward_onednn else x_CxD @ weight_BxD.T

    def add_gradient(self, sum_CxD: torch.Tensor, grad_CxB: torch.Tensor, weight_BxD: torch.Tensor) -> None:
        """Add the gradient by the rows, G W, to ``sum_CxD`` in place."""
        if self.backward_onednn:
            sum_CxD.add_(onednn_product(grad_CxB, weight_BxD.T))
        else:
            sum_CxD.addmm_(grad_CxB, weight_BxD)


def scoring_logprobs(
    head: PlainHead,
    blocks: HeadBlocks,
    hidden_UxD: torch.Tensor,
    rows_L: torch.Tensor,
    labels_L: torch.Tensor,
    known_rows_L: npt.NDArray[np.int64],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float32 log-probability of each label, in nats, and whether it is the first of the most probable tokens.

    Nothing is kept for a gradient. Training uses ``lm_head_training.training_logprobs``.

    Args:
        head: output layer.
        blocks: how it is computed.
        hidden_UxD: hidden states that predict labels.
        rows_L: for each label the row of its hidden state, in ascending order.
        labels_L: token ids of the labels.
        known_rows_L: ``rows_L`` in host memory.
    """
    found = []
    with without_autocast(hidden_UxD):
        for start, stop, rows in row_chunks(head, blocks, hidden_UxD):
            low, high = np.searchsorted(known_rows_L, (start, stop))
            found.append(rows.scan(rows_L[low:high] - start, labels_L[low:high], gradients=False))
    return torch.cat([chunk.logprobs_L for chunk in found]), torch.cat([chunk.greedy_L for chunk in found])


def row_chunks(head: PlainHead, blocks: HeadBlocks, hidden_UxD: torch.Tensor) -> Iterator[tuple[int, int, Rows]]:
    """Yield the chunks of rows as (start, stop, rows)."""
    (tokens, width), copied = head.weight_VxD.shape, head.weight_VxD.dtype != torch.float32
    size, block = blocks.sizes(len(hidden_UxD), tokens, copied=width if copied else 0)
    for start in range(0, len(hidden_UxD), size):
        yield start, start + size, Rows(head, blocks, block, hidden_UxD[start : start + size])


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Return a block in which autocast does not compute the products of the tensor's device in half precision."""
    return torch.autocast(tensor.device.type, enabled=False)


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """What a chunk of rows gives after all blocks."""

    logprobs_L: torch.Tensor
    """Log-probability of each label."""
    greedy_L: torch.Tensor
    """Whether the label is the first of the most probable tokens."""
    logsumexp_C: torch.Tensor
    """Logarithm of the sum of all exponentiated logits of each row."""
    grad_CxD: torch.Tensor | None
    """Gradient of the log-probability of each row's label by the row; None if it was not asked for."""


class Rows:
    """The rows of a chunk, with the logits of one block at a time."""

    def __init__(self, head: PlainHead, blocks: HeadBlocks, block: int, hidden_CxD: torch.Tensor) -> None:
        self._head, self._blocks = head, blocks
        self.tokens = [slice(start, start + block) for start in range(0, len(head.weight_VxD), block)]
        self._scaled_CxD = hidden_CxD.float() * head.factor if head.factor != 1 else hidden_CxD.float()

    def block(self, tokens: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return (weights B x D, logits C x B, derivative C x B of soft-capping or None) of a block of tokens."""
        head, slope_CxB = self._head, None
        weight_BxD = head.weight_VxD[tokens].float()
        logits_CxB = self._blocks.product(self._scaled_CxD, weight_BxD)
        if head.bias_V is not None:
            logits_CxB.add_(head.bias_V[tokens].float(), alpha=head.factor)
        if head.softcap is not None:
            slope_CxB = logits_CxB.tanh_().square().neg_().add_(1)
            logits_CxB.mul_(head.softcap)
        return weight_BxD, logits_CxB, slope_CxB

    def scan(self, rows_L: torch.Tensor, labels_L: torch.Tensor, *, gradients: bool) -> Scanned:
        """Go through all blocks. With ``gradients``, label i belongs to row i.

        The gradient is (1 - p) cap'(label) W[label] minus the sum over the other tokens, which leaves the label out. So nothing
        cancels where the label is almost certain.
        """
        top_C = torch.full_like(self._scaled_CxD[:, 0], torch.finfo(torch.float32).min)
        sums_C, tokens_C = torch.zeros_like(top_C), torch.zeros_like(top_C, dtype=torch.int64)
        chosen_L, slopes_L = torch.zeros_like(labels_L, dtype=torch.float32), torch.ones_like(labels_L, dtype=torch.float32)
        sum_CxD = torch.zeros_like(self._scaled_CxD) if gradients else None
        for tokens in self.tokens:
            weight_BxD, logits_CxB, slope_CxB = self.block(tokens)
            inside_L, places_L = _inside(labels_L, tokens.start, logits_CxB.shape[1])
            chosen_L = torch.where(inside_L, logits_CxB[rows_L, places_L], chosen_L)
            best_C, best_places_C = logits_CxB.max(dim=-1)
            tokens_C = torch.where(best_C > top_C, best_places_C + tokens.start, tokens_C)
            before_C, top_C = top_C, torch.maximum(top_C, best_C)
            shrink_C = (before_C - top_C).exp_()
            logits_CxB.sub_(top_C[:, None]).exp_()
            if sum_CxD is None:
                sums_C.mul_(shrink_C).add_(logits_CxB.sum(dim=-1))
                continue
            logits_CxB[rows_L, places_L] = logits_CxB[rows_L, places_L].masked_fill_(inside_L, 0)
            sums_C.mul_(shrink_C).add_(logits_CxB.sum(dim=-1))
            if slope_CxB is not None:
                slopes_L = torch.where(inside_L, slope_CxB[rows_L, places_L], slopes_L)
                logits_CxB.mul_(slope_CxB)
            self._blocks.add_gradient(sum_CxD.mul_(shrink_C[:, None]), logits_CxB, weight_BxD)
        grad_CxD = None
        if sum_CxD is not None:
            grad_CxD = self._head.weight_VxD[labels_L].float().mul_((sums_C * slopes_L)[:, None]).sub_(sum_CxD)
            sums_C = sums_C + (chosen_L - top_C).exp()
            grad_CxD.mul_((self._head.scale / sums_C)[:, None])
        logs_C = sums_C.log()
        logprobs_L = (chosen_L - top_C[rows_L]).sub_(logs_C[rows_L])
        greedy_L = tokens_C[rows_L] == labels_L
        return Scanned(logprobs_L=logprobs_L, greedy_L=greedy_L, logsumexp_C=top_C + logs_C, grad_CxD=grad_CxD)

    def gradient_by_logits(
        self, tokens: slice, labels_C: torch.Tensor, logsumexp_C: torch.Tensor, grad_C: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient C x B by W h + b in one block, if ``grad_C`` is the one by the log-probabilities."""
        _, logits_CxB, slope_CxB = self.block(tokens)
        logits_CxB.sub_(logsumexp_C[:, None]).exp_().mul_(-grad_C[:, None])
        inside_C, places_C = _inside(labels_C, tokens.start, logits_CxB.shape[1])
        logits_CxB.scatter_add_(1, places_C[:, None], (grad_C * inside_C)[:, None])
        if slope_CxB is not None:
            logits_CxB.mul_(slope_CxB)
        return logits_CxB.mul_(self._head.scale) if self._head.scale != 1 else logits_CxB


def _inside(labels_L: torch.Tensor, start: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which labels are in the block from token ``start`` on, and their places in it (those of other labels are valid)."""
    places_L = labels_L - start
    return (places_L >= 0) & (places_L < width), places_L.clamp_(0, width - 1)
