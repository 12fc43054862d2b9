"""The error of a run whose memory is exhausted, with the options that reduce its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lm_harmony.models.device import asked_and_free_bytes, gib, is_out_of_memory, memory_error, resolve_device, resolve_precision
from lm_harmony.runs.spec import RunSpec

Phase = Literal["loading", "training", "scoring"]


@contextmanager
def memory_errors(spec: RunSpec, phase: Phase) -> Iterator[None]:
    """Turn an out-of-memory error of the block into a ModelError with needed and free memory and options that help.

    The engine has reduced its batches to one sequence before. A ModelError of the block itself is not changed.

    Args:
        spec: specification of the run.
        phase: what the block does, for the message.

    Raises:
        ModelError: memory was exhausted inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        size, free = asked_and_free_bytes(error)
        raise memory_error(
            spec.model.name,
            resolve_device(spec.execution.device),
            doing=f"{phase} it" if phase != "training" else "training on one sequence at a time",
            needed="more memory" if size is None else f"{gib(size)} more",
            ways_out=_ways_out(spec, phase),
            free=free,
        ) from error


def _ways_out(spec: RunSpec, phase: Phase) -> Iterator[str]:
    """Yield the options of this run that reduce its memory."""
    recipe = spec.recipe
    if phase == "training":
        if not spec.execution.gradient_checkpointing:
            yield "--train_param.gradient_checkpointing"
        yield f"a smaller --train_param.max_seq_length (now {recipe.max_length})"
        if recipe.lora is None:
            yield "a LoRA adapter (--use_peft)"
    if phase == "scoring":
        yield f"a smaller --max_new_tokens (now {recipe.max_new_tokens}) if the benchmark writes answers"
    precision = resolve_precision(recipe.dtype, resolve_device(spec.execution.device), adapter=recipe.lora is not None)
    if precision.weights == "float32" and recipe.lora is not None:  # small steps are lost in bfloat16 weights that are trained
        yield "--dtype bfloat16"
