"""What is known of the columns of a task's documents that hold a question, and the error where it is not enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lm_harmony.benchmarks.harness.documents import ROW_ERRORS
from lm_harmony.benchmarks.harness.group import Benchmark
from lm_harmony.benchmarks.harness.patches import sandboxed_templates
from lm_harmony.benchmarks.harness.provenance import PLACEHOLDERS
from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.types import Example
from lm_harmony.errors import BenchmarkError

KEY = "choice_fields"
"""Key of a task's metadata that names its columns."""
QUESTIONS = ("question", "Question", "query", "question_stem", "qtext", "goal", "Problem", "problem")
"""Columns of the question in tasks of lm_eval."""


@contextmanager
def templates_of(task: HarnessTask) -> Iterator[None]:
    """Run templates of a task in the block, and report a row that does not fit them."""
    try:
        with sandboxed_templates():
            yield
    except ROW_ERRORS as error:
        raise refused(task, f"a row does not fit its templates ({error})") from error


def declared_columns(task: HarnessTask, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a task's file names.

    Raises:
        BenchmarkError: they are no mapping of the four fields to columns of its documents.
    """
    named = (task.lm_eval_task.config.metadata or {}).get(KEY) or {}
    texts = isinstance(named, Mapping) and all(
        isinstance(value, str) or (field == "choices" and isinstance(value, list) and all(isinstance(one, str) for one in value))
        for field, value in named.items()
    )
    if not texts or not named.keys() <= {"question", "context", "choices", "answer"}:
        raise refused(task, f"metadata.{KEY} must map question, context, choices and answer to names of columns, got {named!r}")
    for column in (one for value in named.values() for one in ([value] if isinstance(value, str) else value)):
        if value_at(document, column) is None:
            raise refused(task, f"column {column!r} of metadata.{KEY} is not in its rows ({', '.join(document)})")
    return {field: tuple(value) if isinstance(value, list) else value for field, value in named.items()}


def refused(task: HarnessTask, reason: str) -> BenchmarkError:
    """Return the error that the rows of a task cannot be read or written as questions."""
    kind, columns = ("questions", "") if task.output_type == "generate_until" else ("multiple-choice questions", "choices: c, ")
    return BenchmarkError(
        f"train_on: rows of benchmark {task.name} cannot be used as {kind}: {reason}. Name its columns in its YAML file "
        f"(metadata: {{{KEY}: {{question: q, {columns}answer: a}}}}), or choose another benchmark."
    )


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """Return the value of a column, or with "column.key" what a mapping in that column has under the key; None: there is none."""
    column, _, inner = path.partition(".")
    value = document.get(column)
    return value if not inner else value.get(inner) if isinstance(value, Mapping) else None


def plain_words(text: str) -> str:
    """Return a text with single spaces; of an empty one a text that stands in no other."""
    return " ".join(text.split()) or "\0"


def refuse_other_kinds(task: Benchmark, others: Sequence[HarnessTask]) -> None:
    """Raise BenchmarkError for rows of another ``output_type`` than that of a tested task."""
    for one in task.subtasks:
        other = next((other for other in others if other.output_type != one.output_type), None)
        if other is not None:
            raise refused(other, f"it is of another kind than {one.name} (output_type: {one.output_type})")


def refuse_unscorable(task: Benchmark, example: Example) -> None:
    """Raise BenchmarkError for a task whose metrics need columns that a written row does not have."""
    try:
        task.score([example], [[PLACEHOLDERS[one.kind] for one in example.requests]], errors=False, samples=False)
    except ROW_ERRORS as error:
        raise BenchmarkError(
            f"train_on: the metrics of benchmark {task.name} need more than question, choices and answer ({error}), so rows of "
            f"another benchmark cannot validate it. Choose another benchmark to test."
        ) from error
