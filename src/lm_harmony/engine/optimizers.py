"""Optimizer and learning-rate schedule by their names in transformers, and optimizer state as named tensors for safetensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from transformers import get_scheduler
from transformers.optimization import Adafactor
from transformers.trainer_pt_utils import get_parameter_names

from lm_harmony.engine.adapters import Trainee
from lm_harmony.recipe import Recipe

_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which PyTorch has a fused AdamW step."""
_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns for the names of biases and norms, as in transformers' Trainer."""


def make_optimizer(trainee: Trainee, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the trained weights; biases and norms have no weight decay, as in transformers.

    "adamw_torch" and "adamw_torch_fused" are the same here: AdamW uses the fused step on every device that has it.
    """
    parameters = trainee.trained_parameters()
    decayed = set(get_parameter_names(trainee.module, [torch.nn.LayerNorm], _NOT_DECAYED))
    groups = [
        {
            "params": [weight for name, weight in parameters.items() if name in decayed],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [weight for name, weight in parameters.items() if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_rate)
    if recipe.optimizer == "adafactor":
        return Adafactor(groups, lr=recipe.peak_rate, scale_parameter=False, relative_step=False)
    return torch.optim.AdamW(
        groups,
        lr=recipe.peak_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=trainee.model.device.type in _FUSED,
    )


def learning_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, total: int) -> Callable[[int], float]:
    """Return the function step -> learning rate, where the step is counted from 0 and ``total`` is the number of steps."""
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    schedule = get_scheduler(recipe.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    factor = schedule.lr_lambdas[0]
    peak = recipe.peak_rate
    return lambda step: peak * factor(step)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's moments as {"parameter number|name": tensor}, copied to the CPU."""
    return {
        f"{number}|{name}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """Restore the state that ``optimizer_state`` returned; PyTorch moves each tensor to the device of its parameter."""
    per_parameter: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        number, name = key.split("|")
        per_parameter.setdefault(int(number), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
