"""Linear layers on a CPU through oneDNN, where a time probe finds it faster than PyTorch's default.

PyTorch computes float32 linear layers with MKL. On some x86-64 CPUs oneDNN, which is part of PyTorch too, is twice as fast. On
others it is slower, mostly for small layers (docs/performance.md). Therefore each layer shape of a model is timed on the current
machine, forward and backward separately, and only the faster ones use oneDNN. The operator is the one that torch.compile uses.
It has no backward pass in PyTorch, so this module defines one.

Shapes: N tokens (any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

PROBE_SECONDS = 0.5
"""Seconds that the probe may take. Layers that it does not reach stay with MKL."""
GAIN = 1.15
"""Speed-up from which a layer uses oneDNN."""
SMALLEST_SIDE = 64
"""Number of inputs or outputs below which oneDNN was slower on every CPU that was measured (LoRA layers, tiny models)."""
_TOKENS = (96, 224)
"""Numbers of tokens of the passes that the probe times."""
_FLOPS = 2e9
"""FLOPs of one pass through every shape. A layer that needs more is timed with only some of its outputs."""
_RETURNS = 4
"""How often the same number of tokens recurs in a run. oneDNN compiles a kernel for every new number of tokens."""

_Shape = tuple[int, int]
"""(outputs, inputs) of a layer."""


@dataclass(frozen=True, kw_only=True)
class OneDnnLinear:
    """Shapes O x I of the linear layers that use oneDNN."""

    forward: frozenset[_Shape] = frozenset()
    """Layers that compute their outputs with oneDNN."""
    backward: frozenset[_Shape] = frozenset()
    """Layers that compute the gradient of their inputs with oneDNN."""

    def __bool__(self) -> bool:
        return bool(self.forward or self.backward)

    def __str__(self) -> str:
        parts = [
            f"{direction} {' '.join(f'{outputs}x{inputs}' for outputs, inputs in sorted(shapes))}"
            for direction, shapes in (("forward", self.forward), ("backward", self.backward))
            if shapes
        ]
        return "; ".join(parts) or "none"


def probe_onednn(module: torch.nn.Module, *, seconds: float = PROBE_SECONDS) -> OneDnnLinear:
    """Time the linear layers of ``module`` on this machine and return those that are faster with oneDNN.

    Args:
        module: a model in float32 on a CPU; otherwise, or if PyTorch has no oneDNN, the result is empty.
        seconds: longest time to take; the layers with the most weights are timed first.
    """
    if not has_onednn():
        return OneDnnLinear()
    layers = _layers(module)
    weights = {shape: layer for layer, shape in layers}
    counts = Counter(shape for _, shape in layers)
    forward, backward = set(), set()
    deadline = time.perf_counter() + seconds
    for shape in sorted(counts, key=lambda shape: -counts[shape] * math.prod(shape)):
        if min(shape) < SMALLEST_SIDE:
            continue
        weight_OxI = weight_of(weights[shape]).detach()
        flops = _FLOPS / len(counts)
        ratios = [onednn_speedups(weight_OxI, tokens, flops) for tokens in _TOKENS if time.perf_counter() < deadline]
        if len(ratios) == len(_TOKENS):
            forward |= {shape} if min(ratio for ratio, _ in ratios) >= GAIN else set()
            backward |= {shape} if min(ratio for _, ratio in ratios) >= GAIN else set()
    return OneDnnLinear(forward=frozenset(forward), backward=frozenset(backward))


def has_onednn() -> bool:
    """Tell whether PyTorch has the operator of oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def use_onednn(module: torch.nn.Module, layers: OneDnnLinear) -> Iterator[None]:
    """Inside the with-block, compute the given linear layers of ``module`` with oneDNN; other layers are unchanged."""
    with ExitStack() as stack:
        for layer, shape in _layers(module) if layers else ():
            if shape in layers.forward or shape in layers.backward:
                layer.forward = _Forward(  # type: ignore[method-assign]
                    layer, shape in layers.forward, shape in layers.backward
                )
                stack.callback(delattr, layer, "forward")
        yield


