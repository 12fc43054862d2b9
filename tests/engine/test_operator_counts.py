"""The number of kernels of a pass does not depend on how many sequences it holds, and no pass reads values of its tensors."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from operators import Operators, deep_model, training_step

from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED
from lm_harmony.engine.forward import prefix_tree_logprobs
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import TrainState
from lm_harmony.engine.training import _backward
from lm_harmony.recipe import Lora, Recipe

BUDGETS = {torch.float32: 127, torch.bfloat16: 139}
"""Largest number of operators of one layer in a training step with the published recipe, forward and backward.

A GPU needs four more for the two dropout masks of a layer, which NumPy computes on a CPU. See test_lora_linear.py.
"""
SCORING_BUDGET = 60
"""Largest number of operators of one layer in a scoring pass."""


def questions(count: int) -> list[TokenSequence]:
    """Return ``count`` questions of different lengths with four answers each, without a shared prefix."""
    return [
        TokenSequence(ids=(100 + number, *range(7, 17 + number % 60), last, last + 1), first_label=12)
        for number in range(count)
        for last in range(20, 24)
    ]


def of_one_layer(shallow: Counter[str], deep: Counter[str]) -> int:
    return deep.total() - shallow.total()


@pytest.mark.parametrize("sequences", [8, 64])
@pytest.mark.parametrize("dtype", BUDGETS)
def test_a_training_step_stays_within_its_budget(dtype: torch.dtype, sequences: int) -> None:
    lengths = [20 + number % 40 for number in range(sequences)]
    counted = [training_step(deep_model(layers=layers, dtype=dtype), Recipe(), lengths) for layers in (2, 3)]
    assert 80 < of_one_layer(counted[0], counted[1]) <= BUDGETS[dtype]


def test_a_scoring_pass_of_4096_tokens_stays_within_its_budget() -> None:
    counted = []
    for layers in (2, 3):
        module = deep_model(layers=layers).module
        with torch.no_grad(), PACKED.active(module), Operators() as operators:
            prefix_tree_logprobs(module, questions(80))
        counted.append(operators.seen)
    assert 30 < of_one_layer(counted[0], counted[1]) <= SCORING_BUDGET


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
def test_a_training_step_and_a_scoring_pass_run_without_values(architecture: str) -> None:
    """On device ``meta``, tensors have shapes but no values, so every read of a value raises an error."""
    model = deep_model(architecture, layers=2)
    model.module.to(torch.device("meta"))
    with torch.no_grad(), PACKED.active(model.module):
        found = prefix_tree_logprobs(model.module, questions(20))
        assert found.logprobs_L.shape == (sum(found.counts),)
        with pytest.raises((NotImplementedError, RuntimeError)):  # negative control
            float(found.logprobs_L.sum())
    recipe = Recipe(lora=Lora(target_modules=("all-linear",)), batch_size=80, max_grad_norm=0.0)
    with trainable(model, recipe, seed=0) as trainee:
        trainee.module.train()
        state = TrainState(trainee, questions(20), recipe, seed=0)
        state.begin_epoch()
        with PACKED.active(model.module):
            _backward(state, 80, PACKED)
        assert all(weight.grad is not None for weight in trainee.trained_parameters().values())
        state.optimizer.step()
