"""Activation recomputation: cheap activations are computed again in the backward pass instead of kept.

A gated MLP multiplies an activation by a gate. Autograd keeps the input and the output of the activation function, both of the
intermediate size, although the output follows from the input at little cost. An adapter with dropout keeps its dropped inputs,
which follow from the inputs that the layer's other adapters keep anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import gelu, silu

_Again = Callable[[], torch.Tensor]
"""Computes an activation a second time."""
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


def recompute_activations() -> saved_tensors_hooks:
    """Return a context manager under which autograd keeps, for cheap activations, a function that recomputes them."""
    return saved_tensors_hooks(_keep, _give)


def _keep(tensor: torch.Tensor) -> torch.Tensor | _Again:
    node: Any = tensor.grad_fn
    if node is None:
        return tensor
    if node.name() in _VIEWS:  # a linear layer reshapes its input to rows
        again, shape = _recomputing(node.next_functions[0][0]), tensor.shape
        return tensor if again is None else lambda: again().view(shape)
    return _recomputing(node) or tensor


def _recomputing(node: Any) -> _Again | None:
    """Return the function that recomputes the output of an autograd node from tensors that are kept anyway, or None."""
    name = "" if node is None else node.name()
    if name == "SiluBackward0":
        before = node._saved_self
        return lambda: silu(before)
    if name == "GeluBackward0":
        before, approximate = node._saved_self, node._saved_approximate
        return lambda: gelu(before, approximate=approximate)
    again: _Again | None = getattr(node, "again", None)
    return again


def _give(kept: torch.Tensor | _Again) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else kept()
