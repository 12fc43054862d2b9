"""What of a run differs from the runs behind the published board, so that its score cannot be compared with published scores."""

from __future__ import annotations

from dataclasses import fields

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.types import TRAIN_SHARE, Caps
from lm_harmony.errors import counted
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.spec import RunSpec

ENOUGH = 0.9
"""Share of the published training rows that a run needs; some rows are dropped because their question is a test question."""
_ROUNDING = ("dtype", "max_new_tokens")
"""Fields of a recipe that do not change the training."""


def published_training_rows(task: str) -> int:
    """Return how many rows the published models were trained on, for a task of ``BENCHMARKS``.

    Without own splits for validation and test, four fifths of the training rows are trained on; then 50,000 are the most.
    """
    info = BENCHMARKS[task]
    own = {"validation", "test"} <= set(info.splits)
    return min(Caps().train, info.train_rows if own else int(TRAIN_SHARE * info.train_rows))


def differences_from_published(spec: RunSpec, training_rows: int) -> tuple[str, ...]:
    """Return what changes the score of a run compared with the published runs, each as a short text; empty: nothing known.

    Args:
        spec: the run, on a task of ``BENCHMARKS``.
        training_rows: number of rows that it is trained on.
    """
    found = []
    rows = published_training_rows(spec.benchmark.task)
    if training_rows < ENOUGH * rows:
        found.append(f"{counted(training_rows, 'training row')} instead of {rows:,}")
    for field in fields(PUBLISHED):
        own, published = getattr(spec.recipe, field.name), getattr(PUBLISHED, field.name)
        if field.name not in _ROUNDING and own != published:
            found.append(f"{field.name} {own} instead of {published}")
    if spec.model.apply_chat_template:
        found.append("a chat template instead of none")
    found += [f"{name} {value!r} instead of none" for name, value in spec.prompt.changes().items()]
    return tuple(found)
