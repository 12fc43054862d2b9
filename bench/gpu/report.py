"""The tables of docs/performance.md from the rows of earlier runs, as GitHub's Markdown. Needs nothing but Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Cell = Callable[[Row], str]


def tables(paths: Sequence[Path]) -> str:
    """Return one section of tables for each file."""
    return "\n\n".join(_section(path) for path in paths)


@dataclass(frozen=True)
class _Table:
    """One table: the rows of a step, and what stands in each column."""

    title: str
    step: int
    what: str
    columns: dict[str, Cell]


def _section(path: Path) -> str:
    rows, broken = _read(path)
    latest = _latest(rows)
    runs = [row for row in rows if row.get("what") == "run"]
    parts = [_heading(path, runs, [row for own in latest.values() for row in own])]
    if broken:
        parts.append(f"{broken} lines of {path.name} are no rows (a process was killed while it wrote them).")
    parts.append(_steps_table(latest))
    for table in TABLES:
        own = [row for row in latest.get(table.step, []) if row.get("what") == table.what]
        parts.append(f"### {table.title}\n\n" + (_table(own, table.columns) if own else "not measured"))
    errors = [row for own in latest.values() for row in own if "error" in row]
    if errors:
        columns: dict[str, Cell] = {"step": _of("step"), "what": _of("what"), "which": _which, "error": _of("error")}
        parts.append("### Errors\n\n" + _table(errors, columns))
    return "\n\n".join(parts)


def _read(path: Path) -> tuple[list[Row], int]:
    """Return the rows of a file and how many of its lines are none."""
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and "what" in row:
            rows.append(row)
        elif line.strip():
            broken += 1
    return rows, broken


def _latest(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return each step's rows of the last run that took it."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        step = row.get("step")
        if step is not None:
            own = found.get(step, [])
            found[step] = [*own, row] if own and own[0].get("run") == row.get("run") else [row]
    return dict(sorted(found.items()))


def _heading(path: Path, runs: list[Row], rows: list[Row]) -> str:
    last = runs[-1] if runs else {}
    chips = dict.fromkeys(str(row["chip"]) for row in rows if row.get("chip"))
    told = {
        "chip": " and ".join(chips) or "unknown",
        "date": str(last.get("run", "unknown"))[:10],
        "Python": last.get("python", "unknown"),
        **{name: version for name, version in (last.get("versions") or {}).items() if version},
    }
    for row in rows:
        if row.get("what") == "versions":
            told |= {name: row[name] for name in ("cuda", "cudnn") if row.get(name)}
            if row.get("peak_tflops"):
                told["dense bf16 peak"] = f"{row['peak_tflops']:g} TFLOP/s ({row['peak_source']})"
    if last.get("tiny"):
        told["sizes"] = "tiny, which say nothing about a real model"
    return f"## {path.name}\n\n" + ", ".join(f"{name} {value}" for name, value in told.items())


def _steps_table(latest: dict[int, list[Row]]) -> str:
    ended = []
    for step in range(9):
        rows = latest.get(step, [])
        end = next((row for row in rows if row["what"] in ("done", "error")), None)
        missing = "not measured" if not rows else "the run ended before this step did"
        state = missing if end is None else end.get("error", "done")
        failed = sum("error" in row for row in rows if row is not end)
        ended.append({"step": step, "state": state, "failed": failed, **({"seconds": end.get("seconds")} if end else {})})
    return "### Steps\n\n" + _table(
        ended, {"step": _of("step"), "state": _of("state"), "seconds": _of("seconds", ",.1f"), "rows that failed": _of("failed")}
    )


def _table(rows: Sequence[Row], columns: dict[str, Cell]) -> str:
    lines = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "\n".join("| " + " | ".join(one.replace("|", "/").replace("\n", " ") for one in line) + " |" for line in lines)


def _of(name: str, shape: str = "", scale: float = 1.0) -> Cell:
    """Return a cell that shows field ``name``, multiplied by ``scale`` and formatted by ``shape``."""

    def cell(row: Row) -> str:
        value = row.get(name)
        if value is None:
            return "failed" if "error" in row else ""
        return format(value * scale, shape) if shape and isinstance(value, (int, float)) else str(value)

    return cell


def _which(row: Row) -> str:
    names = ("shape", "backend", "model", "dtype", "case", "grouped", "cudnn", "runs", "pass_size", "rows", "which", "title")
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def _kernels(row: Row) -> str:
    found = row.get("kernels") or {}
    return ", ".join(f"{name.split('(')[0][:60]} {share:.0%}" for name, share in list(found.items())[:3])


def _heads(row: Row) -> str:
    return "few" if row.get("grouped") else "repeated"


_GIB = 1 / 2**30
_SHARE = _of("share_of_peak", ".1%")
TABLES = (
    _Table("Copies", 0, "copy", {"copy": _of("which"), "GB/s": _of("gb_per_s", ",.0f")}),
    _Table(
        "Product",
        0,
        "product",
        {"side": _of("side"), "ms": _of("median_s", ".3f", 1e3), "TFLOP/s": _of("tflops", ",.1f"), "share of peak": _SHARE},
    ),
    _Table("Launches", 0, "launch", {"what": _of("counted"), "microseconds each": _of("us_per_launch", ".2f")}),
    _Table(
        "Exactness against padded float32 on the CPU",
        1,
        "exactness",
        {
            "model": _of("model"),
            "type": _of("dtype"),
            "backend": _of("backend"),
            "packed": _of("packed"),
            "trained, nats (padded)": lambda row: _pair(row, "learned"),
            "gradient, relative (padded)": lambda row: _pair(row, "gradient"),
            "scored, nats (padded)": lambda row: _pair(row, "scored"),
            "equal answers (padded)": lambda row: _pair(row, "written_equal", ".0%"),
            "exact": _of("exact"),
        },
    ),
    _Table(
        "Attention at new shapes",
        2,
        "attention",
        {
            "case": _of("case"),
            "cuDNN": _of("cudnn"),
            "key heads": _heads,
            "first call, ms": _of("first_ms", ".3f"),
            "largest": _of("first_max_ms", ".3f"),
            "second call, ms": _of("second_ms", ".3f"),
            "launches": _of("launches"),
            "kernels": _kernels,
        },
    ),
    _Table(
        "LoRA steps",
        3,
        "training",
        {
            "shape": _of("shape"),
            "backend": _of("backend"),
            "tokens a step": _of("tokens_per_step", ",.0f"),
            "ms a step": _of("step_ms", ",.1f"),
            "tokens/s": _of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "first steps, s": _of("first_steps_s", ".2f"),
            "peak, GiB": _of("peak_bytes", ".1f", _GIB),
        },
    ),
    _Table(
        "Where a step goes",
        3,
        "profiled steps",
        {
            "shape": _of("shape"),
            "backend": _of("backend"),
            "operators": _of("operations", ",.0f"),
            "launches": _of("launches", ",.0f"),
            "host, ms": _of("host_ms", ",.1f"),
            "GPU, ms": _of("gpu_ms", ",.1f"),
            "step, ms": _of("step_ms", ",.1f"),
            "GPU busy": _of("gpu_busy", ".0%"),
            "kernels": _kernels,
        },
    ),
    _Table(
        "Joint training",
        4,
        "joint training",
        {
            "shape": _of("shape"),
            "runs at once": _of("runs"),
            "tokens/s of all": _of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "passes a step": _of("passes_per_step", ".1f"),
            "peak, GiB": _of("peak_bytes", ".1f", _GIB),
        },
    ),
    _Table(
        "Scoring",
        5,
        "scoring",
        {
            "shape": _of("shape"),
            "backend": _of("backend"),
            "a pass": lambda row: f"{row.get('pass_size')} {row.get('unit')}",
            "questions/s": _of("questions_per_s", ",.0f"),
            "tokens/s": _of("tokens_per_s", ",.0f"),
            "share of peak": _SHARE,
            "seconds": _of("median_s", ".2f"),
            "of it trees": _of("layout_s", ".2f"),
            "of it masks": _of("masks_s", ".2f"),
            "first time": _of("first_s", ".2f"),
            "peak, GiB": _of("peak_bytes", ".1f", _GIB),
        },
    ),
    _Table(
        "Writing",
        6,
        "writing",
        {
            "shape": _of("shape"),
            "backend": _of("backend"),
            "answers": _of("answers"),
            "tokens/s": _of("tokens_per_s", ",.0f"),
            "ms a pass": _of("ms_per_pass", ".1f"),
            "peak, GiB": _of("peak_bytes", ".1f", _GIB),
        },
    ),
    _Table(
        "Memory of training",
        7,
        "memory",
        {
            "shape": _of("shape"),
            "backend": _of("backend"),
            "rows": lambda row: f"{row.get('rows')} x {row.get('row_tokens')}",
            "passes": _of("passes"),
            "taken, GiB": _of("taken_bytes", ".2f", _GIB),
            "expected, GiB": _of("expected_bytes", ".2f", _GIB),
            "taken / expected": _of("taken_of_expected", ".2f"),
            "budget, tokens a pass": _of("budget_tokens"),
        },
    ),
)
"""In the order of the steps; a column that no row can fill stays empty."""


def _pair(row: Row, name: str, shape: str = ".1e") -> str:
    return f"{_of(name, shape)(row)} ({_of(name + '_padded', shape)(row)})" if name in row else _of(name)(row)
