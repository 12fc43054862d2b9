"""Columns of the tables of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
ScoreRow = Callable[[Row], str]


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    """Heading of the table."""
    step: int
    """Number of the step that writes the rows."""
    what: str
    """Value of ``what`` in the rows that are shown."""
    columns: dict[str, ScoreRow]
    """Heading of a column -> function that returns the text of its cell for a row."""


def of(name: str, shape: str = "", scale: float = 1.0) -> ScoreRow:
    """Return a cell that shows field ``name``, multiplied by ``scale`` and formatted by ``shape``."""

    def cell(row: Row) -> str:
        value = row.get(name)
        if value is None:
            return "failed" if "error" in row else ""
        return format(value * scale, shape) if shape and isinstance(value, (int, float)) else str(value)

    return cell


def which(row: Row) -> str:
    names = ("shape", "backend", "model", "dtype", "case", "grouped", "cudnn", "runs", "pass_size", "rows", "which", "title")
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def _pair(row: Row, name: str, shape: str = ".1e") -> str:
    return f"{of(name, shape)(row)} ({of(name + '_padded', shape)(row)})" if name in row else of(name)(row)


def _kernels(row: Row) -> str:
    found = row.get("kernels") or {}
    return ", ".join(f"{name.split('(')[0][:60]} {share:.0%}" for name, share in list(found.items())[:3])


def _heads(row: Row) -> str:
    return "few" if row.get("grouped") else "repeated"


_GIB = 1 / 2**30
_SHARE = of("share_of_peak", ".1%")
TABLES = (
    Table("Copies", 0, "copy", {"copy": of("which"), "GB/s": of("gb_per_s", ",.0f")}),
    Table(
        "Product",
        0,
        "product",
        {"side": of("side"), "ms": of("median_s", ".3f", 1e3), "TFLOP/s": of("tflops", ",.1f"), "share of peak": _SHARE},
    ),
    Table("Launches", 0, "launch", {"what": of("counted"), "microseconds each": of("us_per_launch", ".2f")}),
    Table(
        "Exactness against padded float32 on the CPU",
        1,
        "exactness",
        {
            "model": of("model"),
            "type": of("dtype"),
            "backend": of("backend"),
            "packed": of("packed"),
            "trained, nats (padded)": lambda row: _pair(row, "learned"),
            "gradient, relative (padded)": lambda row: _pair(row, "gradient"),
            "scored, nats (padded)": lambda row: _pair(row, "scored"),
            "equal answers (padded)": lambda row: _pair(row, "written_equal", ".0%"),
            "exact": of("exact"),
        },
    ),
    Table(
        "Attention at new shapes",
        2,
        "attention",
        {
            "case": of("case"),
            "cuDNN": of("cudnn"),
            "key heads": _heads,
            "first call, ms": of("first_ms", ".3f"),
            "largest": of("first_max_ms", ".3f"),
            "second call, ms": of("second_ms", ".3f"),
            "launches": of("launches"),
            "kernels": _kernels,
        },
    ),
    Table(
        "What auto chose",
        3,
        "backend",
        {
            "shape": of("shape"),
            "packed": lambda row: str((row.get("chosen") or {}).get("fast")),
            "cuDNN's attention": of("cudnn_attention"),
            "said": lambda row: "; ".join(row.get("said") or ()),
        },
    ),
    Table(
        "LoRA steps",
        3,
        "training",
        {
            "shape": of("shape"),
            "backend": of("backend"),
            "tokens a step": of("tokens_per_step", ",.0f"),
            "ms a step": of("step_ms", ",.1f"),
            "tokens/s": of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "first steps, s": of("first_steps_s", ".2f"),
            "peak, GiB": of("peak_bytes", ".1f", _GIB),
        },
    ),
    Table(
        "Where a step goes",
        3,
        "profiled steps",
        {
            "shape": of("shape"),
            "backend": of("backend"),
            "operators": of("operations", ",.0f"),
            "launches": of("launches", ",.0f"),
            "host, ms": of("host_ms", ",.1f"),
            "GPU, ms": of("gpu_ms", ",.1f"),
            "step, ms": of("step_ms", ",.1f"),
            "GPU busy": of("gpu_busy", ".0%"),
            "kernels": _kernels,
        },
    ),
    Table(
        "Joint training",
        4,
        "joint training",
        {
            "shape": of("shape"),
            "runs at once": of("runs"),
            "tokens/s of all": of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "against one run": of("gain", ".2f"),
            "passes a step": of("passes_per_step", ".1f"),
            "peak, GiB": of("peak_bytes", ".1f", _GIB),
        },
    ),
    Table(
        "Scoring",
        5,
        "scoring",
        {
            "shape": of("shape"),
            "backend": of("backend"),
            "a pass": lambda row: f"{row.get('pass_size')} {row.get('unit')}",
            "questions/s": of("questions_per_s", ",.0f"),
            "tokens/s": of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "seconds": of("median_s", ".2f"),
            "of it trees": of("layout_s", ".2f"),
            "of it masks": of("masks_s", ".2f"),
            "first time": of("first_s", ".2f"),
            "peak, GiB": of("peak_bytes", ".1f", _GIB),
        },
    ),
    Table(
        "Writing",
        6,
        "writing",
        {
            "shape": of("shape"),
            "backend": of("backend"),
            "answers": of("answers"),
            "tokens/s": of("tokens_per_s", ",.0f"),
            "ms a pass": of("ms_per_pass", ".1f"),
            "peak, GiB": of("peak_bytes", ".1f", _GIB),
        },
    ),
    Table(
        "Memory of training",
        7,
        "memory",
        {
            "shape": of("shape"),
            "backend": of("backend"),
            "rows": lambda row: f"{row.get('rows')} x {row.get('row_tokens')}",
            "passes": of("passes"),
            "taken, GiB": of("taken_bytes", ".2f", _GIB),
            "expected, GiB": of("expected_bytes", ".2f", _GIB),
            "taken / expected": of("taken_of_expected", ".2f"),
            "budget, tokens a pass": of("budget_tokens"),
        },
    ),
)
"""Tables in the order of the steps. A cell without a value is empty."""
