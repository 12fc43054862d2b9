"""What a training pass does not keep for its backward pass, because computing it again costs next to nothing.

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


def thrifty() -> saved_tensors_hooks:
    """Return a block in which autograd keeps how to compute a tensor again where that is next to free; all else as it is."""
    return saved_tensors_hooks(_keep, _give)


def _keep(tensor: torch.Tensor) -> torch.Tensor | _Again:
    node: Any = tensor.grad_fn
    name = "" if node is None else node.name()
    if name == "SiluBackward0":
        before = node._saved_self
        return lambda: silu(before)
    if name == "GeluBackward0":
        before, approximate = node._saved_self, node._saved_approximate
        return lambda: gelu(before, approximate=approximate)
    again: _Again | None = getattr(node, "again", None)
    return tensor if again is None else again


def _give(kept: torch.Tensor | _Again) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else kept()
