"""Out-of-memory errors of every library are recognised. The message gives needed and free memory and what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lm_harmony.errors import ModelError
from lm_harmony.models.device import asked_and_free_bytes, is_out_of_memory, memory_error

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.10 GiB is free. "
    "Including non-PyTorch memory, this process has 77.99 GiB memory in use."
)


def caught(work: Callable[[], object]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as found:
        work()
    return found.value


def test_real_allocations_that_fail_are_recognised() -> None:
    """The allocators of PyTorch and NumPy fail to allocate a petabyte. The requested size is read from the error."""
    for work in (lambda: torch.empty(1 << 50, dtype=torch.uint8), lambda: np.empty(1 << 50, dtype=np.uint8)):
        error = caught(work)
        assert is_out_of_memory(error)
        assert asked_and_free_bytes(error) == (1 << 50, None)


@pytest.mark.parametrize(
    ("error", "requested", "free"),
    [
        (torch.OutOfMemoryError(CUDA), int(2.5 * 2**30), int(1.1 * 2**30)),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), None, None),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."), 4096, None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None, None),
        (MemoryError(), None, None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None, None),
    ],
)
def test_out_of_memory_errors_of_every_library_are_recognised(error: Exception, requested: int | None, free: int | None) -> None:
    assert is_out_of_memory(error)
    assert asked_and_free_bytes(error) == (requested, free)


def test_other_errors_are_not_out_of_memory_errors() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(errno.ENOENT, "no file"), KeyError("x")):
        assert not is_out_of_memory(error)
    own = memory_error("m", torch.device("cpu"), doing="loading it", needed="3 GiB", ways_out=())
    assert isinstance(own, ModelError) and not is_out_of_memory(own), (
        "an error that already has the message is not converted again"
    )


def test_the_error_is_one_line_with_needed_and_free_memory_and_the_ways_out() -> None:
    message = str(memory_error("m", torch.device("cpu"), doing="training", needed="2.5 GiB more", ways_out=("--dtype bfloat16",)))
    assert message.startswith("model m: out of memory on cpu while training: 2.5 GiB more needed, ")
    assert message.endswith("B free. Ways out: --dtype bfloat16; a machine with more free memory.")
    assert "\n" not in message
