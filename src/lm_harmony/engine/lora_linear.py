"""Linear layers with a LoRA adapter, computed with fewer operations than PEFT takes for the same result.

The layer, its dropout and its adapter are one node of the autograd graph. On a GPU its forward and backward pass start 13 kernels
in float32 and 15 in bfloat16. PEFT starts 18 and 23 with the same masks. Scales are applied inside of matrix products, sums of
two products are added in place, and inputs with dropout are computed a second time in the backward pass instead of kept.

Shapes: N tokens, D inputs, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine.dropout import SeededDropout
from lm_harmony.engine.onednn_linear import add_input_gradient, weight_of


def use_fused_layers(module: PeftModel, adapter: str) -> None:
    """Let the LoRA linear layers of ``module`` whose ``adapter`` is plain compute with ``FusedLoraLinear``.

    Their class is replaced, not their ``forward``: compiled code for one layer would not serve the others then.
    """
    for layer in module.modules():
        if type(layer) is LoraLinear and _has_plain_adapter(layer, adapter):
            layer.__class__ = FusedLoraLinear


def _has_plain_adapter(layer: LoraLinear, adapter: str) -> bool:
    """Tell whether the layer is a frozen linear layer with a plain LoRA adapter: no DoRA, no trained bias."""
    base = layer.base_layer
    return (
        type(base) in (torch.nn.Linear, Conv1D)
        and not any(weight.requires_grad for weight in base.parameters())
        and adapter not in layer.lora_variant
        and not layer.lora_bias[adapter]
    )


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA linear layer with another forward pass, for plain adapters. Their names and files are PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the outputs ... x O of inputs ... x D; where ``_serves`` says no, PEFT computes them."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or len(names) != 1 or not _serves(self, names[0], x):
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        dropout, a, b = self.lora_dropout[names[0]], self.lora_A[names[0]].weight, self.lora_B[names[0]].weight
        scale, kept = self.scaling[names[0]], None
        if isinstance(dropout, SeededDropout) and dropout.training:
            scale, kept = scale / (1 - dropout.p), dropout.kept(x)
        result = _Adapted.apply(x, a, b, kept, scale, self.base_layer)  # type: ignore[no-untyped-call]
        return result


def _serves(layer: LoraLinear, adapter: str, x: torch.Tensor) -> bool:
    """Tell whether ``FusedLoraLinear`` computes the layer now: its adapter is on, and there is no autocast."""
    dropout = layer.lora_dropout[adapter]
    return (
        not layer.disable_adapters
        and not layer.merged
        and not (dropout.training and isinstance(dropout, torch.nn.Dropout))
        and not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type))
    )


class _Adapted(torch.autograd.Function):
    """The base layer plus ``scale`` times the adapter: W x + scale B A (x * kept). The base layer is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a_rxD: torch.Tensor,
        b_Oxr: torch.Tensor,
        kept_NxD: torch.Tensor | None,
        scale: float,
        base: torch.nn.Linear | Conv1D,
    ) -> torch.Tensor:
        """Return ... x O of ... x D."""
        x_NxD = x.reshape(-1, x.shape[-1])
        hidden_Nxr = _scaled_product(dropped(x_NxD, kept_NxD, a_rxD.dtype), a_rxD.T, scale, like=b_Oxr[:1])
        ctx.save_for_backward(x, a_rxD, b_Oxr, kept_NxD, hidden_Nxr)
        ctx.scale, ctx.base = scale, base
        result_NxO: torch.Tensor = base(x_NxD)
        if result_NxO.dtype == b_Oxr.dtype:
            result_NxO.addmm_(hidden_Nxr, b_Oxr.T)
        else:  # the sum is computed in the adapter's type, and rounded once
            result_NxO.add_(hidden_Nxr @ b_Oxr.T)
        return result_NxO.view(*x.shape[:-1], result_NxO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the inputs and of the adapter's two matrices."""
        x, a_rxD, b_Oxr, kept_NxD, hidden_Nxr = ctx.saved_tensors
        grad_NxO = grad.reshape(-1, grad.shape[-1])
        exact_NxO = grad_NxO.to(b_Oxr.dtype)
        to_hidden_Nxr = _scaled_product(exact_NxO, b_Oxr, ctx.scale, like=b_Oxr[:1])
        to_a = to_hidden_Nxr.T @ dropped(x.reshape(-1, x.shape[-1]), kept_NxD, a_rxD.dtype)
        to_b = exact_NxO.T @ hidden_Nxr
        if not ctx.needs_input_grad[0]:
            return None, to_a, to_b, None, None, None
        to_x_NxD = add_base_gradient(ctx.base, grad_NxO, to_hidden_Nxr @ a_rxD, kept_NxD)
        return to_x_NxD.view(x.shape), to_a, to_b, None, None, None


def add_base_gradient(
    base: torch.nn.Linear | Conv1D, grad_NxO: torch.Tensor, from_adapter_NxD: torch.Tensor, kept_NxD: torch.Tensor | None
) -> torch.Tensor:
    """Return the gradient of a layer's inputs N x D: that of its base layer plus that of its adapter, which is overwritten.

    Args:
        base: the frozen layer.
        grad_NxO: gradient of the outputs.
        from_adapter_NxD: gradient that comes from the adapter, before dropout.
        kept_NxD: dropout mask of the adapter; None without dropout.
    """
    if from_adapter_NxD.dtype == grad_NxO.dtype:
        return add_input_gradient(base, grad_NxO, from_adapter_NxD if kept_NxD is None else from_adapter_NxD.mul_(kept_NxD))
    # The sum is computed in the adapter's type, and rounded once.
    from_base_NxD = grad_NxO @ weight_of(base)
    return from_base_NxD.add_(from_adapter_NxD) if kept_NxD is None else from_base_NxD.addcmul_(from_adapter_NxD, kept_NxD)


def dropped(x_NxD: torch.Tensor, kept_NxD: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the inputs in the adapter's type, with zeros where they are dropped."""
    if kept_NxD is None or x_NxD.dtype == dtype:
        return x_NxD.to(dtype) if kept_NxD is None else x_NxD * kept_NxD
    return torch.mul(x_NxD, kept_NxD, out=torch.empty_like(x_NxD, dtype=dtype))  # one kernel, exact: the factors are 0 and 1


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scale: float, *, like: torch.Tensor) -> torch.Tensor:
    """Return ``scale`` times a matrix product in one operation; ``like`` is any tensor that broadcasts to it, and is not read."""
    return torch.addmm(like, left, right, beta=0, alpha=scale)
