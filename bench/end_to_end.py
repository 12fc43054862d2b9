"""Compare a complete run with a run that does the same work as the published code: ``python -m bench.end_to_end``.

Two processes alternate. One is ``lm-harmony run``. The other trains on padded batches. Like the published code, it scores the
validation and test rows one request at a time: before training, after every epoch, and again with the chosen epoch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.side_by_side import BenchFlags
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.training import fine_tune
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec

CAPS = Caps(train=96, validation=30, test=50)


@dataclass(frozen=True)
class Cost:
    """Time and memory of a process."""

    seconds: float
    """Seconds from start to end."""
    peak: int
    """Largest resident memory in bytes."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchFlags):
    """Flags of this benchmark."""

    reference: bool = False
    """Run the work of the published code in this process (used by the benchmark itself)."""


def ours(flags: BenchFlags) -> list[str]:
    """Return the command of a run on arc_easy: five epochs, direct and trained scores."""
    options = {
        "base_model": flags.model,
        "task_name": "arc_easy",
        "data_dir": flags.data,
        "results_dir": tempfile.mkdtemp(),
        "dataset_param.max_num_train": CAPS.train,
        "dataset_param.max_num_valid": CAPS.validation,
        "dataset_param.max_num_test": CAPS.test,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "lm_harmony.cli", "run", *words]


def reference(flags: BenchFlags) -> None:
    """Do the work of the published code in this process, on padded batches."""
    spec = RunSpec(
        model=ModelSpec(name=str(flags.model)),
        benchmark=BenchmarkSpec(task="arc_easy", data_dir=flags.data, caps=CAPS),
        execution=Execution(engine="plain", eval_batch_size=1),
    )
    prepared = set_up_run(spec)

    def evaluate() -> float:
        prepared.score(prepared.splits.test, final=True)
        return prepared.score(prepared.splits.validation, final=True).metrics[prepared.metric]

    evaluate()
    found: dict[Path, float] = {}
    with trainable(prepared.model, spec.recipe, seed=0) as trainee:
        for epoch in fine_tune(trainee, prepared.sequences, spec.recipe, seed=0, micro_batch=8, backend=prepared.scorer.backend):
            folder = Path(tempfile.mkdtemp())
            trainee.save(folder)
            found[folder] = evaluate()
            print(f"reference, epoch {epoch.number}: loss {epoch.loss:.4f}, validation {found[folder]:.4f}")
        trainee.load(max(found, key=lambda folder: found[folder]))
        evaluate()


def cost(command: list[str]) -> Cost:
    """Run a command and return the time and memory of its process."""
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    assert status == 0, "the run failed"
    return Cost(time.perf_counter() - started, usage.ru_maxrss * 1024)


def main(flags: Flags) -> None:
    """Run both in turn and print their seconds, peak memory and ratios."""
    assert Path(flags.model).is_dir(), f"{flags.model} is not a folder"
    if flags.reference:
        return reference(flags)
    our_costs, reference_costs = [], []
    for _ in range(flags.runs):
        our_costs.append(cost(ours(flags)))
        reference_costs.append(cost([sys.executable, "-m", "bench.end_to_end", *sys.argv[1:], "--reference"]))
    faster = statistics.median(their.seconds / own.seconds for own, their in zip(our_costs, reference_costs, strict=True))
    smaller = statistics.median(own.peak / their.peak for own, their in zip(our_costs, reference_costs, strict=True))
    print(f"{faster:.2f}x faster, {smaller:.2f}x the memory")
    rows = {
        side: [(cost.seconds, cost.peak) for cost in costs]
        for side, costs in (("ours", our_costs), ("reference", reference_costs))
    }
    print(json.dumps({"bench": "end_to_end", "faster": faster, "memory": smaller, **rows}))


if __name__ == "__main__":
    main(tyro.cli(Flags))
