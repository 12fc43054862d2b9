"""Time repeated work and optimizer steps, and profile the GPU."""

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

ANNOTATIONS = ("Optimizer.", "ProfilerStep", "## ")
"""Prefixes of annotations, which the profiler also lists as events of the GPU although they are no kernels."""


def wait(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, *, seconds: float, rounds: int = 5) -> dict[str, Any]:
    """Run ``work`` once as a warm-up and then up to ``rounds`` times. Return fields of a row.

    Args:
        work: function to time. The device is synchronized before and after each call.
        device: device of the work.
        seconds: total time after which no further round starts. At least three rounds are run.
        rounds: maximum number of rounds.

    Returns:
        first_s has the seconds of the warm-up. median_s, min_s and max_s are over the rounds. rounds is their number.
    """
    elapsed: list[float] = []
    while len(elapsed) <= rounds and (len(elapsed) < 4 or sum(elapsed) < seconds):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        elapsed.append(time.perf_counter() - started)
    first, *rest = elapsed
    median = statistics.median(rest)
    return {"first_s": first, "median_s": median, "min_s": min(rest), "max_s": max(rest), "rounds": len(rest)}


@dataclass
class StepWatch:
    """Context manager that calls ``at`` after every optimizer step, also of optimizers created elsewhere."""

    at: Callable[[int], None]
    """Function that gets the number of the finished step, counted from 1."""
    optimizers: int = 1
    """Number of optimizers whose steps count as one step (joint training)."""
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
    """PyTorch profiler that can be started and stopped between two optimizer steps."""

    device: torch.device
    """Device to profile."""
    _profiler: Any = field(default=None, init=False)

    def start(self) -> None:
        """Start the profiler."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profiler = profile(activities=activities, acc_events=True)
        self._profiler.start()

    def stop(self, *, parts: int = 1) -> dict[str, Any]:
        """Stop the profiler and return its counts, divided by ``parts``, the number of equal parts of the work.

        Returns:
            operations is the number of PyTorch operators that call no other operator. launches is the number of kernels, copies
            and fills on the GPU. gpu_ms is the time in which at least one of them runs. kernels has the names of those with the
            most time and their share of it. Without a GPU, or if the profiler has no events of it, launches and gpu_ms are
            None, and kernels has operators.
        """
        wait(self.device)
        self._profiler.stop()
        events = self._profiler.events()
        operators = [event for event in events if event.device_type == DeviceType.CPU and event.name.startswith("aten::")]
        leaves = [event for event in operators if not any(child.name.startswith("aten::") for child in event.cpu_children)]
        gpu_events = [event for event in events if event.device_type == DeviceType.CUDA and not _is_annotation(event)]
        time_of: Counter[str] = Counter()
        for event in gpu_events or leaves:
            time_of[event.name[:90]] += event.time_range.elapsed_us()
        total = sum(time_of.values()) or 1.0
        return {
            "operations": len(leaves) / parts,
            "launches": len(gpu_events) / parts if gpu_events else None,
            "gpu_ms": _busy_us(gpu_events) / 1e3 / parts if gpu_events else None,
            "kernels": {name: elapsed / total for name, elapsed in time_of.most_common(6)},
        }


def _is_annotation(event: Any) -> bool:
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(ANNOTATIONS)


def _busy_us(events: list[Any]) -> float:
    """Return the microseconds in which at least one of ``events`` was running."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak memory of tensors in bytes since ``reset_peak``, or None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Reset the peak that ``peak_bytes`` returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
