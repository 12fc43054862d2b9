"""An adapter's dropout, drawn from (seed, step, layer) for the whole optimizer batch: the same wherever a batch is cut.

However many passes a batch takes, padded or packed, alone or together with other runs, each token of it loses the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer


@dataclass
class Draws:
    """What the dropout layers of one adapter need to know of the pass that runs: set before each of them."""

    seed_and_step: tuple[int, int] = (0, 0)
    """Seed of the run and number of its step."""
    lengths: tuple[int, ...] = ()
    """Fed tokens of every sequence of the optimizer batch."""
    first: int = 0
    """The first sequence of the batch that this pass computes."""
    count: int = 0
    """How many sequences it computes."""

    def keep(self, layer: int, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return the factors (0, or 1 / (1 - p)) of the inputs ``x`` of a layer: 1 x N x D packed, or B x T x D padded right."""
        lengths = self.lengths[self.first : self.first + self.count]
        if not lengths:  # a pass outside a training: it is a batch of its own
            return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
        word = np.random.SeedSequence((*self.seed_and_step, layer)).generate_state(1)
        generator = torch.Generator(x.device).manual_seed(int(word[0]))
        # Drawn on every device in float32, for the whole batch, of which this pass takes its part.
        drawn_NxD = torch.empty(sum(self.lengths), x.shape[-1], device=x.device).bernoulli_(1 - p, generator=generator)
        start = sum(self.lengths[: self.first])
        mine_NxD = drawn_NxD[start : start + sum(lengths)].to(x.dtype).div_(1 - p)
        if x.dim() == 2 or len(x) == 1:
            return mine_NxD.view_as(x)
        return torch.nn.utils.rnn.pad_sequence(mine_NxD.split(lengths), batch_first=True)


class SeededDropout(torch.nn.Module):
    """Dropout that takes its draws from ``Draws``."""

    def __init__(self, p: float, layer: int, draws: Draws) -> None:
        """Drop inputs of the adapter's ``layer``-th module with probability ``p``."""
        super().__init__()
        self.p, self.layer, self.draws = p, layer, draws

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero some inputs in training and scale the rest up; pass them on in evaluation."""
        return x * self.draws.keep(self.layer, x, self.p) if self.training else x


def seed_dropout(module: PeftModel, adapter: str) -> Draws:
    """Put seeded dropout in the place of PEFT's in every layer of ``adapter``."""
    draws, number = Draws(), 0
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            before = layer.lora_dropout[adapter]
            if isinstance(before, torch.nn.Dropout) and before.p > 0:
                layer.lora_dropout[adapter] = SeededDropout(before.p, number, draws).train(before.training)
            number += 1
    return draws
