"""Measures the speed of this machine on rows of a study, in a limited time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.memory_estimate import PROCESS_BYTES
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import HarmonyError
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.flops import scoring_flops, training_flops
from lm_harmony.studies.hardware import Constant, Hardware
from lm_harmony.studies.workload import size_of, workload

SECONDS = 30.0
"""Seconds for measuring this machine, without loading the model."""


def calibrate(spec: RunSpec, seconds: float = SECONDS) -> Hardware:
    """Measure this machine: train and score some rows of ``spec``, first one, then more as long as the time allows.

    Args:
        spec: a run of the study.
        seconds: time for all measurements, without loading the model. Only the first one, of one row, may take longer.

    Raises:
        HarmonyError: the benchmark or the model cannot be loaded.
    """
    started = time.perf_counter()
    rows: int | None = 1
    caches = RunCaches()  # the model is loaded once
    set_up_run(_slice(spec, 1), caches)
    load_seconds = time.perf_counter() - started
    begun = time.perf_counter()
    while rows is not None:
        before = time.perf_counter()
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
        now = time.perf_counter()
        rows = None if len(run.splits.train) < rows else next_rows(rows, last=now - before, left=seconds - (now - begun))
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


def next_rows(rows: int, *, last: float, left: float) -> int | None:
    """Return the number of rows of the next measurement, or None if there is no time for another one.

    A measurement takes at most as many times longer as it has more rows.

    Args:
        rows: rows of the last measurement.
        last: seconds that it took.
        left: seconds that are left.
    """
    return next((rows * factor for factor in (8, 2) if last * factor <= left), None)


def smallest_run(specs: Sequence[RunSpec]) -> RunSpec:
    """Return a run of the model with the fewest weights, which is loaded and measured soonest."""

    def parameters(spec: RunSpec) -> float:
        try:
            return size_of(spec.model, spec.recipe).parameters
        except HarmonyError:  # the plan reports it
            return math.inf

    return min(specs, key=parameters)


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
        process=Constant(
            name="memory", value=PROCESS_BYTES["cpu"], unit="B a run", source="libraries: measured on another machine"
        ),
    )


def _slice(spec: RunSpec, rows: int) -> RunSpec:
    """Return ``spec`` with one epoch of ``rows`` training rows and half as many validation rows."""
    caps = Caps(train=rows, validation=max(1, rows // 2), test=1)
    recipe = replace(spec.recipe.at_rate(spec.recipe.rates[0]), epochs=1)
    return replace(spec, benchmark=replace(spec.benchmark, caps=caps), recipe=recipe)
