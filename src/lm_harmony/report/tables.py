"""Results as text: tables for a terminal, CSV, JSON, Markdown. No statistics here."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column, Table

from lm_harmony.analysis.leaderboard import Board, BoardRow
from lm_harmony.analysis.metadata import BenchmarkMetadata

if TYPE_CHECKING:  # its tests bring scipy.stats, half a second that a leaderboard does not need
    from lm_harmony.analysis.paired import Comparison, PairedTest

_PC1 = ("rank", "rank_low", "rank_high", "model", "basis", "pc1", "pc1_low", "pc1_high", "group", "preparation")


def board_table(board: Board, width: int) -> Table:
    """Lay a board out for a terminal of ``width`` characters: benchmarks that do not fit are left out, and it says so."""
    name_width = max((len(row.model) for row in board.rows), default=5)
    room = width - name_width - 50
    kept: list[BenchmarkMetadata] = []
    for fact in board.benchmarks:
        room -= max(len(fact.title), 6) + 3
        if room < 0:
            break
        kept.append(fact)
    left = len(board.benchmarks) - len(kept)
    table = Table(
        *(Column(name, justify="right", no_wrap=True) for name in ("rank", "places")),
        Column("model", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in ("PC1", "95% interval", "tie")),
        *(Column(fact.title, justify="right", no_wrap=True) for fact in kept),
        caption=f"{left} of {len(board.benchmarks)} benchmarks do not fit; --format csv has all" if left else None,
        caption_justify="left",
    )
    for row in board.rows:
        scores = (shown(float(board.scores.loc[row.model, fact.task]), fact) for fact in kept)
        mark = "~" if row.basis == "predicted" else ""
        table.add_row(_text(row.rank, mark), _span(row.rank_low, row.rank_high), _plain(row.model), *_pc1(row, mark), *scores)
    return table


def board_csv(board: Board) -> str:
    """Write a board in the wide layout, which ``ScoreMatrix.from_csv`` reads: percent; text corpora in bits per byte."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_PC1, *(fact.task for fact in board.benchmarks)])
    for row in board.rows:
        pc1 = [row.rank, row.rank_low, row.rank_high, row.model, row.basis, row.pc1, row.low, row.high, row.group]
        cells = ["" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell for cell in pc1]
        scores = [_csv_score(float(board.scores.loc[row.model, fact.task]), fact) for fact in board.benchmarks]
        writer.writerow([*cells, board.preparation, *scores])
    return out.getvalue()


def board_json(board: Board) -> str:
    """Write a board with everything that is known of it; scores in the metrics' own units, gaps as null."""
    rows: list[Mapping[str, Any]] = [{**asdict(row), "scores": _scores(board, row)} for row in board.rows]
    whole = {
        "preparation": board.preparation,
        "reference": board.reference,
        "explained": board.explained,
        "notes": list(board.notes),
        "benchmarks": [asdict(fact) for fact in board.benchmarks],
        "rows": rows,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def board_markdown(board: Board) -> str:
    """Write a board as a Markdown table; names are text there, whatever they hold."""
    heads = ["rank", "places", "model", "PC1", "95% interval", *(fact.title for fact in board.benchmarks)]
    lines = [_line(heads), _line(["---:", "---:", "---", *["---:"] * (len(heads) - 3)])]
    for row in board.rows:
        scores = (shown(float(board.scores.loc[row.model, fact.task]), fact) for fact in board.benchmarks)
        mark = "~" if row.basis == "predicted" else ""
        lines.append(
            _line([_text(row.rank, mark), _span(row.rank_low, row.rank_high), _escaped(row.model), *_pc1(row, mark)[:2], *scores])
        )
    return (
        "\n".join([*lines, "", f"Reference: {_escaped(board.reference)}", *(f"\n{_escaped(note)}" for note in board.notes)])
        + "\n"
    )


def comparison_table(comparison: Comparison, facts: Mapping[str, BenchmarkMetadata]) -> Table:
    """Lay a comparison out for a terminal."""
    names = ("first", "second", "difference", "test", "p", "p (Holm)")
    table = Table("benchmark", "prepared", *(Column(name, justify="right") for name in names))
    for test in comparison.tests:
        fact = facts[test.benchmark]
        table.add_row(
            _plain(fact.title),
            test.preparation,
            shown(test.first, fact),
            shown(test.second, fact),
            _difference(test, fact),
            test.test + (f" ({test.questions:,})" if test.questions else ""),
            _p(test.p),
            _p(test.holm) + (" *" if test.holm is not None and test.holm < 0.05 else ""),
        )
    return table


def shown(value: float, fact: BenchmarkMetadata) -> str:
    """Write a score as boards do: percent with two decimals, bits per byte with four; a gap as a dash."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if fact.is_perplexity else f"{100 * value:.2f}"


def _difference(test: PairedTest, fact: BenchmarkMetadata) -> str:
    scale, digits = (1, 4) if fact.is_perplexity else (100, 2)
    error = "" if test.stderr is None else f" ± {scale * test.stderr:.{digits}f}"
    return f"{scale * test.difference:+.{digits}f}{error}"


def _p(p: float | None) -> str:
    return "–" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _pc1(row: BoardRow, mark: str) -> list[str]:
    interval = "–" if row.low is None or row.high is None else f"{row.low:.0f} to {row.high:.0f}"
    return ["–" if row.pc1 is None else f"{mark}{row.pc1:.2f}", interval, _text(row.group)]


def _scores(board: Board, row: BoardRow) -> dict[str, float | None]:
    line = board.scores.loc[row.model]
    return {fact.task: None if math.isnan(line[fact.task]) else float(line[fact.task]) for fact in board.benchmarks}


def _csv_score(value: float, fact: BenchmarkMetadata) -> str:
    return "" if math.isnan(value) else f"{value:.6g}" if fact.is_perplexity else f"{100 * value:.6g}"


def _text(value: int | None, mark: str = "") -> str:
    return "–" if value is None else f"{mark}{value}"


def _span(low: int | None, high: int | None) -> str:
    return "–" if low is None or high is None else f"{low}–{high}"


def _plain(name: str) -> str:
    """Return a name that rich prints as it is."""
    return escape(name)


def _escaped(text: str) -> str:
    for sign in "\\`*_{}[]<>|#~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
