"""What a record says of a run's rows: how many it used and left out, and which recur. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lm_harmony.benchmarks.recurrence import DroppedNearDuplicates
from lm_harmony.benchmarks.row_counts import TrainOnRecord
from lm_harmony.errors import FILE_RULES


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Counts of the rows that a run used and left out."""

    __pydantic_config__ = FILE_RULES

    fingerprint: str
    """Fingerprint of every text of the three splits."""
    train: int
    """Number of training rows."""
    validation: int
    """Number of validation rows."""
    test: int
    """Number of test rows."""
    carved: bool
    """Whether validation rows were taken from the training rows."""
    dropped_from_train: int
    """Number of training rows left out because validation or test has the same question."""
    dropped_from_validation: int
    """Number of validation rows left out because test has the same question."""
    without_answer: int
    """Number of rows left out of training, and of the validation rows taken from it, because they have no usable answer."""
    truncated: int
    """Number of training sequences whose context was cut because they were too long."""
    answer_too_long: int = 0
    """Number of training rows left out because their answer is longer than a training sequence may be."""
    appended_tokens: tuple[str, ...] = ()
    """Tokens that the tokenizer appends to every text; they were left out."""
    train_on: TrainOnRecord | None = None
    """What was used and left out of another benchmark's rows; None: training and validation rows are the benchmark's own."""
    near_duplicates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """How a question recurs in the training rows -> numbers of these test rows, from 0 (``near_duplicates.recurring_rows``);
    empty: none does, or the record is older."""
    dropped_near_duplicates: DroppedNearDuplicates | None = None
    """Numbers of training and validation rows that were left out as near duplicates; None: they are kept."""

    @property
    def recurring_rows(self) -> frozenset[int]:
        """Numbers of the test rows that have a near duplicate in the training rows."""
        return frozenset(row for found in self.near_duplicates.values() for row in found)
