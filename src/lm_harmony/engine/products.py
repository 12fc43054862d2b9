"""Linear layers on a processor through oneDNN, which chooses its kernels by what the processor can do.

PyTorch takes float32 products from MKL, which has the widest kernels for one maker's processors alone: on an x86-64 processor of
another maker oneDNN, which PyTorch ships too, was measured twice as fast (docs/performance.md). The operator is one that
torch.compile uses; PyTorch gives it no backward pass of its own.

Shapes: N rows (of any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# Every shape that is met leaves up to a megabyte behind, of the last 1,024 shapes: in oneDNN its machine code, in the layer
# through which PyTorch calls it what it took to ask. Hardly two batches have the same number of tokens, and a pass meets some 30
# shapes. Both are read when the first product is computed; a user's own settings stand.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "32")


@contextmanager
def fast_products() -> Iterator[None]:
    """Compute linear layers of float32 weights in main memory through oneDNN for the length of a block; all else as it is."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        yield
        return
    with _ThroughOneDnn():
        yield


class _ThroughOneDnn(TorchFunctionMode):
    """Sees every torch function that is called from Python, and takes those that are a linear layer."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what ``func`` would, within rounding."""
        if func is linear:
            x, weight, bias = (*args, None)[:3] if not kwargs else (args[0], args[1], kwargs.get("bias"))
            if _served(x, weight, bias):
                return _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        elif func is torch.addmm and not kwargs:  # transformers' Conv1D, of GPT-2
            bias, x, weight = args
            if _served(x, weight, bias) and bias.dim() == 1:
                return _Product.apply(x, weight.T, bias)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _served(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)  # quantized weights have their own types
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and x.dim() > 1
        and weight.dim() == 2
        and x.numel() > 0
    )


def _product(x: torch.Tensor, weight_OxI: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OxI, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    """x W' + b. The input is kept only where the weight is trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OxI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        """Return N x O of N x I."""
        learns = ctx.needs_input_grad
        ctx.save_for_backward(x if learns[1] else None, weight_OxI if learns[0] else None)
        return _product(x, weight_OxI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients that are asked for."""
        x, weight_OxI = ctx.saved_tensors
        grad_NxO = grad.reshape(-1, grad.shape[-1])
        to_x = None if weight_OxI is None else _product(grad_NxO, weight_OxI.T).view(*grad.shape[:-1], -1)
        to_weight = None if x is None else _product(grad_NxO.T, x.reshape(-1, x.shape[-1]).T)
        return to_x, to_weight, grad_NxO.sum(dim=0) if ctx.needs_input_grad[2] else None
