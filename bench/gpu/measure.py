"""Clocks: repeated work, optimizer steps, and what the profiler sees of a GPU."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import DeviceType, ProfilerActivity, profile

NOTES = ("Optimizer.", "ProfilerStep", "## ")
"""How names begin that are no kernels but marks which the profiler repeats on the GPU's time line."""


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, *, seconds: float, rounds: int = 5) -> dict[str, Any]:
    """Run ``work`` once as a warm-up and then up to ``rounds`` times; return fields of a row.

    Args:
        work: what is timed; the device is waited for before and after.
        device: where it runs.
        seconds: time after which no further round begins, from the third one on.
        rounds: most rounds.

    Returns:
        first_s: seconds of the warm-up; median_s, min_s, max_s: of the rounds; rounds: how many there were.
    """
    taken: list[float] = []
    while len(taken) <= rounds and (len(taken) < 4 or sum(taken) < seconds):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - started)
    first, *rest = taken
    middle = statistics.median(rest)
    return {"first_s": first, "median_s": middle, "min_s": min(rest), "max_s": max(rest), "rounds": len(rest)}


@dataclass
class StepWatch:
    """Calls back after every optimizer step for the length of a block, whoever takes the steps."""

    at: Callable[[int], None]
    """Takes the number of the step that has been taken, from 1."""
    optimizers: int = 1
    """Optimizers that step in turn and count as one step together (joint training)."""
    _calls: int = field(default=0, init=False)
    _handle: Any = field(default=None, init=False)

    def __enter__(self) -> StepWatch:
        self._handle = register_optimizer_step_post_hook(self._after)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _after(self, *_: object) -> None:
        self._calls += 1
        if self._calls % self.optimizers == 0:
            self.at(self._calls // self.optimizers)


@dataclass
class Profile:
    """A profiler that is started and stopped between two optimizer steps."""

    device: torch.device
    """What is looked at."""
    _profiler: Any = field(default=None, init=False)

    def start(self) -> None:
        """Begin to record."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profiler = profile(activities=activities, acc_events=True)
        self._profiler.start()

    def stop(self, *, parts: int = 1) -> dict[str, Any]:
        """Return what was recorded, for each of ``parts`` equal parts of the work.

        Returns:
            operations: operators of PyTorch that called no other one; launches: kernels, copies and fills on the GPU; gpu_ms:
            time in which at least one of them ran; kernels: names of those with the most time, and their share of it.
            Without a GPU, or where the profiler sees none of its work, launches and gpu_ms are None, and kernels are operators.
        """
        wait(self.device)
        self._profiler.stop()
        events = self._profiler.events()
        called = [event for event in events if event.device_type == DeviceType.CPU and event.name.startswith("aten::")]
        inner = [event for event in called if not any(child.name.startswith("aten::") for child in event.cpu_children)]
        ran = [event for event in events if event.device_type == DeviceType.CUDA and not _is_note(event)]
        time_of: Counter[str] = Counter()
        for event in ran or inner:
            time_of[event.name[:90]] += event.time_range.elapsed_us()
        total = sum(time_of.values()) or 1.0
        return {
            "operations": len(inner) / parts,
            "launches": len(ran) / parts if ran else None,
            "gpu_ms": _busy_us(ran) / 1e3 / parts if ran else None,
            "kernels": {name: taken / total for name, taken in time_of.most_common(6)},
        }


def _is_note(event: Any) -> bool:
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(NOTES)


def _busy_us(events: list[Any]) -> float:
    """Return the time in which at least one of ``events`` ran, in microseconds."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors took since ``forget_peak``; None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Let ``peak_bytes`` count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
