"""Predicts the seconds of training, scoring and decoding on a machine, term by term.

The time of a phase is Python + max(launches, FLOPs + attention, decoding steps). The host launches kernels while the device
computes, and the device reads memory while it multiplies. The longest of these three therefore determines the time. Python is
work of the host during which the device waits. The fixed part is loading models, reading rows and writing files. The real time
is longer, because nothing overlaps completely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lm_harmony.engine.model_size import ModelSize
from lm_harmony.studies.flops import (
    ScoringWork,
    attention_flops,
    decoding_operators,
    generation_flops,
    loglikelihood_flops,
    scoring_operators,
    training_flops,
    training_operators,
)
from lm_harmony.studies.hardware import CACHE_TRAFFIC, Constant, Hardware
from lm_harmony.studies.workload import Workload

TERMS = ("launches", "Python", "FLOPs", "attention", "decoding steps", "fixed")
"""The terms of the time of a phase."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Seconds of one phase, or of several phases one after another."""

    terms: Mapping[str, float] = field(default_factory=dict)
    """Term -> seconds. A term that a measured rate already contains is absent."""
    deciding: Mapping[str, float] = field(default_factory=dict)
    """The terms whose sum is the time. The others overlap with them."""

    @property
    def seconds(self) -> float:
        """Predicted time of the phase."""
        return sum(self.deciding.values())

    @property
    def bound_by(self) -> str:
        """The term that takes most of the time."""
        return max(self.deciding, key=lambda term: self.deciding[term], default="")


def overlapped(terms: Mapping[str, float]) -> Phase:
    """Return a phase whose terms overlap as far as they can."""
    sides = (("launches",), ("FLOPs", "attention"), ("decoding steps",))
    longest = max(sides, key=lambda side: sum(terms.get(term, 0.0) for term in side))
    deciding = {term: seconds for term, seconds in terms.items() if term in (*longest, "Python", "fixed")}
    return Phase(terms=terms, deciding=deciding)


def add_phases(phases: Iterable[Phase]) -> Phase:
    """Return the sum of phases that follow one another."""
    terms: dict[str, float] = {}
    deciding: dict[str, float] = {}
    for one in phases:
        for total, parts in ((terms, one.terms), (deciding, one.deciding)):
            for term, seconds in parts.items():
                total[term] = total.get(term, 0.0) + seconds
    return Phase(terms=terms, deciding=deciding)


def binding_term(phases: Mapping[str, Phase]) -> tuple[str, float]:
    """Return the phase and term that take most of the time of ``phases``, and their share of it."""
    parts = {(name, term): seconds for name, one in phases.items() for term, seconds in one.deciding.items()}
    name, term = max(parts, key=lambda part: parts[part])
    return term if term.startswith(name) else f"{name} {term}", parts[name, term] / (sum(parts.values()) or 1.0)


def training_phase(load: Workload, hardware: Hardware, joint: int = 1) -> Phase:
    """Return the time of a run's training, or its share of it if ``joint`` runs share each pass."""
    size, work = load.size, load.training
    return overlapped(
        {
            **_launches(training_operators(size, work, joint), hardware),
            "FLOPs": training_flops(size, work) / hardware.training.value,
            **_attention(attention_flops(size, work.pairs, training=True), hardware),
        }
    )


def scoring_phase(size: ModelSize, work: ScoringWork, hardware: Hardware) -> Phase:
    """Return the time of scoring log-likelihoods once."""
    return overlapped(
        {
            **_launches(scoring_operators(size, work), hardware),
            **_python(work.computed, hardware.layout),
            "FLOPs": loglikelihood_flops(size, work) / hardware.scoring.value,
            **_attention(attention_flops(size, work.pairs), hardware),
        }
    )


def decoding_phase(size: ModelSize, scoring: ScoringWork, hardware: Hardware) -> Phase:
    """Return the time of generating answers once: the passes over the contexts, and a decoding step for each further token."""
    work, read = scoring.decoding, {}
    if hardware.memory:
        weights = work.steps * (size.computing + size.output)
        cache = CACHE_TRAFFIC.value * work.cached * 2 * size.key_width * size.layers
        read = {"decoding steps": (weights + cache) * hardware.weight_bytes / hardware.memory.value}
    return overlapped(
        {
            **_launches(decoding_operators(size, work), hardware),
            **_python(work.tokens, hardware.stop_check),
            "FLOPs": generation_flops(size, work) / hardware.decoding.value,
            **_attention(attention_flops(size, work.pairs), hardware),
            **read,
        }
    )


def _launches(operators: float, hardware: Hardware) -> dict[str, float]:
    launch, kernels = hardware.launch, hardware.kernels
    return {"launches": operators * kernels.value * launch.value} if launch and kernels else {}


def _python(tokens: int, seconds: Constant | None) -> dict[str, float]:
    return {"Python": tokens * seconds.value} if seconds else {}


def _attention(flops: float, hardware: Hardware) -> dict[str, float]:
    return {"attention": flops / hardware.attention.value} if hardware.attention else {}
