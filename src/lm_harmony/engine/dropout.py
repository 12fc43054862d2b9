"""Dropout of an adapter with masks that depend only on (seed, step, layer, token), not on how a batch is split.

The mask of an optimizer batch is the same whether the batch is computed in one pass or in several, padded or packed, alone or
jointly with other runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer


@dataclass
class DropoutState:
    """The current forward pass, as the dropout layers of one adapter need it; it is set before every pass."""

    seed_and_step: tuple[int, int] = (0, 0)
    """Seed of the run and number of its optimizer step."""
    lengths: tuple[int, ...] = ()
    """Number of input tokens of every sequence of the optimizer batch."""
    first: int = 0
    """Index of the first sequence that this pass computes."""
    count: int = 0
    """Number of sequences that this pass computes."""

    def kept(self, layer: int, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return the boolean dropout mask of a layer's inputs ``x``: 1 x N x D if packed, B x T x D if padded on the right."""
        lengths = self.lengths[self.first : self.first + self.count]
        if not lengths:  # a pass outside training is a batch of its own
            return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p)
        start = sum(self.lengths[: self.first])
        tokens = range(start, start + sum(lengths))
        seeds = np.random.SeedSequence((*self.seed_and_step, layer))
        if x.device.type == "cpu":
            mine_NxD = _drawn_on_cpu(seeds, tokens, x.shape[-1], p)
        else:
            generator = torch.Generator(x.device).manual_seed(int(seeds.generate_state(1)[0]))
            whole_NxD = torch.empty(sum(self.lengths), x.shape[-1], dtype=torch.bool, device=x.device)
            mine_NxD = whole_NxD.bernoulli_(1 - p, generator=generator)[tokens.start : tokens.stop]
        if x.dim() == 2 or len(x) == 1:
            return mine_NxD.view_as(x)
        return torch.nn.utils.rnn.pad_sequence(list(mine_NxD.split(lengths)), batch_first=True)


def _drawn_on_cpu(seeds: np.random.SeedSequence, tokens: range, width: int, p: float) -> torch.Tensor:
    """Draw the dropout mask of some tokens of a batch with 16 random bits for each input, eight times as fast as torch.

    A token uses a fixed number of the generator's 64-bit words, so the generator can skip the tokens before the first. An input
    is kept with probability 1 - p, rounded to 1 / 65,536.
    """
    words = -(-width // 4)
    bits = np.random.PCG64DXSM(seeds)
    bits.advance(tokens.start * words)
    drawn = bits.random_raw(len(tokens) * words).view(np.uint16).reshape(len(tokens), 4 * words)
    return torch.from_numpy((drawn < round((1 - p) * 65_536))[:, :width]).contiguous()


class _Dropped(torch.autograd.Function):
    """Inputs times 0 or 1 / (1 - p). It allows ``recompute`` to keep the inputs, which adapters share, instead of the outputs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        """Return ``x`` scaled up where it is kept, and zero elsewhere."""
        ctx.save_for_backward(kept)
        ctx.scale = scale
        ctx.again = partial(_drop, x.detach(), kept, scale)
        return _drop(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient scaled up where the input was kept, and zero elsewhere."""
        (kept,) = ctx.saved_tensors
        return _drop(grad, kept, ctx.scale), None, None


def _drop(x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
    return (x * kept).mul_(scale)


class SeededDropout(torch.nn.Module):
    """A dropout layer that takes its mask from ``DropoutState``."""

    def __init__(self, p: float, layer: int, state: DropoutState) -> None:
        """Make the dropout layer of the adapter's ``layer``-th module; ``p`` is the probability to drop an input."""
        super().__init__()
        self.p, self.layer, self.state = p, layer, state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero some inputs and scale the others up in training; return ``x`` in evaluation."""
        if not self.training:
            return x
        dropped: torch.Tensor = _Dropped.apply(x, self.state.kept(self.layer, x, self.p), 1 / (1 - self.p))  # type: ignore[no-untyped-call]
        return dropped


def seed_dropout(module: PeftModel, adapter: str) -> DropoutState:
    """Replace PEFT's dropout by seeded dropout in every layer of ``adapter``; return its state."""
    state, number = DropoutState(), 0
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            before = layer.lora_dropout[adapter]
            if isinstance(before, torch.nn.Dropout) and before.p > 0:
                layer.lora_dropout[adapter] = SeededDropout(before.p, number, state).train(before.training)
            number += 1
    return state
