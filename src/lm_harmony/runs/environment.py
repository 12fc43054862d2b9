"""Costs and environment of a run: seconds of each phase, peak memory, versions, hardware and the git commit."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lm_harmony.runs.record import Environment, EpochRecord

_PACKAGES = (
    "lm-harmony",
    "lm_eval",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


class Meter:
    """Sums the seconds of named phases."""

    def __init__(self) -> None:
        """Start with no costs."""
        self.costs: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to ``<name>_seconds``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"{name}_seconds", time.perf_counter() - started)

    def add(self, name: str, amount: float) -> None:
        """Add an amount to the named cost."""
        self.costs[name] = self.costs.get(name, 0.0) + amount

    def summary(self) -> dict[str, float]:
        """Return all costs and the peak memory of the process (bytes; on GPUs also that of their allocators, added)."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = {"peak_memory_bytes": float(peak if sys.platform == "darwin" else peak * 1024)}  # Linux counts KiB
        if torch.cuda.is_available():
            peaks = (torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
            memory["peak_gpu_memory_bytes"] = float(sum(peaks))
        return {**self.costs, **memory}


def training_costs(epochs: Sequence[EpochRecord]) -> dict[str, float]:
    """Return tokens and seconds summed over all epochs, including those before an interruption."""
    return {
        "training_tokens": sum(epoch.tokens for epoch in epochs),
        "training_seconds": sum(epoch.seconds for epoch in epochs),
        "validation_seconds": sum(epoch.validation_seconds for epoch in epochs),
    }


def describe_environment(device: torch.device, *, use_git: bool) -> Environment:
    """Return versions, hardware and, with ``use_git``, the git revision of the working folder."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    hardware = {**describe_cpu(), "processors": os.cpu_count()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "system": platform.platform(),
        "hardware": hardware,
        "device": str(device),
        "git_revision": git_revision(Path.cwd()) if use_git else None,
    }


def describe_cpu() -> dict[str, Any]:
    """Return what affects times and rounding on a CPU: its name, the vector instructions that PyTorch uses, and its threads."""
    return {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model's name with its family and model number, because virtual machines give several generations one name."""
    try:
        lines = (line.partition(":") for line in cpuinfo.read_text().partition("\n\n")[0].splitlines())
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    fields = {name.strip(): value.strip() for name, _, value in lines}
    known = [fields.get("model name", "unknown"), *(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)]
    return ", ".join(known)


def git_revision(folder: Path) -> str | None:
    """Return the checked-out commit of ``folder``, with "+changes" if files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
