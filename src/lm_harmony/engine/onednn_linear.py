"""Linear layers on a CPU through oneDNN, for the products that a time probe finds faster there.

PyTorch takes float32 products from MKL. On some x86-64 CPUs oneDNN, which PyTorch ships too, computes the same products twice as
fast; on others it is slower, above all for small layers (docs/performance.md). So each product of a model is timed on the machine
at hand, forward and backward by themselves, and only those that gain are sent through oneDNN. The operator is one that
torch.compile uses; PyTorch gives it no backward pass of its own.

Shapes: N tokens (of any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

PROBE_SECONDS = 0.5
"""Longest time that the probe may take; products that it does not reach stay with PyTorch."""
GAIN = 1.15
"""How many times faster a product must be to be sent through oneDNN."""
SMALLEST_SIDE = 64
"""Inputs or outputs below which oneDNN was slower on every CPU that was tried (LoRA's products, tiny models)."""
_TOKENS = (96, 224)
"""Tokens of a pass on a CPU that are tried."""
_FLOPS = 2e9
"""FLOPs of one product of every shape together: a layer with more is tried with some of its outputs."""
_RETURNS = 4
"""How often a pass of a given number of tokens is met in a run: oneDNN compiles a kernel for each number that is new."""

_Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class OneDnnLinear:
    """Which products oneDNN computes, by the shape O x I of their layer's weight."""

    forward: frozenset[_Shape] = frozenset()
    """Outputs from inputs."""
    backward: frozenset[_Shape] = frozenset()
    """The gradient of the inputs from the gradient of the outputs."""

    def __bool__(self) -> bool:
        return bool(self.forward or self.backward)

    def __str__(self) -> str:
        told = [
            f"{direction} {' '.join(f'{outputs}x{inputs}' for outputs, inputs in sorted(shapes))}"
            for direction, shapes in (("forward", self.forward), ("backward", self.backward))
            if shapes
        ]
        return "; ".join(told) or "none"


def probe_onednn(module: torch.nn.Module, *, seconds: float = PROBE_SECONDS) -> OneDnnLinear:
    """Time the linear layers of ``module`` on this machine and return the products that are faster through oneDNN.

    Args:
        module: in float32 on a CPU; for any other, and where PyTorch has no oneDNN, nothing is returned.
        seconds: longest time to take; the layers with the most weights come first.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return OneDnnLinear()
    layers = _layers(module)
    weights = {shape: layer for layer, shape in layers}
    counts = Counter(shape for _, shape in layers)
    forward, backward = set(), set()
    deadline = time.perf_counter() + seconds
    for shape in sorted(counts, key=lambda shape: -counts[shape] * math.prod(shape)):
        if min(shape) < SMALLEST_SIDE:
            continue
        weight_OxI = _weight(weights[shape]).detach()
        ratios = [_ratios(weight_OxI, tokens, _FLOPS / len(counts)) for tokens in _TOKENS if time.perf_counter() < deadline]
        if len(ratios) == len(_TOKENS):
            forward |= {shape} if min(ratio for ratio, _ in ratios) >= GAIN else set()
            backward |= {shape} if min(ratio for _, ratio in ratios) >= GAIN else set()
    return OneDnnLinear(forward=frozenset(forward), backward=frozenset(backward))


@contextmanager
def use_onednn(module: torch.nn.Module, products: OneDnnLinear) -> Iterator[None]:
    """Compute ``products`` of the linear layers of ``module`` through oneDNN for the length of a block; all else as it is."""
    with ExitStack() as stack:
        for layer, shape in _layers(module) if products else ():
            if shape in products.forward or shape in products.backward:
                layer.forward = _Forward(  # type: ignore[method-assign]
                    layer, shape in products.forward, shape in products.backward
                )
                stack.callback(delattr, layer, "forward")
        yield


@dataclass(frozen=True)
class _Forward:
    """The forward pass of a layer whose products go through oneDNN one way, the other or both."""

    layer: torch.nn.Linear | Conv1D
    forward: bool
    backward: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x O of N x I."""
        result: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, _weight(self.layer), self.layer.bias, self.forward, self.backward
        )
        return result


