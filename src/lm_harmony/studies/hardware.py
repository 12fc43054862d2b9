"""The speed of a machine: a GPU by its data sheet and marked assumptions, or this machine as measured in 20 seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.memory import GPU_GENERATION_ROWS, GPU_SCORING_TOKENS, GPU_TRAINING_TOKENS, MemoryBudget
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.flops import scoring_flops, training_flops
from lm_harmony.studies.workload import workload

SECONDS = 20.0
"""Approximate seconds of measuring this machine, without loading the model."""
SLICE = 16
"""Training rows of the first measurement. The number is doubled until a measurement takes long enough."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number that a prediction of time uses, and its source."""

    name: str
    """Description of the number for users."""
    value: float
    """The number itself, in ``unit``."""
    unit: str
    """Unit of the number, without a prefix such as giga."""
    source: str
    """Data sheet, measurement or assumption that the number comes from."""
    measured: bool = False
    """True if the number was measured; False if it is from a data sheet, inferred or assumed."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The speed of a machine. A constant that is None is already contained in a measured rate."""

    name: str
    """Name of the machine."""
    training: Constant
    """FLOPs per second of training."""
    scoring: Constant
    """FLOPs per second of scoring."""
    decoding: Constant
    """FLOPs per second of generating answers."""
    attention: Constant | None = None
    """FLOPs per second of attention."""
    memory: Constant | None = None
    """Bytes per second of weights and cache that a decoding step reads."""
    launch: Constant | None = None
    """Seconds that the host needs to launch one kernel."""
    kernels: Constant | None = None
    """Kernels that one operator launches, on average."""
    layout: Constant | None = None
    """Seconds per token in which Python prepares a scoring pass while the device waits."""
    stop_check: Constant | None = None
    """Seconds per generated token in which Python searches for stop strings while the device waits."""
    run: Constant
    """Seconds of a run that do not depend on its tokens: reading rows and writing results."""
    load: Constant
    """Seconds of loading a model and the libraries."""
    memory_budget: MemoryBudget
    """Tokens and rows that fit into one pass."""
    weight_bytes: int
    """Bytes of one weight."""

    def constants(self, *, decoding: bool = True) -> list[Constant]:
        """Return the constants of a prediction; without ``decoding`` only those that a study without generation needs."""
        unused = () if decoding else (self.decoding, self.memory, self.stop_check)
        values = [getattr(self, field.name) for field in fields(self)]
        cache = (CACHE_TRAFFIC,) if decoding and self.memory else ()
        return [*(one for one in values if isinstance(one, Constant) and one not in unused), *cache, WORKSPACE]


_SHEETS = {
    "h200": (989e12, 4.8e12),
    "h100": (989e12, 3.35e12),
    "a100": (312e12, 2.04e12),
    "l40s": (362e12, 0.864e12),
    "rtx4090": (165e12, 1.01e12),
}
"""Dense bf16 FLOPs per second and memory bytes per second, from the data sheets (H100 SXM, A100 SXM 80 GB)."""
_HOST = "on one core of an AMD EPYC, 2026-11-28"
LAUNCH_SECONDS, KERNELS_PER_OPERATOR = 9e-6, 1.25
"""Inferred from eager PyTorch in general: about 50 ms for the 5,600 kernels of a training step at 7B, and 200 kernels
per layer on CUDA for 161 operators of the dispatcher. Neither was measured with this engine."""
CACHE_TRAFFIC = Constant(
    name="decoding steps, cache",
    value=3,
    unit="caches moved a step",
    source="attention reads it, joining the new token reads and writes it: assumed",
)
"""How often a decoding step reads or writes the keys and values of all earlier tokens."""
WORKSPACE = Constant(name="memory", value=1.2e9, unit="B a run", source="libraries and one pass: assumed")
"""Memory of a run besides weights, gradients and optimizer moments."""


def _gpu(name: str, peak: float, bandwidth: float) -> Hardware:
    """Return the speed of a GPU by its data sheet and the assumptions below."""

    def rate(what: str, share: float, why: str) -> Constant:
        source = f"{share:.0%} of the data sheet's peak ({peak / 1e12:.0f}): {why}"
        return Constant(name=what, value=share * peak, unit="FLOP/s", source=source)

    return Hardware(
        name=name,
        training=rate("training", 0.45, "a target"),
        scoring=rate("scoring", 0.55, "a target"),
        decoding=rate("decoding", 0.55, "as scoring"),
        attention=rate("attention", 0.2, "assumed"),
        memory=Constant(
            name="decoding steps",
            value=0.7 * bandwidth,
            unit="B/s",
            source=f"70% of the data sheet's {bandwidth / 1e12:g}: assumed",
        ),
        launch=Constant(
            name="launches",
            value=LAUNCH_SECONDS,
            unit="s a kernel",
            source="inferred: some 50 ms for the 5,600 kernels of a training step at 7B",
        ),
        kernels=Constant(
            name="kernels",
            value=KERNELS_PER_OPERATOR,
            unit="an operator",
            source="inferred: 200 kernels a layer on CUDA for 161 operators",
        ),
        layout=Constant(name="Python, scoring", value=2.0e-6, unit="s a token", source=_HOST, measured=True),
        stop_check=Constant(name="Python, decoding", value=2.3e-6, unit="s a token", source=_HOST, measured=True),
        run=Constant(name="fixed, run", value=5.0, unit="s a run", source="rows and files: assumed"),
        load=Constant(name="fixed, model", value=30.0, unit="s a model", source="loading: assumed"),
        memory_budget=MemoryBudget(
            training_tokens=GPU_TRAINING_TOKENS, scoring_tokens=GPU_SCORING_TOKENS, generation_rows=GPU_GENERATION_ROWS
        ),
        weight_bytes=2,
    )


