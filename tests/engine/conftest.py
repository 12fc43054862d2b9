"""One thread for tiny models, and scarce memory: a real module that refuses large batches as a full GPU does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# Two threads on a shared machine wait for one another: minutes become hours on models this small.
torch.set_num_threads(1)

OutOfMemory = Callable[..., list[int]]


@pytest.fixture
def out_of_memory() -> Iterator[OutOfMemory]:
    """Return ``arrange(module, most, spare=0)``: forward passes of more than ``most`` rows fail, but for the first ``spare``.

    ``arrange`` returns the list to which every call's number of rows is added.
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
