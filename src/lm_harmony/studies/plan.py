"""The cost of a study before it runs: tokens, FLOPs, memory, disk, and hours on a machine, term by term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_harmony.engine.memory_estimate import MemoryEstimate, estimate_memory, runs_that_fit
from lm_harmony.engine.model_size import ModelSize
from lm_harmony.models.device import choose_precision, free_bytes, host_memory_of, resolve_device, resolve_precision
from lm_harmony.recipe import shared_adapter
from lm_harmony.runs.memory_check import memory_settings, smallest_estimate
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.cards import CHECKPOINTING, CardPlan, settings_on_card, way_to_fit
from lm_harmony.studies.flops import ScoringWork, scoring_flops, training_flops
from lm_harmony.studies.hardware import HARDWARE, Hardware
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
    memory: MemoryEstimate
    """Memory of the run that needs most, with one of its longest row in a pass."""
    cards: tuple[CardPlan, ...] = field(repr=False)
    """Whether the run that needs most fits on each card, with the time and energy of all runs."""
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


def model_plan(name: str, loads: list[Workload], hardware: Hardware, joint: int = 1, *, cards: bool = True) -> ModelPlan:
    """Return the cost of all runs of one model, of which ``joint`` train jointly; ``cards`` also compares all cards."""
    direct = _direct_scores(loads)
    asked = [(load.size, one) for load in loads for one in (*[load.validation] * load.epochs, load.test)]
    asked += direct
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
        scoring_tokens=sum(load.scoring_tokens for load in loads) + sum(one.tokens for _, one in direct),
        decoding_steps=sum(one.decoding.steps for _, one in asked),
        flops=sum(training_flops(load.size, load.training) for load in loads)
        + sum(scoring_flops(size, one) for size, one in asked),
        memory=max((_memory(load, hardware) for load in loads), key=lambda estimate: estimate.total),
        cards=_cards(name, loads, hardware, joint) if cards else (),
        phases={name: one for name, one in phases.items() if one.terms},
    )


def _cards(name: str, loads: list[Workload], hardware: Hardware, joint: int) -> tuple[CardPlan, ...]:
    """Return whether the largest run of a model fits on each card of ``HARDWARE``, and the hours of all its runs there.

    The passes of ``loads`` must be those of a GPU for hours; otherwise hours are unknown.
    """
    largest = max(loads, key=lambda load: estimate_memory(load.size, settings_on_card(load.spec), tokens=load.longest).total)
    plans = []
    for card in HARDWARE.values():
        assert card.card is not None and card.power is not None
        capacity = int(card.card.value)
        way, estimate, gpus = way_to_fit(largest, capacity)
        hours = None
        if way is not None and hardware.launch is not None:
            phases = model_plan(name, loads, card, joint, cards=False).phases
            seconds = {phase: one.seconds for phase, one in phases.items()}
            # The backward pass computes every layer a second time: 2 forward and 4 backward parts become 4 and 4.
            again = seconds.get("training", 0.0) / 3 if way == CHECKPOINTING or gpus > 1 else 0.0
            hours = (sum(seconds.values()) + again) / 3600
        energy = None if hours is None else hours * gpus * card.power.value / 1000
        found: dict[str, Any] = {"way": way, "gpus": gpus, "memory_bytes": estimate.total, "hours": hours, "energy_kwh": energy}
        plans.append(CardPlan(card=card.name, capacity_bytes=capacity, **found))
    return tuple(plans)


def _direct_scores(loads: Iterable[Workload]) -> list[tuple[ModelSize, ScoringWork]]:
    """Return the work of every direct score. Recipes share it, and seeds too if there are no examples before the questions."""
    found = {}
    for load in loads:
        for shots, work in load.direct.items():
            found[load.spec.benchmark, shots, load.spec.seed if shots else 0] = load.size, work
    return list(found.values())


def estimated_memory(spec: RunSpec, *, on_card: bool) -> tuple[int, int] | None:
    """Return the bytes of a run whose rows are as long as its recipe allows, or None if its model cannot be read.

    Args:
        spec: the run.
        on_card: whether it runs on a GPU with bfloat16; else on a CPU.

    Returns:
        The memory as requested, and the least memory, with gradient checkpointing where --memory auto may switch it on.
    """
    try:
        size = size_of(spec.model, spec.recipe)
    except (OSError, ValueError):
        return None
    precision = choose_precision(spec.recipe.dtype, device_type="cpu", has_bfloat16=False, adapter=spec.recipe.lora is not None)
    settings = settings_on_card(spec) if on_card else memory_settings(spec, precision, "cpu")
    tokens = spec.recipe.max_length
    return estimate_memory(size, settings, tokens=tokens).total, smallest_estimate(spec, size, settings, tokens).total


def runs_fitting_in_memory(specs: Sequence[RunSpec], others: Sequence[int] = ()) -> int:
    """Return how many runs like the largest of ``specs`` fit at once into the free memory of this process's device.

    Args:
        specs: the runs.
        others: process ids of other workers that will execute some of the runs. On a CPU their memory counts as free.

    Raises:
        ModelError: this machine does not have the device of the runs.
    """
    device = resolve_device(specs[0].execution.device)
    needed, process = 1, 0
    for spec in {(spec.model, spec.recipe): spec for spec in specs}.values():
        precision = resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None)
        settings = memory_settings(spec, precision, device.type)
        try:
            estimate = estimate_memory(size_of(spec.model, spec.recipe), settings, tokens=spec.recipe.max_length)
        except (OSError, ValueError):  # the run itself reports it
            continue
        needed, process = max(needed, estimate.total), estimate.process
    return runs_that_fit(needed, process, free_bytes(device) + (host_memory_of(others) if device.type == "cpu" else 0))


def _memory(load: Workload, hardware: Hardware) -> MemoryEstimate:
    """Return the memory of a run on ``hardware``."""
    if hardware.launch is not None:
        return estimate_memory(load.size, settings_on_card(load.spec), tokens=load.longest)
    device = resolve_device(load.spec.execution.device)
    precision = resolve_precision(load.spec.recipe.dtype, device, adapter=load.spec.recipe.lora is not None)
    return estimate_memory(load.size, memory_settings(load.spec, precision, device.type), tokens=load.longest)


def _disk(load: Workload) -> int:
    """Return the bytes that a run keeps: its adapter in float32, and samples that have texts and examples about twice."""
    samples = 2 * load.text_bytes + 800 * load.test_rows
    return load.size.trained * 4 + samples * (1 + sum(shots + 1 for shots in load.direct)) + 20_000
