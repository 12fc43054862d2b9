"""Decoder layers compiled by torch.compile (``--engine compiled``), for CUDA only.

A small model waits for Python to launch its kernels. A compiled layer launches fewer of them. On a CPU it gained nothing (0.96 to
1.06 times the speed after half a minute of compiling), and no GPU has measured it yet, so ``auto`` does not choose it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(module: PreTrainedModel) -> list[nn.Module]:
    """Return the repeated layers of a model, which transformers names as the parts that stay on one device."""
    names = set(module._no_split_modules or ())
    return [part for part in module.modules() if type(part).__name__ in names]


@contextmanager
def compiled_layers(module: PreTrainedModel, *, backend: str = "inductor") -> Iterator[None]:
    """Inside the with-block, compute each decoder layer of ``module`` with a compiled graph for any number of tokens.

    PyTorch keeps the graphs, so that entering a second time compiles nothing.

    Args:
        module: a model whose rows are packed.
        backend: compiler that torch.compile calls.
    """
    layers = decoder_layers(module)
    before = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    try:
        yield
    finally:
        for layer, call in zip(layers, before, strict=True):
            layer._compiled_call_impl = call
