"""What the whole published study, 61 models x 24 benchmarks, would take on one H200 and on eight: ``python -m bench.full_study``.

The published models and most of their benchmarks' rows are not needed: tokens are counted on a sample of real rows with the
tokenizer of ``--model`` and scaled to each benchmark's full splits; sizes are the catalogue's; shares of the chip's peak are
those that ``lm-harmony plan`` assumes. A prediction, therefore, on stated assumptions, not a measurement.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from bench.side_by_side import BenchFlags
from lm_harmony.analysis.published import TEST_ROWS
from lm_harmony.benchmarks.caps import Caps
from lm_harmony.benchmarks.catalogue import BENCHMARKS, BenchmarkInfo
from lm_harmony.models.catalogue import MODELS
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.studies.plan import hardware_named, model_plan
from lm_harmony.studies.workload import Asked, Size, Workload, workload

TRAIN, VALIDATION = 50_000, 1_000
"""The published caps."""
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
"""A benchmark without rows at hand -> one whose rows are taken to be as long."""
LAYERS = ((0.07, 6), (0.16, 12), (0.5, 24), (1.5, 28), (3, 32), (7, 32), (14, 48))
"""Billions of parameters, and blocks that models of this size have; between them interpolated."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchFlags):
    """Where the tokenizer and the rows are."""

    gpus: int = 8
    """The larger machine."""


def main(flags: Flags) -> None:
    """Print hours by size of model, and in all."""
    sampled = {task: scaled(flags, info) for task, info in BENCHMARKS.items()}
    h200 = hardware_named("h200")
    hours: dict[str, float] = {}
    flops = 0.0
    for name, info in MODELS.items():
        plan = model_plan(
            name, [replace(load, size=size_of(info.params_b or info.nominal_params_b)) for load in sampled.values()], h200
        )
        hours[name], flops = plan.hours, flops + plan.flops
    table = Table("models of", "how many", "GPU hours", title="61 models x 24 benchmarks, one seed, direct and trained, on H200")
    edges = (0, 0.5, 2, 5, 20)
    for low, high in pairwise(edges):
        some = [hours[name] for name, info in MODELS.items() if low < (info.params_b or info.nominal_params_b) <= high]
        table.add_row(f"{low:g} to {high:g} billion", f"{len(some)}", f"{sum(some):,.0f}")
    total = sum(hours.values())
    table.add_row("all", f"{len(hours)}", f"{total:,.0f}")
    Console(width=100).print(table)
    # No model is split between GPUs, so eight of them wait for the last one.
    spread = max(total / flags.gpus, max(hours.values()))
    training, scoring = (sum(getattr(load, f"{what}_tokens") for load in sampled.values()) for what in ("training", "scoring"))
    print(f"one H200: {total / 24:.1f} days; {flags.gpus}: {spread / 24:.1f} days; {flops:.3g} FLOPs")
    print(json.dumps({"bench": "full_study", "hours": total, "hours_many": spread, "training": training, "scoring": scoring}))


def scaled(flags: Flags, info: BenchmarkInfo) -> Workload:
    """Count a sample of a benchmark's rows, and scale it to the published splits."""
    task = LIKE.get(info.task, info.task)
    spec = RunSpec(
        model=ModelSpec(name=str(flags.model)),
        benchmark=BenchmarkSpec(task=task, data_dir=Path(flags.data), caps=SAMPLE),
        direct=True,
    )
    load = workload(spec)
    train, tested = min(TRAIN, info.train_rows), TEST_ROWS[info.task]
    kept = load.steps * PUBLISHED.batch_size / load.epochs  # rows of the sample, its last batch taken as whole
    share = train / kept
    # Without a validation split of its own a benchmark gives up a fifth of its training rows; the cap holds for it too.
    validated = min(VALIDATION, info.train_rows // 5)
    return replace(
        load,
        spec=replace(spec, benchmark=replace(spec.benchmark, task=info.task)),
        training_tokens=round(load.training_tokens * share),
        trained_labels=round(load.trained_labels * share),
        steps=PUBLISHED.epochs * math.ceil(train / PUBLISHED.batch_size),
        validation=times(load.validation, validated / SAMPLE.validation),
        test=times(load.test, tested / load.test_rows),
        test_rows=tested,
    )


def times(asked: Asked, share: float) -> Asked:
    """Return ``asked`` for another number of rows."""
    return Asked(**{name: round(value * share) for name, value in vars(asked).items()})


def size_of(billions: float) -> Size:
    """Return the size of a model of so many parameters, its output layer counted with every token."""
    layers = np.interp(math.log(billions), [math.log(size) for size, _ in LAYERS], [count for _, count in LAYERS])
    parameters = int(billions * 1e9)
    return Size(parameters=parameters, computing=parameters, output=0, trained=parameters // 1_000, layers=round(float(layers)))


if __name__ == "__main__":
    main(tyro.cli(Flags))
