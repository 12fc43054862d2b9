"""Make the Markdown tables of docs/performance.md from the rows of earlier runs. Only the standard library is needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.gpu.columns import TABLES, Row, ScoreRow, of, which


def tables(paths: Sequence[Path]) -> str:
    """Return one section of tables for each file."""
    return "\n\n".join(_section(path) for path in paths)


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
        columns: dict[str, ScoreRow] = {"step": of("step"), "what": of("what"), "which": which, "error": of("error")}
        parts.append("### Errors\n\n" + _table(errors, columns))
    return "\n\n".join(parts)


def _read(path: Path) -> tuple[list[Row], int]:
    """Return the rows of a file and the number of lines that are not rows."""
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
    """Return for each step the rows of the last run that has it."""
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
    fields = {
        "chip": " and ".join(chips) or "unknown",
        "date": str(last.get("run", "unknown"))[:10],
        "Python": last.get("python", "unknown"),
        **{name: version for name, version in (last.get("versions") or {}).items() if version},
    }
    for row in rows:
        if row.get("what") == "versions":
            fields |= {name: row[name] for name in ("cuda", "cudnn") if row.get(name)}
            if row.get("peak_tflops"):
                fields["dense bf16 peak"] = f"{row['peak_tflops']:g} TFLOP/s ({row['peak_source']})"
    if last.get("tiny"):
        fields["sizes"] = "tiny, which say nothing about a real model"
    return f"## {path.name}\n\n" + ", ".join(f"{name} {value}" for name, value in fields.items())


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
        ended, {"step": of("step"), "state": of("state"), "seconds": of("seconds", ",.1f"), "rows that failed": of("failed")}
    )


def _table(rows: Sequence[Row], columns: dict[str, ScoreRow]) -> str:
    lines = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "\n".join("| " + " | ".join(one.replace("|", "/").replace("\n", " ") for one in line) + " |" for line in lines)
