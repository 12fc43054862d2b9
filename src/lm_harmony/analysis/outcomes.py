"""Per-example outcomes of runs, which paired tests read from the sample files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_harmony.benchmarks.types import MetricKey
from lm_harmony.errors import StoreError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """The outcomes of a model on the test questions, as columns whose sums over questions determine the score.

    Columns of a mean: (value, 1). Columns of bits per byte: (log-likelihood in nats, bytes). Columns of a Matthews correlation:
    true positives, true negatives, false positives, false negatives.
    """

    questions: tuple[str, ...]
    """Identifier of each row: the hash of the question, and a number that counts equal questions."""
    columns: Floats
    """Outcomes, questions x columns; the mean over seeds if there are several."""
    seeds: tuple[Floats, ...] = ()
    """Outcomes of each seed, questions x columns, if there are several seeds."""
    kind: str
    """Kind of score: "mean", "bits_per_byte" or "mcc"."""
    of_group: bool = False
    """Whether the questions are those of several tasks, whose scores may count equally (``weight_by_size: false``)."""

    def score(self, sums: Floats) -> Floats:
        """Return the score for sums over questions, of shape (..., columns)."""
        return score_of(self.kind, sums)

    @property
    def seed_scores(self) -> Floats:
        """The score of each seed, shape (seeds,)."""
        return np.array([float(self.score(columns.sum(axis=0))) for columns in self.seeds or (self.columns,)])

    @property
    def is_binary(self) -> bool:
        """Whether every outcome is 0 (wrong) or 1 (right)."""
        return self.kind == "mean" and bool(np.isin(self.columns[:, 0], (0, 1)).all())


def score_of(kind: str, sums: Floats) -> Floats:
    """Return the score for sums over questions, of shape (...,).

    Args:
        kind: kind of score, as ``Outcomes.kind``.
        sums: sums of the columns, of shape (..., columns).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "mcc":
            tp, tn, fp, fn = (sums[..., column] for column in range(4))
            below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
            # As in scikit-learn: 0 if one of the classes is never predicted or never true.
            return np.where(below > 0, (tp * tn - fp * fn) / np.where(below > 0, below, 1), 0.0)
        ratio = sums[..., 0] / sums[..., 1]
        return -ratio / math.log(2) if kind == "bits_per_byte" else ratio


def read_outcomes(files: Sequence[Path], metric: str, task: str | None = None) -> Outcomes | None:
    """Return the outcomes of one model on one benchmark; None if no paired test supports outcomes of this kind.

    Args:
        files: one file of samples per seed, in lm_eval's schema.
        metric: lm_eval's key "metric,filter".
        task: read only the questions of this task of a group; None: all.

    Raises:
        StoreError: a file cannot be read.
    """
    tasks: set[object] = set()
    seeds = [_read(file, metric, task, tasks) for file in files]
    if not seeds or any(seed is None or seed.keys() != (seeds[0] or {}).keys() for seed in seeds):
        return None
    first = seeds[0] or {}
    values = [[_columns(seed[question], metric) for question in first] for seed in seeds if seed is not None]
    if not first or any(row is None for seed in values for row in seed):
        return None
    columns = np.array(values, dtype=float)
    return Outcomes(
        questions=tuple(first),
        columns=np.mean(columns, axis=0),
        seeds=tuple(columns) if len(columns) > 1 else (),
        kind=_kind(metric),
        of_group=tasks != {None},
    )


def part_of_samples(
    file: Path, metric: str, left_out: Collection[int], *, whole: float | None = None
) -> tuple[float, float | None] | None:
    """Return a score of a task without some documents, and its standard error; None: not known, as that of a group.

    The standard error of a mean is that of lm_eval. That of another kind of score is not computed here.

    Args:
        file: samples in lm_eval's schema.
        metric: lm_eval's key "metric,filter".
        left_out: numbers of documents.
        whole: the score on all documents, which must follow from the samples; None: it is not checked.

    Raises:
        StoreError: the file cannot be read.
    """
    if whole is not None:
        every = part_of_samples(file, metric, ())
        if every is None or not math.isclose(every[0], whole, rel_tol=1e-9, abs_tol=1e-12):
            return None  # an aggregation that is none of the kinds of ``Outcomes``
    tasks: set[object] = set()
    outcomes = _read(file, metric, None, tasks, left_out)
    rows = [row for outcome in (outcomes or {}).values() if (row := _columns(outcome, metric)) is not None]
    if outcomes is None or not rows or len(rows) < len(outcomes) or tasks != {None}:
        return None
    columns, kind = np.array(rows, dtype=float), _kind(metric)
    value = float(score_of(kind, columns.sum(axis=0)))
    is_mean = kind == "mean" and len(rows) > 1
    return value, float(columns[:, 0].std(ddof=1)) / math.sqrt(len(rows)) if is_mean else None


def _kind(metric: str) -> str:
    name = MetricKey.parse(metric).metric
    return name if name in ("bits_per_byte", "mcc") else "mean"


def _read(file: Path, metric: str, task: str | None, tasks: set[object], left_out: Collection[int] = ()) -> dict[str, Any] | None:
    """Return the outcome by question, without some documents; None if the samples lack the metric.

    The names of the tasks of the questions are added to ``tasks``.
    """
    name, filtered = MetricKey.parse(metric)
    found: dict[str, Any] = {}
    recurring: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                sample: Mapping[str, Any] = json.loads(line)
                if sample.get("filter", filtered) != filtered or task not in (None, sample.get("task")):
                    continue
                tasks.add(sample.get("task"))
                if name not in sample:
                    return None
                if sample.get("doc_id") in left_out:
                    continue
                question = str(sample.get("doc_hash", sample.get("doc_id")))
                recurring[question] = recurring.get(question, 0) + 1
                found[f"{question}/{recurring[question]}"] = sample[name]
    except (OSError, ValueError, AttributeError, TypeError) as error:  # damaged, or written by another program
        raise StoreError(f"{file} cannot be read: {error}. Repeat the run with --overwrite, or remove the file.") from error
    return dict(sorted(found.items()))


def _columns(outcome: Any, metric: str) -> list[float] | None:
    name = MetricKey.parse(metric).metric
    if name in ("bits_per_byte", "mcc"):
        if not isinstance(outcome, list) or len(outcome) != 2:
            return None
        if name == "bits_per_byte":
            return [float(outcome[0]), float(outcome[1])]
        truth, answer = (int(part) for part in outcome)
        if not {truth, answer} <= {0, 1}:
            return None
        return [
            float(truth and answer),
            float(not truth and not answer),
            float(not truth and answer),
            float(truth and not answer),
        ]
    return [float(outcome), 1.0] if isinstance(outcome, (bool, int, float)) else None
