"""A model's replies become a score: converted, filtered and scored by lm_eval's own functions."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    aggregations = task.aggregation()
    metrics, stderrs = {}, {}
    for key, items in values.items():
        aggregate = aggregations.get(key.metric, mean)
        score = finite_value(aggregate, items)
        if score is None:
            log.warning("%s of %s has no finite value here and is left out of the score.", key, task.config.task)
            continue
        metrics[str(key)], stderrs[str(key)] = score, standard_error(aggregate, items) if errors else None
    return Score(metrics=metrics, stderrs=stderrs, documents=len(answered), samples=tuple(kept))


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
        **results,
    }
