"""The adapters of several runs on one base model: each run's part of a packed row goes through the adapter of that run.

The weights of all runs are stacked once when the runs of a pass change. Each run's own weights become views of the stack, so that
its optimizer changes the stack. A row is cut into blocks of equal length, each of which belongs to one run. So one batched
product computes the adapters of all runs, in as many kernels as for one run. Where the parts of the runs have similar lengths, a
block is the whole part. Otherwise a run has several blocks, and six small kernels a layer gather and add the weights of blocks.
Blocks are filled up with texts that have no labels and change nothing. Runs meet in no sum, so NaN in one run stays there.

Shapes: R runs, B blocks, T tokens of a block, N = B x T tokens of the row, L adapted layers, D inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine.adapters import ONLY, Trainee
from lm_harmony.engine.dropout import SeededDropout
from lm_harmony.engine.lora_linear import add_base_gradient, dropped
from lm_harmony.engine.sequences import TokenSequence, to_device

BLOCK_TOKENS = 64
"""Tokens of a block where the parts of the runs differ in length. Half of it is added to each part on average."""
WHOLE_PARTS = 1.125
"""Largest ratio of tokens with and without filling up to which each part is one block."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a packed row is cut into blocks."""

    tokens: int
    """Number of tokens of each block."""
    counts: tuple[int, ...]
    """Number of blocks of each run."""
    runs_B: torch.Tensor | None
    """Run of each block, on the device; None where each run has exactly one block."""
    counts_R: torch.Tensor
    """``counts`` on the device."""

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> Blocks:
        """Return the blocks of parts with ``sizes`` tokens; a part may be empty."""
        longest = max(sizes)
        if min(sizes) and longest * len(sizes) <= WHOLE_PARTS * sum(sizes):
            tokens, counts = longest, np.ones(len(sizes), dtype=np.int64)
        else:
            tokens, counts = BLOCK_TOKENS, -(-np.array(sizes) // BLOCK_TOKENS)
        runs_B, counts_R = to_device(device, np.repeat(np.arange(len(sizes)), counts), counts)
        one_each = bool((counts == 1).all())
        return cls(tokens=tokens, counts=tuple(counts.tolist()), runs_B=None if one_each else runs_B, counts_R=counts_R)

    def of_runs(self, stacked_Rx: torch.Tensor) -> torch.Tensor:
        """Return the entry of each block's run: B x ... of R x ..."""
        return stacked_Rx if self.runs_B is None else stacked_Rx.index_select(0, self.runs_B)

    def sums(self, parts_Bx: torch.Tensor) -> torch.Tensor:
        """Return the sum over the blocks of each run: R x ... of B x ..."""
        if self.runs_B is None:
            return parts_Bx
        return torch.segment_reduce(parts_Bx, "sum", lengths=self.counts_R, axis=0, unsafe=True, initial=0)


class JointAdapters:
    """The adapters of several trainees with one base model and equally shaped adapters."""

    def __init__(self, trainees: Sequence[Trainee]) -> None:
        """Stack the weights of ``trainees``."""
        self._trainees, self._device = trainees, trainees[0].model.device
        per_layer = zip(*([place.layer for place in trainee.layers] for trainee in trainees), strict=True)
        numbers = iter(range(len(trainees[0].layers)))
        self._layers = [_Layer(layers, numbers) for layers in per_layer]
        self.blocks = Blocks.of([1] * len(trainees), self._device)
        self._tokens_LxBxT: Any = None
        self._features: dict[int, Any] = {}

    def begin_pass(self, parts: Sequence[Sequence[TokenSequence]]) -> list[TokenSequence]:
        """Set the blocks and the dropout masks of the next pass, and return the sequences of its row.

        Args:
            parts: the sequences of each run, whose dropout state is set for the pass; not all of them are empty.
        """
        sizes = [sum(len(sequence.ids) - 1 for sequence in part) for part in parts]
        self.blocks = Blocks.of(sizes, self._device)
        missing = [count * self.blocks.tokens - size for count, size in zip(self.blocks.counts, sizes, strict=True)]
        self._hash_words(sizes, missing)
        sequences = [sequence for part in parts for sequence in part]
        longest, some_id = max(len(sequence.ids) - 1 for sequence in sequences), sequences[0].ids[0]
        return [
            sequence
            for part, count in zip(parts, missing, strict=True)
            for sequence in (*part, *_without_labels(count, longest, some_id))
        ]

    def _hash_words(self, sizes: Sequence[int], missing: Sequence[int]) -> None:
        """Join the hashed words of the runs' tokens and features, from which the layers compute their dropout masks."""
        states = [trainee.dropout for trainee in self._trainees]
        if not states[0].layers:  # the recipe has no dropout
            return
        on_cpu = self._device.type == "cpu"
        join, stack, zeros = (np.concatenate, np.stack, np.zeros) if on_cpu else (torch.cat, torch.stack, torch.zeros)
        like: dict[str, Any] = {"dtype": np.int32} if on_cpu else {"dtype": torch.int32, "device": self._device}
        parts = []
        for state, size, count in zip(states, sizes, missing, strict=True):
            parts += [state.tokens_LxN] if size else []
            parts += [zeros((state.layers, count), **like)] if count else []
        self._tokens_LxBxT = join(parts, 1).reshape(states[0].layers, -1, self.blocks.tokens)
        # A run without tokens in this pass has no blocks either, and its words of an earlier pass are not used.
        widths = next(state.features for state, size in zip(states, sizes, strict=True) if size)
        stacked = {width: stack([state.features.get(width, own) for state in states]) for width, own in widths.items()}
        runs: Any = np.repeat(np.arange(len(sizes)), self.blocks.counts) if on_cpu else self.blocks.runs_B
        self._features = stacked if self.blocks.runs_B is None else {width: one[runs] for width, one in stacked.items()}

    def kept(self, number: int, width: int, limit: int) -> torch.Tensor:
        """Return the dropout mask B x T x D of the pass for the layer ``number`` with ``width`` inputs, int8."""
        words_BxTxD = self._tokens_LxBxT[number][:, :, None] * self._features[width][:, None, :]
        return torch.as_tensor(words_BxTxD < limit).view(torch.int8)

    def hand_out_gradients(self) -> None:
        """Give each run its slices of the gradients, as views."""
        for layer in self._layers:
            for stacked, weights in ((layer.a_RxrxD, layer.a), (layer.b_RxOxr, layer.b)):
                gradient, stacked.grad = stacked.grad, None
                for weight, own in zip(weights, () if gradient is None else gradient.unbind(0), strict=gradient is not None):
                    weight.grad = own

    def drop_gradients(self) -> None:
        """Forget the gradients of an attempt that ran out of memory."""
        for layer in self._layers:
            layer.a_RxrxD.grad = layer.b_RxOxr.grad = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the with-block, the model applies to each block the adapter of its run."""
        first = self._trainees[0]
        first.swap_in()
        with ExitStack() as stack:
            stack.callback(first.swap_out)
            for place, layer in zip(first.layers, self._layers, strict=True):
                place.layer.forward = partial(layer.forward, self)  # type: ignore[attr-defined]
                stack.callback(delattr, place.layer, "forward")
            yield


class _Layer:
    """One adapted linear layer with the stacked weights of all runs."""

    def __init__(self, layers: Sequence[Any], numbers: Iterator[int]) -> None:
        """Stack the weights of ``layers``; ``numbers`` gives a number to a layer with dropout."""
        self.a, self.b = ([getattr(layer, name)[ONLY].weight for layer in layers] for name in ("lora_A", "lora_B"))
        self.a_RxrxD, self.b_RxOxr = (torch.stack([one.detach() for one in weights]) for weights in (self.a, self.b))
        for stacked, weights in ((self.a_RxrxD, self.a), (self.b_RxOxr, self.b)):
            for weight, own in zip(weights, stacked.unbind(0), strict=True):
                weight.data = own
            stacked.requires_grad_()
        first = layers[0]
        self._base, self._scale = first.base_layer, first.scaling[ONLY]
        self._dropout = dropout = first.lora_dropout[ONLY]
        self._number = next(numbers) if isinstance(dropout, SeededDropout) else None

    def forward(self, adapters: JointAdapters, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs ... x O of inputs ... x D."""
        scale, kept_BxTxD = self._scale, None
        if self._number is not None:
            scale /= 1 - self._dropout.p
            kept_BxTxD = adapters.kept(self._number, self._dropout.width, self._dropout.limit)
        inputs = x, self.a_RxrxD, self.b_RxOxr, kept_BxTxD
        result: torch.Tensor = _JointlyAdapted.apply(*inputs, scale, self._base, adapters.blocks)  # type: ignore[no-untyped-call]
        return result


class _JointlyAdapted(torch.autograd.Function):
    """The base layer plus ``scale`` times the adapter of each block's run. The base layer is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a_RxrxD: torch.Tensor,
        b_RxOxr: torch.Tensor,
        kept_BxTxD: torch.Tensor | None,
        scale: float,
        base: torch.nn.Linear | Conv1D,
        blocks: Blocks,
    ) -> torch.Tensor:
        """Return ... x O of ... x D."""
        a_BxrxD, b_BxOxr = blocks.of_runs(a_RxrxD), blocks.of_runs(b_RxOxr)
        inputs_BxTxD = dropped(x.reshape(-1, blocks.tokens, x.shape[-1]), kept_BxTxD, a_RxrxD.dtype)
        hidden_BxTxr = _scaled_product(inputs_BxTxD, a_BxrxD.transpose(1, 2), scale, like=b_RxOxr[:1, :1])
        ctx.save_for_backward(x, a_RxrxD, b_RxOxr, kept_BxTxD, hidden_BxTxr)
        ctx.scale, ctx.base, ctx.blocks = scale, base, blocks
        result_NxO: torch.Tensor = base(x.reshape(-1, x.shape[-1]))
        result_BxTxO = result_NxO.view(len(hidden_BxTxr), blocks.tokens, -1)
        if result_NxO.dtype == b_RxOxr.dtype:
            result_BxTxO.baddbmm_(hidden_BxTxr, b_BxOxr.transpose(1, 2))
        else:  # the sum is computed in the adapter's type, and rounded once
            result_BxTxO.add_(hidden_BxTxr @ b_BxOxr.transpose(1, 2))
        return result_NxO.view(*x.shape[:-1], result_NxO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the inputs and of the stacked matrices."""
        x, a_RxrxD, b_RxOxr, kept_BxTxD, hidden_BxTxr = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        exact_BxTxO = grad.reshape(-1, blocks.tokens, grad.shape[-1]).to(b_RxOxr.dtype)
        to_hidden_BxTxr = _scaled_product(exact_BxTxO, blocks.of_runs(b_RxOxr), ctx.scale, like=b_RxOxr[:1, :1])
        inputs_BxTxD = dropped(x.reshape(-1, blocks.tokens, x.shape[-1]), kept_BxTxD, a_RxrxD.dtype)
        to_a = blocks.sums(to_hidden_BxTxr.transpose(1, 2) @ inputs_BxTxD)
        to_b = blocks.sums(exact_BxTxO.transpose(1, 2) @ hidden_BxTxr)
        to_x = None
        if ctx.needs_input_grad[0]:
            from_adapter_NxD = (to_hidden_BxTxr @ blocks.of_runs(a_RxrxD)).flatten(0, 1)
            kept_NxD = None if kept_BxTxD is None else kept_BxTxD.flatten(0, 1)
            to_x = add_base_gradient(ctx.base, grad.reshape(-1, grad.shape[-1]), from_adapter_NxD, kept_NxD).view(x.shape)
        return to_x, to_a, to_b, None, None, None, None


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scale: float, *, like: torch.Tensor) -> torch.Tensor:
    """Return ``scale`` times a batched product in one operation; ``like`` is any tensor that broadcasts to it, not read."""
    return torch.baddbmm(like, left, right, beta=0, alpha=scale)


def _without_labels(count: int, longest: int, some_id: int) -> Iterator[TokenSequence]:
    """Yield sequences without labels with ``count`` tokens in all, none of them longer than ``longest``."""
    while count > 0:
        size = min(count, longest)
        yield TokenSequence(ids=(some_id,) * (size + 1), first_label=size + 1)
        count -= size
