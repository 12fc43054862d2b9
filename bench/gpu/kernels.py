"""Step 0 measures the machine. Step 2 measures attention calls with new shapes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.measure import Profile, timed, wait
from bench.gpu.models import share_of_peak
from bench.gpu.rows import PEAKS, Bench

LAUNCHES = 2_000
"""Number of additions of one number. Their time is the time of launching them."""


def machine(bench: Bench) -> None:
    """Write versions, and the speed of copies, of a large matrix product and of a small kernel."""
    device, sizes = bench.device, bench.sizes
    with bench.measurement("versions") as row:
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "threads": torch.get_num_threads()}
        if device.type == "cuda":
            of = torch.cuda.get_device_properties(device)
            row |= {"capability": f"{of.major}.{of.minor}", "multiprocessors": of.multi_processor_count}
            row |= {"memory_bytes": of.total_memory, "free_bytes": torch.cuda.mem_get_info(device)[0]}
            row |= {"bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
        row["peak_tflops"], row["peak_source"] = PEAKS.get(bench.rows.chip or "", (None, None))
    with bench.measurement("product", side=sizes.product, dtype="bfloat16", counted="one product of random squares") as row:
        left, right = (torch.randn(sizes.product, sizes.product, device=device, dtype=torch.bfloat16) for _ in range(2))
        row |= timed(lambda: left @ right, device, seconds=sizes.seconds, rounds=20)
        row |= share_of_peak(bench, 2 * sizes.product**3, row["median_s"])
    here = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device)
    host = torch.empty(sizes.copied_bytes // 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there, part = torch.empty_like(here), here[: len(host)]
    copies: dict[str, tuple[Callable[[], object], int]] = {
        "within the device, read and written bytes": (lambda: there.copy_(here), 2 * len(here)),
        "pinned host memory to device": (lambda: part.copy_(host), len(host)),
        "device to pinned host memory": (lambda: host.copy_(part), len(host)),
    }
    for which, (copy, moved) in copies.items():
        with bench.measurement("copy", which=which, bytes=moved) as row:
            row |= timed(copy, device, seconds=sizes.seconds, rounds=10)
            row["gb_per_s"] = moved / row["median_s"] / 1e9
    with bench.measurement("launch", counted=f"{LAUNCHES} additions to one number, eagerly") as row:
        number = torch.zeros(1, device=device)
        row |= timed(lambda: [number.add_(1) for _ in range(LAUNCHES)], device, seconds=sizes.seconds)
        row["us_per_launch"] = row["median_s"] / LAUNCHES * 1e6


def attention(bench: Bench) -> None:
    """Time the first and the second attention call at several new lengths, with and without cuDNN."""
    sizes = bench.sizes
    before = torch.backends.cuda.cudnn_sdp_enabled()
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    try:
        for cudnn in (False, True):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            for case in ("packed training", "tree", "writing", "long text"):
                for grouped in (True, False):
                    with bench.measurement(
                        "attention", case=case, heads=sizes.heads, grouped=grouped, masked=_masked(case), cudnn=cudnn
                    ) as row:
                        row |= _calls(bench, case, grouped, dtype)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _masked(case: str) -> bool:
    return case in ("tree", "writing")


def _calls(bench: Bench, case: str, grouped: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Return the times of first and second calls, and the kernels of a third call.

    "packed training" is a short causal text, forward and backward. "tree" is a forward pass with a mask. "writing" has one
    query for each row, a cache and a mask. "long text" is a causal text of ``Sizes.long_text`` tokens, forward and backward.
    """
    first: list[float] = []
    second: list[float] = []
    lengths = bench.sizes.new_lengths
    if case == "long text":
        lengths = tuple(bench.sizes.long_text + length for length in lengths[:2])
    call = _call(bench, case, grouped, dtype, lengths[0] - 1)
    call()  # warm-up that loads the code of the kernels
    for length in lengths:
        call = _call(bench, case, grouped, dtype, length)
        for times in (first, second):
            wait(bench.device)
            started = time.perf_counter()
            call()
            wait(bench.device)
            times.append((time.perf_counter() - started) * 1e3)
    profiler = Profile(bench.device)
    profiler.start()
    call()
    seen = profiler.stop()
    return {
        "lengths": lengths,
        "backward": not _masked(case),
        "first_ms": statistics.median(first),
        "first_max_ms": max(first),
        "second_ms": statistics.median(second),
        "kernels": seen["kernels"],
        "launches": seen["launches"],
    }


def _call(bench: Bench, case: str, grouped: bool, dtype: torch.dtype, length: int) -> Callable[[], object]:
    """Return an attention call over ``length`` tokens. With ``grouped``, keys have fewer heads than queries."""
    queries, few, size = bench.sizes.heads
    rows, query_length = (bench.sizes.decoded_rows, 1) if case == "writing" else (1, length)
    keys = few if grouped else queries
    with torch.device(bench.device):
        q = torch.randn(rows, queries, query_length, size, dtype=dtype)
        k, v = (torch.randn(rows, keys, length, size, dtype=dtype) for _ in range(2))
        mask = torch.zeros(rows, 1, query_length, length, dtype=dtype) if _masked(case) else None
    if mask is not None:
        hidden = torch.ones(query_length, length, dtype=torch.bool, device=bench.device).triu(1 + length - query_length)
        mask.masked_fill_(hidden, -torch.inf)
        mask[..., 1] = -torch.inf if length > 2 else 0  # not a causal mask, which a kernel could recognize
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": mask is None, "enable_gqa": grouped}

    def forward() -> object:
        with torch.no_grad():
            return scaled_dot_product_attention(q, k, v, **options)

    def both() -> object:
        found = scaled_dot_product_attention(q, k, v, **options)
        return torch.autograd.grad(found.sum(), (q, k, v))

    if _masked(case):
        return forward
    for tensor in (q, k, v):
        tensor.requires_grad_()
    return both
