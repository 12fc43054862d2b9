"""Count the PyTorch operators of the engine's passes, each of which launches a kernel on a GPU, and the bytes of its tensors."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import TrainState
from lm_harmony.engine.training import _backward
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

FREE = {"detach", "empty", "empty_like", "lift_fresh", "_unsafe_view", "_local_scalar_dense", "_record_function_enter_new"}
"""Operators that launch no kernel."""


class Operators(TorchDispatchMode):
    """Counts the operators that would launch a kernel: all except views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        name = func.overloadpacket.__name__
        if not views and name not in FREE:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def attention_calls(self) -> int:
        return sum(count for name, count in self.seen.items() if name.endswith("attention_for_cpu"))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = dict[int, int](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.live:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def deep_model(architecture: str = "llama", layers: int = 6, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """Return a tiny model of several layers, with the same weights each time."""
    model = tiny_model(architecture)
    config = copy.deepcopy(model.module.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * layers)[:layers]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return replace(model, module=AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


def training_step(model: LanguageModel, recipe: Recipe, lengths: list[int]) -> Counter[str]:
    """Count the operators of the second training step. The first step also creates the optimizer state."""
    sequences = [TokenSequence(ids=tuple(range(5, 6 + length)), first_label=1, row=length) for length in lengths]
    with trainable(model, replace(recipe, batch_size=len(lengths), epochs=2), seed=0) as trainee:
        trainee.module.train()
        state = TrainState(trainee, sequences, replace(recipe, batch_size=len(lengths), epochs=2), seed=0)
        for _ in range(2):
            state.begin_epoch()
            state.batch = sequences
            with PACKED.active(model.module), Operators() as operators:
                state.advance(_backward(state, len(lengths), PACKED)[0])
    counted: Counter[str] = operators.seen
    return counted
