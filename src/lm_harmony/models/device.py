"""Memory of a device: how much is free, whether it ran out, and the error that says what was needed and what helps."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

from lm_harmony.errors import HarmonyError, ModelError

_SIGNS = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "not enough memory",  # CPU: Windows, macOS
    "can't allocate memory",  # CPU: Linux
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_SIZE = r"([\d.]+) ?(bytes|[KMGTP]iB)"
_ASKED = re.compile(rf"(?:[Tt]ried to allocate|Unable to allocate) {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free: of the GPU with what its allocator holds unused, or of this machine or its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # a container's limit, which the machine's own figures do not know
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        return free if limit == "max" else max(0, min(free, int(limit) - int(used) + int(cached)))
    except (OSError, ValueError, KeyError):
        return free


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that memory ran out: of a GPU, of PyTorch's or NumPy's allocator on a CPU, or of Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, HarmonyError):  # says already what to do
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def asked_and_free_bytes(error: BaseException) -> tuple[int | None, int | None]:
    """Return the size of the allocation that failed and what was free, in bytes, each where the error's text tells it."""
    asked, free = (
        None if found is None else int(float(found[1]) * _UNITS[found[2]])
        for found in (pattern.search(str(error)) for pattern in (_ASKED, _FREE))
    )
    return asked, free


def memory_error(
    name: str, device: torch.device, *, doing: str, needed: str, ways_out: Iterable[str], free: int | None = None
) -> ModelError:
    """Return the error for a model that does not fit.

    Args:
        name: of the model.
        device: whose memory is too small.
        doing: what was going on, such as "training on one sequence".
        needed: how much memory that takes, in words.
        ways_out: what the user can do instead; a bigger device is added.
        free: bytes that were free; None: what is free now.
    """
    kind = "machine" if device.type == "cpu" else "card"
    left = gib(free_bytes(device) if free is None else free)
    return ModelError(
        f"model {name}: out of memory on {device} while {doing}: {needed} needed, {left} free. "
        f"Ways out: {'; '.join((*ways_out, f'a {kind} with more free memory'))}."
    )


def gib(size: float) -> str:
    """Return bytes as text in GiB, or in MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
