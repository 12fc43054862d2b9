"""An adapter's dropout, drawn from (seed, step, layer) for the whole optimizer batch: the same wherever a batch is cut.

However many passes a batch takes, padded or packed, alone or together with other runs, each token of it loses the same inputs.
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
    """What the dropout layers of one adapter need to know of the pass that runs: set before each of them."""

    seed_and_step: tuple[int, int] = (0, 0)
    """Seed of the run and number of its step."""
    lengths: tuple[int, ...] = ()
    """Fed tokens of every sequence of the optimizer batch."""
    first: int = 0
    """The first sequence of the batch that this pass computes."""
    count: int = 0
    """How many sequences it computes."""

    def kept(self, layer: int, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return which inputs ``x`` of a layer remain: 1 x N x D packed, or B x T x D padded right."""
        lengths = self.lengths[self.first : self.first + self.count]
        if not lengths:  # a pass outside a training: it is a batch of its own
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
    """Draw the inputs that remain for some of a batch's tokens, eight times as fast as torch state: 16 bits for each.

    A token takes a whole number of the generator's words, so the draws of the tokens before are skipped, not drawn. An input
    remains with probability 1 - p, rounded to 1 / 65,536.
    """
    words = -(-width // 4)
    bits = np.random.PCG64DXSM(seeds)
    bits.advance(tokens.start * words)
    drawn = bits.random_raw(len(tokens) * words).view(np.uint16).reshape(len(tokens), 4 * words)
    return torch.from_numpy((drawn < round((1 - p) * 65_536))[:, :width]).contiguous()


class _Dropped(torch.autograd.Function):
    """Inputs times (0 or 1 / (1 - p)); the inputs are kept, which several adapters share, rather than what each makes of them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        """Return ``x`` where it is kept, scaled up."""
        ctx.save_for_backward(kept)
        ctx.scale = scale
        ctx.again = partial(_drop, x.detach(), kept, scale)
        return _drop(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient where the input was kept, scaled up."""
        (kept,) = ctx.saved_tensors
        return _drop(grad, kept, ctx.scale), None, None


def _drop(x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
    return (x * kept).mul_(scale)


class SeededDropout(torch.nn.Module):
    """Dropout that takes its draws from ``DropoutState``."""

    def __init__(self, p: float, layer: int, state: DropoutState) -> None:
        """Drop inputs of the adapter's ``layer``-th module with probability ``p``."""
        super().__init__()
        self.p, self.layer, self.state = p, layer, state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero some inputs in training and scale the rest up; pass them on in evaluation."""
        if not self.training:
            return x
        dropped: torch.Tensor = _Dropped.apply(x, self.state.kept(self.layer, x, self.p), 1 / (1 - self.p))  # type: ignore[no-untyped-call]
        return dropped


def seed_dropout(module: PeftModel, adapter: str) -> DropoutState:
    """Put seeded dropout in the place of PEFT's in every layer of ``adapter``."""
    state, number = DropoutState(), 0
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            before = layer.lora_dropout[adapter]
            if isinstance(before, torch.nn.Dropout) and before.p > 0:
                layer.lora_dropout[adapter] = SeededDropout(before.p, number, state).train(before.training)
            number += 1
    return state
