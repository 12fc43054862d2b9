"""The cost of a study before it runs: tokens, FLOPs, memory, disk, and hours on a machine, term by term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lm_harmony.models.device import free_bytes, resolve_device, resolve_precision
from lm_harmony.recipe import shared_adapter
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.flops import ModelSize, scoring_flops, training_flops
from lm_harmony.studies.hardware import WORKSPACE, Hardware
from lm_harmony.studies.time_model import Phase, add_phases, decoding_phase, overlapped, scoring_phase, training_phase
from lm_harmony.studies.workload import Workload, size_of, workload


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The cost of all runs of one model."""

    model: str
    """Name or folder of the model."""
    runs: int
    """Number of the model's runs."""
    size: ModelSize
    """Weights and layers of the model."""
    training_tokens: int
    """Input tokens of training, over all epochs."""
    scoring_tokens: int
    """Tokens of scoring, direct scores included."""
    decoding_steps: int
    """Passes that generate one token in each row of a batch, if every answer has the largest allowed length."""
    flops: float
    """FLOPs of all products with weights, without attention."""
    memory_bytes: int
    """Largest memory that one of the runs needs."""
    phases: Mapping[str, Phase] = field(repr=False)
    """training, scoring, decoding and fixed -> seconds, one run after another."""

    @property
    def hours(self) -> float:
        """Hours of all runs, one run after another."""
        return add_phases(self.phases.values()).seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a study."""

    hardware: Hardware
    """Machine that the hours are predicted for."""
    models: tuple[ModelPlan, ...] = field(repr=False)
    """The cost of each model."""
    disk_bytes: int
    """Bytes of the adapters, samples and records that are kept."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Runs that could not be counted -> the reason."""

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of all models, one model after another."""
        names = dict.fromkeys(name for model in self.models for name in model.phases)
        return {name: add_phases(model.phases[name] for model in self.models if name in model.phases) for name in names}

    @property
    def hours(self) -> float:
        """Hours of the study with one worker."""
        return sum(model.hours for model in self.models)


@dataclass(frozen=True, kw_only=True)
class RunPrice:
    """What one run takes by itself."""

    training_rows: int
    """Number of training rows."""
    test_rows: int
    """Number of test documents."""
    hours: float
    """Predicted hours, with loading the model."""


def price(spec: RunSpec, hardware: Hardware) -> RunPrice:
    """Count the rows of a run and predict its time.

    Raises:
        OSError: the model's configuration or tokenizer, or a file of rows, cannot be read.
        ValueError: the benchmark cannot be used.
    """
    load = workload(spec, hardware.memory_budget)
    hours = model_plan(spec.model.name, [load], hardware).hours
    return RunPrice(training_rows=load.training_rows, test_rows=load.test_rows, hours=hours)


def make_plan(specs: Iterable[RunSpec], hardware: Hardware, joint: int = 1) -> Plan:
    """Count the work of every run and predict its time.

    Args:
        specs: the runs of the study.
        hardware: machine that executes the runs.
        joint: largest number of runs of a model that train jointly.
    """
    by_model: dict[str, list[Workload]] = {}
    missing: dict[str, str] = {}
    for spec in specs:
        try:
            by_model.setdefault(spec.model.name, []).append(workload(spec, hardware.memory_budget))
        except (OSError, ValueError) as error:  # every HarmonyError of loading is also one of these two
            missing[f"{spec.model.name} on {spec.benchmark.task}"] = " ".join(str(error).split())
    models, disk = [], 0
    for name, loads in by_model.items():
        if loads:
            models.append(model_plan(name, loads, hardware, joint))
            disk += sum(_disk(load) for load in loads)
    return Plan(hardware=hardware, models=tuple(models), disk_bytes=disk, missing=missing)


def model_plan(name: str, loads: list[Workload], hardware: Hardware, joint: int = 1) -> ModelPlan:
    """Return the cost of all runs of one model; ``joint`` is the largest number of them that train jointly."""
    directs = _direct_scores(loads)
    asked = [(load.size, one) for load in loads for one in (*[load.validation] * load.epochs, load.test)]
    asked += [(load.size, load.test) for load in directs]
    phases = {
        "training": add_phases(
            training_phase(load, hardware, min(joint, len(loads)) if shared_adapter(load.spec.recipe) else 1) for load in loads
        ),
        "scoring": add_phases(scoring_phase(size, one, hardware) for size, one in asked if one.passes),
        "decoding": add_phases(decoding_phase(size, one, hardware) for size, one in asked if one.decoding.passes),
        "fixed": overlapped({"fixed": len(loads) * hardware.run.value + hardware.load.value}),
    }
    return ModelPlan(
        model=name,
        runs=len(loads),
        size=max((load.size for load in loads), key=lambda size: size.trained),
        training_tokens=sum(load.training_tokens for load in loads),
        scoring_tokens=sum(load.scoring_tokens for load in loads) + sum(load.test.tokens for load in directs),
        decoding_steps=sum(one.decoding.steps for _, one in asked),
        flops=sum(training_flops(load.size, load.training) for load in loads)
        + sum(scoring_flops(size, one) for size, one in asked),
        memory_bytes=max(_memory(load.size, hardware.weight_bytes) for load in loads),
        phases={name: one for name, one in phases.items() if one.terms},
    )


def _direct_scores(loads: Iterable[Workload]) -> list[Workload]:
    """Return one run for each benchmark with a direct score, because seeds and recipes share it."""
    return list({load.spec.benchmark: load for load in loads if load.spec.direct}.values())


def estimated_memory(spec: RunSpec, weight_bytes: int = 4) -> int:
    """Return the bytes of memory that a run needs, or 0 if the model's configuration cannot be read.

    Args:
        spec: the run.
        weight_bytes: bytes of one weight.
    """
    try:
        return _memory(size_of(spec.model, spec.recipe), weight_bytes)
    except (OSError, ValueError):
        return 0


def runs_fitting_in_memory(specs: Sequence[RunSpec]) -> int:
    """Return how many runs like the largest of ``specs`` fit at once into the free memory of this process's device.

    Raises:
        ModelError: this machine does not have the device of the runs.
    """
    device = resolve_device(specs[0].execution.device)
    needed = 1
    for spec in {(spec.model, spec.recipe): spec for spec in specs}.values():
        precision = resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None)
        needed = max(needed, estimated_memory(spec, precision.width))
    return free_bytes(device) // needed


def _memory(size: ModelSize, weight_bytes: int) -> int:
    """Return the bytes of the weights, of the gradients and two moments of trained weights, and of a workspace."""
    return size.parameters * weight_bytes + size.trained * 16 + int(WORKSPACE.value)


def _disk(load: Workload) -> int:
    """Return the bytes that a run keeps: its adapter in float32, and samples that contain the texts about twice."""
    samples = 2 * load.text_bytes + 800 * load.test_rows
    return load.size.trained * 4 + samples * (2 if load.spec.direct else 1) + 20_000
