"""Activations that a training pass computes again in its backward pass instead of keeping them, where that costs next to nothing.

A gated layer multiplies an activation by a gate: autograd keeps the activation's input and its output, as wide as the inner layer
each, and the second follows from the first at the cost of one pass over it. An adapter behind dropout keeps the dropped inputs,
which follow from the inputs, that other adapters of the layer keep too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import gelu, silu

_Again = Callable[[], torch.Tensor]
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


def recompute_activations() -> saved_tensors_hooks:
    """Return a block in which autograd keeps how to compute a tensor again where that is next to free; all else as it is."""
    return saved_tensors_hooks(_keep, _give)


def _keep(tensor: torch.Tensor) -> torch.Tensor | _Again:
    node: Any = tensor.grad_fn
    if node is None:
        return tensor
    if node.name() in _VIEWS:  # a linear layer takes its input as rows
        again, shape = _recomputing(node.next_functions[0][0]), tensor.shape
        return tensor if again is None else lambda: again().view(shape)
    return _recomputing(node) or tensor


def _recomputing(node: Any) -> _Again | None:
    """Return how to compute the output of an autograd node again, if what it takes is kept anyway."""
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
