"""Whether a run fits into memory, estimated before its weights are loaded, and what would fit if it does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import torch

from lm_harmony.engine.memory_estimate import MemoryEstimate, MemorySettings, estimate_memory, with_checkpointing
from lm_harmony.engine.model_size import ModelSize, model_size
from lm_harmony.models.device import Precision, allocatable_bytes, gib, memory_error, resolve_device, resolve_precision
from lm_harmony.models.device_map import free_on_gpus
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import QUANTIZATIONS, Lora
from lm_harmony.runs.spec import RunSpec

log = logging.getLogger(__name__)

SHORTEST = 64
"""Smallest number of tokens of a training sequence that a message proposes."""


def memory_settings(spec: RunSpec, precision: Precision, device_type: str) -> MemorySettings:
    """Return what decides the memory of ``spec`` on a kind of device, as it is requested."""
    longest_answer = max(spec.recipe.max_new_tokens, spec.prompt.max_gen_toks or 0)
    return MemorySettings(
        recipe=replace(spec.recipe, max_new_tokens=longest_answer),
        precision=precision,
        device_type=device_type,
        gradient_checkpointing=spec.execution.gradient_checkpointing,
        padded=spec.execution.engine == "plain",
    )


def smallest_estimate(spec: RunSpec, size: ModelSize, settings: MemorySettings, tokens: int) -> MemoryEstimate:
    """Return the estimate of one row at a time, with gradient checkpointing where --memory auto may switch it on."""
    estimate = estimate_memory(size, settings, tokens=tokens)
    if spec.execution.memory != "auto":
        return estimate
    return min(estimate, estimate_memory(size, with_checkpointing(settings), tokens=tokens), key=lambda one: one.total)


def free_for(spec: RunSpec, held: int) -> int | None:
    """Return the bytes that a run can take on its device, or on all GPUs with a device map; None: not known.

    Args:
        spec: the run.
        held: bytes of weights that this process holds and uses again or frees first.

    Raises:
        ModelError: the device does not exist, or the device map needs more GPUs than there are.
    """
    if spec.execution.device_map is not None:
        return sum(free_on_gpus().values()) + held
    free = allocatable_bytes(resolve_device(spec.execution.device))
    return None if free is None else free + held


def fit_into_memory(spec: RunSpec, model: LanguageModel, *, longest: int, free: int | None) -> RunSpec:
    """Return ``spec``, or ``spec`` with gradient checkpointing if it fits into the free memory only so.

    Args:
        spec: the run.
        model: its model, with or without weights.
        longest: input tokens of its longest training sequence.
        free: bytes that the run can take; None: not known.

    Raises:
        ModelError: one training sequence at a time does not fit; the message lists the options that would.
    """
    if spec.execution.memory == "off" or free is None:
        return spec
    settings, size = _settings(spec), model_size(model, spec.recipe)
    as_asked = estimate_memory(size, settings, tokens=longest)
    if _missing(as_asked, free) <= 0:
        return spec
    least = smallest_estimate(spec, size, settings, longest)
    if _missing(least, free) <= 0:
        log.info(
            "model %s: gradient checkpointing is switched on: one row of %d tokens needs %s without it, %s with it, %s are free.",
            spec.model.name,
            longest,
            gib(as_asked.total),
            gib(least.total),
            gib(free),
        )
        return replace(spec, execution=replace(spec.execution, gradient_checkpointing=True))
    loading = least.weights > free
    raise memory_error(
        spec.model.name,
        resolve_device(spec.execution.device),
        doing="loading it" if loading else f"training on one sequence of {longest} tokens",
        needed=f"an estimated {gib(least.total)} ({least.describe()})",
        ways_out=_ways_that_fit(spec, model, longest, free),
        free=free,
    )


def _missing(estimate: MemoryEstimate, free: int) -> int:
    """Return the bytes that are missing; the process of this run is running already."""
    return estimate.total - estimate.process - free


def _ways_that_fit(spec: RunSpec, model: LanguageModel, longest: int, free: int) -> Iterator[str]:
    """Yield the options with which the run would fit, each with its estimate."""
    for option, changed in _ways(spec):
        estimate = _least(changed, model, longest)
        most = free if changed.execution.device_map == spec.execution.device_map else free_for(changed, 0) or 0
        if _missing(estimate, most) <= 0:
            yield f"{option} ({gib(estimate.total)})"
    shorter = longest // 2
    while shorter >= SHORTEST and _missing(_least(spec, model, shorter), free) > 0:
        shorter //= 2
    if shorter >= SHORTEST:
        yield f"--train_param.max_seq_length {shorter} ({gib(_least(spec, model, shorter).total)})"


def _least(spec: RunSpec, model: LanguageModel, tokens: int) -> MemoryEstimate:
    return smallest_estimate(spec, model_size(model, spec.recipe), _settings(spec), tokens)


def _settings(spec: RunSpec) -> MemorySettings:
    """Return what decides the memory of ``spec`` on its device."""
    device = resolve_device(spec.execution.device)
    precision = resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None)
    return memory_settings(spec, precision, device.type)


def _ways(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    """Yield (option, the run with it)."""
    recipe, execution = spec.recipe, spec.execution
    if recipe.lora is not None and execution.device_map is None and _has_more_gpus(spec):
        yield "--device_map auto", replace(spec, execution=replace(execution, device="auto", device_map="auto"))
    if not execution.gradient_checkpointing and execution.memory != "auto":
        yield "--train_param.gradient_checkpointing", replace(spec, execution=replace(execution, gradient_checkpointing=True))
    if recipe.lora is None:
        yield "a LoRA adapter (--use_peft)", replace(spec, recipe=replace(recipe, lora=Lora()))
    elif _settings(spec).precision.weights == "float32":
        yield "--dtype bfloat16", replace(spec, recipe=replace(recipe, dtype="bfloat16"))
    if recipe.lora is not None and recipe.quantize is None:
        for kind in reversed(QUANTIZATIONS):
            yield f"--quantize {kind}, which is another recipe", replace(spec, recipe=replace(recipe, quantize=kind))


def _has_more_gpus(spec: RunSpec) -> bool:
    return resolve_device(spec.execution.device).type == "cuda" and torch.cuda.device_count() > 1
