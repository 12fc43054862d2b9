"""One whole run, ours against the plain engine told to do what the reference does: ``python -m bench.end_to_end``.

Two processes in turn: ``lm-harmony run`` as it is, and with ``--engine plain``, one row a scoring pass, and the test split scored
after every epoch. (The reference scores validation and test once more still; that is left out, in its favour.)
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

REFERENCE = ("--engine", "plain", "--eval_max_batch_size", "1", "--eval_every_epoch")


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    """From start to end."""
    peak: int
    """Largest resident memory in bytes."""


def run(flags: BenchFlags, *more: str) -> Cost:
    """Run arc_easy on 96/30/50 rows for five epochs, direct and trained, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "base_model": flags.model,
            "task_name": "arc_easy",
            "data_dir": flags.data,
            "results_dir": folder,
            "dataset_param.max_num_train": 96,
            "dataset_param.max_num_valid": 30,
            "dataset_param.max_num_test": 50,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "lm_harmony.cli", "run", *words, "--eval_before_train", *more]
        started = time.perf_counter()
        process = os.posix_spawn(sys.executable, command, os.environ)
        _, status, usage = os.wait4(process, 0)
        assert status == 0, "the run failed"
        return Cost(time.perf_counter() - started, usage.ru_maxrss * 1024)


def main(flags: BenchFlags) -> None:
    """Run both in turn and print seconds, peak memory and their ratios."""
    assert Path(flags.model).is_dir(), f"{flags.model} is no folder"
    ours, theirs = [], []
    for _ in range(flags.runs):
        ours.append(run(flags))
        theirs.append(run(flags, *REFERENCE))
    faster = statistics.median(their.seconds / own.seconds for own, their in zip(ours, theirs, strict=True))
    smaller = statistics.median(own.peak / their.peak for own, their in zip(ours, theirs, strict=True))
    print(f"{faster:.2f}x faster, {smaller:.2f}x the memory")
    rows = {side: [(cost.seconds, cost.peak) for cost in costs] for side, costs in (("ours", ours), ("reference", theirs))}
    print(json.dumps({"bench": "end_to_end", "faster": faster, "memory": smaller, **rows}))


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
