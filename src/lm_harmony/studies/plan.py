"""What a study will take, before anything runs: tokens, FLOPs, memory, disk, hours on a named machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.models.loading import resolve_device, resolve_precision
from lm_harmony.models.memory import free_bytes
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.workload import Size, Workload, asked_flops, size_of, workload


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """How fast a machine computes."""

    name: str
    """What it is."""
    training_flops: float
    """FLOPs a second that training reaches."""
    scoring_flops: float
    """FLOPs a second that scoring reaches."""
    seconds_per_layer: float = 0.0
    """Least seconds that one block costs in one pass, however short the row: kernel launches."""
    seconds_per_run: float = 0.0
    """Seconds of a run that depend on no token: reading rows, writing what came out."""
    seconds_per_load: float = 0.0
    """Seconds that loading a model takes, with the libraries."""
    width: int = 4
    """Bytes of a weight there."""


_PEAKS = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "rtx4090": 165e12}
"""Dense bf16 FLOPs a second, by the makers' data sheets."""
_TRAINING_SHARE, _SCORING_SHARE, _LAUNCH_SECONDS = 0.45, 0.55, 0.8e-3
"""Shares of the peak, and seconds of launches a block, that are assumed where nothing was measured."""

HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        name: Hardware(
            name=name,
            training_flops=_TRAINING_SHARE * peak,
            scoring_flops=_SCORING_SHARE * peak,
            seconds_per_layer=_LAUNCH_SECONDS,
            seconds_per_run=5.0,
            seconds_per_load=30.0,
            width=2,
        )
        for name, peak in _PEAKS.items()
    }
)


HERE = Hardware(name="here", training_flops=1e11, scoring_flops=1e11)
"""A processor with float32 weights, of unknown speed."""


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What all runs of one model take."""

    model: str
    """Its name."""
    runs: int
    """How many."""
    size: Size
    """Its size."""
    training_tokens: int
    """Tokens fed in training."""
    scoring_tokens: int
    """Tokens asked in scoring, direct scores included."""
    flops: float
    """FLOPs of all of it."""
    memory_bytes: int
    """Memory that one run needs."""
    hours: float
    """Hours on the hardware, one run after another."""


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
    def hours(self) -> float:
        """Hours of one worker."""
        return sum(model.hours for model in self.models)


def hardware_named(name: str) -> Hardware:
    """Return a known machine.

    Raises:
        UsageError: it is not known.
    """
    if name.lower() not in HARDWARE:
        raise UsageError(
            f"hardware: no figures for {name!r}.{did_you_mean(name.lower(), HARDWARE)} Known: {', '.join(HARDWARE)}; "
            f"here measures this machine for 20 seconds."
        )
    return HARDWARE[name.lower()]


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
            by_model.setdefault(spec.model.name, []).append(workload(spec))
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
    direct_flops = sum(asked_flops(load.size, load.test) for load in directs)
    training, scoring = sum(load.training_flops for load in loads), sum(load.scoring_flops for load in loads) + direct_flops
    size = max((load.size for load in loads), key=lambda size: size.trained)
    steps = sum(load.steps for load in loads)
    seconds = max(training / hardware.training_flops, steps * 3 * size.layers * hardware.seconds_per_layer)
    seconds += scoring / hardware.scoring_flops + len(loads) * hardware.seconds_per_run + hardware.seconds_per_load
    return ModelPlan(
        model=name,
        runs=len(loads),
        size=size,
        training_tokens=sum(load.training_tokens for load in loads),
        scoring_tokens=sum(load.scoring_tokens for load in loads) + sum(load.test.tokens for load in directs),
        flops=training + scoring,
        memory_bytes=_memory(size, hardware.width),
        hours=seconds / 3600,
    )


def _directs(loads: Iterable[Workload]) -> list[Workload]:
    """Return one run for each direct score: seeds and recipes share it."""
    return list({load.spec.benchmark: load for load in loads if load.spec.direct}.values())


def memory_of(spec: RunSpec, width: int = HERE.width) -> int:
    """Return the bytes that a run needs, or 0 where the model's configuration is not at hand.

    Args:
        spec: the run.
        width: bytes of a weight.
    """
    try:
        return _memory(size_of(spec.model, spec.recipe), width)
    except (OSError, ValueError):
        return 0


def fitting_at_once(specs: Sequence[RunSpec]) -> int:
    """Return how many runs like the largest of ``specs`` fit side by side into what is free on this process's device.

    Raises:
        ModelError: the device that is asked for does not exist here.
    """
    device = resolve_device(specs[0].execution.device)
    needed = 1
    for spec in {(spec.model, spec.recipe): spec for spec in specs}.values():
        precision = resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None)
        needed = max(needed, memory_of(spec, precision.width))
    return free_bytes(device) // needed


def _memory(size: Size, width: int) -> int:
    """Return bytes: weights, gradient and two moments of what is trained, and the room of a pass with the libraries."""
    return size.parameters * width + size.trained * 16 + int(1.2e9)


def _disk(load: Workload) -> int:
    """Return bytes that stay of a run: its adapter in float32, and samples that repeat the texts about twice."""
    samples = 2 * load.text_bytes + 800 * load.test_rows
    return load.size.trained * 4 + samples * (2 if load.spec.direct else 1) + 20_000
