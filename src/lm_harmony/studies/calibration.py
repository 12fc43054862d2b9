"""How fast this machine is, measured on the study's own model and rows: some twenty seconds of training and scoring."""

from __future__ import annotations

import time
from dataclasses import replace

from lm_harmony.benchmarks.caps import Caps
from lm_harmony.engine.adapters import trainee
from lm_harmony.engine.training import fine_tune
from lm_harmony.runs.preparation import prepare
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.plan import Hardware
from lm_harmony.studies.workload import asked_flops, workload

SECONDS = 20.0
"""About as long it takes, beside loading the model."""
SLICE = 16
"""Rows of the first slice; it grows until it fills its half of the time."""


def calibrate(spec: RunSpec) -> Hardware:
    """Train and score slices of ``spec`` and return what this machine reached.

    Raises:
        HarmonyError: the benchmark or the model cannot be had.
    """
    started = time.perf_counter()
    rows, training, scoring = SLICE, 0.0, 0.0
    prepare(_slice(spec, 1))  # reads libraries and weights
    load_seconds = time.perf_counter() - started
    begun = time.perf_counter()
    while True:
        part = _slice(spec, rows)
        run, load = prepare(part), workload(part)
        micro_batch = part.execution.micro_batch
        with trainee(run.model, part.recipe, seed=0) as learner:
            epochs = fine_tune(learner, run.sequences, part.recipe, seed=0, micro_batch=micro_batch, paths=run.paths)
            training = sum(epoch.seconds for epoch in epochs)
            clock = time.perf_counter()
            run.score(run.splits.validation, final=False)
            scoring = time.perf_counter() - clock
        spent = time.perf_counter() - begun
        if spent > SECONDS / 3 or len(run.splits.train) < rows:
            break
        rows *= 2
    return Hardware(
        name="here",
        training_flops=load.training_flops / training,
        scoring_flops=asked_flops(load.size, load.validation) / scoring,
        seconds_per_run=1.0,
        seconds_per_load=load_seconds,
    )


def _slice(spec: RunSpec, rows: int) -> RunSpec:
    """Return one epoch of ``rows`` training rows, half as many to score."""
    caps = Caps(train=rows, validation=max(1, rows // 2), test=1)
    return replace(spec, benchmark=replace(spec.benchmark, caps=caps), recipe=replace(spec.recipe, epochs=1))
