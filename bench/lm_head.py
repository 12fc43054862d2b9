"""Time the output layer in blocks of its vocabulary and in chunks of few rows on a CPU: ``python -m bench.lm_head``.

Each vocabulary and hidden size is a process of its own, with random float32 weights and no model around them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from bench.side_by_side import peak_bytes
from lm_harmony.engine.lm_head import LMHead, lm_head_logprobs
from lm_harmony.engine.lm_head_blocks import HeadBlocks, PlainHead
from lm_harmony.engine.onednn_linear import has_onednn, onednn_product, onednn_speedups, work_clock
from lm_harmony.runs.environment import describe_cpu


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of this benchmark."""

    vocabularies: tuple[int, ...] = (32_768, 131_072, 151_936, 262_144)
    """Numbers of tokens."""
    widths: tuple[int, ...] = (640, 2_048, 4_096)
    """Hidden sizes."""
    rows: int = 256
    """Hidden states of a pass. Each one predicts one label."""
    runs: int = 3
    """Timed passes of each way after one warm-up."""
    only: tuple[int, int] | None = None
    """Measure one vocabulary and hidden size in this process, and print a JSON line."""


def main(flags: Flags) -> None:
    """Print seconds, GFLOP/s, their share of what a large product reaches, and memory of each shape."""
    if flags.only is not None:
        print(json.dumps(measure(*flags.only, rows=flags.rows, runs=flags.runs)))
        return
    table = Table("vocabulary", "hidden", "pass", "products", "blocks (s)", "chunks (s)", "ratio", "GFLOP/s", "of peak", "MB")
    for vocabulary in flags.vocabularies:
        for width in flags.widths:
            command = [sys.executable, "-m", "bench.lm_head", "--rows", str(flags.rows), "--runs", str(flags.runs)]
            done = subprocess.run(
                [*command, "--only", str(vocabulary), str(width)], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(found), flush=True)
            for name in ("training", "scoring"):
                blocks, chunks = found[name]["seconds"]
                speeds, memory = found[name]["gflops"], found[name]["megabytes"]
                shares = ", ".join(f"{speed / found['peak_gflops']:.0%}" for speed in speeds)
                table.add_row(
                    *(f"{vocabulary:,}", f"{width:,}", name, found["products"], f"{blocks:.2f}", f"{chunks:.2f}"),
                    *(
                        f"{chunks / blocks:.2f}x",
                        f"{speeds[0]:.0f}, {speeds[1]:.0f}",
                        shares,
                        f"{memory[0]:.0f}, {memory[1]:.0f}",
                    ),
                )
    Console(width=120).print(table)
    print(json.dumps({**describe_cpu(), "torch": torch.__version__, "threads": torch.get_num_threads()}))


def measure(vocabulary: int, width: int, *, rows: int, runs: int) -> dict[str, object]:
    """Return medians of alternating passes, and how far resident memory rises in one: blocks first, then chunks."""
    torch.manual_seed(0)
    weight = torch.empty(vocabulary, width).normal_(std=width**-0.5)
    forward, backward = onednn_speedups(weight, rows, 1e9) if has_onednn() else (0.0, 0.0)
    blocks = HeadBlocks(forward_onednn=forward > 1, backward_onednn=backward > 1)
    plain = PlainHead(weight_VxD=weight)
    head = LMHead(partial(torch.nn.functional.linear, weight=weight), vocabulary=vocabulary, trained=False, plain=plain)
    hidden, labels, places = torch.randn(rows, width), torch.randint(vocabulary, (rows,)), np.arange(rows)
    found: dict[str, object] = {"vocabulary": vocabulary, "hidden": width, "products": str(blocks).partition(": ")[2]}
    found["peak_gflops"] = peak_gflops()
    for name, flops in (("scoring", 2), ("training", 4)):
        state = hidden.requires_grad_(name == "training")
        ways = [partial(_pass, head, state, torch.from_numpy(places), labels, places, way) for way in (blocks, None)]
        megabytes = [peak_bytes(way) / 1e6 for way in ways]
        taken = [[_seconds(way) for way in ways] for _ in range(runs)]
        seconds = [statistics.median(pair[side] for pair in taken) for side in (0, 1)]
        speeds = [flops * rows * vocabulary * width / one / 1e9 for one in seconds]
        found[name] = {"seconds": seconds, "gflops": speeds, "megabytes": megabytes}
    return found


def peak_gflops(size: int = 2_048) -> float:
    """Return the GFLOP/s of a product of two large square matrices, by the faster library: the peak that can be reached here."""
    left, right = torch.ones(size, size), torch.ones(size, size)
    ways = [partial(torch.mm, left, right)] + ([partial(onednn_product, left, right)] if has_onednn() else [])
    return 2 * size**3 / min(_seconds(way) for way in ways for _ in range(4)) / 1e9


def _pass(
    head: LMHead,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    known: np.ndarray,
    blocks: HeadBlocks | None,
) -> None:
    logprobs, _ = lm_head_logprobs(head, hidden, rows, labels, known, blocks=blocks)
    if logprobs.requires_grad:
        torch.autograd.grad(logprobs.sum(), [hidden])


def _seconds(work: Callable[[], object]) -> float:
    started = work_clock()
    work()
    return work_clock() - started


if __name__ == "__main__":
    main(tyro.cli(Flags))
