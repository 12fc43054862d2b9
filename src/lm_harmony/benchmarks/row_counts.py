"""What a run used and left out of another benchmark's rows, and how many test questions recur, as counts and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lm_harmony.errors import FILE_RULES, counted


@dataclass(frozen=True, kw_only=True)
class TrainOnRecord:
    """What a run used and left out of another benchmark's training and validation rows."""

    __pydantic_config__ = FILE_RULES

    rows: Mapping[str, int]
    """Task -> number of its rows that were written in the tested benchmark's format."""
    shortened: int
    """Number of rows that lost wrong choices, because the tested benchmark has fewer choices."""
    unusable: int
    """Number of rows left out because they have no question, no usable answer, or fewer choices than the tested benchmark."""
    exact: int
    """Number of rows left out because a test row has the same question and the same right answer, or the same text."""
    overlapping: int
    """Number of rows left out because they share 13 consecutive words with a test row."""

    def sentence(self) -> str:
        """Return the counts as one sentence without a full stop, for people."""
        rows = ", ".join(f"{counted(count, 'row')} of {task}" for task, count in self.rows.items())
        recurring = self.exact + self.overlapping
        left_out = f"{counted(recurring, 'row that recurs in the test rows is', 'rows that recur in the test rows are')} left out"
        if recurring:
            left_out += f" ({self.exact:,} with the same question, {self.overlapping:,} with 13 words in a row)"
        unusable = f"; {counted(self.unusable, 'row')} could not be used" if self.unusable else ""
        return f"trained and validated on {rows}; {left_out}{unusable}"
