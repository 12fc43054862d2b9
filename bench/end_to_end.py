"""One whole run, ours against the plain engine told to do what the reference does: ``python -m bench.end_to_end``.

Two processes in turn: ``lm-harmony run`` as it is; and padded training with validation and test, one request a forward pass,
before training, after every epoch, and once more with the chosen one, as the published code does.
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
    """What a process took."""

    seconds: float
    """From start to end."""
    peak: int
    """Largest resident memory in bytes."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchFlags):
    """Where the model and the rows are."""

    reference: bool = False
    """Be the other side, in a process of its own."""


def ours(flags: BenchFlags) -> list[str]:
    """Return the command of our run of arc_easy: five epochs, direct and trained."""
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
    return [sys.executable, "-m", "lm_harmony.cli", "run", *words, "--eval_before_train"]


def reference(flags: BenchFlags) -> None:
    """Do in this process what the published code does, on the plain engine."""
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
    """Run a command and return what its process took."""
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    assert status == 0, "the run failed"
    return Cost(time.perf_counter() - started, usage.ru_maxrss * 1024)


def main(flags: Flags) -> None:
    """Run both in turn and print seconds, peak memory and their ratios."""
    assert Path(flags.model).is_dir(), f"{flags.model} is no folder"
    if flags.reference:
        return reference(flags)
    mine, theirs = [], []
    for _ in range(flags.runs):
        mine.append(cost(ours(flags)))
        theirs.append(cost([sys.executable, "-m", "bench.end_to_end", *sys.argv[1:], "--reference"]))
    faster = statistics.median(their.seconds / own.seconds for own, their in zip(mine, theirs, strict=True))
    smaller = statistics.median(own.peak / their.peak for own, their in zip(mine, theirs, strict=True))
    print(f"{faster:.2f}x faster, {smaller:.2f}x the memory")
    rows = {side: [(cost.seconds, cost.peak) for cost in costs] for side, costs in (("ours", mine), ("reference", theirs))}
    print(json.dumps({"bench": "end_to_end", "faster": faster, "memory": smaller, **rows}))


if __name__ == "__main__":
    main(tyro.cli(Flags))
