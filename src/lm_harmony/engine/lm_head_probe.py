"""Probe of time and exactness that chooses whether the output layer of a model is computed in blocks of its vocabulary.

It runs on a CPU only. Blocks have never run on a GPU, where chunks have many more rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from lm_harmony.engine.lm_head import LMHead, lm_head_logprobs, lm_head_of
from lm_harmony.engine.lm_head_blocks import SMALLEST_VOCABULARY, HeadBlocks, PlainHead
from lm_harmony.engine.onednn_linear import OneDnnLinear, has_onednn, onednn_linear, onednn_speedups, work_clock
from lm_harmony.models.loading import LanguageModel

GAIN = 1.03
"""Speed-up from which oneDNN computes a product. Its kernels are compiled for one block and used for all of a pass."""
ROWS = 224
"""Number of hidden states of the probe, about as many as a training pass on a CPU has."""
FLOPS = 1e9
"""FLOPs of one forward and backward pass through the part of the vocabulary that the probe computes."""
SMALLEST_PART = 1_024
"""Number of tokens of that part at least."""
RUNS = 3
"""Number of timed passes of each way. The fastest one counts, because other processes only slow them down."""
TOLERANCE = 1e-4
"""Largest difference of a result, as a share of the largest value, for float32."""
ROUNDING_STEPS = 8
"""The same in rounding steps of the type that computes the products, where that is more."""


def choose_head_blocks(model: LanguageModel, onednn: OneDnnLinear) -> HeadBlocks | None:
    """Return how the output layer is computed in blocks, or None where that is slower, inexact or not possible.

    Args:
        model: a model for which packed rows are exact.
        onednn: linear layers that use oneDNN without blocks; the output layer may be one of them.
    """
    head = lm_head_of(model.module)
    plain = head.plain
    if plain is None or plain.weight_VxD.device.type != "cpu" or head.vocabulary < SMALLEST_VOCABULARY:
        return None
    generator = torch.Generator().manual_seed(0)
    tokens, width = plain.weight_VxD.shape
    part = min(tokens, max(SMALLEST_PART, int(FLOPS / (4 * ROWS * width))))
    labels = torch.randint(part, (ROWS,), generator=generator)
    hidden = torch.randn(ROWS, width, generator=generator).to(plain.weight_VxD.dtype)
    cut = _first_tokens(head, plain, part, onednn)
    assert cut.plain is not None
    weight = cut.plain.weight_VxD.float()
    forward, backward = onednn_speedups(weight, ROWS, FLOPS / 2) if has_onednn() else (0.0, 0.0)
    blocks = HeadBlocks(forward_onednn=forward >= GAIN, backward_onednn=backward >= GAIN)
    chunked, blocked = (partial(_results, model, cut, hidden, labels, way) for way in (None, blocks))
    expected, found = chunked(), blocked()
    eps = torch.finfo(model.autocast or model.module.dtype).eps
    for one, other in zip(expected, found, strict=True):
        if not float((one - other).abs().max()) <= max(TOLERANCE, ROUNDING_STEPS * eps) * float(one.abs().max()):
            return None
    seconds = [(_seconds(chunked), _seconds(blocked)) for _ in range(RUNS)]
    return blocks if min(blocked for _, blocked in seconds) < min(chunked for chunked, _ in seconds) else None


def _first_tokens(head: LMHead, plain: PlainHead, part: int, onednn: OneDnnLinear) -> LMHead:
    """Return an output layer for the first tokens of the vocabulary, in chunks of as many rows as for all of them."""
    weight = plain.weight_VxD.detach()[:part]
    bias = None if plain.bias_V is None else plain.bias_V.detach()[:part]
    cut = replace(plain, weight_VxD=weight, bias_V=bias)
    linear = onednn_linear(
        weight, bias, *(tuple(plain.weight_VxD.shape) in chosen for chosen in (onednn.forward, onednn.backward))
    )

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        values = linear(hidden) * plain.scale if plain.scale != 1 else linear(hidden)
        return values if plain.softcap is None else torch.tanh(values / plain.softcap) * plain.softcap

    return replace(head, logits=logits, trained=False, plain=cut)


def _results(
    model: LanguageModel, head: LMHead, hidden_UxD: torch.Tensor, labels_U: torch.Tensor, blocks: HeadBlocks | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities and the gradient of their sum by the hidden states."""
    rows = np.arange(len(labels_U))
    with torch.enable_grad(), model.mixed_precision():
        hidden_UxD = hidden_UxD.detach().requires_grad_()
        logprobs_U, _ = lm_head_logprobs(head, hidden_UxD, torch.from_numpy(rows), labels_U, rows, blocks=blocks)
        (gradient,) = torch.autograd.grad(logprobs_U.sum(), [hidden_UxD])
    return logprobs_U.detach(), gradient.float()


def _seconds(compute: Callable[[], object]) -> float:
    started = work_clock()
    compute()
    return work_clock() - started
