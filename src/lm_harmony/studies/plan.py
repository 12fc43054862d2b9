"""What a study will take, before anything runs: tokens, FLOPs, memory, disk, and hours on a named machine, term by term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lm_harmony.models.device import free_bytes, resolve_device, resolve_precision
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.flops import ModelSize, scoring_flops, training_flops
from lm_harmony.studies.hardware import WORKSPACE, Hardware
from lm_harmony.studies.time_model import Phase, add_phases, decoding_phase, overlapped, scoring_phase, training_phase
from lm_harmony.studies.workload import Workload, size_of, workload


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What all runs of one model take."""

    model: str
    """Its name."""
    runs: int
    """How many."""
    size: ModelSize
    """Its size."""
    training_tokens: int
    """Tokens fed in training."""
    scoring_tokens: int
    """Tokens asked in scoring, direct scores included."""
    decoding_steps: int
    """Passes that write one token in each row of a batch, if all answers are as long as they may be."""
    flops: float
    """FLOPs of all products with weights; attention's are apart."""
    memory_bytes: int
    """Memory that one run needs."""
    phases: Mapping[str, Phase] = field(repr=False)
    """training, scoring, decoding and fixed -> its seconds, one run after another."""

    @property
    def hours(self) -> float:
        """Hours on the hardware, one run after another."""
        return add_phases(self.phases.values()).seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study takes."""

    hardware: Hardware
    """Where."""
    models: tuple[ModelPlan, ...] = field(repr=False)
    """Model by model."""
    disk_bytes: int
    """Adapters, samples and records that stay."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Runs that could not be counted, and why."""

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of all models, one model after another."""
        names = dict.fromkeys(name for model in self.models for name in model.phases)
        return {name: add_phases(model.phases[name] for model in self.models if name in model.phases) for name in names}

    @property
    def hours(self) -> float:
        """Hours of one worker."""
        return sum(model.hours for model in self.models)


def make_plan(specs: Iterable[RunSpec], hardware: Hardware) -> Plan:
    """Count every run.

    Args:
        specs: the runs.
        hardware: where they will be carried out.
    """
    by_model: dict[str, list[Workload]] = {}
    missing: dict[str, str] = {}
    for spec in specs:
        try:
            by_model.setdefault(spec.model.name, []).append(workload(spec, hardware.room))
        except (OSError, ValueError) as error:  # errors of the house are of these two kinds too
            missing[f"{spec.model.name} on {spec.benchmark.task}"] = " ".join(str(error).split())
    models, disk = [], 0
    for name, loads in by_model.items():
        if loads:
            models.append(model_plan(name, loads, hardware))
            disk += sum(_disk(load) for load in loads)
    return Plan(hardware=hardware, models=tuple(models), disk_bytes=disk, missing=missing)


def model_plan(name: str, loads: list[Workload], hardware: Hardware) -> ModelPlan:
    """Add up the runs of one model."""
    directs = _directs(loads)
    asked = [(load.size, one) for load in loads for one in (*[load.validation] * load.epochs, load.test)]
    asked += [(load.size, load.test) for load in directs]
    phases = {
        "training": add_phases(training_phase(load, hardware) for load in loads),
        "scoring": add_phases(scoring_phase(size, one, hardware) for size, one in asked if one.passes),
        "decoding": add_phases(decoding_phase(size, one, hardware) for size, one in asked if one.written.passes),
        "fixed": overlapped({"fixed": len(loads) * hardware.run.value + hardware.load.value}),
    }
    return ModelPlan(
        model=name,
        runs=len(loads),
        size=max((load.size for load in loads), key=lambda size: size.trained),
        training_tokens=sum(load.training_tokens for load in loads),
        scoring_tokens=sum(load.scoring_tokens for load in loads) + sum(load.test.tokens for load in directs),
        decoding_steps=sum(one.written.steps for _, one in asked),
        flops=sum(training_flops(load.size, load.fed) for load in loads) + sum(scoring_flops(size, one) for size, one in asked),
        memory_bytes=max(_memory(load.size, hardware.width) for load in loads),
        phases={name: one for name, one in phases.items() if one.terms},
    )


def _directs(loads: Iterable[Workload]) -> list[Workload]:
    """Return one run for each direct score: seeds and recipes share it."""
    return list({load.spec.benchmark: load for load in loads if load.spec.direct}.values())


def estimated_memory(spec: RunSpec, width: int = 4) -> int:
    """Return the bytes that a run needs, or 0 where the model's configuration is not at hand.

    Args:
        spec: the run.
        width: bytes of a weight.
    """
    try:
        return _memory(size_of(spec.model, spec.recipe), width)
    except (OSError, ValueError):
        return 0


def runs_fitting_in_memory(specs: Sequence[RunSpec]) -> int:
    """Return how many runs like the largest of ``specs`` fit side by side into what is free on this process's device.

    Raises:
        ModelError: the device that is asked for does not exist here.
    """
    device = resolve_device(specs[0].execution.device)
    needed = 1
    for spec in {(spec.model, spec.recipe): spec for spec in specs}.values():
        precision = resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None)
        needed = max(needed, estimated_memory(spec, precision.width))
    return free_bytes(device) // needed


def _memory(size: ModelSize, width: int) -> int:
    """Return bytes: weights, gradient and two moments of what is trained, and a workspace."""
    return size.parameters * width + size.trained * 16 + int(WORKSPACE.value)


def _disk(load: Workload) -> int:
    """Return bytes that stay of a run: its adapter in float32, and samples that repeat the texts about twice."""
    samples = 2 * load.text_bytes + 800 * load.test_rows
    return load.size.trained * 4 + samples * (2 if load.spec.direct else 1) + 20_000