HARDWARE: Mapping[str, Hardware] = MappingProxyType({name: _gpu(name, *sheet) for name, sheet in _SHEETS.items()})
"""Name of a GPU -> its speed with bfloat16 weights."""


def hardware_named(name: str) -> Hardware:
    """Return the speed of a GPU in ``HARDWARE``.

    Raises:
        UsageError: there is no GPU of that name.
    """
    if name.lower() not in HARDWARE:
        raise UsageError(
            f"hardware: no data for {name!r}.{did_you_mean(name.lower(), HARDWARE)} Known: {', '.join(HARDWARE)}. "
            f"Or give here, which measures this machine for 20 seconds."
        )
    return HARDWARE[name.lower()]


def calibrate(spec: RunSpec) -> Hardware:
    """Measure this machine: train and score some rows of ``spec`` for about ``SECONDS``.

    Raises:
        HarmonyError: the benchmark or the model cannot be loaded.
    """
    started = time.perf_counter()
    rows, training, scoring = SLICE, 0.0, 0.0
    caches = RunCaches()  # the model is loaded once
    set_up_run(_slice(spec, 1), caches)
    load_seconds = time.perf_counter() - started
    begun = time.perf_counter()
    while True:
        part = _slice(spec, rows)
        run = set_up_run(part, caches)
        load = workload(part, run.scorer.backend.memory_budget)
        micro_batch = part.execution.micro_batch
        with trainable(run.model, part.recipe, seed=0) as trainee:
            epochs = fine_tune(trainee, run.sequences, part.recipe, seed=0, micro_batch=micro_batch, backend=run.scorer.backend)
            training = sum(epoch.seconds for epoch in epochs)
            clock = time.perf_counter()
            run.score(run.splits.validation, final=False)
            scoring = time.perf_counter() - clock
        spent = time.perf_counter() - begun
        if spent > SECONDS / 3 or len(run.splits.train) < rows:
            break
        rows *= 2
    answered = scoring_flops(load.size, load.validation) / scoring
    return measured_here(
        training=training_flops(load.size, load.training) / training,
        answering=answered,
        scores=load.validation.passes > 0,
        writes=load.validation.decoding.tokens > 0,
        load_seconds=load_seconds,
        budget=run.scorer.backend.memory_budget,
        weight_bytes=run.model.module.dtype.itemsize,
    )


def measured_here(
    *, training: float, answering: float, scores: bool, writes: bool, load_seconds: float, budget: MemoryBudget, weight_bytes: int
) -> Hardware:
    """Return the speed of this machine as it was measured on some rows of a study.

    Args:
        training: FLOPs per second of training.
        answering: FLOPs per second of validation.
        scores: whether the validation had log-likelihood requests.
        writes: whether the validation had generation requests.
        load_seconds: seconds of loading the model and the libraries.
        budget: tokens and rows that fit into one pass on this machine.
        weight_bytes: bytes of one weight.
    """
    now, borrowed = "measured now, on rows of this study", "the rate of {}, which alone was measured"

    def rate(name: str, value: float, source: str, measured: bool) -> Constant:
        return Constant(name=name, value=value, unit="FLOP/s", source=source, measured=measured)

    return Hardware(
        name="here",
        training=rate("training", training, now, True),
        scoring=rate("scoring", answering, now if scores else borrowed.format("decoding"), scores),
        decoding=rate("decoding", answering, now if writes else borrowed.format("scoring"), writes),
        run=Constant(name="fixed, run", value=1.0, unit="s a run", source="rows and files: assumed"),
        load=Constant(name="fixed, model", value=load_seconds, unit="s a model", source="loading, measured now", measured=True),
        memory_budget=budget,
        weight_bytes=weight_bytes,
    )


def _slice(spec: RunSpec, rows: int) -> RunSpec:
    """Return ``spec`` with one epoch of ``rows`` training rows and half as many validation rows."""
    caps = Caps(train=rows, validation=max(1, rows // 2), test=1)
    return replace(spec, benchmark=replace(spec.benchmark, caps=caps), recipe=replace(spec.recipe, epochs=1))
