"""Dropout of an adapter: a mask is computed from (seed, step, layer, token, feature) by integer operations.

No random generator is involved, so a mask has the same bits in NumPy and in PyTorch, on every device, and however a batch is cut
into passes, padded or packed, alone or jointly with other runs.

Each token and each feature has a hashed word of 32 bits. Their product modulo 2^32 decides whether the input is kept. This is
multiplicative hashing (Dietzfelbinger et al., "A Reliable Randomized Algorithm for the Closest-Pair Problem", 1997). It costs a
GPU two kernels for each layer, a product and a comparison.

Shapes: L adapted layers, B sequences, T tokens of the longest one, N tokens of a pass (B x T if padded), D inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

SMALL_MASK = 2**15
"""Number of inputs up to which a CPU has a mask in float32: a mask of bytes is converted by each operation that uses it."""

_Words = Any
"""int32 values: a NumPy array on a CPU, where NumPy is the faster of the two, and otherwise a tensor."""


class DropoutState:
    """Seed, step and tokens of the current forward pass, for all dropout layers of one adapter."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Start without layers, with masks for passes outside of a training; ``device`` is that of the adapter.

        ``tokens_LxN`` has the hashed words of a pass's tokens for each layer, ``features`` those of the inputs for each width.
        """
        self._device = torch.device(device)
        self._layers: list[SeededDropout] = []
        self.tokens_LxN: _Words = ()
        self.features: Mapping[int, _Words] = {}
        self.set_step(0, 0, ())

    @property
    def layers(self) -> int:
        """Number of dropout layers."""
        return len(self._layers)

    def add_layer(self, p: float, width: int) -> SeededDropout:
        """Return the dropout of the next layer, with ``width`` inputs of which each is dropped with probability ``p``."""
        self._layers.append(SeededDropout(p, width, self))
        return self._layers[-1]

    def set_step(self, seed: int, step: int, lengths: Sequence[int]) -> None:
        """Begin an optimizer step.

        Args:
            seed: seed of the run, at least 0.
            step: number of the optimizer step.
            lengths: number of input tokens of every sequence of the optimizer batch; empty outside of a training.
        """
        self.lengths, self._first, self._count = tuple(lengths), 0, len(lengths)
        self._words: list[int] = np.random.SeedSequence((seed, step)).generate_state(2).view(np.int32).tolist()
        self.ready = False

    def set_pass(self, first: int, count: int) -> None:
        """Begin the forward pass that computes the ``count`` sequences from number ``first`` on."""
        self._first, self._count, self.ready = first, count, False
        if self._layers:
            self.prepare(1, sum(self.lengths[first : first + count]))  # here, because compiled layers should find the words ready

    def prepare(self, rows: int, columns: int) -> None:
        """Hash the words of a pass of ``rows`` x ``columns`` tokens, and give each layer its own.

        A token is identified by its index in the optimizer batch. Pads have the indices of other tokens.
        """
        first, last = self._first, self._first + self._count
        starts = np.cumsum([sum(self.lengths[:first]), *self.lengths[first:last]]).tolist()
        if not self.lengths:
            starts = [row * columns for row in range(rows)]
        parts = [_counter(columns, self._device) + start for start in starts[:rows]]
        tokens_N = np.concatenate(parts) if self._device.type == "cpu" else torch.cat(parts)
        layers_L = _mixed(_counter(len(self._layers), self._device) + 1)
        self.tokens_LxN = _mixed(_mixed(tokens_N ^ self._words[0]) ^ layers_L[:, None]) | 1
        widths = {layer.width for layer in self._layers}
        self.features = {width: _mixed(_counter(width, self._device) ^ self._words[1]) | 1 for width in widths}
        self.ready = True
        for layer, words_N in zip(self._layers, self.tokens_LxN, strict=True):
            layer.set_words(words_N, self.features[layer.width])


def _counter(count: int, device: torch.device) -> _Words:
    """Return 0, 1, ... ``count`` - 1."""
    return np.arange(count, dtype=np.int32) if device.type == "cpu" else torch.arange(count, dtype=torch.int32, device=device)


def _mixed(words: _Words) -> _Words:
    """Hash each word, one to one, with ``lowbias32`` of https://github.com/skeeto/hash-prospector (public domain)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        words = (words ^ _shifted(words, shift)) * factor
    return words ^ _shifted(words, 16)


def _shifted(words: _Words, bits: int) -> _Words:
    """Shift words to the right and fill with zeros; ``>>`` alone fills a negative int32 with ones."""
    return (words >> bits) & (2**32 - 1 >> bits)


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

    def __init__(self, p: float, width: int, state: DropoutState) -> None:
        """Make a layer of ``state``: with ``width`` inputs, of which each is dropped with probability ``p``."""
        super().__init__()
        self.p, self.width = p, width
        self.state = state
        self.limit = min(round((1 - p) * 2**32) - 2**31, 2**31 - 1)
        self._words: tuple[_Words, _Words] = (), ()

    def set_words(self, tokens_N: _Words, features_D: _Words) -> None:
        """Set the hashed words of the tokens and of the features that the next masks are computed from."""
        self._words = tokens_N, features_D

    def kept(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dropout mask N x D, 1 where an input is kept; int8, or float32 if it is small and on a CPU.

        Args:
            x: the inputs, 1 x N x D or N x D if packed, B x T x D if padded on the right. Only shape and device are read.
        """
        rows, columns = (1, len(x)) if x.dim() == 2 else x.shape[:2]
        if not self.state.ready or len(self._words[0]) != rows * columns:
            self.state.prepare(rows, columns)
        tokens_N, features_D = self._words
        kept = tokens_N[:, None] * features_D < self.limit
        if isinstance(kept, np.ndarray) and kept.size <= SMALL_MASK and x.dtype == torch.float32:
            return torch.from_numpy(kept.astype(np.float32)).to(x.device)
        return torch.as_tensor(kept).view(torch.int8).to(x.device)  # the layers of a model may be on several devices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero some inputs and scale the others up in training; return ``x`` in evaluation."""
        if not self.training:
            return x
        dropped: torch.Tensor = _Dropped.apply(x, self.kept(x).view(x.shape), 1 / (1 - self.p))  # type: ignore[no-untyped-call]
        return dropped


def seed_dropout(module: PeftModel, adapter: str) -> DropoutState:
    """Replace PEFT's dropout by seeded dropout in every layer of ``adapter``; return its state."""
    state = DropoutState(next(module.parameters()).device)
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            before = layer.lora_dropout[adapter]
            if isinstance(before, torch.nn.Dropout) and before.p > 0 and layer.in_features is not None:
                layer.lora_dropout[adapter] = state.add_layer(before.p, layer.in_features).train(before.training)
    return state
