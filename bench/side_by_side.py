"""Time several implementations alternately in one process and compare medians, because timings are noisy."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.splits import Splits, make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps, Example
from lm_harmony.engine.memory import release_freed_memory
from lm_harmony.runs.environment import describe_cpu


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """Model, rows, and number of repetitions."""

    model: Path = Path("models/SmolLM2-135M-Instruct")
    """Folder of the model."""
    data: Path = Path("../shared/data")
    """Folder with <task>/{train,validation,test}.jsonl."""
    runs: int = 3
    """Timed repetitions of each implementation after one warm-up."""
    tasks: tuple[str, ...] = ()
    """Names of tasks; each benchmark has its own default."""
    rows: int | None = None
    """Number of rows of each task; each benchmark has its own default."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Result of one comparison."""

    what: str
    """Description of the timed work."""
    seconds: Mapping[str, float]
    """Median seconds of each implementation; LM-Harmony is the first."""
    ratio: float
    """Time of the fastest other implementation divided by LM-Harmony's: the median over pairs of consecutive repetitions."""
    spread: tuple[float, float]
    """Smallest and largest of these ratios."""


def compare(what: str, sides: Mapping[str, Callable[[], object]], *, runs: int) -> Measured:
    """Run every implementation once to warm up, then time it ``runs`` times, alternating between them.

    With one thread the time is that of the CPU, which other processes on the machine disturb least.

    Args:
        what: description of the work, for the table.
        sides: name of each implementation -> function to time; the first is LM-Harmony.
        runs: number of timed repetitions.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for number in range(runs + 1):
        for name, side in sides.items():
            started = clock()
            side()
            if number:
                taken[name].append(clock() - started)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ours, *others = sides
    best = min(others, key=lambda name: medians[name])
    ratios = [other / own for own, other in zip(taken[ours], taken[best], strict=True)]
    return Measured(what=what, seconds=medians, ratio=statistics.median(ratios), spread=(min(ratios), max(ratios)))


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how far the resident memory of this process rises during ``work``, by Linux's VmHWM, which is reset before."""
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM to the resident memory
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def show(title: str, measured: Sequence[Measured]) -> None:
    """Print the measurements as a table and as one JSON line."""
    sides = list(measured[0].seconds)
    table = Table("what", *(f"{side} (s)" for side in sides), "ratio", "min - max", title=title)
    for row in measured:
        low, high = row.spread
        times = (f"{row.seconds[side]:.2f}" for side in sides)
        table.add_row(row.what, *times, f"{row.ratio:.2f}x", f"{low:.2f} - {high:.2f}")
    Console(width=120).print(table)
    machine = {**describe_cpu(), "torch": torch.__version__}
    rows = [{"what": row.what, "seconds": dict(row.seconds), "ratio": row.ratio, "spread": row.spread} for row in measured]
    print(json.dumps({"bench": title, "date": date.today().isoformat(), "machine": machine, "rows": rows}))


def splits_of(task: str, data: Path, caps: Caps) -> tuple[HarnessTask, Splits]:
    """Load a task and split its local rows."""
    harness = HarnessTask(find_task_file(task), data)
    return harness, make_splits(harness, caps=caps, seed=0, protocol="clean", chat=None)


def requests_of(examples: Sequence[Example]) -> list:
    """Return the requests of all examples in order."""
    return [request for example in examples for request in example.requests]
