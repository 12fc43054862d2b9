"""Predict the hours of the published study (61 models x 24 benchmarks) on one H200 and on eight: ``python -m bench.full_study``.

It is a prediction from stated assumptions, not a measurement. Tokens are counted on a sample of real rows with the tokenizer of
``--model`` and scaled to the full splits of each benchmark. Model sizes come from the catalogue. The constants of the H200 are
those that ``lm-harmony plan --hardware h200`` prints.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from bench.side_by_side import BenchFlags
from lm_harmony.analysis.published import TEST_ROWS
from lm_harmony.benchmarks.catalogue import BENCHMARKS, BenchmarkInfo
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.model_size import ModelSize
from lm_harmony.models.catalogue import MODELS
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.studies.flops import DecodingWork, ScoringWork, TrainingWork
from lm_harmony.studies.hardware import hardware_named
from lm_harmony.studies.plan import ModelPlan, model_plan
from lm_harmony.studies.time_model import add_phases, binding_term
from lm_harmony.studies.workload import Workload, workload

TRAIN, VALIDATION = 50_000, 1_000
"""Largest splits of the published study."""
SAMPLE = Caps(train=200, validation=60, test=60)
LIKE = {
    "hellaswag": "medmcqa",
    "social_iqa": "commonsense_qa",
    "mathqa": "medmcqa",
    "anli_r1": "mrpc",
    "piqa": "commonsense_qa",
    "sciq": "boolq",
    "openbookqa": "arc_easy",
    "rte": "mrpc",
}
"""Benchmark without local rows -> benchmark whose rows are assumed to be equally long."""
LAYERS = ((0.07, 6), (0.16, 12), (0.5, 24), (1.5, 28), (3, 32), (7, 32), (14, 48))
"""(billions of parameters, number of layers) of known models; other sizes are interpolated."""
Counts = TypeVar("Counts", TrainingWork, ScoringWork, DecodingWork)


@dataclass(frozen=True, kw_only=True)
class Flags(BenchFlags):
    """Flags of this benchmark."""

    gpus: int = 8
    """Number of GPUs of the larger machine."""


def main(flags: Flags) -> None:
    """Print the hours for each model size and in total."""
    sampled = {task: scaled(flags, info) for task, info in BENCHMARKS.items()}
    h200 = hardware_named("h200")
    billions = {name: info.params_b or info.nominal_params_b for name, info in MODELS.items()}
    plans = {
        name: model_plan(name, [replace(load, size=size_of(size)) for load in sampled.values()], h200, cards=False)
        for name, size in billions.items()
    }
    table = Table("models of", "how many", "GPU hours", "launches", "FLOPs", "bound by")
    for low, high in pairwise((0, 0.5, 2, 5, 20)):
        selected = [plans[name] for name, size in billions.items() if low < size <= high]
        table.add_row(f"{low:g} to {high:g} billion", f"{len(selected)}", *summed(selected))
    table.add_row("all", f"{len(plans)}", *summed(list(plans.values())))
    Console(width=100).print("61 models x 24 benchmarks, one seed, direct and trained, on H200", table)
    hours = {name: plan.hours for name, plan in plans.items()}
    total, flops = sum(hours.values()), sum(plan.flops for plan in plans.values())
    # No model is split between GPUs, so eight of them wait for the last one.
    spread = max(total / flags.gpus, max(hours.values()))
    training, scoring = (sum(getattr(load, f"{what}_tokens") for load in sampled.values()) for what in ("training", "scoring"))
    print(f"one H200: {total / 24:.1f} days; {flags.gpus}: {spread / 24:.1f} days; {flops:.3g} FLOPs")
    print(json.dumps({"bench": "full_study", "hours": total, "hours_many": spread, "training": training, "scoring": scoring}))


def summed(plans: list[ModelPlan]) -> list[str]:
    """Return total hours, hours of launches and of FLOPs (which overlap), and the limiting term, of several models."""
    names = dict.fromkeys(name for plan in plans for name in plan.phases)
    phases = {name: add_phases(plan.phases[name] for plan in plans if name in plan.phases) for name in names}
    total, (bound, share) = add_phases(phases.values()), binding_term(phases)
    hours = (total.seconds, total.terms["launches"], total.terms["FLOPs"])
    return [*(f"{seconds / 3600:,.0f}" for seconds in hours), f"{bound} ({share:.0%})"]


def scaled(flags: Flags, info: BenchmarkInfo) -> Workload:
    """Count a sample of a benchmark's rows, and scale it to the published splits."""
    task = LIKE.get(info.task, info.task)
    spec = RunSpec(
        model=ModelSpec(name=str(flags.model)),
        benchmark=BenchmarkSpec(task=task, data_dir=Path(flags.data), caps=SAMPLE),
        direct=True,
    )
    load = workload(spec, hardware_named("h200").memory_budget)
    train, test_rows = min(TRAIN, info.train_rows), TEST_ROWS[info.task]
    kept = load.training.steps * PUBLISHED.batch_size / load.epochs  # rows of the sample, its last batch counted as full
    share = train / kept
    # A benchmark without a validation split uses a fifth of its training rows for it; the cap applies to them too.
    validated = min(VALIDATION, info.train_rows // 5)
    return replace(
        load,
        spec=replace(spec, benchmark=replace(spec.benchmark, task=info.task)),
        training=replace(times(load.training, share), steps=PUBLISHED.epochs * math.ceil(train / PUBLISHED.batch_size)),
        validation=scaled_scoring(load.validation, validated / SAMPLE.validation),
        test=scaled_scoring(load.test, test_rows / load.test_rows),
        test_rows=test_rows,
    )


def times(counts: Counts, share: float) -> Counts:
    """Return ``counts`` scaled to another number of rows."""
    return replace(counts, **{name: round(value * share) for name, value in vars(counts).items() if isinstance(value, int)})


def scaled_scoring(work: ScoringWork, share: float) -> ScoringWork:
    """Return ``work`` scaled to another number of rows, with the pass and batch sizes of a GPU."""
    budget, decoding = hardware_named("h200").memory_budget, times(work.decoding, share)
    if work.decoding.passes:  # the sample is decoded in one batch
        limit = work.decoding.steps + 1
        batches = math.ceil(decoding.tokens / limit / budget.generation_rows)
        passes = max(batches, math.ceil(decoding.contexts / budget.scoring_tokens))
        decoding = replace(decoding, passes=passes, steps=batches * (limit - 1))
    return replace(times(work, share), passes=math.ceil(share * work.computed / budget.scoring_tokens), decoding=decoding)


def size_of(billions: float) -> ModelSize:
    """Return the estimated size of a model. Its output layer is counted for every token. Each layer has two adapters."""
    layers = round(float(np.interp(math.log(billions), [math.log(size) for size, _ in LAYERS], [count for _, count in LAYERS])))
    parameters = int(billions * 1e9)
    width = round(math.sqrt(parameters / (12 * layers)))  # 12 width x width matrices in a layer
    return ModelSize(
        parameters=parameters,
        computing=parameters,
        output=0,
        trained=parameters // 1_000,
        layers=layers,
        adapted=2 * layers,
        query_width=width,
        key_width=width // 4,
    )


if __name__ == "__main__":
    main(tyro.cli(Flags))
