"""Boards and comparisons as text: tables for a terminal, CSV, JSON, Markdown. No statistics are computed here."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column, Table

from lm_harmony.analysis.audit import Audit
from lm_harmony.analysis.leaderboard import Board, BoardRow
from lm_harmony.analysis.load_tables import csv_text
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.score_rows import APART
from lm_harmony.report.near_duplicate_columns import is_apart, json_apart, notes_of, titles, value_apart
from lm_harmony.report.shown_names import short_names

if TYPE_CHECKING:  # it imports scipy.stats, which takes half a second that a leaderboard does not need
    from lm_harmony.analysis.paired import Comparison, PairedTest
    from lm_harmony.analysis.placement import Placement
    from lm_harmony.analysis.training_rows import DataCurve

_PC1 = ("rank", "rank_low", "rank_high", "model", "basis", "pc1", "pc1_low", "pc1_high", "group", "preparation")


def board_table(board: Board, width: int) -> Table:
    """Return a board as a table for a terminal of ``width`` characters; the caption says the unit and what does not fit.

    Of a model folder's path the end is shown (``short_names``). Long names are wrapped, so that no number is cut.
    """
    names = short_names(tuple(row.model for row in board.rows))
    name_width = max((len(name) for name in names.values()), default=5)
    free_width = width - name_width - 50
    kept: list[BenchmarkMetadata] = []
    for benchmark in board.benchmarks:
        free_width -= sum(max(len(title), 6) + 3 for title in titles(board, benchmark))
        if free_width < 0:
            break
        kept.append(benchmark)
    omitted = len(board.benchmarks) - len(kept)
    table = Table(
        *(Column(name, justify="right", no_wrap=True) for name in ("rank", "places")),
        Column("model", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in ("PC1", "95% interval", "tie")),
        *(Column(title, justify="right", no_wrap=True) for benchmark in kept for title in titles(board, benchmark)),
        caption=f"fractions in %; {omitted} of {len(board.benchmarks)} benchmarks do not fit, --format csv has all"
        if omitted
        else "fractions in %",
        caption_justify="left",
    )
    for row in board.rows:
        scores = _row_scores(board, row, kept)
        mark = "~" if row.basis == "predicted" else ""
        table.add_row(
            _text(row.rank, mark), _span(row.rank_low, row.rank_high), escape(names[row.model]), *_pc1(row, mark), *scores
        )
    return table


def board_csv(board: Board) -> str:
    """Return a board in the wide CSV layout that ``ScoreMatrix.from_csv`` reads: percent, text corpora in bits per byte."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    apart = [benchmark for benchmark in board.benchmarks if is_apart(board, benchmark)]
    names = [*(benchmark.task for benchmark in board.benchmarks), *(f"{benchmark.task}{APART}" for benchmark in apart)]
    writer.writerow([*_PC1, *map(csv_text, names)])
    for row in board.rows:
        pc1 = [row.rank, row.rank_low, row.rank_high, csv_text(row.model), row.basis, row.pc1, row.low, row.high, row.group]
        cells = ["" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell for cell in pc1]
        scores = [_csv_score(float(board.scores.loc[row.model, task.task]), task) for task in board.benchmarks]
        scores += [_csv_score(value_apart(board, row, benchmark), benchmark) for benchmark in apart]
        writer.writerow([*cells, board.preparation, *scores])
    return out.getvalue()