@dataclass(frozen=True)
class _Forward:
    """Forward pass of a linear layer that uses oneDNN in its forward pass, its backward pass, or both."""

    layer: torch.nn.Linear | Conv1D
    forward: bool
    backward: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x O of N x I."""
        result: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, weight_of(self.layer), self.layer.bias, self.forward, self.backward
        )
        return result


class _Product(torch.autograd.Function):
    """x W^T + b. The input is kept for the backward pass only if the weight is trained."""

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
        """Return the gradients that autograd needs."""
        x, weight_OxI = ctx.saved_tensors
        grad_NxO = grad.reshape(-1, grad.shape[-1])
        to_x = to_weight = None
        if weight_OxI is not None:
            to_x_NxI = _onednn(grad_NxO, weight_OxI.T) if ctx.use_onednn else grad_NxO @ weight_OxI
            to_x = to_x_NxI.view(*grad.shape[:-1], -1)
        if x is not None:
            to_weight = grad_NxO.T @ x.reshape(-1, x.shape[-1])
        return to_x, to_weight, grad_NxO.sum(dim=0) if ctx.needs_input_grad[2] else None, None, None


def add_input_gradient(layer: torch.nn.Linear | Conv1D, grad_NxO: torch.Tensor, sum_NxI: torch.Tensor) -> torch.Tensor:
    """Add the gradient of a layer's inputs to ``sum_NxI`` in place, with oneDNN if ``use_onednn`` chose it for the layer."""
    chosen = vars(layer).get("forward")
    if isinstance(chosen, _Forward) and chosen.backward:
        return sum_NxI.add_(_onednn(grad_NxO, weight_of(layer).T))
    return sum_NxI.addmm_(grad_NxO, weight_of(layer))


def forward_is_replaced(layer: torch.nn.Module) -> bool:
    """Tell whether something other than ``use_onednn`` has replaced the forward pass of a layer (an offloading hook)."""
    return not isinstance(vars(layer).get("forward"), _Forward | None)


def onednn_linear(
    weight_OxI: torch.Tensor, bias_O: torch.Tensor | None, forward: bool, backward: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function x -> x W^T + b that uses oneDNN in its forward pass, its backward pass, both, or neither."""
    if not forward and not backward:
        return partial(linear, weight=weight_OxI, bias=bias_O)
    return lambda x: _Product.apply(x, weight_OxI, bias_O, forward, backward)  # type: ignore[no-untyped-call]


def onednn_product(x: torch.Tensor, weight_OxI: torch.Tensor) -> torch.Tensor:
    """Return x W^T in float32 by oneDNN, without a gradient: N x O of N x I."""
    return _onednn(x, weight_OxI)


def _onednn(x: torch.Tensor, weight_OxI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OxI, bias_O, "none", [], "")
    return result


def _layers(module: torch.nn.Module) -> list[tuple[torch.nn.Linear | Conv1D, _Shape]]:
    """Return the linear layers that oneDNN can compute, with the shape O x I of their weights.

    Layers of other types (such as quantized ones) and layers whose forward pass was replaced are left out.
    """
    found: list[tuple[torch.nn.Linear | Conv1D, _Shape]] = []
    for layer in module.modules():
        if type(layer) not in (torch.nn.Linear, Conv1D) or "forward" in vars(layer):
            continue
        assert isinstance(layer, (torch.nn.Linear, Conv1D))
        weight = layer.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel():
            found.append((layer, tuple(weight_of(layer).shape)))  # type: ignore[arg-type]
    return found


def weight_of(layer: torch.nn.Linear | Conv1D) -> torch.Tensor:
    """Return a layer's weight as O x I; Conv1D (GPT-2) stores it as I x O."""
    return layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T


def onednn_speedups(weight_OxI: torch.Tensor, tokens: int, flops: float) -> tuple[float, float]:
    """Return the speed-up of oneDNN in the (forward, backward) pass over ``tokens`` tokens, measured on about ``flops`` FLOPs."""
    inputs = weight_OxI.shape[1]
    weight_OxI = weight_OxI[: max(SMALLEST_SIDE, int(flops / (2 * inputs * tokens)))]
    x = torch.ones(tokens, inputs, requires_grad=True)
    grad_NxO = torch.ones(tokens, len(weight_OxI))
    default: Callable[[], torch.Tensor] = lambda: linear(x, weight_OxI)  # noqa: E731
    onednn: Callable[[], torch.Tensor] = lambda: _Product.apply(x, weight_OxI, None, True, True)  # type: ignore[no-untyped-call] # noqa: E731
    _timed(default, x, grad_NxO)
    first = _timed(onednn, x, grad_NxO)  # compiles the kernels
    rounds = [(_timed(default, x, grad_NxO), _timed(onednn, x, grad_NxO)) for _ in range(2)]
    speedups = []
    for direction in (0, 1):
        by_default = min(time_of_default[direction] for time_of_default, _ in rounds)
        by_onednn = min(time_of_onednn[direction] for _, time_of_onednn in rounds)
        speedups.append(_RETURNS * by_default / (first[direction] + (_RETURNS - 1) * by_onednn))
    return speedups[0], speedups[1]


def work_clock() -> float:
    """Return seconds that a difference of two calls turns into the time of some work on a CPU.

    With one thread they are CPU time of the thread: while other processes have the core, this clock stands still. Otherwise a
    probe on a machine with several workers would often measure the others.
    """
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _timed(layer: Callable[[], torch.Tensor], x: torch.Tensor, grad_NxO: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of a layer's forward and backward pass."""
    started = work_clock()
    result = layer()
    between = work_clock()
    torch.autograd.grad(result, x, grad_NxO)
    return between - started, work_clock() - between
