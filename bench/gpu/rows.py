"""Sizes, device and output file of a step. torch is not imported here."""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PEAKS = {
    "NVIDIA H100 80GB HBM3": (989.4, "NVIDIA H100 data sheet, SXM"),
    "NVIDIA H100 PCIe": (756.5, "NVIDIA H100 data sheet, PCIe"),
    "NVIDIA H100 NVL": (835.5, "NVIDIA H100 data sheet, NVL"),
    "NVIDIA H200": (989.4, "NVIDIA H200 data sheet, SXM"),
    "NVIDIA A100-SXM4-40GB": (312.0, "NVIDIA A100 data sheet"),
    "NVIDIA A100-SXM4-80GB": (312.0, "NVIDIA A100 data sheet"),
    "NVIDIA A100-PCIE-40GB": (312.0, "NVIDIA A100 data sheet"),
    "NVIDIA A100 80GB PCIe": (312.0, "NVIDIA A100 data sheet"),
    "NVIDIA A10": (125.0, "NVIDIA A10 data sheet"),
    "NVIDIA L40S": (362.05, "NVIDIA L40S data sheet"),
    "NVIDIA L4": (121.0, "NVIDIA L4 data sheet"),
    "NVIDIA GeForce RTX 4090": (165.2, "NVIDIA Ada GPU architecture white paper, float32 accumulate"),
    "NVIDIA GeForce RTX 3090": (71.0, "NVIDIA GA102 GPU architecture white paper, float32 accumulate"),
}
"""Name of a chip in torch -> (dense bf16 peak in TFLOP/s without sparsity, source)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the steps. The defaults are for a GPU."""

    copied_bytes: int = 4 * 2**30
    """Bytes of a copy within the device (step 0)."""
    product: int = 8192
    """Side of the bf16 product (step 0)."""
    heads: tuple[int, int, int] = (28, 4, 128)
    """Query heads, key heads and head size of the attention calls (step 2): those of Qwen2.5-7B."""
    new_lengths: tuple[int, ...] = (61, 74, 87, 100, 113)
    """New lengths of attention calls (step 2)."""
    long_text: int = 1024
    """Tokens of a long text (step 2)."""
    decoded_rows: int = 256
    """Rows of an attention call of generation (step 2)."""
    demo_models: tuple[str, ...] = ("llama-1", "neox-1", "llama-2", "neox-2", "llama-3", "neox-3", "llama-4", "neox-4")
    """Shipped models whose results are compared with those of the CPU (step 1)."""
    compared: int = 40
    """Questions that are compared (step 1)."""
    training: tuple[str, ...] = ("qwen2.5-7b", "llama-3.2-1b", "qwen2.5-0.5b")
    """Shapes that are trained (step 3)."""
    other: tuple[str, ...] = ("qwen2.5-7b", "qwen2.5-0.5b")
    """Shapes of joint training, scoring and writing (steps 4 to 6)."""
    largest: str = "qwen2.5-7b"
    """Shape whose memory is measured (step 7)."""
    joint: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of jointly trained runs (step 4)."""
    batch: int = 8
    """Sequences of an optimizer step."""
    questions: int = 500
    """Questions of four answers that are scored (step 5)."""
    passes: tuple[int, ...] = (4_096, 8_192, 32_768)
    """Tokens of a scoring pass (step 5)."""
    answers: int = 256
    """Number of generated answers (step 6)."""
    answer_tokens: int = 64
    """Tokens of each answer (step 6)."""
    row_tokens: int = 1024
    """Tokens of a row whose training memory is measured (step 7)."""
    rows_at_once: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of such rows in an optimizer step (step 7)."""
    seconds: float = 6.0
    """Seconds after which a measurement starts no further round."""


FULL = Sizes()
TINY = replace(
    FULL,
    copied_bytes=2**20,
    product=64,
    heads=(4, 2, 8),
    new_lengths=(5, 7),
    long_text=16,
    decoded_rows=4,
    demo_models=("llama-1", "neox-1"),
    compared=4,
    training=("tiny",),
    other=("tiny",),
    largest="tiny",
    joint=(1, 2),
    batch=2,
    questions=6,
    passes=(64, 128),
    answers=4,
    answer_tokens=4,
    row_tokens=16,
    rows_at_once=(1, 2),
    seconds=0.1,
)
"""Sizes that test the steps without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Writes JSON lines. Each line is on the disk before the next measurement."""

    path: Path
    """File to which lines are appended."""
    run: str
    """Start time of the run. All rows of one run have the same."""
    step: int | None = None
    """Number of the step, or None for the row of the run."""
    chip: str | None = None
    """Name of the measured chip."""

    def write(self, what: str, **values: Any) -> None:
        """Append a row of kind ``what`` with ``values``, and print it."""
        known = {"run": self.run, "step": self.step, "what": what, "chip": self.chip}
        line = json.dumps(_json_value({**known, **values}), ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            # A killed process may have left its last line without a line end.
            if file.tell() and not _ends_a_line(self.path):
                file.write(b"\n")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        print(line, end="", flush=True)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments of a step."""

    device: torch.device
    """Device of the measurements."""
    sizes: Sizes
    """Sizes of the measurements."""
    rows: Rows
    """Writer of the rows."""

    @contextmanager
    def measurement(self, what: str, **values: Any) -> Iterator[dict[str, Any]]:
        """Yield a dict for the fields of a row, and write the row at the end of the block.

        If the block raises an exception, the row gets the error, and the step continues after the block.
        """
        row, started = dict(values), time.perf_counter()
        try:
            yield row
        except Exception as error:  # noqa: BLE001 - after any error of a measurement the next one should run
            row["error"] = one_line(error)
        row["took_s"] = time.perf_counter() - started
        self.rows.write(what, **row)
        if "error" in row:
            self.release()

    def release(self) -> None:
        """Collect garbage and release unused memory of the GPU."""
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """Return the type of an error and the start of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _json_value(value: Any) -> Any:
    """Return ``value`` for JSON: numbers with six digits, and NaN and infinities as strings."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(one) for one in value]
    return value
