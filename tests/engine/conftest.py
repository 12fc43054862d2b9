"""Use one thread for tiny models. Provide a fixture that raises torch.OutOfMemoryError for large batches, as a full GPU does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# With several threads on a shared machine, synchronization makes models this small many times slower.
torch.set_num_threads(1)

OutOfMemory = Callable[..., list[int]]


@pytest.fixture
def out_of_memory() -> Iterator[OutOfMemory]:
    """Return ``arrange(module, most, spare=0)``, which makes forward passes of more than ``most`` rows run out of memory.

    The first ``spare`` forward passes never fail. ``arrange`` returns a list to which each call appends its number of rows.
    """
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def arrange(module: torch.nn.Module, most: int, *, spare: int = 0) -> list[int]:
        calls: list[int] = []

        def refuse(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(len(kwargs["input_ids"]))
            if calls[-1] > most and len(calls) > spare:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        hooks.append(module.register_forward_pre_hook(refuse, with_kwargs=True))
        return calls

    yield arrange
    for hook in hooks:
        hook.remove()
