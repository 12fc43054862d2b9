"""Scores a random part of a finished run's test rows again, to check outcomes that somebody else reports."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_harmony.engine.adapters import trainable
from lm_harmony.runs.conflicts import refuse_other_answer
from lm_harmony.runs.environment import Meter
from lm_harmony.runs.protocol import score_test_rows
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import RunSpec

Samples = Sequence[Mapping[str, Any]]

_REMEDY = "Score it with the model, the rows, the task and the versions of lm_eval and LM-Harmony of its record."


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """Comparison of recorded outcomes with those of a second scoring."""

    documents: int
    """Number of documents that were scored again."""
    differing: int
    """Number of those whose outcome differs in a metric."""
    largest: float
    """Largest difference of a log-likelihood in nats; 0 if the benchmark has none."""


def score_part_again(
    record: RunRecord, spec: RunSpec, samples: Samples, *, shots: int = 0, weights: Path | None, share: float, seed: int
) -> Rescored:
    """Score a random part of the test rows, and compare each outcome with the recorded one.

    Args:
        record: the record to check.
        spec: its specification with this machine's model, rows and task files.
        samples: recorded outcomes of all test rows, in lm_eval's sample schema.
        shots: number of examples before each question of the untouched model.
        weights: folder of the trained weights; None: the untouched model is scored.
        share: share of the rows, above 0 and at most 1.
        seed: seed of the choice of rows.

    Raises:
        NotCurrent: model, rows, task or requests are not those of the record.
        HarmonyError: the model or the benchmark cannot be loaded.
    """
    run = set_up_run(spec)
    refuse_other_answer(Path(record.benchmark), record, asked=run.fingerprints.run, sources=run.sources, remedy=_REMEDY)
    rows = run.data_record().test
    chosen = sorted(random.Random(seed).sample(range(rows), max(1, round(share * rows))))
    if weights is None:
        again = score_test_rows(run, Meter(), "direct test", shots, chosen)
    else:
        with trainable(run.model, record.spec.recipe, seed=record.spec.seed) as trainee:
            trainee.load(weights)
            again = score_test_rows(run, Meter(), chosen=chosen)
    known = {_document(sample): sample for sample in samples}
    differing: set[object] = set()
    largest = 0.0
    for sample in map(_as_written, again.samples):
        other = known.get(_document(sample), {})
        if any(other.get(name) != sample[name] for name in (*sample["metrics"], "doc_hash", "prompt_hash", "target_hash")):
            differing.add(_document(sample)[:2])
        pairs = zip(_numbers(sample["resps"]), _numbers(other.get("resps")), strict=False)
        largest = max([largest, *(abs(one - two) for one, two in pairs)])
    return Rescored(documents=len(chosen), differing=len(differing), largest=largest)


def _document(sample: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what names the document of a sample, and its filter: in a group each task numbers its rows from 0."""
    return sample.get("task"), sample["doc_id"], sample.get("filter")


def _as_written(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a sample as it is read from a file: lists instead of tuples."""
    return json.loads(json.dumps(sample, default=str))  # type: ignore[no-any-return]


def _numbers(value: Any) -> Iterator[float]:
    """Yield every log-likelihood in lm_eval's nested replies."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float):
        yield value
