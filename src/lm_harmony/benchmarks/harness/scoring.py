"""A model's replies become a score: converted, filtered and scored by lm_eval's own functions."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval import utils as lm_eval_utils
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from lm_harmony.benchmarks.harness.bootstrap import finite_value, standard_error
from lm_harmony.benchmarks.types import Example, MetricKey, Reply, Request, Score, SubtaskScore
from lm_harmony.errors import BenchmarkError

log = logging.getLogger(__name__)


def request_of(instance: Instance, location: str = "") -> Request:
    """Return an instance of lm_eval as a request; ``location`` names its document in messages ("test row 5")."""
    kind, args = instance.request_type, instance.args
    location = location or f"document {instance.doc_id} of {instance.task_name}"
    if kind == "loglikelihood_rolling":
        return Request(kind=kind, context="", continuation=args[0], location=location)
    if kind == "generate_until":
        return Request(kind=kind, context=args[0], generation=args[1], location=location)
    return Request(kind="loglikelihood", context=args[0], continuation=args[1], location=location)


def direction_of(task: str, metric: str, higher: Any) -> bool | None:
    """Return whether a higher score is better; None where neither the task's file nor lm_eval's metric registry defines it.

    Args:
        task: the task's name, for the message.
        metric: the metric's name.
        higher: the task's value of ``higher_is_better``.

    Raises:
        BenchmarkError: it is neither true nor false. The text "false" would count as true.
    """
    if higher is not None and not isinstance(higher, bool):
        raise BenchmarkError(
            f"benchmark {task}: higher_is_better of metric {metric} must be true or false, got {higher!r}. "
            f"Write it without quotes in the task's file."
        )
    return higher


def score_replies(
    task: Task, examples: Sequence[Example], replies: Sequence[Sequence[Reply]], *, errors: bool, samples: bool
) -> Score:
    """Filter and score a model's replies with lm_eval's own functions.

    Args:
        task: the lm_eval task that the examples come from.
        examples: the documents whose requests were answered.
        replies: for each example, one reply to each of its requests, in order.
        errors: compute standard errors (validation does not need them).
        samples: keep per-document results.

    Returns:
        The score, without the metrics that have no finite value (word_perplexity of texts without spaces).
    """
    answered = [_instances(task, example, answers) for example, answers in zip(examples, replies, strict=True)]
    for ensemble in task._filters:
        ensemble.apply([instance for instances in answered for instance in instances])
    values: dict[MetricKey, list[Any]] = defaultdict(list)
    kept: list[Mapping[str, Any]] = []
    for ensemble in task._filters:
        for instances in answered:
            filtered = [instance.filtered_resps[ensemble.name] for instance in instances]
            results = task.process_results(instances[0].doc, filtered)
            for metric, value in results.items():
                values[MetricKey(metric, ensemble.name)].append(value)
            if samples:
                kept.append(_sample(task, instances, filtered, ensemble.name, results))
    return _aggregated(task, values, documents=len(answered), errors=errors, samples=tuple(kept))


def score_without(task: Task, score: Score, left_out: Collection[int]) -> Score:
    """Return a score without some of its documents, by the task's own aggregations of the values in its samples.

    A metric whose value on all documents does not follow from the samples is left out: older versions wrote values of NumPy as
    text into their files.

    Args:
        task: the lm_eval task that was scored.
        score: its score on all documents, with the samples.
        left_out: numbers of documents (``Example.row``).
    """
    every, part = defaultdict[MetricKey, list[Any]](list), defaultdict[MetricKey, list[Any]](list)
    for sample in score.samples:
        for key in (MetricKey(name, sample["filter"]) for name in sample["metrics"]):
            if str(key) not in score.metrics:
                continue
            every[key].append(sample[key.metric])
            if sample["doc_id"] not in left_out:
                part[key].append(sample[key.metric])
    kept = {key: part[key] for key in part if _follows(task, key.metric, every[key], score.metrics[str(key)])}
    documents = len({sample["doc_id"] for sample in score.samples}.difference(left_out))
    return _aggregated(task, kept, documents=documents, errors=True)


def _follows(task: Task, metric: str, items: Sequence[Any], score: float) -> bool:
    """Return whether the aggregation of all items gives the score."""
    try:
        again = finite_value(task.aggregation().get(metric, mean), items)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # text where it expects numbers
        return False
    return again is not None and math.isclose(again, score, rel_tol=1e-9)


def _aggregated(
    task: Task,
    values: Mapping[MetricKey, Sequence[Any]],
    *,
    documents: int,
    errors: bool,
    samples: tuple[Mapping[str, Any], ...] = (),
) -> Score:
    """Return the score of the values that each document has of each metric; the arguments are those of ``score_replies``."""
    aggregations = task.aggregation()
    metrics, stderrs = {}, {}
    for key, items in values.items():
        aggregate = aggregations.get(key.metric, mean)
        score = finite_value(aggregate, items)
        if score is None:
            log.warning("%s of %s has no finite value here and is left out of the score.", key, task.config.task)
            continue
        metrics[str(key)], stderrs[str(key)] = score, standard_error(aggregate, items) if errors else None
    return Score(metrics=metrics, stderrs=stderrs, documents=documents, samples=samples)


def lm_eval_row(name: str, alias: str, score: SubtaskScore) -> dict[str, Any]:
    """Return the score of a task as lm_eval's results have it."""
    row: dict[str, Any] = {"name": name, "alias": alias, "sample_len": score.documents}
    for key, value in score.metrics.items():
        stderr = score.stderrs.get(key)
        row[key], row[MetricKey.parse(key).stderr] = value, "N/A" if stderr is None else stderr
    return row


def _instances(task: Task, example: Example, replies: Sequence[Reply]) -> list[Instance]:
    """Return the example's requests as lm_eval's instances, each with its reply."""
    metadata = (task.task_name, example.row, task.config.repeats)
    instances = []
    for index, (request, reply) in enumerate(zip(example.requests, replies, strict=True)):
        instance = Instance(request.kind, dict(example.document), _arguments(request), index, metadata)
        instance.resps.append(reply)
        instances.append(instance)
    return instances


def _arguments(request: Request) -> tuple[Any, ...]:
    """Return the arguments of lm_eval's instance of this request."""
    if request.kind == "loglikelihood_rolling":
        return (request.continuation,)
    return request.context, dict(request.generation) if request.kind == "generate_until" else request.continuation


def _sample(
    task: Task, instances: Sequence[Instance], filtered: Iterable[Reply], name: str, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one document's results in the schema that ``lm_eval.evaluate(log_samples=True)`` writes."""
    doc, target = instances[0].doc, task.doc_to_target(instances[0].doc)
    text = json.dumps(doc, indent=2, default=lm_eval_utils.handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": instances[0].doc_id,
        "doc": doc,
        "target": target,
        "arguments": [instance.args for instance in instances],
        "resps": [instance.resps for instance in instances],
        "filtered_resps": list(filtered),
        "filter": name,
        "metrics": list(results),
        "doc_hash": lm_eval_utils.hash_string(text),
        "prompt_hash": lm_eval_utils.hash_string(instances[0].arguments[0]),
        "target_hash": lm_eval_utils.hash_string(str(target)),
        **{metric: _plain(value) for metric, value in results.items()},
    }


def _plain(value: Any) -> Any:
    """Return a metric's value with Python's numbers for those of NumPy, which a JSON file would hold as text."""
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
