"""The order of benchmarks that narrows the rank interval of a model for the least cost, and when to stop.

The next benchmark is the one with the largest expected shrinking of the rank interval for its cost (``sequential_placement``).
Costs are hours or training rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lm_harmony.analysis.sequential_placement import Position, SequentialPlacement

OUT_OF_REACH = 0.2
"""A width is out of reach if all benchmarks together would give it with a smaller probability than this."""

Stop = Literal["narrow", "out of reach", "no benchmark left"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A model in the middle of its placement: the benchmarks that it has, and where they put it."""

    placement: SequentialPlacement
    """Distribution that scores are judged by."""
    scores: Mapping[str, float]
    """Standardised score by benchmark, of the benchmarks that were run."""
    errors: Mapping[str, float]
    """Standard error by benchmark in standardised units, measured or expected; the usual one where it is not given."""

    @property
    def position(self) -> Position:
        """Where the model stands now."""
        return self.placement.position(self.scores, self.errors)

    def next_benchmark(self, costs: Mapping[str, float], planned: Sequence[str] = ()) -> str | None:
        """Return the benchmark with the largest expected shrinking of the rank interval for its cost; None: none is left.

        Args:
            costs: positive cost of each benchmark to choose from.
            planned: benchmarks that are run before it and have no score yet.
        """
        names = [task for task in self.placement.tasks if task in costs and task not in self.scores and task not in planned]
        if not names:
            return None
        sets = [list(planned), *([*planned, name] for name in names)]
        now, *after = self.placement.expected_widths(self.position, list(self.scores), sets, self.errors).mean(axis=1)
        gains = (now - np.array(after)) / np.array([costs[name] for name in names])
        return str(names[int(np.argmax(gains))])

    def expected(self, more: Sequence[str], until: int | None = None) -> tuple[float, float]:
        """Return the expected width after the benchmarks ``more``, and the probability that it is at most ``until`` (None: 0)."""
        widths = self.placement.expected_widths(self.position, list(self.scores), [list(more)], self.errors)
        return float(widths.mean()), float((widths <= until).mean()) if until is not None else 0.0

    def stop(self, until: int | None, left: Collection[str]) -> Stop | None:
        """Return why no further benchmark should be run, or None to go on. Without any score, no width is out of reach.

        Args:
            until: largest accepted width of the rank interval, in places; None: every benchmark is to be run.
            left: benchmarks that could be run, with or without a score.
        """
        more = [task for task in left if task not in self.scores]
        if until is not None and self.position.width <= until:
            return "narrow"
        if not more:
            return "no benchmark left"
        if until is not None and self.scores and self.expected(more, until)[1] < OUT_OF_REACH:
            return "out of reach"
        return None


@dataclass(frozen=True, kw_only=True)
class PlannedBenchmark:
    """A benchmark of a plan, and what is expected after it."""

    task: str
    """Name of the benchmark's task."""
    width: float
    """Expected width of the rank interval after it, in places."""
    reached: float
    """Probability that the interval is narrow enough after it."""


def planned_order(progress: Progress, costs: Mapping[str, float], until: int | None) -> tuple[PlannedBenchmark, ...]:
    """Return all benchmarks of ``costs`` in the order in which they would be run if no score were a surprise.

    Args:
        progress: the model before the first of them.
        costs: positive cost of each benchmark.
        until: width that counts as narrow enough, in places; None: no width does.
    """
    planned: list[PlannedBenchmark] = []
    while (task := progress.next_benchmark(costs, [one.task for one in planned])) is not None:
        width, reached = progress.expected([*(one.task for one in planned), task], until)
        planned.append(PlannedBenchmark(task=task, width=width, reached=reached))
    return tuple(planned)
