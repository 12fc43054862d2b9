"""The scores of a record, computed again from its per-document outcomes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lm_harmony.analysis.outcomes import part_of_samples, read_outcomes
from lm_harmony.errors import StoreError
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import samples_file


def recompute(record: RunRecord, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compute the scores of a record from its samples; return those that are equal, and those of other kinds.

    Raises:
        StoreError: a score differs, or the number of documents.
    """
    equal, unknown = list[str](), list[str]()
    expected = {samples_file(name) for name in record.scores}
    for file in sorted(expected ^ {path.name for path in folder.glob("samples_*")}):
        raise StoreError(f"{file} and its score in record.json are not both there")
    for name in record.scores:
        found = recompute_score(record, folder, name)
        equal += [*found[0], *_means_of_tasks(record, name)]
        unknown += found[1]
    _check_without_near_duplicates(record, folder, equal)
    return tuple(equal), tuple(unknown)


def recompute_score(record: RunRecord, folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Compute one score of a record, of a group those of its tasks, as ``recompute`` does; raises the same."""
    equal, unknown = list[str](), list[str]()
    file, score = samples_file(name), record.scores[name]
    parts = [(name, None, score), *((f"{name} {task}", task, one) for task, one in score.subtasks.items())]
    for label, task, part in parts[1:] or parts:  # the score of a group follows from those of its tasks
        for metric, value in part.metrics.items():
            outcomes = read_outcomes([folder / file], metric, task)
            if outcomes is None:
                unknown.append(f"{label} {metric}")
                continue
            computed = float(outcomes.score(outcomes.columns.sum(axis=0)))
            if len(outcomes.questions) != part.documents or not is_equal(computed, value):
                raise StoreError(
                    f"the {label} {metric} of record.json is {value!r} on {part.documents} documents, and {file} gives "
                    f"{computed!r} on {len(outcomes.questions)}"
                )
            equal.append(f"{label} {metric}")
    return equal, unknown


def _means_of_tasks(record: RunRecord, name: str) -> Iterator[str]:
    """Yield the scores of a group that are means of the scores of its tasks, as lm_eval aggregates them.

    Raises:
        StoreError: a score is no such mean.
    """
    score = record.scores[name]
    for metric in score.metrics if score.subtasks else ():
        weighted = [(one.metrics[metric], one.documents) for one in score.subtasks.values() if metric in one.metrics]
        means = _mean(weighted), _mean([(value, 1) for value, _ in weighted])
        if not any(is_equal(mean, score.metrics[metric]) for mean in means):
            raise StoreError(
                f"the {name} {metric} of record.json is {score.metrics[metric]!r}, and the mean of its tasks is {means[0]!r} by "
                f"documents and {means[1]!r} by tasks"
            )
        yield f"{name} {metric}"


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in weighted) / max(1, sum(weight for _, weight in weighted))


def is_equal(computed: float, recorded: float) -> bool:
    """Return whether two values of a score differ by rounding at most."""
    return math.isclose(computed, recorded, rel_tol=1e-9, abs_tol=1e-12)


def _check_without_near_duplicates(record: RunRecord, folder: Path, known: Collection[str]) -> None:
    """Compute the scores of a task without near duplicates from the samples, of those scores that are ``known``.

    Raises:
        StoreError: one differs, or the number of documents.
    """
    rows = record.data.recurring_rows
    left = record.data.test - len(rows)
    for name, score in record.without_near_duplicates.items():
        for metric, value in score.metrics.items():
            part = part_of_samples(folder / samples_file(name), metric, rows) if f"{name} {metric}" in known else None
            if part is not None and (score.documents != left or not is_equal(part[0], value)):
                raise StoreError(
                    f"the {name} {metric} without near duplicates of record.json is {value!r} on {score.documents} documents, "
                    f"and the samples give {part[0]!r} on {left}"
                )
