"""Probe of exactness and time that chooses the attention kernels of a model on a GPU.

Kernels whose speed is known on CPUs only are never chosen by their availability. Each is compared with the default on the device
and the model at hand: its log-probabilities, its gradients in training, and its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from lm_harmony.engine.attention_kernels import DEFAULT_KERNELS, AttentionKernels
from lm_harmony.engine.forward import packed_logprobs
from lm_harmony.engine.layout import prefix_tree_layout
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.loading import LanguageModel

GAIN = 1.05
"""Speed-up from which a kernel is chosen instead of the default."""
REPEATS = 5
"""Number of times that the probe runs each kernel after a first run, which compiles and allocates."""
ALLOWED = 0.02
"""Largest difference of a result from the default's, as a share of the largest value. bfloat16 keeps 8 bits, and a kernel that
hides or shows a wrong token differs by more."""


def choose_kernels(model: LanguageModel) -> AttentionKernels:
    """Return the kernels that are faster than the default on this model and device, and give its results.

    Args:
        model: a model for which packed rows are exact.
    """
    texts, few_shot = _sequences(model)
    varlen, merged = AttentionKernels(varlen=True), AttentionKernels(merged_prefix=True)
    training = {kernels: partial(_gradient, model, texts, kernels) for kernels in (DEFAULT_KERNELS, varlen)}
    scoring = {kernels: partial(_logprobs, model, few_shot, kernels) for kernels in (DEFAULT_KERNELS, merged)}
    return replace(fastest(training), merged_prefix=fastest(scoring).merged_prefix)


def fastest(candidates: Mapping[AttentionKernels, Callable[[], torch.Tensor]]) -> AttentionKernels:
    """Return the fastest of the candidates that give the default's result, if it is faster than the default by ``GAIN``.

    Args:
        candidates: kernels -> function that computes the result with them; ``DEFAULT_KERNELS`` are one of them.
    """
    expected, seconds = candidates[DEFAULT_KERNELS](), dict[AttentionKernels, float]()
    for kernels, compute in candidates.items():
        try:
            found = compute()
        except (RuntimeError, TypeError, ValueError, AttributeError):  # this device or version does not support them
            continue
        if float((found - expected).abs().max()) <= ALLOWED * float(expected.abs().max()):
            seconds[kernels] = median(_seconds(compute) for _ in range(REPEATS))
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * GAIN < seconds[DEFAULT_KERNELS] else DEFAULT_KERNELS


def _seconds(compute: Callable[[], torch.Tensor]) -> float:
    """Return the seconds until the device has computed the result."""
    started = time.perf_counter()
    compute().flatten()[0].item()
    return time.perf_counter() - started


def _gradient(model: LanguageModel, sequences: list[TokenSequence], kernels: AttentionKernels) -> torch.Tensor:
    """Return the gradient of the loss by the input embeddings."""
    weight: Any = model.module.get_input_embeddings().weight
    trained = weight.requires_grad
    weight.requires_grad_(True)
    try:
        with torch.enable_grad(), model.mixed_precision():
            loss = packed_logprobs(model.module, sequences, kernels=kernels).logprobs_L.sum()
            (gradient,) = torch.autograd.grad(loss, [weight])
    finally:
        weight.requires_grad_(trained)
    return gradient


@torch.no_grad()
def _logprobs(model: LanguageModel, sequences: list[TokenSequence], kernels: AttentionKernels) -> torch.Tensor:
    """Return the log-probabilities of all labels."""
    with model.mixed_precision():
        return packed_logprobs(model.module, sequences, arrange=prefix_tree_layout, kernels=kernels).logprobs_L


def _sequences(model: LanguageModel) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Return eight texts as in training, and questions with four answers each after the same examples as in few-shot scoring."""
    weight: Any = model.module.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(len(weight), (size,), generator=generator).tolist())

    longest = min(model.max_length, 600)
    texts = [TokenSequence(ids=draw(min(longest, 40 + 12 * number)), first_label=1) for number in range(8)]
    examples = draw(longest - 64)
    questions = [(*examples, *draw(24 + number)) for number in range(16)]
    few_shot = [TokenSequence(ids=(*ids, *draw(4)), first_label=len(ids)) for ids in questions for _ in range(4)]
    return texts, few_shot
