"""The device that a model runs on: which one, its number formats, its free memory, and the error when memory runs out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number formats of a model's weights and matrix products."""

    weights: str
    """Type of the base weights: "float32" or "bfloat16"."""
    autocast: str | None = None
    """Type that matrix products are computed in where it is not that of the weights, else None."""

    @property
    def width(self) -> int:
        """Number of bytes of one weight."""
        return 4 if self.weights == "float32" else 2


def resolve_device(device: str) -> torch.device:
    """Return the named device; "auto" is the accelerator of this machine, or the CPU if there is none.

    Raises:
        ModelError: the device does not exist on this machine.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}. Use --device cpu or another one.") from error
    return place


def configure_device(device: torch.device) -> None:
    """Turn off cuDNN attention on a CUDA device; does nothing for other devices."""
    if device.type == "cuda":
        # From 2.11 on PyTorch prefers cuDNN's attention on Hopper cards. cuDNN builds an execution plan for every new shape,
        # which takes tens of milliseconds; nearly every packed sequence and every decoding step has a new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)


def resolve_precision(dtype: str, device: torch.device, *, adapter: bool) -> Precision:
    """Return the number formats for training on ``device``; checks whether a CUDA GPU computes in bfloat16.

    Args:
        dtype: "float32", "bfloat16" or "auto".
        device: device of the model.
        adapter: whether an adapter is trained instead of all weights.
    """
    has_bfloat16 = False
    if device.type == "cuda":
        with torch.cuda.device(device):  # a V100 or T4 only emulates it, slowly
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return choose_precision(dtype, device_type=device.type, has_bfloat16=has_bfloat16, adapter=adapter)


def choose_precision(dtype: str, *, device_type: str, has_bfloat16: bool, adapter: bool) -> Precision:
    """Return the number formats for a requested dtype and a kind of device.

    A named type is used for weights and matrix products. "auto" is float32, except on a CUDA GPU with bfloat16. There the frozen
    weights under an adapter are bfloat16. If all weights are trained, they stay float32, because an update of 2e-5 is lost in the
    8 bits of a bfloat16 weight, and only matrix products are computed in bfloat16.

    Args:
        dtype: "float32", "bfloat16" or "auto".
        device_type: "cpu", "cuda", "mps", ...
        has_bfloat16: whether the device computes in bfloat16 without emulation.
        adapter: whether an adapter is trained, not all weights.
    """
    if dtype != "auto":
        return Precision(weights=dtype)
    if device_type != "cuda" or not has_bfloat16:
        return Precision(weights="float32")
    return Precision(weights="bfloat16") if adapter else Precision(weights="float32", autocast="bfloat16")


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


def host_memory_of(processes: Iterable[int]) -> int:
    """Return the host memory in bytes that ending these processes would free; one that has ended counts 0."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += int(psutil.Process(process).memory_full_info().uss)
    return total


def allocatable_bytes(device: torch.device) -> int | None:
    """Return the memory that tensors on ``device`` can take, with the swap space of the host; None: it is not known."""
    if device.type not in ("cpu", "cuda", "mps"):
        return None
    return free_bytes(device) + (0 if device.type == "cuda" else int(psutil.swap_memory().free))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an out-of-memory error of a GPU, of PyTorch or NumPy on a CPU, or of Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, HarmonyError):  # its message already says what to do
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def asked_and_free_bytes(error: BaseException) -> tuple[int | None, int | None]:
    """Return the size of the failed allocation and the free memory in bytes; None where the error's text does not say it."""
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
        name: hub id or folder of the model.
        device: device whose memory is too small.
        doing: what the program was doing, such as "training on one sequence".
        needed: the memory that it needs, as text.
        ways_out: options that need less memory; a larger device is added to them.
        free: number of bytes that were free; None: the number that is free now.
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