def board_json(board: Board) -> str:
    """Return a board as JSON with all its fields; scores are in the metrics' own units, gaps are null."""
    rows: list[Mapping[str, Any]] = [
        {**asdict(row), "scores": _scores(board, row), **json_apart(board, row)} for row in board.rows
    ]
    values = {
        "preparation": board.preparation,
        "reference": board.reference,
        "explained": board.explained,
        "notes": list(board.notes),
        "benchmarks": [_json_benchmark(benchmark) for benchmark in board.benchmarks],
        "rows": rows,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def board_markdown(board: Board) -> str:
    """Return a board as a Markdown table in which special characters of names are escaped."""
    columns = (title for benchmark in board.benchmarks for title in titles(board, benchmark))
    heads = ["rank", "places", "model", "PC1", "95% interval", *columns]
    notes = notes_of(board)
    lines = [_line(heads), _line(["---:", "---:", "---", *["---:"] * (len(heads) - 3)])]
    for row in board.rows:
        scores = _row_scores(board, row, board.benchmarks)
        mark = "~" if row.basis == "predicted" else ""
        lines.append(
            _line([_text(row.rank, mark), _span(row.rank_low, row.rank_high), _escaped(row.model), *_pc1(row, mark)[:2], *scores])
        )
    return "\n".join([*lines, "", f"Reference: {_escaped(board.reference)}", *(f"\n{_escaped(note)}" for note in notes)]) + "\n"


def comparison_table(comparison: Comparison, benchmarks: Mapping[str, BenchmarkMetadata]) -> Table:
    """Return a comparison as a table for a terminal, one line per test; ``benchmarks``: metadata by task."""
    names = ("first", "second", "difference", "test", "p", "p (Holm)")
    table = Table("benchmark", "prepared", *(Column(name, justify="right") for name in names))
    for test in comparison.tests:
        benchmark = benchmarks[test.benchmark]
        table.add_row(
            escape(benchmark.title),
            test.preparation,
            format_score(test.first, benchmark),
            format_score(test.second, benchmark),
            _difference(test, benchmark),
            test.test + (f" ({test.questions:,})" if test.questions else ""),
            _p(test.p),
            _p(test.holm) + (" *" if test.holm is not None and test.holm < 0.05 else ""),
        )
    return table


def audit_table(found: Audit, *, full_names: bool) -> Table:
    """Return the preparedness audit as a table, one line per model; without ``full_names`` as ``board_table`` names them."""
    names = short_names(tuple(map(str, found.table.index)))
    table = Table(
        "model", *(Column(name, justify="right") for name in ("direct rank", "trained rank", "difference", "error", "z"))
    )
    for name, row in found.table.iterrows():
        z = f"{row['z']:.2f}" + (" *" if row["flagged"] else "")
        cells = (f"{row['direct']:.0f}", f"{row['trained']:.0f}", f"{row['difference']:+.0f}", f"{row['error']:.1f}", z)
        table.add_row(escape(str(name) if full_names else names[str(name)]), *cells)
    return table


def data_curve_table(found: DataCurve) -> Table:
    """Return results by the number of training rows as a table, one line for each number; 0 stands for the direct scores."""
    names = ("max_num_train", "rows", "seconds", "mean tau", "tau with most", "largest change")
    table = Table(*(Column(name, justify="right") for name in (*names, *found.scores)))
    for rows, line in found.table.iterrows():
        cells = (f"{line['rows']:.0f}", f"{line['seconds']:.0f}", f"{line['mean_tau']:.3f}", f"{line['tau']:.3f}")
        scores = (f"{score:.4f}" for score in found.scores.loc[rows])
        table.add_row(str(rows), *cells, f"{line['largest_change']:.0f}", *scores)
    return table


def placement_row(placed: Placement) -> dict[str, str | float]:
    """Return a placement as one row for other programs; lists of benchmarks are separated by spaces."""
    return {
        "model": placed.model,
        "rank": placed.rank,
        "rank_low": placed.rank_low,
        "rank_high": placed.rank_high,
        "of": placed.of + 1,
        "pc1": placed.pc1,
        "pc1_low": placed.low,
        "pc1_high": placed.high,
        "benchmarks": " ".join(placed.benchmarks),
        "missing": " ".join(placed.missing),
    }


def format_score(value: float, benchmark: BenchmarkMetadata) -> str:
    """Return a score as boards show it: fractions in percent, other scores in the metric's own unit, a gap as a dash."""
    return "–" if math.isnan(value) else f"{benchmark.shown_factor * value:.{benchmark.shown_decimals}f}"


def _row_scores(board: Board, row: BoardRow, benchmarks: Iterable[BenchmarkMetadata]) -> list[str]:
    cells = []
    for benchmark in benchmarks:
        cells.append(format_score(float(board.scores.loc[row.model, benchmark.task]), benchmark))
        if is_apart(board, benchmark):
            cells.append(format_score(value_apart(board, row, benchmark), benchmark))
    return cells


def _difference(test: PairedTest, benchmark: BenchmarkMetadata) -> str:
    factor, decimals = benchmark.shown_factor, benchmark.shown_decimals
    error = "" if test.stderr is None else f" ± {factor * test.stderr:.{decimals}f}"
    return f"{factor * test.difference:+.{decimals}f}{error}"


def _p(p: float | None) -> str:
    return "–" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _pc1(row: BoardRow, mark: str) -> list[str]:
    interval = "–" if row.low is None or row.high is None else f"{row.low:.0f} to {row.high:.0f}"
    return ["–" if row.pc1 is None else f"{mark}{row.pc1:.2f}", interval, _text(row.group)]


def _scores(board: Board, row: BoardRow) -> dict[str, float | None]:
    values = board.scores.loc[row.model]
    return {task: None if math.isnan(value) else float(value) for task, value in values.items()}


def _json_benchmark(benchmark: BenchmarkMetadata) -> dict[str, Any]:
    return {name: value for name, value in asdict(benchmark).items() if name != "percent"}  # scores in JSON are never in percent


def _csv_score(value: float, benchmark: BenchmarkMetadata) -> str:
    return "" if math.isnan(value) else f"{value:.6g}" if benchmark.is_perplexity else f"{100 * value:.6g}"


def _text(value: int | None, mark: str = "") -> str:
    return "–" if value is None else f"{mark}{value}"


def _span(low: int | None, high: int | None) -> str:
    return "–" if low is None or high is None else f"{low}–{high}"


def _escaped(text: str) -> str:
    for sign in "\\`*_{}[]<>|#~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
