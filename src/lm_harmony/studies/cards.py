"""Whether a run fits on a GPU, judged by the card's memory alone, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lm_harmony.engine.memory import GPU_TRAINING_TOKENS
from lm_harmony.engine.memory_estimate import MemoryEstimate, MemorySettings, estimate_memory, gpus_needed, with_checkpointing
from lm_harmony.models.device import choose_precision
from lm_harmony.recipe import QUANTIZATIONS
from lm_harmony.runs.memory_check import memory_settings
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.workload import Workload

MOST_CARDS = 8
"""Largest number of cards of a machine over which a model is spread."""
FITS = "fits"
"""What a card without any way out is marked with."""
CHECKPOINTING = "gradient checkpointing"
"""Name of the way in which each layer keeps its input only."""


@dataclass(frozen=True, kw_only=True)
class CardPlan:
    """The runs of one model on one kind of card."""

    card: str
    """Name of the card, as ``--hardware`` takes it."""
    way: str | None
    """How the run that needs most fits: "fits", "smaller passes" and so on; None: it does not fit."""
    gpus: int
    """Number of cards that share the model; more than one with ``device_map: auto`` only."""
    capacity_bytes: int
    """Memory of one card."""
    memory_bytes: int
    """Memory that the run needs that way, or at least needs if it does not fit."""
    hours: float | None
    """Hours of all runs, one after another; None: they do not fit, or the plan is not for a GPU."""
    energy_kwh: float | None
    """Energy of the cards in these hours at their power limit."""


def settings_on_card(spec: RunSpec) -> MemorySettings:
    """Return what decides the memory of ``spec`` on a CUDA GPU with bfloat16."""
    precision = choose_precision(spec.recipe.dtype, device_type="cuda", has_bfloat16=True, adapter=spec.recipe.lora is not None)
    return memory_settings(spec, precision, "cuda")


def way_to_fit(load: Workload, capacity: int) -> tuple[str | None, MemoryEstimate, int]:
    """Return the first way in which a run fits on a card, and its memory that way.

    Args:
        load: the run with its size and its longest row.
        capacity: bytes of the card's memory.

    Returns:
        The name of the way, or None with the least memory of all ways if none fits; the memory; and the number of cards.
    """
    least: MemoryEstimate | None = None
    for way, settings, tokens in _ways(load):
        estimate = estimate_memory(load.size, settings, tokens=tokens)
        if estimate.total <= capacity:
            return way, estimate, 1
        count = gpus_needed(estimate.total, capacity)
        if way == CHECKPOINTING and load.spec.execution.device_map is not None and count <= MOST_CARDS:
            return f"{count} cards", estimate, count
        least = estimate if least is None or estimate.total < least.total else least
    assert least is not None
    return None, least, 1


def _ways(load: Workload) -> Iterator[tuple[str, MemorySettings, int]]:
    """Yield (name of the way, settings, tokens of a training pass), from what changes least to what changes most."""
    spec, asked = load.spec, settings_on_card(load.spec)
    whole = max(load.longest, min(GPU_TRAINING_TOKENS, load.longest * min(spec.execution.micro_batch, spec.recipe.batch_size)))
    yield FITS, asked, whole
    yield "smaller passes", asked, load.longest
    yield CHECKPOINTING, with_checkpointing(asked), load.longest
    if spec.recipe.lora is None or spec.recipe.quantize is not None:
        return
    if asked.precision.weights == "float32":
        half = replace(spec, recipe=replace(spec.recipe, dtype="bfloat16"))
        yield "dtype bfloat16", with_checkpointing(settings_on_card(half)), load.longest
    for kind in reversed(QUANTIZATIONS):
        other = replace(spec, recipe=replace(spec.recipe, quantize=kind, dtype="auto"))
        yield f"quantize {kind}", with_checkpointing(settings_on_card(other)), load.longest