class _Product(torch.autograd.Function):
    """x W' + b. The input is kept only where the weight is trained."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_OxI: torch.Tensor, bias_O: torch.Tensor | None, forward: bool, backward: bool
    ) -> torch.Tensor:
        """Return N x O of N x I."""
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[1] else None, weight_OxI if needs[0] else None)
        ctx.use_onednn = backward
        return _onednn(x, weight_OxI, bias_O) if forward else linear(x, weight_OxI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients that are asked for."""
        x, weight_OxI = ctx.saved_tensors
        grad_NxO = grad.reshape(-1, grad.shape[-1])
        to_x = to_weight = None
        if weight_OxI is not None:
            to_x_NxI = _onednn(grad_NxO, weight_OxI.T) if ctx.use_onednn else grad_NxO @ weight_OxI
            to_x = to_x_NxI.view(*grad.shape[:-1], -1)
        if x is not None:
            to_weight = grad_NxO.T @ x.reshape(-1, x.shape[-1])
        return to_x, to_weight, grad_NxO.sum(dim=0) if ctx.needs_input_grad[2] else None, None, None


def _onednn(x: torch.Tensor, weight_OxI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OxI, bias_O, "none", [], "")
    return result


def _layers(module: torch.nn.Module) -> list[tuple[torch.nn.Linear | Conv1D, _Shape]]:
    """Return the linear layers that oneDNN could compute, with the shape O x I of their weights.

    Layers of other types (quantized ones, say) and layers whose forward pass was replaced are left alone.
    """
    found: list[tuple[torch.nn.Linear | Conv1D, _Shape]] = []
    for layer in module.modules():
        if type(layer) not in (torch.nn.Linear, Conv1D) or "forward" in vars(layer):
            continue
        assert isinstance(layer, (torch.nn.Linear, Conv1D))
        weight = layer.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel():
            found.append((layer, tuple(_weight(layer).shape)))  # type: ignore[arg-type]
    return found


def _weight(layer: torch.nn.Linear | Conv1D) -> torch.Tensor:
    """Return a layer's weight as O x I; Conv1D (GPT-2) keeps it as I x O."""
    return layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T


def _ratios(weight_OxI: torch.Tensor, tokens: int, flops: float) -> tuple[float, float]:
    """Return how many times faster oneDNN is, forward and backward, for a pass of ``tokens`` and products of about ``flops``."""
    inputs = weight_OxI.shape[1]
    weight_OxI = weight_OxI[: max(SMALLEST_SIDE, int(flops / (2 * inputs * tokens)))]
    x = torch.ones(tokens, inputs, requires_grad=True)
    grad_NxO = torch.ones(tokens, len(weight_OxI))
    theirs: Callable[[], torch.Tensor] = lambda: linear(x, weight_OxI)  # noqa: E731
    ours: Callable[[], torch.Tensor] = lambda: _Product.apply(x, weight_OxI, None, True, True)  # type: ignore[no-untyped-call] # noqa: E731
    _timed(theirs, x, grad_NxO)
    first = _timed(ours, x, grad_NxO)  # compiles its kernels
    rounds = [(_timed(theirs, x, grad_NxO), _timed(ours, x, grad_NxO)) for _ in range(2)]
    found = []
    for way in (0, 1):
        best = min(their[way] for their, _ in rounds)
        again = min(our[way] for _, our in rounds)
        found.append(_RETURNS * best / (first[way] + (_RETURNS - 1) * again))
    return found[0], found[1]


def _timed(product: Callable[[], torch.Tensor], x: torch.Tensor, grad_NxO: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of a product and of its backward pass."""
    started = time.perf_counter()
    result = product()
    between = time.perf_counter()
    torch.autograd.grad(result, x, grad_NxO)
    return between - started, time.perf_counter() - between
