"""Columns of a board with the scores on test questions that do not recur in the training rows, beside the scores on all."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from lm_harmony.analysis.leaderboard import Board, BoardRow
from lm_harmony.analysis.metadata import BenchmarkMetadata


def is_apart(board: Board, benchmark: BenchmarkMetadata) -> bool:
    """Return whether the board has such a score of any model on a benchmark."""
    return any(task == benchmark.task and name == board.preparation for _, task, name in board.without_near_duplicates)


def titles(board: Board, benchmark: BenchmarkMetadata) -> list[str]:
    """Return the titles of a benchmark's columns: the scores on all test questions, and with a * those on the others, if any."""
    return [benchmark.title, f"{benchmark.title}*"] if is_apart(board, benchmark) else [benchmark.title]


def value_apart(board: Board, row: BoardRow, benchmark: BenchmarkMetadata) -> float:
    """Return the score of a model on the test questions that do not recur; NaN: there is none."""
    part = board.without_near_duplicates.get((row.model, benchmark.task, board.preparation))
    return math.nan if part is None else part.value


def json_apart(board: Board, row: BoardRow) -> dict[str, Any]:
    """Return these scores of a model by benchmark, as a key for JSON; no key if the board has none of any model."""
    parts = {key: part for key, part in board.without_near_duplicates.items() if key[2] == board.preparation}
    found = {task: asdict(part) for (model, task, _), part in parts.items() if model == row.model}
    return {"without_near_duplicates": found} if parts else {}


def notes_of(board: Board) -> list[str]:
    """Return the notes of a board, and what a * at a benchmark means if there is one."""
    marked = any(is_apart(board, benchmark) for benchmark in board.benchmarks)
    return [*board.notes, *(["*: on the test questions that do not recur in the training rows"] if marked else [])]
